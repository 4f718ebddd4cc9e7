"""BLOOM: alibi, a norm after the embeddings, queries, keys and values fused head by head (BigScience 2022)."""

from typing import Any

from ..config_rows import Computed, Fixed, Inert, Pair, pairs
from ..family import Family
from ..rows import Row, SplitGroups, linear, renamed
from .shared_fields import CLASSIC, TRAINED_PADDING
from .shared_tensors import LAYER, fused_qkv, linears

BLOCK = "transformer.h.{layer}"


def _exactness(native: Any) -> dict[str, Any]:
    if native["pretraining_tp"] > 1 and native["slow_but_exact"]:
        raise ValueError(
            f"pretraining_tp={native['pretraining_tp']} with slow_but_exact=True is not supported: the stock code "
            "leaves out the biases of its output projections then"
        )
    return {}


# BLOOM's and Falcon's block, but for its norms.
TENSORS: tuple[Row, ...] = (
    renamed("transformer.word_embeddings.weight", "model.embed_tokens.weight"),
    renamed("lm_head.weight", "lm_head.weight"),
    *linear("transformer.ln_f", "model.norm"),
    *fused_qkv(f"{BLOCK}.self_attention.query_key_value", SplitGroups()),
    *linear(f"{BLOCK}.self_attention.dense", f"{LAYER}.self_attn.o_proj"),
    *linears(f"{BLOCK}.mlp", f"{LAYER}.mlp", up_proj="dense_h_to_4h", down_proj="dense_4h_to_h"),
)
NORMS: tuple[Row, ...] = linears(
    BLOCK, LAYER, input_layernorm="input_layernorm", post_attention_layernorm="post_attention_layernorm"
)

FAMILY = Family(
    model_type="bloom",
    architecture="BloomForCausalLM",
    kind="dense",
    rounds_otherwise=True,
    config_rows=(
        *pairs("hidden_dropout", "attention_dropout"),
        Pair("n_layer", "num_hidden_layers"),
        Pair("n_head", "num_attention_heads"),
        Pair("layer_norm_epsilon", "norm_eps"),
        Computed(
            ("hidden_size",),
            lambda native: {
                "hidden_size": native["hidden_size"],
                "intermediate_size": 4 * native["hidden_size"],
            },
            lambda config: {"hidden_size": config.hidden_size},
        ),
        Computed(
            ("apply_residual_connection_post_layernorm",),
            lambda native: {
                "block_order": "pre_norm_normed_residual"
                if native["apply_residual_connection_post_layernorm"]
                else "pre_norm"
            },
            lambda config: {
                "apply_residual_connection_post_layernorm": config.block_order == "pre_norm_normed_residual"
            },
        ),
        Computed(("pretraining_tp", "slow_but_exact"), _exactness, lambda config: {}),
        Inert("n_embed", "an older name of hidden_size, which the stock config takes over"),
        Fixed("position_embedding_type", "alibi"),
        Fixed("embedding_norm", True),
        Fixed("hidden_act", "gelu_fast"),
        *CLASSIC,
        TRAINED_PADDING,
    ),
    rows=(*TENSORS, *NORMS, *linear("transformer.word_embeddings_layernorm", "model.embed_norm")),
    base_prefix="transformer.",
    reordered="stock adds distances within the product of queries and keys",
)
