"""When a field has something to act on: the one table from which values are refused and configs compared.

A value that changes nothing misleads whoever set it. What somebody says to the constructor or as an override is
refused. What a file says stays: a native config's own idle values come back at export, and earlier versions wrote such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from .model_facts import NORMS_WITH_BIAS, layer_view, longrope_switch, rope_of
from .rope_rules import unread_rope_keys


@dataclass(frozen=True)
class Idle:
    """Fields that have nothing to act on when the condition holds, and what would give them something."""

    names: frozenset[str]
    when: Callable[[Any], bool]
    needs: str


def _idle(names: str, when: Callable[[Any], bool], needs: str) -> Idle:
    return Idle(frozenset(names.split()), when, needs)


def _has_inner_norms(config: Any) -> bool:
    return config.qk_norm != "none" or config.attention_type == "latent"


def _rotates(config: Any) -> bool:
    return any(config.rotary_layers or ())


def _sinks(config: Any) -> set[str]:
    return set(config.attention_sink_layer_types or ()) & set(config.layer_types)


def _window_only(config: Any) -> bool:
    return "sliding_attention" not in config.layer_types


IDLE: tuple[Idle, ...] = (
    _idle("sliding_window", _window_only, "'sliding_attention' in layer_types"),
    _idle("attention_multiplier", lambda c: c.attention_multiplier in (None, c.head_dim**-0.5), "another value"),
    _idle("attention_softmax_dtype", lambda c: set(c.layer_types) <= set(c.attention_sink_layer_types or ()),
          "a layer without sinks (attention_sink_layer_types)"),
    _idle("attention_sink_layer_types attention_sink_form", lambda c: not _sinks(c),
          "attention_sink_layer_types that layer_types has"),
    _idle("alibi_bias_max alibi_multiplier alibi_dtype", lambda c: c.position_embedding_type != "alibi",
          "position_embedding_type='alibi'"),
    _idle("relative_attention_num_buckets relative_attention_max_distance",
          lambda c: c.position_embedding_type != "relative", "position_embedding_type='relative'"),
    _idle("max_position_embeddings", lambda c: c.position_embedding_type in ("alibi", "none"), "positions"),
    _idle("longrope_restarts_cache longrope_factors", lambda c: not longrope_switch(c),
          "rope_parameters of rope_type 'longrope'"),
    _idle("round_embedding_multiplier", lambda c: c.embedding_multiplier == 1.0, "an embedding_multiplier"),
    _idle("rope_interleave", lambda c: c.attention_type != "latent" or not _rotates(c), "attention_type='latent'"),
    _idle("rotary_precision query_growth_beta", lambda c: not _rotates(c), "layers that rotate (rotary_layers)"),
    _idle("norm_bias", lambda c: c.norm_type not in NORMS_WITH_BIAS, f"norm_type in {NORMS_WITH_BIAS}"),
    _idle("qk_norm_type qk_norm_eps qk_norm_bias qk_norm_after_rope", lambda c: not _has_inner_norms(c),
          "a qk_norm"),
    _idle("qk_norm_bias", lambda c: c.qk_norm_type not in NORMS_WITH_BIAS, f"qk_norm_type in {NORMS_WITH_BIAS}"),
    _idle("qk_norm_after_rope", lambda c: c.attention_type == "latent" or not _rotates(c),
          "a qk_norm and layers that rotate"),
    _idle("swiglu_alpha swiglu_limit", lambda c: c.feed_forward_type != "clamped_gated",
          "feed_forward_type='clamped_gated'"),
    _idle("hidden_act", lambda c: c.feed_forward_type == "clamped_gated", "feed_forward_type 'gated' or 'mlp'"),
    _idle("num_experts_per_tok moe_intermediate_size expert_bias shared_expert_intermediate_size shared_expert_gate "
          "shared_expert_combination moe_output_norm router_type scoring_func norm_topk_prob norm_topk_eps "
          "norm_topk_min topk_sorted n_group topk_group group_scoring group_mask router_selection_bias "
          "routed_scaling_factor router_bias router_logit_softcapping router_param_dtype router_matmul_dtype "
          "router_score_dtype router_weight_dtype sparsemixer_eps router_jitter_noise router_jitter_draws "
          "router_loss router_aux_loss_coef router_z_loss_coef output_router_logits",
          lambda c: not c.sparse_layers, "experts (num_experts)"),
    _idle("router_aux_loss_coef", lambda c: c.router_loss == "none", "a router_loss"),
    _idle("intermediate_size", lambda c: bool(c.mlp_layer_types) and "dense" not in c.mlp_layer_types,
          "'dense' in mlp_layer_types"),
    _idle("mlp_bias", lambda c: bool(c.sparse_layers) and "dense" not in c.mlp_layer_types
          and not c.shared_expert_intermediate_size, "'dense' in mlp_layer_types, or a shared expert"),
    # Multiplied in float32 either way. Releases of transformers differ in how native models hold it, so a folder made
    # on one of them must find its home on the other.
    _idle("router_param_dtype", lambda c: c.router_matmul_dtype == "float32", "router_matmul_dtype='model'"),
    _idle("shared_expert_combination", lambda c: not c.shared_expert_intermediate_size,
          "shared_expert_intermediate_size"),
    _idle("norm_topk_eps norm_topk_min", lambda c: not c.norm_topk_prob, "norm_topk_prob=True"),
    _idle("topk_group group_scoring group_mask", lambda c: c.n_group == 1, "an n_group above 1"),
    _idle("scoring_func norm_topk_eps norm_topk_min router_score_dtype topk_sorted n_group router_selection_bias "
          "routed_scaling_factor", lambda c: c.router_type != "topk", "router_type='topk'"),
    _idle("norm_topk_prob", lambda c: c.router_type not in ("topk", "topk_sigmoid"),
          "router_type 'topk' or 'topk_sigmoid'"),
    _idle("sparsemixer_eps", lambda c: c.router_type != "sparsemixer", "router_type='sparsemixer'"),
    _idle("router_jitter_draws", lambda c: not c.router_jitter_noise, "router_jitter_noise"),
    _idle("train_padding_embedding", lambda c: c.pad_token_id is None, "a pad_token_id"),
    _idle("lm_head_bias", lambda c: not c.is_causal, "is_causal=True"),
)  # fmt: skip

# Said although nothing acts on it here: sizes that a config always has and tools read, a dtype of storage, what equals
# its default in effect, and what a training script says of any model.
ALWAYS_SAID = frozenset(
    (
        "intermediate_size", "max_position_embeddings", "router_param_dtype", "attention_multiplier",
        "train_padding_embedding", "router_jitter_noise", "router_jitter_draws", "router_aux_loss_coef",
        "router_z_loss_coef", "router_loss", "output_router_logits",
    )
)  # fmt: skip


# Fields that are what another one is, unless they are given.
FOLLOWING = {
    "qk_norm_type": "norm_type", "qk_norm_eps": "norm_eps", "qk_norm_bias": "norm_bias",
    "moe_intermediate_size": "intermediate_size",
}  # fmt: skip


def is_idle(config: Any, name: str) -> bool:
    """Whether a field has nothing to act on in this config, so that any value means the same."""
    return next(_reasons(config, name), None) is not None


def _reasons(config: Any, name: str) -> Iterator[Idle]:
    return (idle for idle in IDLE if name in idle.names and idle.when(config))


def said_in_vain(config: Any) -> dict[str, str]:
    """Fields with a value other than their default that have nothing to act on, each with a sentence."""
    if config.is_heterogeneous:  # a field may act in one layer only
        views = [layer_view(config, i) for i in range(config.num_hidden_layers)]
        found = [said_in_vain(view) for view in views]
        return {name: why for name, why in found[0].items() if all(name in one for one in found)}
    usual = _defaults(config)
    problems: dict[str, str] = {}
    for idle in IDLE:
        if not idle.when(config):
            continue
        for name in sorted(idle.names - ALWAYS_SAID - problems.keys()):
            if (value := getattr(config, name)) not in usual[name]:
                problems[name] = (
                    f"{name}={value!r} has no effect without {idle.needs}: leave it out, or set that"
                )
    if unread := unread_rope_keys(rope_of(config)):
        problems["rope_parameters"] = f"rope_parameters has {'; '.join(unread)}"
    return problems


def _defaults(config: Any) -> dict[str, tuple[Any, ...]]:
    """What each field is where nobody said anything: the class's default, or what follows from other fields."""
    usual: dict[str, tuple[Any, ...]] = {field.name: (field.default,) for field in fields(config)}
    for name, source in FOLLOWING.items():
        usual[name] += (getattr(config, source),)
    return usual
