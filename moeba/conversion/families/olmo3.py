"""OLMo 3: OLMo 2 with sliding layers, which may have a rope of their own (OLMo Team 2025)."""

from __future__ import annotations

from ..family import Family
from .olmo2 import CONFIG_ROWS, ROWS
from .shared_fields import LISTED_WINDOW

FAMILY = Family(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    kind="dense",
    config_rows=(*CONFIG_ROWS, LISTED_WINDOW),
    rows=ROWS,
)
