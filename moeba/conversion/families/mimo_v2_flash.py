"""MiMo-V2-Flash: small value heads; sliding layers have sinks and twice the key/value heads (Xiaomi 2026)."""

from collections.abc import Callable
from typing import Any

from ...configuration import MoebaConfig
from ...configuration.model_facts import layer_view, rope_of
from ..config_rows import Computed, Fixed, Pair, Stated, pairs
from ..family import Family
from ..rows import Dropped, renamed
from .shared.experts import GROUPED_EXPERTS, MIXED_BLOCK, MORE_TOKENS, ROUTED_AS, SELECTION_BIAS
from .shared.fields import SIZES, without
from .shared.layer_kinds import LISTED_WINDOW, each_layer, listed_kinds
from .shared.rope import rope_by_kind
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, LAYER

SLIDING = "sliding_attention"


def _kv_heads(native: Any) -> dict[str, Any]:
    count = native["num_key_value_heads"]
    counts = [count * 2 if kind == SLIDING else count for kind in native["layer_types"]]
    return each_layer("num_key_value_heads", counts or [count])


def _kv_heads_back(config: MoebaConfig) -> dict[str, Any]:
    first = layer_view(config, 0).num_key_value_heads
    return {"num_key_value_heads": first // 2 if config.layer_types[0] == SLIDING else first}


def _value_scale(native: Any) -> dict[str, Any]:
    scale = native["attention_value_scale"]
    return {"attention_value_multiplier": 1.0 if scale is None else scale}


def _value_scale_back(config: MoebaConfig) -> dict[str, Any]:
    return {"attention_value_scale": config.attention_value_multiplier}


def _first_of(kind: str, value: Callable[[Any], Any]) -> Callable[[MoebaConfig], Any]:
    """What `value` gives for the first layer of a kind; None where there is no such layer."""

    def of_layer(config: MoebaConfig) -> Any:
        return (
            value(layer_view(config, config.layer_types.index(kind))) if kind in config.layer_types else None
        )

    return of_layer


def _rope_of(kind: str, setting: str) -> Callable[[MoebaConfig], Any]:
    def of_kind(config: MoebaConfig) -> Any:
        rope = rope_of(config)
        return rope.get(kind, {} if config.rope_is_per_layer_type else rope).get(setting)

    return of_kind


# vLLM reads the authors' config.json, in which transformers' names are not.
AUTHORS_NAMES = tuple(
    Stated(name, value, "vLLM reads it, and none of transformers' names for it", required=required)
    for name, value, required in (
        ("layernorm_epsilon", lambda config: config.norm_eps, True),
        ("hybrid_layer_pattern", lambda config: [int(kind == SLIDING) for kind in config.layer_types], True),
        (
            "moe_layer_freq",
            lambda config: [int(kind == "sparse") for kind in config.mlp_layer_types or []],
            True,
        ),
        ("add_swa_attention_sink_bias", True, True),
        ("add_full_attention_sink_bias", False, True),
        ("swa_num_attention_heads", _first_of(SLIDING, lambda layer: layer.num_attention_heads), True),
        ("swa_num_key_value_heads", _first_of(SLIDING, lambda layer: layer.num_key_value_heads), True),
        ("swa_head_dim", _first_of(SLIDING, lambda layer: layer.head_dim), True),
        ("swa_v_head_dim", _first_of(SLIDING, lambda layer: layer.v_head_dim), True),
        ("swa_rope_theta", _rope_of(SLIDING, "rope_theta"), False),
        ("rope_theta", _rope_of("full_attention", "rope_theta"), False),
        ("partial_rotary_factor", _rope_of("full_attention", "partial_rotary_factor"), False),
        ("sliding_window_size", lambda config: config.sliding_window and config.sliding_window - 1, False),
    )
)

FAMILY = Family(
    model_type="mimo_v2_flash",
    architecture="MiMoV2FlashForCausalLM",
    kind="moe",
    config_rows=(
        *without(SIZES, "num_key_value_heads", "rope_parameters"),
        *pairs("v_head_dim", "attention_bias"),
        Pair("rms_norm_eps", "norm_eps"),
        Computed(("attention_value_scale",), _value_scale, _value_scale_back),
        LISTED_WINDOW,
        Computed(("num_key_value_heads",), _kv_heads, _kv_heads_back),
        rope_by_kind(0.334),
        listed_kinds("n_routed_experts"),
        *GROUPED_EXPERTS,
        Fixed("attention_output_bias", False),
        Fixed("attention_sink_layer_types", [SLIDING]),
        Fixed("attention_softmax_dtype", "model"),
        *without(ROUTED_AS, "moe_layer_freq"),
        *AUTHORS_NAMES,
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        renamed(f"{LAYER}.self_attn.attention_sink_bias", f"{LAYER}.self_attn.sinks"),
        *MIXED_BLOCK,
        *SELECTION_BIAS,
    ),
    dropped=(Dropped("model.mtp.{rest}", MORE_TOKENS),),
)
