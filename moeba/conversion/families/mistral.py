"""Mistral: Llama's block, with a sliding window in all layers or in none (Jiang et al. 2023)."""

from ..config_rows import Pair
from ..family import Family
from .shared_fields import SIZES, UNIFORM_WINDOW
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, PRE_NORMS

FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    kind="dense",
    config_rows=(*SIZES, Pair("rms_norm_eps", "norm_eps"), UNIFORM_WINDOW),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *PRE_NORMS),
)
