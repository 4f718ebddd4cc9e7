"""Arcee: Llama with an ungated feed-forward of squared ReLUs (Arcee AI 2025)."""

from ..config_rows import Fixed, Pair, pairs
from ..family import Family
from .shared_fields import ATTENTION_BIAS, SIZES
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, PLAIN_MLP, PRE_NORMS

FAMILY = Family(
    model_type="arcee",
    architecture="ArceeForCausalLM",
    kind="dense",
    config_rows=(
        *SIZES,
        *pairs("mlp_bias"),
        Pair("rms_norm_eps", "norm_eps"),
        ATTENTION_BIAS,
        Fixed("feed_forward_type", "mlp"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *PLAIN_MLP, *PRE_NORMS),
)
