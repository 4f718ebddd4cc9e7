"""Ministral: Mistral with a sliding window in some layers (Mistral AI 2024)."""

from ..config_rows import Pair
from ..family import Family
from .shared.fields import SIZES
from .shared.layer_kinds import LISTED_WINDOW
from .shared.tensors import LLAMA_TENSORS

FAMILY = Family(
    model_type="ministral",
    architecture="MinistralForCausalLM",
    kind="dense",
    config_rows=(*SIZES, Pair("rms_norm_eps", "norm_eps"), LISTED_WINDOW),
    rows=LLAMA_TENSORS,
)
