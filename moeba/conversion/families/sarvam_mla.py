"""Sarvam-105B: the DeepSeek-V3 model under a config of its own (Sarvam AI 2026)."""

from dataclasses import replace

from .deepseek_v3 import FAMILY as DEEPSEEK_V3

FAMILY = replace(
    DEEPSEEK_V3,
    model_type="sarvam_mla",
    since="5.24",
    # Of the authors' code.
    leftovers=(
        *DEEPSEEK_V3.leftovers, "attn_implementation", "default_theta", "embedding_dropout", "output_dropout",
        "q_head_dim",
    ),
    restated=(
        *DEEPSEEK_V3.restated, ("moe_router_enable_expert_bias", True), ("router_dtype", "fp32"),
        ("score_function", "sigmoid"), ("use_qk_norm", True),
    ),
)  # fmt: skip
