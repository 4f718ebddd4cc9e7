"""Planted faults: what a conversion typically gets wrong, done on purpose to a copy of the Moeba side.

Each fault says which configs it applies to and damages a model, through its weights or its config. Adding one is adding
an entry to `FAULTS`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...configuration import MoebaConfig
from ...configuration.model_facts import NORMS_PER_BLOCK, NORMS_WITH_BIAS, layer_view
from ...modeling import MoebaForCausalLM
from ..rows import rotated_width

Applies = Callable[[MoebaConfig], bool]


@dataclass(frozen=True)
class Fault:
    """A name, where it applies, and what it does: `edit` changes weights in place, `config` gives changed fields.

    With `distinct_experts` it changes nothing in a model whose experts are still copies of each other.
    """

    name: str
    applies: Applies
    edit: Callable[[MoebaForCausalLM], None] | None = None
    config: Callable[[MoebaConfig], dict[str, Any]] | None = None
    distinct_experts: bool = False

    def plant(self, model: MoebaForCausalLM) -> MoebaForCausalLM:
        """A damaged copy of the model."""
        if self.config is not None:
            return with_config(model, self.config(model.config))
        damaged = copy.deepcopy(model)
        assert self.edit is not None
        with torch.no_grad():
            self.edit(damaged)
        return damaged


def faults_for(config: MoebaConfig, equal_experts: bool = False) -> Iterator[Fault]:
    """The faults that a model of this config can have; `equal_experts` says that its experts are still copies."""
    return (
        fault for fault in FAULTS if fault.applies(config) and not (equal_experts and fault.distinct_experts)
    )


def with_config(model: MoebaForCausalLM, changes: dict[str, Any]) -> MoebaForCausalLM:
    """The same weights under a config with other values."""
    values = copy.deepcopy(model.config.to_dict())
    values.update(changes)
    config = MoebaConfig.from_dict(values)
    config._attn_implementation = model.config._attn_implementation
    config._experts_implementation = model.config._experts_implementation
    damaged = MoebaForCausalLM(config).eval()
    state = {name: value for name, value in model.state_dict().items() if name in damaged.state_dict()}
    damaged.load_state_dict(state, strict=False)
    return damaged


def _layers(model: MoebaForCausalLM) -> Any:
    return model.model.layers


def _swap(a: torch.Tensor, b: torch.Tensor) -> None:
    kept = a.clone()
    a.copy_(b)
    b.copy_(kept)


def _attention(model: MoebaForCausalLM) -> Any:
    """The first attention that rotates, or the first."""
    layers = _layers(model)
    rotary = [layer.self_attn for layer in layers if layer.self_attn.is_rotary]
    return rotary[0] if rotary else layers[0].self_attn


def _swap_norms(model: MoebaForCausalLM) -> None:
    first, second = _layers(model)[0].norm_names[:2]
    _swap(getattr(_layers(model)[0], first).weight, getattr(_layers(model)[0], second).weight)


def _dense(model: MoebaForCausalLM) -> Any:
    index = model.config.mlp_layer_types.index("dense")
    return _layers(model)[index].mlp


def _sparse(model: MoebaForCausalLM) -> Any:
    return _layers(model)[model.config.sparse_layers[0]].mlp


def _swap_expert_halves(model: MoebaForCausalLM) -> None:
    weight = _sparse(model).experts.gate_up_proj
    weight.copy_(torch.cat(tuple(reversed(weight.chunk(2, dim=1))), dim=1))


def _roll(weight: torch.Tensor, dim: int = 0) -> None:
    weight.copy_(weight.roll(1, dims=dim))


def _roll_rotated(model: MoebaForCausalLM) -> None:
    """Mistake half-split for interleaved rotation: reorder the rows of each query head."""
    attention = _attention(model)
    weight = (attention.q_proj if hasattr(attention, "q_proj") else attention.q_b_proj).weight
    heads = weight.view(-1, attention.head_dim, weight.shape[-1])
    turned = rotated_width(model.config)
    start = attention.head_dim - model.config.rotary_head_dim
    order = torch.arange(attention.head_dim)
    order[start : start + turned] = start + torch.arange(turned).view(2, turned // 2).T.reshape(-1)
    weight.copy_(heads[:, order].reshape(weight.shape))


def _zero(vector: torch.Tensor) -> None:
    vector.zero_()


def _has_norm_weight(config: MoebaConfig) -> bool:
    return not config.norm_type.endswith("nonparametric")


def _first_norm(model: MoebaForCausalLM) -> Any:
    layer = _layers(model)[0]
    return getattr(layer, layer.norm_names[0])


def _neutral(norm: Any) -> None:
    """Make a norm's weight do nothing."""
    norm.weight.fill_(0.0 if "UnitOffset" in type(norm).__name__ else 1.0)


