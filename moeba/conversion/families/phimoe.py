"""Phi-3.5-MoE: Mixtral with layer norms, and experts picked by sparse mixing (Abdin et al. 2024, GRIN 2024)."""

from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Only, Pair, pairs
from ..family import Family
from ..rows import same
from .shared.experts import BLOCK_SPARSE_MOE, LOCAL_EXPERTS, ROUTER_LOSS
from .shared.fields import ATTENTION_BIAS, SIZES_HEAD_DIM_UNLISTED, without
from .shared.layer_kinds import UNIFORM_WINDOW
from .shared.rope import one_whole_rope, single_rope
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, LAYER, PRE_NORMS

MSCALES = ("short_mscale", "long_mscale")


def _rope(native: Any) -> dict[str, Any]:
    rope = dict(one_whole_rope(native))
    if rope["rope_type"] == "default":
        return {"rope_parameters": rope}
    if rope["rope_type"] != "longrope":
        raise ValueError(f"rope_type={rope['rope_type']!r} is supported as 'default' and 'longrope' only: no other "
                         "one has the factor on cosines and sines that mscale gives here")  # fmt: skip
    short, long = (rope.pop(name) for name in MSCALES)
    if short != long:
        raise ValueError(
            f"short_mscale={short} and long_mscale={long} differ: Moeba has one factor for all lengths"
        )
    return {"rope_parameters": {**rope, "attention_factor": short}}


def _rope_back(config: MoebaConfig) -> dict[str, Any]:
    rope = dict(single_rope(config) or {})
    if rope.get("rope_type") == "longrope":
        if "attention_factor" not in rope:
            raise ValueError("its longrope needs an attention_factor")
        rope |= dict.fromkeys(MSCALES, rope["attention_factor"])
    return {"rope_parameters": rope}


FAMILY = Family(
    model_type="phimoe",
    architecture="PhimoeForCausalLM",
    served_as="PhiMoEForCausalLM",
    kind="moe",
    config_rows=(
        *without(SIZES_HEAD_DIM_UNLISTED, "intermediate_size", "rope_parameters"),
        *pairs("lm_head_bias"),
        *ROUTER_LOSS,
        # The second is a copy of what the settings have.
        Computed(("rope_parameters", "original_max_position_embeddings"), _rope, _rope_back),
        *LOCAL_EXPERTS,
        Pair("rms_norm_eps", "norm_eps"),
        Pair("router_jitter_noise", "sparsemixer_eps"),
        Pair("input_jitter_noise", "router_jitter_noise"),
        Only("num_experts_per_tok", 2, "sparse mixing picks two"),
        UNIFORM_WINDOW,
        ATTENTION_BIAS,
        Fixed("num_experts_per_tok", 2),
        Fixed("norm_type", "layernorm"),
        Fixed("router_type", "sparsemixer"),
        Fixed("router_jitter_draws", 2),
        Fixed("longrope_factors", "short"),
        Fixed("longrope_restarts_cache", True),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *PRE_NORMS,
        *same(f"{LAYER}.input_layernorm.bias", f"{LAYER}.post_attention_layernorm.bias", "model.norm.bias"),
        *same("lm_head.bias"),
        *BLOCK_SPARSE_MOE,
    ),
)
