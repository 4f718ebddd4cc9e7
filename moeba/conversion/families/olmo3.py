"""OLMo 3: OLMo 2 with sliding layers, which may have a rope of their own (OLMo Team 2025)."""

from ..family import Family
from .shared.fields import without
from .shared.layer_kinds import LISTED_WINDOW
from .shared.llama_blocks import OLMO2_FIELDS
from .shared.rope import rope_by_kind
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, OUTPUT_NORMS, QK_NORM

FAMILY = Family(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    kind="dense",
    config_rows=(*without(OLMO2_FIELDS, "rope_parameters"), rope_by_kind(), LISTED_WINDOW),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *QK_NORM, *GATED_MLP, *OUTPUT_NORMS),
)
