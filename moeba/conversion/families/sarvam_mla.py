"""Sarvam-105B: the DeepSeek-V3 model under a config of its own (Sarvam AI 2026)."""

from dataclasses import replace

from ..config_rows import Stated
from .deepseek_v3 import FAMILY as DEEPSEEK_V3
from .sarvam_moe import SCORES

FAMILY = replace(
    DEEPSEEK_V3,
    model_type="sarvam_mla",
    since="5.24",
    config_rows=(
        *DEEPSEEK_V3.config_rows,
        *SCORES,
        Stated("use_qk_norm", True, "the inner norms of latent attention, by the authors' name"),
    ),
)