def _grouped(config: MoebaConfig) -> bool:
    return config.attention_type == "grouped_query"


def _latent(config: MoebaConfig) -> bool:
    return config.attention_type == "latent"


def _first(config: MoebaConfig) -> Any:
    """The first layer's view, where layers may differ in size."""
    return layer_view(config, 0)


def _sinking(model: MoebaForCausalLM) -> Any:
    return next(layer.self_attn for layer in _layers(model) if layer.self_attn.sinks is not None)


def _has_sinks(config: MoebaConfig) -> bool:
    return bool(set(config.attention_sink_layer_types or ()) & set(config.layer_types))


def _other_combination(config: MoebaConfig) -> str:
    return "sum" if config.shared_expert_combination == "average" else "average"


def _near_activation(name: str) -> str:
    return {"gelu_new": "gelu", "gelu": "gelu_new", "gelu_pytorch_tanh": "gelu", "silu": "gelu"}.get(
        name, "silu"
    )


def _scaled_theta(config: MoebaConfig) -> dict[str, Any]:
    rope = copy.deepcopy(config.rope_parameters)
    for parameters in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if "rope_theta" in parameters:
            parameters["rope_theta"] = parameters["rope_theta"] * 2
    return {"rope_parameters": rope}


def _plain(rope: dict[str, Any]) -> dict[str, Any]:
    # Queries that grow read the last of them whatever the type.
    names = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    return {**{name: rope[name] for name in names if name in rope}, "rope_type": "default"}


def _plain_rope(config: MoebaConfig) -> dict[str, Any]:
    rope = config.rope_parameters
    if config.rope_is_per_layer_type:
        return {"rope_parameters": {kind: _plain(settings) for kind, settings in rope.items()}}
    return {"rope_parameters": _plain(rope)}


def _rope(config: MoebaConfig) -> bool:
    return config.position_embedding_type == "rope" and any(config.rotary_layers)


def _ropes_in_use(config: MoebaConfig) -> dict[str, dict[str, Any]]:
    """The rope settings of each kind of layer that rotates."""
    rope = config.rope_parameters
    kinds = {kind for kind, rotates in zip(config.layer_types, config.rotary_layers, strict=True) if rotates}
    return {kind: rope[kind] if config.rope_is_per_layer_type else rope for kind in sorted(kinds)}


def _scales(rope: dict[str, Any]) -> bool:
    """Whether rope is anything but plain; a factor of 1 leaves it plain."""
    kind = rope.get("rope_type", "default")
    return kind != "default" and (rope.get("factor") != 1.0 or kind in ("dynamic", "longrope"))


def _scaled_rope(config: MoebaConfig) -> bool:
    return _rope(config) and any(map(_scales, _ropes_in_use(config).values()))


def _two_ropes(config: MoebaConfig) -> bool:
    """Whether two kinds of layers rotate, each in its way."""
    if not _rope(config) or not config.rope_is_per_layer_type or rotated_width(config) <= 2:
        return False
    ropes = [rope if _scales(rope) else _plain(rope) for rope in _ropes_in_use(config).values()]
    return len(ropes) == 2 and ropes[0] != ropes[1]


def _exchanged_ropes(config: MoebaConfig) -> dict[str, Any]:
    kinds = ("full_attention", "sliding_attention")
    rope = copy.deepcopy(config.rope_parameters)
    return {"rope_parameters": dict(zip(kinds, (rope[kind] for kind in reversed(kinds)), strict=True))}


def _ignores_long_factors(config: MoebaConfig) -> bool:
    rope = config.rope_parameters or {}
    return (
        _rope(config)
        and config.longrope_factors == "short"
        and rope.get("long_factor") != rope.get("short_factor")
    )


def _moe(config: MoebaConfig) -> bool:
    return bool(config.sparse_layers)


def _has_dense(config: MoebaConfig) -> bool:
    return "dense" in config.mlp_layer_types


def _sparse_view(config: MoebaConfig) -> Any:
    """The first sparse layer's view."""
    return layer_view(config, config.sparse_layers[0])


def _chooses(config: MoebaConfig) -> bool:
    sparse = [layer_view(config, i) for i in config.sparse_layers]
    return bool(sparse) and sparse[0].num_experts_per_tok < sparse[0].num_experts


