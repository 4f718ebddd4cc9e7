"""Which fields two Moeba configs disagree on, leaving out what has nothing to act on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..configuration import MoebaConfig
from ..configuration.model_facts import NORMS_WITH_BIAS, layer_view, longrope_switch, rope_of

# Fields of ours that change training or outputs, never the function that inference computes.
TRAINING_FIELDS = {
    "attention_dropout", "classifier_dropout", "embedding_dropout", "hidden_dropout", "initializer_range",
    "output_router_logits", "router_aux_loss_coef", "router_jitter_draws", "router_jitter_noise",
    "router_z_loss_coef", "train_padding_embedding", "use_cache",
}  # fmt: skip
_METADATA_FIELDS = {
    "architectures", "auto_map", "chunk_size_feed_forward", "id2label", "label2id", "output_hidden_states",
    "problem_type", "return_dict", "transformers_version", "moeba_version", "_name_or_path",
}  # fmt: skip
# Fields that change nothing but the order of a sum.
_ROUNDING_FIELDS = {"topk_sorted"}


@dataclass(frozen=True)
class Difference:
    """One field that two configs disagree on."""

    name: str
    first: Any
    second: Any


def differences(first: MoebaConfig, second: MoebaConfig) -> list[Difference]:
    """Fields of the model, not metadata, that differ; values that mean the same compare equal."""
    a, b = _values(first), _values(second)
    names = sorted((set(a) | set(b)) - _METADATA_FIELDS - _ROUNDING_FIELDS - {"model_type"})
    return [
        Difference(name, a.get(name), b.get(name))
        for name in names
        if a.get(name) != b.get(name) and not (is_idle(first, name) and is_idle(second, name))
    ]


def _values(config: MoebaConfig) -> dict[str, Any]:
    values = config.to_dict()
    values["rope_parameters"] = _plain_rope(config)
    if config.is_heterogeneous:  # however the layers' sizes are spelled
        del values["per_layer_config"]
        for name in config.per_layer_attributes:
            sizes = [getattr(layer_view(config, i), name) for i in range(config.num_hidden_layers)]
            values[name] = sizes if len(set(map(str, sizes))) > 1 else sizes[0]
    return values


def _plain_rope(config: MoebaConfig) -> dict[str, Any] | None:
    """Rope settings without what says nothing: kinds that no layer has, equal settings twice, a factor of 1."""
    rope = rope_of(config)
    if rope and config.rope_is_per_layer_type:
        kinds = [_without_full_factor(rope[kind]) for kind in sorted(set(config.layer_types))]
        same = all(settings == kinds[0] for settings in kinds)
        return kinds[0] if same and kinds else dict(zip(sorted(set(config.layer_types)), kinds, strict=True))
    return _without_full_factor(rope) or None


def _without_full_factor(rope: dict[str, Any] | None) -> dict[str, Any] | None:
    if not rope or rope.get("partial_rotary_factor") != 1.0:
        return rope
    return {key: value for key, value in rope.items() if key != "partial_rotary_factor"}


def is_idle(config: MoebaConfig, name: str) -> bool:
    """Whether a field has nothing to act on in this config, so that any value means the same."""
    return any(name in fields and idle(config) for fields, idle in _IDLE)


def _has_inner_norms(config: MoebaConfig) -> bool:
    return config.qk_norm != "none" or config.attention_type == "latent"


_ROUTER_FIELDS = {
    "num_experts_per_tok", "moe_intermediate_size", "expert_bias", "shared_expert_intermediate_size",
    "shared_expert_gate", "shared_expert_combination", "moe_output_norm", "router_type", "scoring_func",
    "norm_topk_prob", "norm_topk_eps", "norm_topk_min", "n_group", "topk_group", "group_scoring", "group_mask",
    "router_selection_bias", "routed_scaling_factor", "router_bias", "router_logit_softcapping", "router_param_dtype",
    "router_matmul_dtype", "router_score_dtype", "router_weight_dtype", "sparsemixer_eps",
}  # fmt: skip

# Fields, and where they have nothing to act on.
_IDLE: tuple[tuple[set[str], Callable[[MoebaConfig], bool]], ...] = (
    ({"sliding_window"}, lambda c: "sliding_attention" not in c.layer_types),
    ({"attention_multiplier"}, lambda c: c.attention_multiplier in (None, c.head_dim**-0.5)),
    ({"attention_softmax_dtype"}, lambda c: set(c.layer_types) <= set(c.attention_sink_layer_types or ())),
    ({"alibi_bias_max", "alibi_multiplier", "alibi_dtype"}, lambda c: c.position_embedding_type != "alibi"),
    ({"relative_attention_num_buckets", "relative_attention_max_distance"},
     lambda c: c.position_embedding_type != "relative"),
    ({"max_position_embeddings"}, lambda c: c.position_embedding_type in ("alibi", "none")),
    ({"longrope_restarts_cache", "longrope_factors"}, lambda c: not longrope_switch(c)),
    ({"round_embedding_multiplier"}, lambda c: c.embedding_multiplier == 1.0),
    ({"rope_interleave"}, lambda c: c.attention_type != "latent" or not any(c.rotary_layers)),
    ({"rotary_precision"}, lambda c: not any(c.rotary_layers)),
    ({"norm_bias"}, lambda c: c.norm_type not in NORMS_WITH_BIAS),
    ({"qk_norm_type", "qk_norm_eps", "qk_norm_bias", "qk_norm_after_rope"}, lambda c: not _has_inner_norms(c)),
    ({"qk_norm_bias"}, lambda c: c.qk_norm_type not in NORMS_WITH_BIAS),
    ({"attention_sink_layer_types", "attention_sink_form"},
     lambda c: not set(c.attention_sink_layer_types or ()) & set(c.layer_types)),
    ({"swiglu_alpha", "swiglu_limit"}, lambda c: c.feed_forward_type != "clamped_gated"),
    ({"hidden_act"}, lambda c: c.feed_forward_type == "clamped_gated"),
    (_ROUTER_FIELDS, lambda c: not c.sparse_layers),
    ({"intermediate_size"}, lambda c: bool(c.mlp_layer_types) and "dense" not in c.mlp_layer_types),
    ({"mlp_bias"}, lambda c: bool(c.sparse_layers) and "dense" not in c.mlp_layer_types
     and not c.shared_expert_intermediate_size),
    # Multiplied in float32 either way. Releases of transformers differ in how native models hold it, so a folder made
    # on one of them must find its home on the other.
    ({"router_param_dtype"}, lambda c: c.router_matmul_dtype == "float32"),
    ({"shared_expert_combination"}, lambda c: not c.shared_expert_intermediate_size),
    ({"norm_topk_eps", "norm_topk_min"}, lambda c: not c.norm_topk_prob),
    ({"topk_group", "group_scoring", "group_mask"}, lambda c: c.n_group == 1),
    ({"scoring_func", "norm_topk_eps", "norm_topk_min", "router_score_dtype"}, lambda c: c.router_type != "topk"),
    ({"norm_topk_prob"}, lambda c: c.router_type not in ("topk", "topk_sigmoid")),
    ({"sparsemixer_eps"}, lambda c: c.router_type != "sparsemixer"),
)  # fmt: skip
