"""Gemma: Llama's block with weights stored around 1 and embeddings scaled by their width (Gemma Team 2024)."""

from ..config_rows import Stated
from ..family import Family
from .shared.fields import ATTENTION_BIAS, SIZES
from .shared.gemma_blocks import CAUSAL, NORMS_AND_EMBEDDINGS
from .shared.tensors import LLAMA_TENSORS

GATE = Stated("hidden_activation", lambda config: config.hidden_act, "vLLM and SGLang do not read hidden_act")

FAMILY = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    kind="dense",
    config_rows=(*SIZES, ATTENTION_BIAS, CAUSAL, *NORMS_AND_EMBEDDINGS, GATE),
    rows=LLAMA_TENSORS,
)
