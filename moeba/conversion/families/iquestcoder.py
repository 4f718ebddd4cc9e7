"""IQuest-Coder: the Llama model itself under a config of its own (IQuest Lab 2026)."""

from dataclasses import replace

from .llama import FAMILY as LLAMA
from .shared_fields import without

FAMILY = replace(
    LLAMA,
    model_type="iquestcoder",
    config_rows=without(LLAMA.config_rows, "pretraining_tp"),
)