def _several(config: MoebaConfig) -> bool:
    """Whether a token visits more than one expert, in some layer."""
    return _uneven(config, "num_experts_per_tok") or _sparse_view(config).num_experts_per_tok > 1


# Routers that weigh the best logits only, and the other one.
TOP_LOGITS = {"topk_softmax": "topk_sigmoid", "topk_sigmoid": "topk_softmax"}


def _closes_groups(config: MoebaConfig) -> bool:
    """Whether groups keep experts from a token: by their best experts, as many groups as choices lose nothing."""
    harmless = config.group_scoring == "max" and config.num_experts_per_tok <= config.topk_group
    return _moe(config) and config.topk_group < config.n_group and not harmless


def _other_groups(config: MoebaConfig) -> dict[str, Any]:
    """One group where one holds enough experts (a few closed groups seldom hold the best), or all of them."""
    one_is_enough = config.num_experts_per_tok <= config.num_experts // config.n_group
    return {"topk_group": 1} if config.topk_group > 1 and one_is_enough else {"n_group": 1, "topk_group": 1}


def _weighs_scores(config: MoebaConfig) -> bool:
    """Whether more than the order of the router's scores matters: the only expert of a token weighs 1 if normalised."""
    if not _chooses(config) or config.router_type != "topk":
        return False
    return _weights_vary(config) or config.router_selection_bias


def _weights_vary(config: MoebaConfig) -> bool:
    """Whether the weights of a token's experts say anything: that of its only expert does not if normalised."""
    return _several(config) or (config.router_type == "topk" and not config.norm_topk_prob)


def _uneven(config: MoebaConfig, name: str) -> bool:
    """Whether a field differs between layers: a fault that sets it would have to choose one."""
    if not config.is_heterogeneous:
        return False
    return len({getattr(layer_view(config, i), name) for i in range(config.num_hidden_layers)}) > 1


