"""Choosing what an operation is free to choose so that a native family can hold the result.

A model that has just grown experts computes the same whatever its new router scores them by, as long as the weights
of the chosen ones sum to 1. So the router takes the form of a native family's: softmax for Mixtral, sigmoid for
GLM-4-MoE, with a shared expert that answers nothing for Qwen2-MoE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING

from ...configuration import MoebaConfig
from ...conversion.config_rows import defaults_of, one_line
from ...conversion.families import family_of
from ...conversion.targets import candidates, first_that_holds

# What of a family's usual config a new router takes over.
_ROUTER = (
    "router_type", "scoring_func", "norm_topk_eps", "norm_topk_min", "topk_sorted", "group_mask", "group_scoring",
    "router_selection_bias", "router_bias", "router_param_dtype", "router_matmul_dtype", "router_score_dtype",
    "router_weight_dtype", "shared_expert_combination",
)  # fmt: skip
# Weights of the chosen experts sum to 1.
_NORMALISED = {"norm_topk_prob": True, "n_group": 1, "topk_group": 1, "router_logit_softcapping": None}
ROUTER_FIELDS = (*_ROUTER, *_NORMALISED)  # what describes a router and is chosen anew
_EMPTY_SHARED_EXPERT = 64  # neurons: a width that kernels like
NO_HOME = "no native family can hold it exactly; moeba families --holds tells why"
PLAIN = {"router_type": "topk", "scoring_func": "softmax", "router_weight_dtype": "float32"}


def shape(
    values: Mapping[str, Any], to: str, mixtures: Sequence[Sequence[str]]
) -> tuple[MoebaConfig, str | None, str]:
    """The first config, of `values` and a router's free choices, that a native family holds exactly.

    Args:
        values: fields of a MoebaConfig; the router's are filled in.
        to: a family, or `auto`: the one that most engines serve.
        mixtures: choices of `mlp_layer_types`, the preferred one first.

    Returns:
        The config, the family (None: under `auto` no family holds it), and why not.

    Raises:
        ValueError: the named family cannot hold it.
    """
    names = candidates("moe") if to == "auto" else [family_of(to).model_type]
    refusal = ""
    for kinds in mixtures:
        for name in names:
            found, reason = _attempt({**values, "mlp_layer_types": list(kinds)}, name)
            if found is not None:
                return found, name, ""
            refusal = refusal or reason
    if to != "auto":
        raise ValueError(refusal)
    plain = MoebaConfig.from_dict({**values, **_NORMALISED, **PLAIN, "mlp_layer_types": list(mixtures[0])})
    return plain, None, NO_HOME


def require_home(family: str | None, export: bool) -> None:
    """
    Raises:
        ValueError: a native checkpoint is wanted, and no family holds the model.
    """
    if export and family is None:
        raise ValueError(f"export: {NO_HOME}")


def home(config: MoebaConfig, to: str, export: bool) -> tuple[str | None, list[str]]:
    """The native family that holds a config exactly, which is `to` unless that is `auto`; or None, and a note.

    Raises:
        ValueError: the named family cannot hold it; or none can, and it is to be exported.
    """

    def attempt(name: str) -> str:
        family = family_of(name)
        family.to_native(config)
        return family.model_type

    if to != "auto":
        return attempt(to), []
    try:
        return first_that_holds(attempt, "moe" if config.sparse_layers else "dense"), []
    except ValueError:
        if export:
            raise
        return None, [NO_HOME]


def _attempt(values: Mapping[str, Any], name: str) -> tuple[MoebaConfig | None, str]:
    """The config with the family's router, or what is in the way."""
    usual = _usual(name)
    if usual["router_type"] == "sparsemixer":
        return (
            None,
            f"the weights of the experts that '{name}' chooses do not sum to 1, so the function would change",
        )
    reason = ""
    for shared in _shared_experts(values, usual):
        try:
            config = MoebaConfig.from_dict({**usual, **_NORMALISED, **values, **shared})
            family_of(name).to_native(config)
        except (ValueError, StrictDataclassError) as error:
            reason = reason or one_line(error)
        else:
            return config, ""
    return None, reason


def _shared_experts(values: Mapping[str, Any], usual: Mapping[str, Any]) -> list[dict[str, Any]]:
    """As the values have it, with a gate where the family has one; or one whose weights are zero."""
    if values["shared_expert_intermediate_size"]:
        return [{"shared_expert_gate": usual["shared_expert_gate"]}]
    width = values["moe_intermediate_size"]
    gated = {"shared_expert_gate": True, "shared_expert_intermediate_size": min(_EMPTY_SHARED_EXPERT, width)}
    plain = {"shared_expert_intermediate_size": width, "shared_expert_combination": "sum"}
    return [{}, gated if usual["shared_expert_gate"] else plain]


@cache
def _usual(name: str) -> Mapping[str, Any]:
    """The router fields of the family's stock defaults, in Moeba's terms."""
    family = family_of(name)
    given = defaults_of(family.config_rows, CONFIG_MAPPING[name]())
    plain = MoebaConfig()
    return {field: given.get(field, getattr(plain, field)) for field in (*_ROUTER, "shared_expert_gate")}
