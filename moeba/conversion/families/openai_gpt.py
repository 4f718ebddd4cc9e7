"""GPT: the first one, with a norm after each branch and none at the end (Radford et al. 2018)."""

from typing import Any

from ..config_rows import Computed, Fixed, Pair
from ..family import Family
from ..rows import Split, Transpose, renamed
from .shared.fields import CLASSIC, TRAINED_PADDING, fourfold_width
from .shared.gpt_blocks import GPT2_MASKS, GPT_BLOCK, GPT_SIZES, SUMMARY, gpt2_branches
from .shared.tensors import LAYER, PADDED_ROWS, linears, qkv_sizes

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
        *GPT_SIZES,
        *SUMMARY,
        fourfold_width("n_embd"),
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
        *linears(GPT_BLOCK, LAYER, post_attention_layernorm="ln_1", post_feedforward_layernorm="ln_2"),
        *gpt2_branches(Split(qkv_sizes), Transpose()),
    ),
    dropped=GPT2_MASKS,
    base_prefix="transformer.",
    reordered="stock multiplies by matrices that lie transposed, with queries, keys and values in one product; "
    + PADDED_ROWS,
)
