"""Mistral 4: DeepSeek's latent attention, growing queries and softmax routing (Mistral AI 2026)."""

from typing import Any

from transformers import AutoModelForCausalLM, Mistral4Config, Mistral4ForCausalLM

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Pair
from ..family import Family
from ..rows import same
from .shared.experts import GROUPS, SCALED_EXPERTS, sparse_layers
from .shared.fields import SLICED, without
from .shared.latent_attention import LATENT_SIZES, ROPE_INTERLEAVE, head_parts, latent_attention
from .shared.rope import GROWING_ROPE
from .shared.tensors import EMBEDDINGS_AND_HEAD, GATED_MLP, MLP, PRE_NORMS, shared_expert

PARTIAL = "partial_rotary_factor"

# transformers 5.23 lists the class with those that read images, which leaves it out of this table.
AutoModelForCausalLM.register(Mistral4Config, Mistral4ForCausalLM, exist_ok=True)


def _rope(native: Any) -> dict[str, Any]:
    rope, rotated = dict(native["rope_parameters"]), native["qk_rope_head_dim"]
    whole, factor = native["qk_nope_head_dim"] + rotated, rope.pop(PARTIAL, 1.0)
    width = whole if rope.get("rope_type") == "default" else int(whole * factor)
    if width != rotated:
        raise ValueError(
            f"rope_parameters={native['rope_parameters']} turns {width} entries of a head, and "
            f"qk_rope_head_dim={rotated}: the stock model fails"
        )
    return GROWING_ROPE.to_ours({"rope_parameters": rope})


def _rope_back(config: MoebaConfig) -> dict[str, Any]:
    rope = GROWING_ROPE.to_theirs(config)["rope_parameters"]
    return {"rope_parameters": {**rope, PARTIAL: config.rotary_head_dim / config.head_dim}}


FAMILY = Family(
    model_type="mistral4",
    architecture="Mistral4ForCausalLM",
    kind="moe",
    config_rows=(
        *without(LATENT_SIZES, "rope_parameters"),
        *SCALED_EXPERTS,
        Pair("norm_topk_prob", "norm_topk_prob", ours_from=bool),
        GROUPS,
        Computed(("rope_parameters",), _rope, _rope_back),
        head_parts("qk_head_dim"),
        ROPE_INTERLEAVE,
        sparse_layers("first_k_dense_replace"),
        SLICED,
        Fixed("group_mask", "zero"),
        Fixed("norm_topk_eps", 1e-20),
        Fixed("router_score_dtype", "model"),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *latent_attention(),
        *PRE_NORMS,
        *GATED_MLP,
        *same(*(f"{MLP}.{name}" for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"))),
        *shared_expert("shared_experts"),
    ),
)
