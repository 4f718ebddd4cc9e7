"""Planted faults: what a conversion typically gets wrong, done on purpose to a copy of the Moeba side.

Each fault says which configs it applies to and damages a model. A wrong value of a field is named where the field is
declared (`configuration/*_fields.py`); damage to tensors stands here.
"""

from __future__ import annotations

from typing import Any

import torch

from ...configuration import MoebaConfig
from ...configuration.attention_fields import sinking_kinds
from ...configuration.block_fields import NORMS_PER_BLOCK, NORMS_WITH_BIAS
from ...configuration.expert_fields import first_sparse, is_sparse
from ...configuration.model_facts import layer_view, rotated_width
from ...configuration.position_fields import rotates
from ...configuration.router_fields import chooses
from ...modeling import MoebaForCausalLM
from .fault import Fault, layers_of, of_fields, roll, swap, zero


def _first(config: MoebaConfig) -> Any:
    """The first layer's view, where layers may differ in size."""
    return layer_view(config, 0)


def _has_norm_weight(config: MoebaConfig) -> bool:
    return not config.norm_type.endswith("nonparametric")


def _first_norm(model: MoebaForCausalLM) -> Any:
    layer = layers_of(model)[0]
    return getattr(layer, layer.norm_names[0])


def _swap_norms(model: MoebaForCausalLM) -> None:
    first, second = layers_of(model)[0].norm_names[:2]
    swap(getattr(layers_of(model)[0], first).weight, getattr(layers_of(model)[0], second).weight)


def _neutral(norm: Any) -> None:
    """Make a norm's weight do nothing."""
    norm.weight.fill_(0.0 if "UnitOffset" in type(norm).__name__ else 1.0)


def _grouped(config: MoebaConfig) -> bool:
    return config.attention_type == "grouped_query"


def _latent(config: MoebaConfig) -> bool:
    return config.attention_type == "latent"


def _attention(model: MoebaForCausalLM) -> Any:
    return layers_of(model)[0].self_attn


def _sinking(model: MoebaForCausalLM) -> Any:
    return next(layer.self_attn for layer in layers_of(model) if layer.self_attn.has_sinks)


def _has_dense(config: MoebaConfig) -> bool:
    return "dense" in config.mlp_layer_types


def _dense(model: MoebaForCausalLM) -> Any:
    index = model.config.mlp_layer_types.index("dense")
    return layers_of(model)[index].mlp


def _rotating(model: MoebaForCausalLM) -> Any:
    """The first attention that rotates."""
    return next(layer.self_attn for layer in layers_of(model) if layer.self_attn.is_rotary)


