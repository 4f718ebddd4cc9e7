"""Mistral: Llama's block, with a sliding window in all layers or in none (Jiang et al. 2023)."""

from ..config_rows import Pair
from ..family import Family
from .shared.fields import SIZES
from .shared.layer_kinds import UNIFORM_WINDOW
from .shared.tensors import LLAMA_TENSORS

FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    kind="dense",
    config_rows=(*SIZES, Pair("rms_norm_eps", "norm_eps"), UNIFORM_WINDOW),
    rows=LLAMA_TENSORS,
)
