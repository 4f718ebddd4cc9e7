"""OLMo 2: norms of each branch's output and of whole queries and keys (OLMo Team 2024)."""

from ..family import Family
from .shared.llama_blocks import OLMO2_FIELDS
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, OUTPUT_NORMS, QK_NORM

FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    kind="dense",
    config_rows=OLMO2_FIELDS,
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *QK_NORM, *GATED_MLP, *OUTPUT_NORMS),
)
