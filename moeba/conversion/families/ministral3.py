"""Ministral 3: Mistral whose queries grow with their position (Mistral AI 2025)."""

from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Pair
from ..family import Family
from .shared_fields import SIZES, UNIFORM_WINDOW, one_rope, single_rope, whole_heads, without
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, PRE_NORMS

BETA, ORIGINAL = "llama_4_scaling_beta", "original_max_position_embeddings"


def _growing_rope(native: Any) -> dict[str, Any]:
    rope = dict(whole_heads(one_rope(native["rope_parameters"])))
    beta = rope.pop(BETA, None)
    if beta is None or ORIGINAL not in rope:
        raise ValueError(
            f"rope_parameters={native['rope_parameters']} lacks {BETA} or {ORIGINAL}: the stock model needs both"
        )
    rope.pop("max_position_embeddings", None)  # a copy of the config's own, which nothing reads
    if not beta and rope["rope_type"] in ("default", "linear", "dynamic"):
        del rope[ORIGINAL]  # only the growth reads it
    return {"rope_parameters": rope, "query_growth_beta": beta or None}


def _growing_rope_back(config: MoebaConfig) -> dict[str, Any]:
    # A growth of 0 multiplies by exactly 1, but the stock model still asks where it would begin.
    grown = {ORIGINAL: config.max_position_embeddings, BETA: config.query_growth_beta or 0.0}
    return {"rope_parameters": {**grown, **(single_rope(config) or {})}}


GROWING_ROPE = Computed(("rope_parameters",), _growing_rope, _growing_rope_back)

FAMILY = Family(
    model_type="ministral3",
    architecture="Ministral3ForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "rope_parameters"),
        GROWING_ROPE,
        Pair("rms_norm_eps", "norm_eps"),
        UNIFORM_WINDOW,
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *PRE_NORMS),
)
