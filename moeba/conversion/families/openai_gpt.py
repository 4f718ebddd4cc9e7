"""GPT: the first one, with a norm after each branch and none at the end (Radford et al. 2018)."""

from typing import Any

from ..config_rows import Computed, Fixed, Pair
from ..family import Family
from ..rows import Split, Transpose, linear, renamed
from .gpt2 import BLOCK, MASKS, SIZES, SUMMARY
from .shared_fields import CLASSIC, TRAINED_PADDING
from .shared_tensors import LAYER, PADDED_ROWS, fused_qkv, linears

ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}


def _activation(name: Any) -> str:
    """The stock class has its own table, in which gelu is the approximation by tanh."""
    if name not in ACTIVATIONS:
        raise ValueError(f"afn={name!r} is none of the stock model's activations: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


FAMILY = Family(
    model_type="openai-gpt",
    architecture="OpenAIGPTLMHeadModel",
    kind="dense",
    config_rows=(
        *SIZES,
        *SUMMARY,
        Computed(
            ("n_embd",),
            lambda native: {"hidden_size": native["n_embd"], "intermediate_size": 4 * native["n_embd"]},
            lambda config: {"n_embd": config.hidden_size},
        ),
        Computed(
            ("afn",),
            lambda native: {"hidden_act": _activation(native["afn"])},
            lambda config: {"afn": "gelu" if config.hidden_act == "gelu_new" else config.hidden_act},
        ),
        Pair("layer_norm_epsilon", "norm_eps"),
        Pair("attn_pdrop", "attention_dropout"),
        *CLASSIC,
        TRAINED_PADDING,
        Fixed("position_embedding_type", "learned"),
        Fixed("block_order", "post_norm"),
        Fixed("final_norm", False),
    ),
    rows=(
        renamed("transformer.tokens_embed.weight", "model.embed_tokens.weight"),
        renamed("transformer.positions_embed.weight", "model.embed_positions.weight"),
        renamed("lm_head.weight", "lm_head.weight"),
        *linears(BLOCK, LAYER, post_attention_layernorm="ln_1", post_feedforward_layernorm="ln_2"),
        *fused_qkv(f"{BLOCK}.attn.c_attn", Transpose(), Split(lambda config: [config.hidden_size] * 3)),
        *linear(f"{BLOCK}.attn.c_proj", f"{LAYER}.self_attn.o_proj", Transpose()),
        *linear(f"{BLOCK}.mlp.c_fc", f"{LAYER}.mlp.up_proj", Transpose()),
        *linear(f"{BLOCK}.mlp.c_proj", f"{LAYER}.mlp.down_proj", Transpose()),
    ),
    dropped=MASKS,
    base_prefix="transformer.",
    reordered="stock multiplies by matrices that lie transposed, with queries, keys and values in one product; "
    + PADDED_ROWS,
)
