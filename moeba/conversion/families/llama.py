"""Llama: pre-norm, rotary positions, gated feed-forward (Touvron et al. 2023)."""

from ..config_rows import Inert, Pair, pairs
from ..family import Family
from .shared_fields import ATTENTION_BIAS, SIZES
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, PRE_NORMS

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    kind="dense",
    config_rows=(
        *SIZES,
        *pairs("mlp_bias"),
        Pair("rms_norm_eps", "norm_eps"),
        ATTENTION_BIAS,
        Inert("pretraining_tp", "a way to slice the products of one training setup"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *PRE_NORMS),
)