FAULTS: tuple[Fault, ...] = (
    Fault("two norms swapped", lambda c: _has_norm_weight(c) and NORMS_PER_BLOCK[c.block_order] > 1, _swap_norms),
    Fault("final norm shifted by one channel", lambda c: _has_norm_weight(c) and c.final_norm,
          lambda m: _roll(m.model.norm.weight)),
    Fault("norm bias dropped", lambda c: c.norm_type in NORMS_WITH_BIAS and c.norm_bias,
          lambda m: _zero(_first_norm(m).bias)),
    Fault("norm weights taken without their offset", lambda c: c.norm_type.endswith("unit_offset"),
          config=lambda c: {"norm_type": c.norm_type.removesuffix("_unit_offset")}),
    Fault("norm epsilon times ten", lambda c: True, config=lambda c: {"norm_eps": c.norm_eps * 10}),
    Fault("query and key swapped",
          lambda c: _grouped(c) and _first(c).num_key_value_heads == _first(c).num_attention_heads,
          lambda m: _swap(_layers(m)[0].self_attn.q_proj.weight, _layers(m)[0].self_attn.k_proj.weight)),
    Fault("key and value swapped", lambda c: _grouped(c) and c.v_head_dim == c.head_dim,
          lambda m: _swap(_layers(m)[0].self_attn.k_proj.weight, _layers(m)[0].self_attn.v_proj.weight)),
    Fault("query rows interleaved", lambda c: _rope(c) and rotated_width(c) > 2, _roll_rotated),
    Fault("value bias dropped", lambda c: _grouped(c) and c.attention_bias,
          lambda m: _zero(_layers(m)[0].self_attn.v_proj.bias)),
    Fault("output bias dropped", lambda c: bool(c.attention_output_bias),
          lambda m: _zero(_layers(m)[0].self_attn.o_proj.bias)),
    Fault("query norm dropped", lambda c: c.qk_norm != "none" and _has_norm_weight(c),
          lambda m: _neutral(_layers(m)[0].self_attn.q_norm)),
    Fault("query norm on the other side of the rotation",
          lambda c: _grouped(c) and c.qk_norm != "none" and _rope(c) and not c.qk_norm_type.endswith("nonparametric"),
          config=lambda c: {"qk_norm_after_rope": not c.qk_norm_after_rope}),
    Fault("rotated neighbours and halves exchanged", lambda c: _latent(c) and _rope(c) and rotated_width(c) > 2,
          config=lambda c: {"rope_interleave": not c.rope_interleave}),
    Fault("latent norm dropped", _latent, lambda m: _neutral(_layers(m)[0].self_attn.kv_a_layernorm)),
    Fault("latent columns rolled by one", _latent,
          lambda m: _roll(_layers(m)[0].self_attn.kv_b_proj.weight, dim=1)),
    Fault("shared key's channels rolled by one", _latent,
          lambda m: _roll(_layers(m)[0].self_attn.kv_a_proj_with_mqa.weight)),
    Fault("queries, keys and values unclipped", lambda c: c.clip_qkv is not None, config=lambda c: {"clip_qkv": None}),
    Fault("value multiplier dropped", lambda c: c.attention_value_multiplier != 1.0,
          config=lambda c: {"attention_value_multiplier": 1.0}),
    Fault("attention sinks rolled by one head", lambda c: _has_sinks(c) and _first(c).num_attention_heads > 1,
          lambda m: _roll(_sinking(m).sinks)),
    Fault("attention sinks dropped", _has_sinks, config=lambda c: {"attention_sink_layer_types": None}),
    Fault("output gate dropped", lambda c: c.attention_output_gate != "none",
          config=lambda c: {"attention_output_gate": "none"}),
    Fault("rotation turned off in a layer", _rope, config=lambda c: {"rotary_layers": [False] * c.num_hidden_layers}),
    Fault("rotation turned on everywhere", lambda c: _rope(c) and not all(c.rotary_layers),
          config=lambda c: {"rotary_layers": [True] * c.num_hidden_layers}),
    Fault("growth of the queries dropped", lambda c: bool(c.query_growth_beta),
          config=lambda c: {"query_growth_beta": None}),
    Fault("slopes of distance doubled", lambda c: c.position_embedding_type == "alibi",
          config=lambda c: {"alibi_multiplier": 2 * c.alibi_multiplier}),
    Fault("distance biases rolled by one", lambda c: c.position_embedding_type == "relative",
          lambda m: _roll(m.model.position_bias.relative_attention_bias.weight)),
    Fault("waves shifted by one position", lambda c: c.position_embedding_type.startswith("sinusoidal"),
          config=lambda c: {"position_offset": c.position_offset + 1}),
    # The first pair of channels turns by one radian a token whatever theta is.
    Fault("rope theta doubled", lambda c: _rope(c) and rotated_width(c) > 2, config=_scaled_theta),
    Fault("rope scaling dropped", _scaled_rope, config=_plain_rope),
    Fault("ropes of two kinds of layers exchanged", _two_ropes, config=_exchanged_ropes),
    Fault("long rope factors taken beyond the original context", _ignores_long_factors,
          config=lambda c: {"longrope_factors": "by_length"}),
    Fault("positions shifted by one", lambda c: c.position_embedding_type == "learned",
          lambda m: _roll(m.model.embed_positions.weight)),
    Fault("sliding window dropped", lambda c: c.sliding_window is not None,
          config=lambda c: {"sliding_window": 10**6}),
    Fault("sliding window one longer", lambda c: c.sliding_window is not None,
          config=lambda c: {"sliding_window": c.sliding_window + 1}),
    Fault("attention scale changed", lambda c: True,
          config=lambda c: {"attention_multiplier": (c.attention_multiplier or c.head_dim**-0.5) * 1.1}),
    Fault("layer number left out of the attention scale",
          lambda c: c.scale_attn_by_inverse_layer_idx and c.num_hidden_layers > 1,
          config=lambda c: {"scale_attn_by_inverse_layer_idx": False}),
    Fault("attention softcap dropped", lambda c: c.attn_logit_softcapping is not None,
          config=lambda c: {"attn_logit_softcapping": None}),
    Fault("final softcap dropped", lambda c: c.final_logit_softcapping is not None,
          config=lambda c: {"final_logit_softcapping": None}),
    Fault("logit scale dropped", lambda c: c.logit_scale != 1.0, config=lambda c: {"logit_scale": 1.0}),
    Fault("logit divisor dropped", lambda c: c.logits_scaling != 1.0, config=lambda c: {"logits_scaling": 1.0}),
    Fault("head bias dropped", lambda c: c.lm_head_bias, lambda m: _zero(m.lm_head.bias)),
    Fault("residual multiplier dropped", lambda c: c.residual_multiplier != 1.0,
          config=lambda c: {"residual_multiplier": 1.0}),
    Fault("embedding norm dropped", lambda c: c.embedding_norm, config=lambda c: {"embedding_norm": False}),
    Fault("embedding projection rolled by one", lambda c: c.embedding_size != c.hidden_size,
          lambda m: _roll(m.model.project_in.weight)),
    Fault("embedding multiplier dropped", lambda c: c.embedding_multiplier != 1.0,
          config=lambda c: {"embedding_multiplier": 1.0}),
    Fault("gate and up swapped", lambda c: _has_dense(c) and c.feed_forward_type != "mlp",
          lambda m: _swap(_dense(m).gate_proj.weight, _dense(m).up_proj.weight)),
    Fault("feed-forward bias dropped", lambda c: c.mlp_bias and _has_dense(c),
          lambda m: _zero(_dense(m).down_proj.bias)),
    Fault("gate unclamped", lambda c: c.feed_forward_type == "clamped_gated" and c.swiglu_limit is not None,
          config=lambda c: {"swiglu_limit": None}),
    Fault("slopes of the activation doubled", lambda c: c.hidden_act == "xielu" and _has_dense(c),
          lambda m: _dense(m).act_fn.alpha_p.mul_(2)),
    Fault("another activation", lambda c: c.feed_forward_type != "clamped_gated",
          config=lambda c: {"hidden_act": _near_activation(c.hidden_act)}),
    Fault("experts' gate and up swapped", lambda c: _moe(c) and c.feed_forward_type != "mlp", _swap_expert_halves),
    Fault("experts' outputs rolled by one", lambda c: _moe(c) and _sparse_view(c).num_experts > 1,
          lambda m: _roll(_sparse(m).experts.down_proj), distinct_experts=True),
    # All experts, as a short input may not visit a given one.
    Fault("channels of the experts' outputs rolled by one", _moe, lambda m: _roll(_sparse(m).experts.down_proj, dim=1)),
    Fault("router rows rolled by one", _chooses, lambda m: _roll(_sparse(m).gate.weight), distinct_experts=True),
    Fault("renormalisation of the chosen scores flipped",
          lambda c: _chooses(c) and c.router_type in ("topk", "topk_sigmoid"),
          config=lambda c: {"norm_topk_prob": not c.norm_topk_prob}),
    Fault("one expert fewer a token",
          lambda c: _moe(c) and not _uneven(c, "num_experts_per_tok") and c.num_experts_per_tok > 1
          and c.router_type != "sparsemixer",
          config=lambda c: {"num_experts_per_tok": c.num_experts_per_tok - 1}, distinct_experts=True),
    Fault("expert bias dropped", lambda c: _moe(c) and c.expert_bias,
          lambda m: _zero(_sparse(m).experts.down_proj_bias)),
    Fault("router bias dropped", lambda c: _chooses(c) and c.router_bias, lambda m: _zero(_sparse(m).gate.bias)),
    Fault("selection bias dropped", lambda c: _chooses(c) and c.router_selection_bias,
          lambda m: _zero(_sparse(m).gate.e_score_correction_bias), distinct_experts=True),
    Fault("router softcap dropped", lambda c: _moe(c) and c.router_logit_softcapping is not None and _weights_vary(c),
          config=lambda c: {"router_logit_softcapping": None}),
    Fault("routed scaling factor dropped", lambda c: _moe(c) and c.routed_scaling_factor != 1.0,
          config=lambda c: {"routed_scaling_factor": 1.0}),
    Fault("more or fewer expert groups open", _closes_groups, config=_other_groups, distinct_experts=True),
    Fault("softmax and sigmoid scores exchanged", _weighs_scores,
          config=lambda c: {"scoring_func": "sigmoid" if c.scoring_func == "softmax" else "softmax"},
          distinct_experts=True),
    Fault("softmax and sigmoid of the chosen logits exchanged",
          lambda c: _moe(c) and c.router_type in TOP_LOGITS and (_several(c) or not c.norm_topk_prob),
          config=lambda c: {"router_type": TOP_LOGITS[c.router_type]}),
    Fault("shared expert dropped", lambda c: _moe(c) and _sparse_view(c).shared_expert_intermediate_size > 0,
          lambda m: _zero(_sparse(m).shared_expert.down_proj.weight)),
    Fault("shared and routed answers combined otherwise",
          lambda c: _moe(c) and _sparse_view(c).shared_expert_intermediate_size > 0,
          config=lambda c: {"shared_expert_combination": _other_combination(c)}),
    Fault("norm after the experts dropped", lambda c: _moe(c) and c.moe_output_norm,
          config=lambda c: {"moe_output_norm": False}),
    Fault("head rolled by one token", lambda c: not c.tie_word_embeddings, lambda m: _roll(m.lm_head.weight)),
    Fault("head untied", lambda c: c.tie_word_embeddings,
          lambda m: setattr(m.lm_head, "weight", torch.nn.Parameter(m.lm_head.weight.roll(1, dims=0)))),
)  # fmt: skip
