"""Hunyuan-A13B: Hunyuan's block with experts and a shared one as wide as they; layers may differ in top-k (2025)."""

from typing import Any

from ...configuration import MoebaConfig
from ...configuration.model_facts import layer_view
from ..config_rows import Computed, Fixed, Inert, pairs
from ..family import Family
from ..rows import renamed
from .hunyuan_v1_dense import FAMILY as DENSE
from .shared_fields import NO_ROUTER_LOSS, without
from .shared_tensors import GATED_MLP, LAYER, ROUTED_EXPERTS, shared_expert


def _experts_per_token(native: Any) -> dict[str, Any]:
    """One number, or one a layer."""
    given, layers = native["moe_topk"], native["num_hidden_layers"]
    counts = given if isinstance(given, list) else [given] * layers
    if len(counts) < layers:
        raise ValueError(f"moe_topk={given} has {len(counts)} entries for num_hidden_layers={layers}")
    uneven = {
        i: {"num_experts_per_tok": count} for i, count in enumerate(counts[:layers]) if count != counts[0]
    }
    return {"num_experts_per_tok": counts[0]} | ({"per_layer_config": uneven} if uneven else {})


def _experts_per_token_back(config: MoebaConfig) -> dict[str, Any]:
    counts = [layer_view(config, i).num_experts_per_tok for i in range(config.num_hidden_layers)]
    return {"moe_topk": counts if len(set(counts)) > 1 else counts[0]}


def _width(native: Any) -> dict[str, Any]:
    return dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size"), native["intermediate_size"]
    )


FAMILY = Family(
    model_type="hunyuan_v1_moe",
    architecture="HunYuanMoEV1ForCausalLM",
    kind="moe",
    config_rows=(
        *without(DENSE.config_rows, "intermediate_size"),
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
    ),
    rows=(
        *(row for row in DENSE.rows if row not in GATED_MLP),
        renamed(f"{LAYER}.mlp.gate.wg.weight", f"{LAYER}.mlp.gate.weight"),
        *shared_expert("shared_mlp"),
        *ROUTED_EXPERTS,
    ),
    leftovers=(
        "add_classification_head", "attention_head_dim", "cla_share_factor", "class_num", "dense_list", "kv_lora_rank",
        "moe_drop_tokens", "moe_intermediate_size", "moe_random_routing_dropped_token", "n_group", "num_shared_expert",
        "org_vocab_size", "pool_type", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "topk_group",
        "v_head_dim",
    ),
    restated=(
        ("group_limited_greedy", False), ("mlp_bias", False), ("moe_layer_num_skipped", 0), ("norm_topk_prob", True),
        ("norm_type", "rms"), ("position_embedding_xdrope", False), ("routed_scaling_factor", 1.0), ("use_cla", False),
        ("use_mixed_mlp_moe", True), ("use_mla", False), ("use_qk_norm", True), ("use_rotary_pos_emb", True),
    ),
)  # fmt: skip
