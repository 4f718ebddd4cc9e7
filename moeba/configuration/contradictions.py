"""What fields of a MoebaConfig may not say together.

Each function yields one sentence a problem; `MoebaConfig` raises the first of them at construction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_args

from .messages import nearest, short
from .model_facts import rope_of
from .ranges import dtype_problems, out_of_range, token_ids_out_of_range
from .rope_rules import rope_problems

# Optional at construction, which gives them a value.
FILLED_IN = (
    "num_key_value_heads", "head_dim", "v_head_dim", "embedding_size", "moe_intermediate_size", "layer_types",
    "mlp_layer_types", "rotary_layers", "attention_output_bias", "qk_norm_type", "qk_norm_eps", "qk_norm_bias",
)  # fmt: skip


def contradictions(config: Any) -> Iterator[str]:
    """Every problem of a config, the simplest first."""
    for name in FILLED_IN:
        if getattr(config, name) is None:
            yield f"{name}=None was set on a config that is made: give a value"
    yield from out_of_range(vars(config))
    yield from token_ids_out_of_range(config)
    yield from dtype_problems(config.dtype, None)
    yield from _names(config)
    yield from _attention(config)
    yield from _positions(config)
    yield from _experts(config)


def _names(config: Any) -> Iterator[str]:
    norms = get_args(next(field.type for field in fields(config) if field.name == "norm_type"))
    if config.qk_norm_type not in norms:
        yield f"qk_norm_type={config.qk_norm_type!r} is no norm_type (nearest: '{nearest(config.qk_norm_type, norms)}')"
    if not _is_by_family(config.native_fields or {}):
        yield f"native_fields={short(config.native_fields)} must hold a dict of JSON values for each family"
    if "layernorm" not in config.norm_type and not config.norm_bias:
        yield f"norm_bias=False is about layer norms, but norm_type='{config.norm_type}'"


def _is_by_family(said: dict[Any, Any]) -> bool:
    try:
        json.dumps(said)
    except (TypeError, ValueError, RecursionError):
        return False
    return all(isinstance(name, str) and isinstance(values, dict) for name, values in said.items())


def _attention(config: Any) -> Iterator[str]:
    if config.num_key_value_heads and config.num_attention_heads % config.num_key_value_heads:
        yield (
            f"num_attention_heads={config.num_attention_heads} is not a multiple of "
            f"num_key_value_heads={config.num_key_value_heads}"
        )
    kinds = {"full_attention", "sliding_attention"}
    for name in ("layer_types", "attention_sink_layer_types"):
        if unknown := sorted(set(getattr(config, name) or ()) - kinds):
            yield f"{name} has {unknown}; Moeba knows {sorted(kinds)}"
    if "sliding_attention" in config.layer_types and config.sliding_window is None:
        yield "layer_types has 'sliding_attention' but sliding_window=None"
    latent = config.attention_type == "latent"
    for name in ("kv_lora_rank", "qk_rope_head_dim"):
        if latent != (getattr(config, name) is not None):
            needs = "needs" if latent else "has no"
            yield f"attention_type='{config.attention_type}' {needs} {name} (got {getattr(config, name)})"
    if not latent and config.q_lora_rank is not None:
        yield f"q_lora_rank={config.q_lora_rank} is about attention_type='latent'"
    if not latent and config.rope_interleave:
        yield "rope_interleave=True is about attention_type='latent': reorder the rows of q_proj and k_proj instead"
    if latent and config.kv_lora_rank is not None and config.qk_rope_head_dim is not None:
        yield from _latent_attention(config)


def _latent_attention(config: Any) -> Iterator[str]:
    if not 0 < config.qk_rope_head_dim <= config.head_dim or config.qk_rope_head_dim % 2:
        yield (
            f"qk_rope_head_dim={config.qk_rope_head_dim} must be even and part of head_dim={config.head_dim}"
        )
    if config.num_key_value_heads != config.num_attention_heads:
        yield "attention_type='latent' has one key/value head a query head"
    for name, idle in (("qk_norm", "none"), ("attention_output_gate", "none"), ("clip_qkv", None),
                       ("attention_value_multiplier", 1.0)):  # fmt: skip
        if getattr(config, name) != idle:
            yield f"{name}={getattr(config, name)!r} is not a choice of attention_type='latent'"
    if config.position_embedding_type != "rope":
        yield f"attention_type='latent' needs position_embedding_type='rope', not '{config.position_embedding_type}'"


def _positions(config: Any) -> Iterator[str]:
    kind = config.position_embedding_type
    if len(config.rotary_layers) != config.num_hidden_layers:
        yield (
            f"rotary_layers has {len(config.rotary_layers)} entries for "
            f"num_hidden_layers={config.num_hidden_layers}"
        )
    if config.position_offset and kind not in ("learned", "sinusoidal", "sinusoidal_fairseq"):
        yield (
            f"position_offset={config.position_offset} needs position_embedding_type='learned' or a sinusoidal one, "
            f"not '{kind}'"
        )
    if kind == "relative":
        exact = config.relative_attention_num_buckets // (2 if config.is_causal else 4)
        if not 0 < exact < config.relative_attention_max_distance:
            yield (
                f"relative_attention_max_distance={config.relative_attention_max_distance} must be above the "
                f"{exact} distances that have one of relative_attention_num_buckets="
                f"{config.relative_attention_num_buckets} buckets of their own, which must be 1 or more"
            )
    if kind != "rope":
        if any(config.rotary_layers):
            yield f"rotary_layers has no effect with position_embedding_type='{kind}'"
        if config.query_growth_beta is not None:
            yield f"query_growth_beta has no effect with position_embedding_type='{kind}'"
        return
    ropes = rope_of(config)
    kinds = config.nested_rope_parameter_keys(ropes)
    for layer_type in sorted(set(config.layer_types) - set(kinds)):
        if kinds or any(isinstance(value, dict) for value in ropes.values()):
            yield f"rope_parameters={ropes} is given per layer type, but not for '{layer_type}'"
    for rope in [ropes[kind] for kind in kinds] or [ropes]:
        if config.query_growth_beta is not None and "original_max_position_embeddings" not in (rope or {}):
            yield f"query_growth_beta={config.query_growth_beta} needs rope's original_max_position_embeddings"
        if rope is None:
            yield f"rope_parameters={ropes} has None: name layers that do not rotate in rotary_layers"
            return
        yield from rope_problems(rope, config.rotary_head_dim)


def _experts(config: Any) -> Iterator[str]:
    sparse = set(config.mlp_layer_types) - {"dense"}
    if sparse - {"sparse"}:
        yield f"mlp_layer_types has {sorted(sparse - {'sparse'})}; only 'dense' and 'sparse' exist"
    if len(config.mlp_layer_types) != config.num_hidden_layers:
        yield (
            f"mlp_layer_types has {len(config.mlp_layer_types)} entries for "
            f"num_hidden_layers={config.num_hidden_layers}"
        )
    if sparse and not config.num_experts:
        yield "mlp_layer_types has 'sparse' but num_experts=0"
    if config.num_experts and not sparse and config.num_hidden_layers:
        yield f"num_experts={config.num_experts} but every entry of mlp_layer_types is 'dense'"
    if config.shared_expert_gate and not config.shared_expert_intermediate_size:
        yield "shared_expert_gate=True but shared_expert_intermediate_size=0"
    if config.num_experts:  # the other expert and router fields are idle otherwise
        yield from _router(config)


def _router(config: Any) -> Iterator[str]:
    if not 1 <= config.num_experts_per_tok <= config.num_experts:
        yield (
            f"num_experts_per_tok={config.num_experts_per_tok} must be between 1 and "
            f"num_experts={config.num_experts}"
        )
    if config.router_type == "sparsemixer" and config.num_experts_per_tok != 2:
        yield f"router_type='sparsemixer' picks 2 experts, not num_experts_per_tok={config.num_experts_per_tok}"
    if config.router_type != "topk":
        for name, idle in (("n_group", 1), ("router_selection_bias", False), ("routed_scaling_factor", 1.0),
                           ("scoring_func", "softmax")):  # fmt: skip
            if getattr(config, name) != idle:
                yield f"{name}={getattr(config, name)!r} is a choice of router_type='topk', not '{config.router_type}'"
    if config.router_z_loss_coef and config.router_loss != "training":
        yield (
            f"router_z_loss_coef={config.router_z_loss_coef} has no effect with router_loss='{config.router_loss}': "
            "choose 'training'"
        )
    if config.num_experts % config.n_group or config.topk_group > config.n_group:
        yield (
            f"n_group={config.n_group} must divide num_experts={config.num_experts} and be at least "
            f"topk_group={config.topk_group}"
        )
    elif config.num_experts // config.n_group * config.topk_group < config.num_experts_per_tok:
        yield (
            f"topk_group={config.topk_group} of n_group={config.n_group} groups hold fewer than "
            f"num_experts_per_tok={config.num_experts_per_tok} experts"
        )
    elif config.n_group > 1 and config.num_experts // config.n_group < 2 and config.group_scoring != "max":
        yield f"n_group={config.n_group} leaves one expert a group, but a group is scored by its best two"
