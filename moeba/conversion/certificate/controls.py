"""Planted faults: what a conversion typically gets wrong, done on purpose to a copy of the Moeba side.

Each fault says which configs it applies to and damages a model, through its weights or its config. Adding one is adding
an entry to a table: the one here, or that of positions or of experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ...configuration import MoebaConfig
from ...configuration.model_facts import NORMS_PER_BLOCK, NORMS_WITH_BIAS, layer_view
from ...modeling import MoebaForCausalLM
from .expert_faults import EXPERT_FAULTS
from .fault import Fault, layers_of, roll, swap, zero
from .position_faults import POSITION_FAULTS


def faults_for(config: MoebaConfig, equal_experts: bool = False) -> Iterator[Fault]:
    """The faults that a model of this config can have; `equal_experts` says that its experts are still copies."""
    return (
        fault for fault in FAULTS if fault.applies(config) and not (equal_experts and fault.distinct_experts)
    )


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


def _has_sinks(config: MoebaConfig) -> bool:
    return bool(set(config.attention_sink_layer_types or ()) & set(config.layer_types))


def _has_dense(config: MoebaConfig) -> bool:
    return "dense" in config.mlp_layer_types


def _dense(model: MoebaForCausalLM) -> Any:
    index = model.config.mlp_layer_types.index("dense")
    return layers_of(model)[index].mlp


def _near_activation(name: str) -> str:
    return {"gelu_new": "gelu", "gelu": "gelu_new", "gelu_pytorch_tanh": "gelu", "silu": "gelu"}.get(
        name, "silu"
    )


BLOCK_FAULTS: tuple[Fault, ...] = (
    Fault("two norms swapped", lambda c: _has_norm_weight(c) and NORMS_PER_BLOCK[c.block_order] > 1, _swap_norms),
    Fault("final norm shifted by one channel", lambda c: _has_norm_weight(c) and c.final_norm,
          lambda m: roll(m.model.norm.weight)),
    Fault("norm bias dropped", lambda c: c.norm_type in NORMS_WITH_BIAS and c.norm_bias,
          lambda m: zero(_first_norm(m).bias)),
    Fault("norm weights taken without their offset", lambda c: c.norm_type.endswith("unit_offset"),
          config=lambda c: {"norm_type": c.norm_type.removesuffix("_unit_offset")}),
    # BERT's epsilon of 1e-12, ten times as large, is still lost beside any variance.
    Fault("norm epsilon times ten", lambda c: True, config=lambda c: {"norm_eps": max(c.norm_eps * 10, 1e-5)}),
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
    Fault("queries, keys and values unclipped", lambda c: c.clip_qkv is not None, config=lambda c: {"clip_qkv": None}),
    Fault("value multiplier dropped", lambda c: c.attention_value_multiplier != 1.0,
          config=lambda c: {"attention_value_multiplier": 1.0}),
    Fault("attention sinks rolled by one head", lambda c: _has_sinks(c) and _first(c).num_attention_heads > 1,
          lambda m: roll(_sinking(m).sinks)),
    Fault("attention sinks dropped", _has_sinks, config=lambda c: {"attention_sink_layer_types": None}),
    Fault("output gate dropped", lambda c: c.attention_output_gate != "none",
          config=lambda c: {"attention_output_gate": "none"}),
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
    Fault("head bias dropped", lambda c: c.lm_head_bias, lambda m: zero(m.lm_head.bias)),
    Fault("residual multiplier dropped", lambda c: c.residual_multiplier != 1.0,
          config=lambda c: {"residual_multiplier": 1.0}),
    Fault("embedding norm dropped", lambda c: c.embedding_norm, config=lambda c: {"embedding_norm": False}),
    Fault("embedding projection rolled by one", lambda c: c.embedding_size != c.hidden_size,
          lambda m: roll(m.model.project_in.weight)),
    Fault("embedding multiplier dropped", lambda c: c.embedding_multiplier != 1.0,
          config=lambda c: {"embedding_multiplier": 1.0}),
    Fault("gate and up swapped", lambda c: _has_dense(c) and c.feed_forward_type != "mlp",
          lambda m: swap(_dense(m).gate_proj.weight, _dense(m).up_proj.weight)),
    Fault("feed-forward bias dropped", lambda c: c.mlp_bias and _has_dense(c),
          lambda m: zero(_dense(m).down_proj.bias)),
    Fault("gate unclamped", lambda c: c.feed_forward_type == "clamped_gated" and c.swiglu_limit is not None,
          config=lambda c: {"swiglu_limit": None}),
    Fault("slopes of the activation doubled", lambda c: c.hidden_act == "xielu" and _has_dense(c),
          lambda m: _dense(m).act_fn.alpha_p.mul_(2)),
    Fault("another activation", lambda c: c.feed_forward_type != "clamped_gated",
          config=lambda c: {"hidden_act": _near_activation(c.hidden_act)}),
    Fault("head rolled by one token", lambda c: not c.tie_word_embeddings, lambda m: roll(m.lm_head.weight)),
    Fault("head untied", lambda c: c.tie_word_embeddings,
          lambda m: setattr(m.lm_head, "weight", torch.nn.Parameter(m.lm_head.weight.roll(1, dims=0)))),
)  # fmt: skip

FAULTS: tuple[Fault, ...] = (*BLOCK_FAULTS, *POSITION_FAULTS, *EXPERT_FAULTS)
