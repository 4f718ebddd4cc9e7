"""Falcon: three layouts of heads and norms, rope or alibi (Almazrouei et al. 2023).

The stock eager attention adds alibi twice. Its sdpa attention, which is the default, adds it once, as training did.
"""

from dataclasses import replace
from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Inert, Pair, pairs
from ..family import Family
from .shared.fields import TRAINED_PADDING, every_bias
from .shared.gpt_blocks import BLOOM_NORMS, BLOOM_TENSORS, GPT_BLOCK
from .shared.rope import ONE_ROPE, single_rope
from .shared.tensors import LAYER, PADDED_ROWS, linears

SHAPE = (
    "new_decoder_architecture",
    "parallel_attn",
    "num_ln_in_parallel_attn",
    "multi_query",
    "num_kv_heads",
)


def _shape(native: Any) -> dict[str, Any]:
    new, parallel, norms, multi_query, kv_heads = (native[name] for name in SHAPE)
    heads = native["num_attention_heads"]
    norms = 2 if norms is None and new else norms
    problem = None
    if new and (not parallel or norms not in (1, 2)):
        problem = "the new decoder is parallel, with one norm or two"
    elif not new and parallel and norms == 2:
        problem = "the old decoder's parallel branches share one norm"
    elif not new and not multi_query and kv_heads != heads:
        problem = f"the old decoder has one key/value head, or all {heads}"
    if problem:
        told = ", ".join(f"{name}={native[name]!r}" for name in SHAPE)
        raise ValueError(f"{told} is not supported, nor by the stock model: {problem}")
    order = ("parallel_two_norms" if new and norms == 2 else "parallel") if parallel else "pre_norm"
    return {
        "block_order": order,
        "num_key_value_heads": kv_heads if new else 1 if multi_query else heads,
    }


def _has_two_norms(config: MoebaConfig) -> bool:
    return config.block_order == "parallel_two_norms"


def _shape_back(config: MoebaConfig) -> dict[str, Any]:
    kv_heads, parallel = config.num_key_value_heads, config.block_order != "pre_norm"
    two_norms = _has_two_norms(config)
    new = two_norms or parallel and kv_heads not in (1, config.num_attention_heads)
    return {
        "new_decoder_architecture": new,
        "parallel_attn": parallel,
        "num_ln_in_parallel_attn": (2 if two_norms else 1) if new else None,
        "multi_query": not new and kv_heads == 1,
        # Not read by transformers where all heads share one, and read by llama.cpp's converter.
        "num_kv_heads": kv_heads,
    }


def _positions(native: Any) -> dict[str, Any]:
    if not native["alibi"]:
        return ONE_ROPE.to_ours(native)
    head_dim = native["hidden_size"] // native["num_attention_heads"]
    return {
        "position_embedding_type": "alibi",
        "alibi_dtype": "bfloat16",
        "alibi_multiplier": head_dim**-0.5,
    }


def _positions_back(config: MoebaConfig) -> dict[str, Any]:
    alibi = config.position_embedding_type == "alibi"
    return {"alibi": alibi} if alibi else {"alibi": False, "rope_parameters": single_rope(config)}


FAMILY = Family(
    model_type="falcon",
    architecture="FalconForCausalLM",
    kind="dense",
    rounds_otherwise=True,
    trains_otherwise=(
        "stock drops out the sum of parallel branches, an attention's answer at its own rate, and attention's weights "
        "with ALiBi alone"
    ),
    config_rows=(
        *pairs("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
        *pairs("hidden_dropout", "attention_dropout"),
        Pair("ffn_hidden_size", "intermediate_size"),
        Pair("activation", "hidden_act"),
        Pair("layer_norm_epsilon", "norm_eps"),
        every_bias("bias"),
        Computed(SHAPE, _shape, _shape_back),
        Computed(("alibi", "rope_parameters"), _positions, _positions_back),
        Inert("n_embed", "an older name of hidden_size, which the stock config takes over"),
        Fixed("norm_type", "layernorm"),
        Fixed("feed_forward_type", "mlp"),
        TRAINED_PADDING,
    ),
    rows=(
        *BLOOM_TENSORS,
        *(replace(row, when=lambda config: not _has_two_norms(config)) for row in BLOOM_NORMS),
        *(
            replace(row, when=_has_two_norms)
            for row in linears(GPT_BLOCK, LAYER, input_layernorm="ln_attn", post_attention_layernorm="ln_mlp")
        ),
    ),
    base_prefix="transformer.",
    reordered="stock divides scores by a root instead of multiplying, and adds biases after the products; its eager "
    "attention adds alibi twice, and both of Moeba's once, as its sdpa does and training did; " + PADDED_ROWS,
)
