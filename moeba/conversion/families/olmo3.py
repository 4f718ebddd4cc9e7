"""OLMo 3: OLMo 2 with sliding layers, which may have a rope of their own (OLMo Team 2025)."""

from __future__ import annotations

from ..family import Family
from .olmo2 import CONFIG_ROWS, ROWS
from .shared_fields import LISTED_WINDOW, rope_by_kind, without

FAMILY = Family(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    kind="dense",
    config_rows=(*without(CONFIG_ROWS, "rope_parameters"), rope_by_kind(), LISTED_WINDOW),
    rows=ROWS,
)
