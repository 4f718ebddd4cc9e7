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
from ...modeling import MoebaForCausalLM

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
    attention = _layers(model)[0].self_attn
    weight = attention.q_proj.weight
    heads = weight.view(-1, attention.head_dim, weight.shape[-1])
    half = attention.head_dim // 2
    order = torch.arange(attention.head_dim).view(2, half).T.reshape(-1)
    weight.copy_(heads[:, order].reshape(weight.shape))


def _zero(vector: torch.Tensor) -> None:
    vector.zero_()


def _has_norm_weight(config: MoebaConfig) -> bool:
    return not config.norm_type.endswith("nonparametric")


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


def _plain_rope(config: MoebaConfig) -> dict[str, Any]:
    kept = {
        key: value
        for key, value in config.rope_parameters.items()
        if key in ("rope_theta", "partial_rotary_factor")
    }
    return {"rope_parameters": {**kept, "rope_type": "default"}}


def _rope(config: MoebaConfig) -> bool:
    return config.position_embedding_type == "rope"


def _scaled_rope(config: MoebaConfig) -> bool:
    return _rope(config) and config.rope_parameters.get("rope_type", "default") != "default"


def _moe(config: MoebaConfig) -> bool:
    return bool(config.sparse_layers)


def _has_dense(config: MoebaConfig) -> bool:
    return "dense" in config.mlp_layer_types


def _chooses(config: MoebaConfig) -> bool:
    return _moe(config) and config.num_experts_per_tok < config.num_experts


FAULTS: tuple[Fault, ...] = (
    Fault("two norms swapped", lambda c: _has_norm_weight(c) and c.block_order != "parallel", _swap_norms),
    Fault("final norm shifted by one channel", lambda c: _has_norm_weight(c) and c.final_norm,
          lambda m: _roll(m.model.norm.weight)),
    Fault("norm bias dropped", lambda c: c.norm_type == "layernorm" and c.norm_bias,
          lambda m: _zero(m.model.norm.bias)),
    Fault("norm epsilon times ten", lambda c: True, config=lambda c: {"norm_eps": c.norm_eps * 10}),
    Fault("query and key swapped", lambda c: c.num_key_value_heads == c.num_attention_heads,
          lambda m: _swap(_layers(m)[0].self_attn.q_proj.weight, _layers(m)[0].self_attn.k_proj.weight)),
    Fault("key and value swapped", lambda c: True,
          lambda m: _swap(_layers(m)[0].self_attn.k_proj.weight, _layers(m)[0].self_attn.v_proj.weight)),
    Fault("query rows interleaved", lambda c: _rope(c) and c.head_dim > 2, _roll_rotated),
    Fault("value bias dropped", lambda c: c.attention_bias, lambda m: _zero(_layers(m)[0].self_attn.v_proj.bias)),
    Fault("output bias dropped", lambda c: bool(c.attention_output_bias),
          lambda m: _zero(_layers(m)[0].self_attn.o_proj.bias)),
    Fault("query norm dropped", lambda c: c.qk_norm != "none" and _has_norm_weight(c),
          lambda m: _layers(m)[0].self_attn.q_norm.weight.fill_(1.0)),
    Fault("rope theta doubled", _rope, config=_scaled_theta),
    Fault("rope scaling dropped", _scaled_rope, config=_plain_rope),
    Fault("positions shifted by one", lambda c: c.position_embedding_type == "learned",
          lambda m: _roll(m.model.embed_positions.weight)),
    Fault("sliding window dropped", lambda c: c.sliding_window is not None,
          config=lambda c: {"sliding_window": None, "layer_types": ["full_attention"] * c.num_hidden_layers}),
    Fault("sliding window one longer", lambda c: c.sliding_window is not None,
          config=lambda c: {"sliding_window": c.sliding_window + 1}),
    Fault("attention scale changed", lambda c: True,
          config=lambda c: {"attention_multiplier": (c.attention_multiplier or c.head_dim**-0.5) * 1.1}),
    Fault("attention softcap dropped", lambda c: c.attn_logit_softcapping is not None,
          config=lambda c: {"attn_logit_softcapping": None}),
    Fault("final softcap dropped", lambda c: c.final_logit_softcapping is not None,
          config=lambda c: {"final_logit_softcapping": None}),
    Fault("logit scale dropped", lambda c: c.logit_scale != 1.0, config=lambda c: {"logit_scale": 1.0}),
    Fault("embedding multiplier dropped", lambda c: c.embedding_multiplier != 1.0,
          config=lambda c: {"embedding_multiplier": 1.0}),
    Fault("gate and up swapped", lambda c: _has_dense(c) and c.feed_forward_type == "gated",
          lambda m: _swap(_dense(m).gate_proj.weight, _dense(m).up_proj.weight)),
    Fault("feed-forward bias dropped", lambda c: c.mlp_bias and _has_dense(c),
          lambda m: _zero(_dense(m).down_proj.bias)),
    Fault("another activation", lambda c: True, config=lambda c: {"hidden_act": _near_activation(c.hidden_act)}),
    Fault("experts' gate and up swapped", lambda c: _moe(c) and c.feed_forward_type == "gated", _swap_expert_halves),
    Fault("experts' outputs rolled by one", lambda c: _moe(c) and c.num_experts > 1,
          lambda m: _roll(_sparse(m).experts.down_proj), distinct_experts=True),
    # All experts, as a short input may not visit a given one.
    Fault("channels of the experts' outputs rolled by one", _moe, lambda m: _roll(_sparse(m).experts.down_proj, dim=1)),
    Fault("router rows rolled by one", _chooses, lambda m: _roll(_sparse(m).gate.weight), distinct_experts=True),
    Fault("renormalisation of the chosen scores flipped", _chooses,
          config=lambda c: {"norm_topk_prob": not c.norm_topk_prob}),
    Fault("one expert fewer a token", lambda c: _moe(c) and c.num_experts_per_tok > 1,
          config=lambda c: {"num_experts_per_tok": c.num_experts_per_tok - 1}, distinct_experts=True),
    Fault("head rolled by one token", lambda c: not c.tie_word_embeddings, lambda m: _roll(m.lm_head.weight)),
    Fault("head untied", lambda c: c.tie_word_embeddings,
          lambda m: setattr(m.lm_head, "weight", torch.nn.Parameter(m.lm_head.weight.roll(1, dims=0)))),
)  # fmt: skip
