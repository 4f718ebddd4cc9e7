"""Gemma: Llama's block with weights stored around 1 and embeddings scaled by their width (Gemma Team 2024)."""

from __future__ import annotations

from typing import Any

from ..config_rows import Computed, ConfigRow, Fixed, Pair, Stated
from ..family import Family
from .shared_fields import ATTENTION_BIAS, SIZES
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, PRE_NORMS


def _causal(native: Any) -> dict[str, Any]:
    if native["use_bidirectional_attention"]:
        raise ValueError(
            f"use_bidirectional_attention={native['use_bidirectional_attention']} is not supported: "
            "a token of a causal language model sees no later ones"
        )
    return {}


CAUSAL = Computed(
    ("use_bidirectional_attention",), _causal, lambda config: {"use_bidirectional_attention": False}
)

# What all Gemmas share.
NORMS_AND_EMBEDDINGS: tuple[ConfigRow, ...] = (
    Pair("rms_norm_eps", "norm_eps"),
    Fixed("norm_type", "rmsnorm_unit_offset"),
    Computed((), lambda native: {"embedding_multiplier": native["hidden_size"] ** 0.5}, lambda config: {}),
    Fixed("round_embedding_multiplier", True),
)

GATE = Stated("hidden_activation", lambda config: config.hidden_act, "vLLM and SGLang do not read hidden_act")

FAMILY = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    kind="dense",
    config_rows=(*SIZES, ATTENTION_BIAS, CAUSAL, *NORMS_AND_EMBEDDINGS, GATE),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *PRE_NORMS),
)
