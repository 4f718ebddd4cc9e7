"""Ministral: Mistral with a sliding window in some layers (Mistral AI 2024)."""

from ..config_rows import Pair
from ..family import Family
from .shared_fields import LISTED_WINDOW, SIZES
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, PRE_NORMS

FAMILY = Family(
    model_type="ministral",
    architecture="MinistralForCausalLM",
    kind="dense",
    config_rows=(*SIZES, Pair("rms_norm_eps", "norm_eps"), LISTED_WINDOW),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *PRE_NORMS),
)
