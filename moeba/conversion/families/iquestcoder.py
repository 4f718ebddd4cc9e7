"""IQuest-Coder: the Llama model itself under a config of its own (IQuest Lab 2026)."""

from dataclasses import replace

from .llama import FAMILY as LLAMA
from .shared_fields import without

FAMILY = replace(
    LLAMA,
    model_type="iquestcoder",
    config_rows=without(LLAMA.config_rows, "pretraining_tp"),
    # Of the authors' code; their checkpoints use neither.
    leftovers=("max_window_layers",),
    restated=(("clip_qkv", None), ("use_sliding_window", False), ("sliding_window", None)),
)