def _roll_rotated(model: MoebaForCausalLM) -> None:
    """Mistake half-split for interleaved rotation: reorder the rows of each query head."""
    attention = _rotating(model)
    weight = (attention.q_proj if hasattr(attention, "q_proj") else attention.q_b_proj).weight
    heads = weight.view(-1, attention.head_dim, weight.shape[-1])
    turned = rotated_width(model.config)
    start = attention.head_dim - model.config.rotary_head_dim
    order = torch.arange(attention.head_dim)
    order[start : start + turned] = start + torch.arange(turned).view(2, turned // 2).T.reshape(-1)
    weight.copy_(heads[:, order].reshape(weight.shape))


def _chooses(config: MoebaConfig) -> bool:
    return is_sparse(config) and chooses(config)


def _sparse(model: MoebaForCausalLM) -> Any:
    return layers_of(model)[model.config.sparse_layers[0]].mlp


def _swap_expert_halves(model: MoebaForCausalLM) -> None:
    weight = _sparse(model).experts.gate_up_proj
    weight.copy_(torch.cat(tuple(reversed(weight.chunk(2, dim=1))), dim=1))


BLOCK_FAULTS: tuple[Fault, ...] = (
    Fault("two norms swapped", lambda c: _has_norm_weight(c) and NORMS_PER_BLOCK[c.block_order] > 1, _swap_norms),
    Fault("final norm shifted by one channel", lambda c: _has_norm_weight(c) and c.final_norm,
          lambda m: roll(m.model.norm.weight)),
    Fault("norm bias dropped", lambda c: c.norm_type in NORMS_WITH_BIAS and c.norm_bias,
          lambda m: zero(_first_norm(m).bias)),
    Fault("query and key swapped",
          lambda c: _grouped(c) and _first(c).num_key_value_heads == _first(c).num_attention_heads,
          lambda m: swap(_attention(m).q_proj.weight, _attention(m).k_proj.weight)),
    Fault("key and value swapped", lambda c: _grouped(c) and c.v_head_dim == c.head_dim,
          lambda m: swap(_attention(m).k_proj.weight, _attention(m).v_proj.weight)),
    Fault("value bias dropped", lambda c: _grouped(c) and c.attention_bias,
          lambda m: zero(_attention(m).v_proj.bias)),
    Fault("output bias dropped", lambda c: bool(c.attention_output_bias),
          lambda m: zero(_attention(m).o_proj.bias)),
    Fault("query norm dropped", lambda c: c.qk_norm != "none" and _has_norm_weight(c),
          lambda m: _neutral(_attention(m).q_norm)),
    Fault("latent norm dropped", _latent, lambda m: _neutral(_attention(m).kv_a_layernorm)),
    Fault("latent columns rolled by one", _latent,
          lambda m: roll(_attention(m).kv_b_proj.weight, dim=1)),
    Fault("shared key's channels rolled by one", _latent,
          lambda m: roll(_attention(m).kv_a_proj_with_mqa.weight)),
    Fault("attention sinks rolled by one head", lambda c: bool(sinking_kinds(c)) and _first(c).num_attention_heads > 1,
          lambda m: roll(_sinking(m).sinks)),
    Fault("head bias dropped", lambda c: c.lm_head_bias, lambda m: zero(m.lm_head.bias)),
    Fault("embedding projection rolled by one", lambda c: c.embedding_size != c.hidden_size,
          lambda m: roll(m.model.project_in.weight)),
    Fault("gate and up swapped", lambda c: _has_dense(c) and c.feed_forward_type != "mlp",
          lambda m: swap(_dense(m).gate_proj.weight, _dense(m).up_proj.weight)),
    Fault("feed-forward bias dropped", lambda c: c.mlp_bias and _has_dense(c),
          lambda m: zero(_dense(m).down_proj.bias)),
    Fault("slopes of the activation doubled", lambda c: c.hidden_act == "xielu" and _has_dense(c),
          lambda m: _dense(m).act_fn.alpha_p.mul_(2)),
    Fault("head rolled by one token", lambda c: not c.tie_word_embeddings, lambda m: roll(m.lm_head.weight)),
    Fault("head untied", lambda c: c.tie_word_embeddings,
          lambda m: setattr(m.lm_head, "weight", torch.nn.Parameter(m.lm_head.weight.roll(1, dims=0)))),
)  # fmt: skip

POSITION_FAULTS: tuple[Fault, ...] = (
    Fault("query rows interleaved", lambda c: rotates(c) and rotated_width(c) > 2, _roll_rotated),
    Fault("distance biases rolled by one", lambda c: c.position_embedding_type == "relative",
          lambda m: roll(m.model.position_bias.relative_attention_bias.weight)),
    Fault("positions shifted by one", lambda c: c.position_embedding_type == "learned",
          lambda m: roll(m.model.embed_positions.weight)),
)  # fmt: skip

EXPERT_FAULTS: tuple[Fault, ...] = (
    Fault("experts' gate and up swapped", lambda c: is_sparse(c) and c.feed_forward_type != "mlp", _swap_expert_halves),
    Fault("experts' outputs rolled by one", lambda c: is_sparse(c) and first_sparse(c).num_experts > 1,
          lambda m: roll(_sparse(m).experts.down_proj), distinct_experts=True),
    # All experts, as a short input may not visit a given one.
    Fault("channels of the experts' outputs rolled by one", is_sparse,
          lambda m: roll(_sparse(m).experts.down_proj, dim=1)),
    Fault("router rows rolled by one", _chooses, lambda m: roll(_sparse(m).gate.weight), distinct_experts=True),
    Fault("expert bias dropped", lambda c: is_sparse(c) and c.expert_bias,
          lambda m: zero(_sparse(m).experts.down_proj_bias)),
    Fault("router bias dropped", lambda c: _chooses(c) and c.router_bias, lambda m: zero(_sparse(m).gate.bias),
          distinct_experts=True),
    Fault("selection bias dropped", lambda c: _chooses(c) and c.router_selection_bias,
          lambda m: zero(_sparse(m).gate.e_score_correction_bias), distinct_experts=True),
    Fault("shared expert dropped", lambda c: is_sparse(c) and first_sparse(c).shared_expert_intermediate_size > 0,
          lambda m: zero(_sparse(m).shared_expert.down_proj.weight),
          # Where a family has always one, a model that needs none has an empty one.
          finds_something=lambda m: bool(_sparse(m).shared_expert.down_proj.weight.any())),
)  # fmt: skip

FAULTS: tuple[Fault, ...] = (*BLOCK_FAULTS, *POSITION_FAULTS, *EXPERT_FAULTS, *of_fields("logits"))
