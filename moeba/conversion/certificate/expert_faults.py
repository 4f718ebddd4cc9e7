"""Planted faults in sparse layers: experts, their router, and the shared expert."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...configuration import MoebaConfig
from ...configuration.model_facts import layer_view
from ...modeling import MoebaForCausalLM
from .fault import Fault, layers_of, roll, zero


def _moe(config: MoebaConfig) -> bool:
    return bool(config.sparse_layers)


def _sparse(model: MoebaForCausalLM) -> Any:
    return layers_of(model)[model.config.sparse_layers[0]].mlp


def _sparse_view(config: MoebaConfig) -> Any:
    """The first sparse layer's view."""
    return layer_view(config, config.sparse_layers[0])


def _uneven(config: MoebaConfig, name: str) -> bool:
    """Whether a field differs between layers: a fault that sets it would have to choose one."""
    if not config.is_heterogeneous:
        return False
    return len({getattr(layer_view(config, i), name) for i in range(config.num_hidden_layers)}) > 1


def _chooses(config: MoebaConfig) -> bool:
    sparse = [layer_view(config, i) for i in config.sparse_layers]
    return bool(sparse) and sparse[0].num_experts_per_tok < sparse[0].num_experts


def _several(config: MoebaConfig) -> bool:
    """Whether a token visits more than one expert, in some layer."""
    return _uneven(config, "num_experts_per_tok") or _sparse_view(config).num_experts_per_tok > 1


# Routers that weigh the best logits only, and the other one.
TOP_LOGITS = {"topk_softmax": "topk_sigmoid", "topk_sigmoid": "topk_softmax"}


def _weights_vary(config: MoebaConfig) -> bool:
    """Whether the weights of a token's experts say anything: that of its only expert does not if normalised."""
    return _several(config) or (config.router_type == "topk" and not config.norm_topk_prob)


def _weighs_scores(config: MoebaConfig) -> bool:
    """Whether more than the order of the router's scores matters: the only expert of a token weighs 1 if normalised."""
    if not _chooses(config) or config.router_type != "topk":
        return False
    return _weights_vary(config) or config.router_selection_bias


def _closes_groups(config: MoebaConfig) -> bool:
    """Whether groups keep experts from a token: by their best experts, as many groups as choices lose nothing."""
    harmless = config.group_scoring == "max" and config.num_experts_per_tok <= config.topk_group
    return _moe(config) and config.topk_group < config.n_group and not harmless


def _other_groups(config: MoebaConfig) -> dict[str, Any]:
    """As few groups as hold enough experts (a few closed groups seldom hold the best), or all of them."""
    fewest = math.ceil(config.num_experts_per_tok * config.n_group / config.num_experts)
    return {"topk_group": fewest} if fewest < config.topk_group else {"n_group": 1, "topk_group": 1}


def _swap_expert_halves(model: MoebaForCausalLM) -> None:
    weight = _sparse(model).experts.gate_up_proj
    weight.copy_(torch.cat(tuple(reversed(weight.chunk(2, dim=1))), dim=1))


def _norms_answer(config: MoebaConfig) -> bool:
    """Whether a norm follows the feed-forward's answer at once, which then may be of any size."""
    return config.moe_output_norm or config.block_order in ("sandwich_norm", "output_norm")


def _other_combination(config: MoebaConfig) -> str:
    return "sum" if config.shared_expert_combination == "average" else "average"


EXPERT_FAULTS: tuple[Fault, ...] = (
    Fault("experts' gate and up swapped", lambda c: _moe(c) and c.feed_forward_type != "mlp", _swap_expert_halves),
    Fault("experts' outputs rolled by one", lambda c: _moe(c) and _sparse_view(c).num_experts > 1,
          lambda m: roll(_sparse(m).experts.down_proj), distinct_experts=True),
    # All experts, as a short input may not visit a given one.
    Fault("channels of the experts' outputs rolled by one", _moe, lambda m: roll(_sparse(m).experts.down_proj, dim=1)),
    Fault("router rows rolled by one", _chooses, lambda m: roll(_sparse(m).gate.weight), distinct_experts=True),
    Fault("renormalisation of the chosen scores flipped",
          lambda c: _chooses(c) and c.router_type in ("topk", "topk_sigmoid"),
          config=lambda c: {"norm_topk_prob": not c.norm_topk_prob}),
    Fault("one expert fewer a token",
          lambda c: _moe(c) and not _uneven(c, "num_experts_per_tok") and c.num_experts_per_tok > 1
          and c.router_type != "sparsemixer",
          config=lambda c: {"num_experts_per_tok": c.num_experts_per_tok - 1}, distinct_experts=True),
    Fault("expert bias dropped", lambda c: _moe(c) and c.expert_bias,
          lambda m: zero(_sparse(m).experts.down_proj_bias)),
    Fault("router bias dropped", lambda c: _chooses(c) and c.router_bias, lambda m: zero(_sparse(m).gate.bias),
          distinct_experts=True),
    Fault("selection bias dropped", lambda c: _chooses(c) and c.router_selection_bias,
          lambda m: zero(_sparse(m).gate.e_score_correction_bias), distinct_experts=True),
    Fault("router softcap dropped", lambda c: _moe(c) and c.router_logit_softcapping is not None and _weights_vary(c),
          config=lambda c: {"router_logit_softcapping": None}, distinct_experts=True),
    Fault("routed scaling factor dropped", lambda c: _moe(c) and c.routed_scaling_factor != 1.0,
          config=lambda c: {"routed_scaling_factor": 1.0}),
    Fault("more or fewer expert groups open", _closes_groups, config=_other_groups, distinct_experts=True),
    Fault("softmax and sigmoid scores exchanged", _weighs_scores,
          config=lambda c: {"scoring_func": "sigmoid" if c.scoring_func == "softmax" else "softmax"},
          distinct_experts=True),
    Fault("softmax and sigmoid of the chosen logits exchanged",
          lambda c: _moe(c) and c.router_type in TOP_LOGITS and (_several(c) or not c.norm_topk_prob),
          config=lambda c: {"router_type": TOP_LOGITS[c.router_type]}, distinct_experts=True),
    Fault("shared expert dropped", lambda c: _moe(c) and _sparse_view(c).shared_expert_intermediate_size > 0,
          lambda m: zero(_sparse(m).shared_expert.down_proj.weight),
          # Where a family has always one, a model that needs none has an empty one.
          finds_something=lambda m: bool(_sparse(m).shared_expert.down_proj.weight.any())),
    Fault("shared and routed answers combined otherwise",
          # Half of an answer is the whole of it to a norm.
          lambda c: _moe(c) and _sparse_view(c).shared_expert_intermediate_size > 0 and not _norms_answer(c),
          config=lambda c: {"shared_expert_combination": _other_combination(c)}),
    Fault("norm after the experts dropped", lambda c: _moe(c) and c.moe_output_norm,
          config=lambda c: {"moe_output_norm": False}),
)  # fmt: skip
