"""Apertus: a norm on each query and key head, an ungated feed-forward whose activation learns (Swiss AI 2025)."""

from ..config_rows import Fixed, Pair
from ..family import Family
from ..rows import renamed, same
from .shared_fields import ATTENTION_BIAS, SIZES, UNLISTED_HEAD_DIM, without
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, LAYER, PLAIN_MLP, QK_NORM

FAMILY = Family(
    model_type="apertus",
    architecture="ApertusForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "head_dim"),
        UNLISTED_HEAD_DIM,
        Pair("rms_norm_eps", "norm_eps"),
        ATTENTION_BIAS,
        Fixed("feed_forward_type", "mlp"),
        Fixed("qk_norm", "head"),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *QK_NORM,
        *PLAIN_MLP,
        *same(*(f"{LAYER}.mlp.act_fn.{name}" for name in ("alpha_p", "alpha_n", "beta", "eps"))),
        renamed(f"{LAYER}.attention_layernorm.weight", f"{LAYER}.input_layernorm.weight"),
        renamed(f"{LAYER}.feedforward_layernorm.weight", f"{LAYER}.post_attention_layernorm.weight"),
    ),
)
