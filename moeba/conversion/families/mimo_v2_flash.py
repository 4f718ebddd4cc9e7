"""MiMo-V2-Flash: small value heads; sliding layers have sinks and twice the key/value heads (Xiaomi 2026)."""

from typing import Any

from ...configuration import MoebaConfig
from ...configuration.model_facts import layer_view
from ..config_rows import Computed, Fixed, Inert, Pair, pairs
from ..family import Family
from ..rows import Dropped, renamed, same
from .deepseek import GROUPED_EXPERTS, MORE_TOKENS, SELECTION_BIAS
from .shared_fields import LISTED_WINDOW, SIZES, listed_kinds, rope_by_kind, without
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, LAYER, PRE_NORMS, ROUTED_EXPERTS


def _kv_heads(native: Any) -> dict[str, Any]:
    count = native["num_key_value_heads"]
    counts = [count * 2 if kind == "sliding_attention" else count for kind in native["layer_types"]] or [
        count
    ]
    uneven = {i: {"num_key_value_heads": own} for i, own in enumerate(counts) if own != counts[0]}
    return {"num_key_value_heads": counts[0]} | ({"per_layer_config": uneven} if uneven else {})


def _kv_heads_back(config: MoebaConfig) -> dict[str, Any]:
    first = layer_view(config, 0).num_key_value_heads
    return {"num_key_value_heads": first // 2 if config.layer_types[0] == "sliding_attention" else first}


def _value_scale(native: Any) -> dict[str, Any]:
    scale = native["attention_value_scale"]
    return {"attention_value_multiplier": 1.0 if scale is None else scale}


def _value_scale_back(config: MoebaConfig) -> dict[str, Any]:
    return {"attention_value_scale": config.attention_value_multiplier}


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
        Inert("sliding_window_size", "a smaller spelling of sliding_window, which the stock config has read"),
        Computed(("num_key_value_heads",), _kv_heads, _kv_heads_back),
        rope_by_kind(0.334),
        listed_kinds("n_routed_experts"),
        *GROUPED_EXPERTS,
        Fixed("attention_output_bias", False),
        Fixed("attention_sink_layer_types", ["sliding_attention"]),
        Fixed("attention_softmax_dtype", "model"),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *PRE_NORMS,
        *GATED_MLP,
        renamed(f"{LAYER}.self_attn.attention_sink_bias", f"{LAYER}.self_attn.sinks"),
        *same(f"{LAYER}.mlp.gate.weight"),
        *SELECTION_BIAS,
        *ROUTED_EXPERTS,
    ),
    dropped=(Dropped("model.mtp.{rest}", MORE_TOKENS),),
)
