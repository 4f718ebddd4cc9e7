"""Hunyuan-A13B: Hunyuan's block with experts and a shared one as wide as they; layers may differ in top-k (2025)."""

from collections.abc import Callable
from typing import Any

from ...configuration import MoebaConfig
from ...configuration.model_facts import layer_view
from ..config_rows import Computed, Fixed, Inert, Stated, pairs
from ..family import Family
from ..rows import renamed
from .shared.experts import NO_ROUTER_LOSS
from .shared.fields import without
from .shared.layer_kinds import each_layer
from .shared.llama_blocks import HUNYUAN_FIELDS, HUNYUAN_TENSORS
from .shared.tensors import LAYER, ROUTED_EXPERTS, shared_expert


def _experts_per_token(native: Any) -> dict[str, Any]:
    """One number, or one a layer."""
    given, layers = native["moe_topk"], native["num_hidden_layers"]
    counts = given if isinstance(given, list) else [given] * layers
    if len(counts) < layers:
        raise ValueError(f"moe_topk={given} has {len(counts)} entries for num_hidden_layers={layers}")
    return each_layer("num_experts_per_tok", counts[:layers])


def _experts_per_token_back(config: MoebaConfig) -> dict[str, Any]:
    counts = [layer_view(config, i).num_experts_per_tok for i in range(config.num_hidden_layers)]
    return {"moe_topk": counts if len(set(counts)) > 1 else counts[0]}


def _width(native: Any) -> dict[str, Any]:
    return dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size"), native["intermediate_size"]
    )


def _for_each_layer(value: Callable[[MoebaConfig], int]) -> Callable[[MoebaConfig], list[int]]:
    return lambda config: [value(config)] * config.num_hidden_layers


FAMILY = Family(
    model_type="hunyuan_v1_moe",
    architecture="HunYuanMoEV1ForCausalLM",
    kind="moe",
    config_rows=(
        *without(HUNYUAN_FIELDS, "intermediate_size"),
        *pairs("num_experts"),
        *NO_ROUTER_LOSS,
        Computed(
            ("intermediate_size",), _width, lambda config: {"intermediate_size": config.moe_intermediate_size}
        ),
        Computed(("moe_topk",), _experts_per_token, _experts_per_token_back),
        # Made in float32 by its own constructor, which loading in another dtype leaves alone.
        Fixed("router_param_dtype", "float32"),
        Fixed("router_weight_dtype", "float32"),
        Inert("sep_token_id", "a token between texts, for whoever joins them"),
        # What the authors' code, vLLM and llama.cpp's converter read of one shared expert beside the chosen ones.
        Stated("use_mixed_mlp_moe", True, "vLLM has the shared expert where it says so"),
        Stated("num_shared_expert", _for_each_layer(lambda config: 1), "engines ask for one a layer", required=False),
        Stated("moe_intermediate_size", _for_each_layer(lambda config: config.moe_intermediate_size),
               "llama.cpp's converter and vLLM take the widths from it", required=False),
        Stated("norm_topk_prob", True, "the authors' code renormalises where it says so"),
        Stated("group_limited_greedy", False, "the authors' code chooses within groups where it says so"),
        Stated("moe_layer_num_skipped", 0, "the authors' code has so many dense layers first"),
        Stated("mlp_bias", False, "biases of the feed-forwards, in the authors' code"),
        Stated("norm_type", "rms", "the authors' code has layer norms otherwise"),
        Stated("use_mla", False, "the authors' code has latent attention where it says so"),
    ),
    rows=(
        *HUNYUAN_TENSORS,
        renamed(f"{LAYER}.mlp.gate.wg.weight", f"{LAYER}.mlp.gate.weight"),
        *shared_expert("shared_mlp"),
        *ROUTED_EXPERTS,
    ),
)  # fmt: skip
