"""How a model is cut over devices: transformers' tensor, expert and pipeline parallel plans of Moeba's modules."""

from __future__ import annotations

from typing import Any

from .model_facts import layer_view

TENSOR_PARALLEL: dict[str, str] = {
    "layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.k_proj": "colwise",
    "layers.*.self_attn.v_proj": "colwise",
    "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
    "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
    "layers.*.self_attn.o_proj": "rowwise",
    "layers.*.mlp.gate_proj": "colwise",
    "layers.*.mlp.up_proj": "colwise",
    "layers.*.mlp.down_proj": "rowwise",
    "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
    "layers.*.mlp.experts.up_proj": "colwise",
    "layers.*.mlp.experts.down_proj": "rowwise",
    "layers.*.mlp.experts": "moe_tp_experts",
    "layers.*.mlp.shared_expert.gate_proj": "colwise",
    "layers.*.mlp.shared_expert.up_proj": "colwise",
    "layers.*.mlp.shared_expert.down_proj": "rowwise",
}

EXPERT_PARALLEL: dict[str, str] = {
    "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
    "layers.*.mlp.experts.gate_up_proj_bias": "grouped_gemm",
    "layers.*.mlp.experts.up_proj": "grouped_gemm",
    "layers.*.mlp.experts.up_proj_bias": "grouped_gemm",
    "layers.*.mlp.experts.down_proj": "grouped_gemm",
    "layers.*.mlp.experts.down_proj_bias": "grouped_gemm",
    "layers.*.mlp.experts": "ep_dispatch_experts",
}

PIPELINE_PARALLEL: dict[str, Any] = {
    "embed_tokens": (["input_ids"], ["inputs_embeds"]),
    "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
    "norm": (["hidden_states"], ["hidden_states"]),
}


def _keeps_attention_whole(config: Any) -> str | None:
    """The field for which no slice of the heads can compute attention by itself."""
    reasons = {
        "attention_type": config.attention_type == "latent",
        "attention_sink_layer_types": bool(config.attention_sink_layer_types),
        "attention_output_gate": config.attention_output_gate != "none",
        "qk_norm": config.qk_norm == "per_head",
        "position_embedding_type": config.position_embedding_type in ("alibi", "relative"),
    }
    return next((name for name, applies in reasons.items() if applies), None)


def whole_under_tensor_parallelism(config: Any) -> str | None:
    """What the tensor parallel plan leaves whole on every device, and why; None if it is nothing of size."""
    found = []
    if (name := _keeps_attention_whole(config)) is not None:
        found.append(f"attention ({name}={getattr(config, name)!r})")
    if config.sparse_layers and config.expert_bias:
        found.append("experts (expert_bias=True; DistributedConfig(ep_size=...) divides them)")
    return " and ".join(found) or None


def tensor_parallel_plan(config: Any) -> dict[str, str]:
    """The plan for the parts that this config has and that a slice of their width can compute.

    Attention that looks at all heads at once, or holds something a head, stays whole on every device.
    """
    feed_forwards = set(config.mlp_layer_types)
    whole_attention = _keeps_attention_whole(config)
    shared = any(layer_view(config, i).shared_expert_intermediate_size for i in config.sparse_layers)
    ungated = config.feed_forward_type == "mlp"
    absent = {
        "self_attn": whole_attention,
        "_norm": config.qk_norm != "head",
        "mlp.gate_proj": ungated or "dense" not in feed_forwards,
        "mlp.up_proj": "dense" not in feed_forwards,
        "mlp.down_proj": "dense" not in feed_forwards,
        # Each slice would add the whole bias of an expert.
        "mlp.experts": "sparse" not in feed_forwards or config.expert_bias,
        "experts.gate_up_proj": ungated,
        "experts.up_proj": not ungated,
        "shared_expert": not shared,
        "shared_expert.gate_proj": ungated,
    }
    gone = [part for part, is_absent in absent.items() if is_absent]
    plan = {name: style for name, style in TENSOR_PARALLEL.items() if not any(part in name for part in gone)}
    if config.qk_norm == "full" and not whole_attention:  # the norm needs all heads
        plan |= {f"layers.*.self_attn.{name}_proj": "colwise_gather_output" for name in "qkv"}
        plan["layers.*.self_attn.o_proj"] = "rowwise_split_input"
    # The library divides a head; the table that it may be tied to goes along even where no layer is divided.
    return plan or {"embed_tokens": "embedding_rowwise"}
