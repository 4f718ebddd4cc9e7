"""HyperCLOVA X: Granite whose logits are multiplied, mostly with norms behind the branches too (NAVER 2025)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Pair
from ..family import Family
from ..rows import Row, renamed, same
from .shared.fields import SIZES, scaled_logits, without
from .shared.granite_blocks import BIASES_AND_SCALES
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, LAYER


def _branches(native: Any) -> dict[str, Any]:
    sandwich, multiplier = native["use_post_norm"], native["residual_multiplier"]
    if sandwich and multiplier != 1.0:
        raise ValueError(
            f"residual_multiplier={multiplier} is supported with use_post_norm=False only: the stock model multiplies "
            "a branch behind its last norm, Moeba before it"
        )
    return {"block_order": "sandwich_norm" if sandwich else "pre_norm", "residual_multiplier": multiplier}


def _branches_back(config: MoebaConfig) -> dict[str, Any]:
    return {"use_post_norm": _sandwich(config), "residual_multiplier": config.residual_multiplier}


def _sandwich(config: MoebaConfig) -> bool:
    return config.block_order == "sandwich_norm"


def _norm(theirs: str, plain: str | None, sandwich: str) -> tuple[Row, ...]:
    """A norm of a block, by our names without and with norms behind the branches."""
    between = replace(renamed(f"{LAYER}.{theirs}.weight", f"{LAYER}.{sandwich}.weight"), when=_sandwich)
    if plain is None:
        return (between,)
    before = renamed(f"{LAYER}.{theirs}.weight", f"{LAYER}.{plain}.weight")
    return (between, replace(before, when=lambda config: not _sandwich(config)))


FAMILY = Family(
    model_type="hyperclovax",
    architecture="HyperCLOVAXForCausalLM",
    kind="dense",
    config_rows=(
        *SIZES,
        Pair("rms_norm_eps", "norm_eps"),
        *without(BIASES_AND_SCALES, "logits_scaling", "residual_multiplier"),
        scaled_logits("logits_scaling", "multiply"),
        Computed(("use_post_norm", "residual_multiplier"), _branches, _branches_back),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *GATED_MLP,
        *same(f"{LAYER}.input_layernorm.weight"),
        *_norm("post_norm1", None, "post_attention_layernorm"),
        *_norm("post_attention_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm"),
        *_norm("post_norm2", None, "post_feedforward_layernorm"),
    ),
)
