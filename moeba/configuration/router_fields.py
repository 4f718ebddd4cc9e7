"""Which experts a token visits, what their answers weigh, and the losses that keep the choice even."""

import math
from collections.abc import Iterator
from typing import Any, Literal

from .expert_fields import SPARSE, first_sparse, is_uneven
from .fields import Needs, WrongValue, dropped, must, part, says
from .ranges import FRACTION, MOST_EXPERTS, NOT_NEGATIVE, POSITIVE, between

# Routers that weigh the best logits only, and the other one.
TOP_LOGITS = {"topk_softmax": "topk_sigmoid", "topk_sigmoid": "topk_softmax"}

_TOPK = Needs(lambda c: c.router_type == "topk", "router_type='topk'")
_NORMALISED = Needs(lambda c: c.norm_topk_prob, "norm_topk_prob=True")
_GROUPS = Needs(lambda c: c.n_group != 1, "an n_group above 1")
_JITTER = Needs(lambda c: bool(c.router_jitter_noise), "router_jitter_noise")
_LOSSES = Needs(lambda c: c.router_loss != "none", "a router_loss")
_IN_MODEL_DTYPE = Needs(lambda c: c.router_matmul_dtype != "float32", "router_matmul_dtype='model'")


def chooses(config: Any) -> bool:
    """Whether some expert is left out of a token's."""
    layer = first_sparse(config)
    return bool(layer.num_experts_per_tok < layer.num_experts)


def _several(config: Any) -> bool:
    """Whether a token visits more than one expert, in some layer."""
    return is_uneven(config, "num_experts_per_tok") or first_sparse(config).num_experts_per_tok > 1


def _weights_vary(config: Any) -> bool:
    """Whether the weights of a token's experts say anything: that of its only expert does not if normalised."""
    return _several(config) or (config.router_type == "topk" and not config.norm_topk_prob)


def _weighs_scores(config: Any) -> bool:
    """Whether more than the order of the router's scores matters: the only expert of a token weighs 1 if normalised."""
    return chooses(config) and (_weights_vary(config) or config.router_selection_bias)


def _closes_groups(config: Any) -> bool:
    """Whether groups keep experts from a token: by their best experts, as many groups as choices lose nothing."""
    harmless = config.group_scoring == "max" and config.num_experts_per_tok <= config.topk_group
    return config.topk_group < config.n_group and not harmless


def _other_groups(config: Any) -> dict[str, Any]:
    """As few groups as hold enough experts (a few closed groups seldom hold the best), or all of them."""
    fewest = math.ceil(config.num_experts_per_tok * config.n_group / config.num_experts)
    return {"topk_group": fewest} if fewest < config.topk_group else {"n_group": 1, "topk_group": 1}


_HALF_PRECISION = "half precision's choice of experts is compared router by router"


@part(SPARSE)
class RouterFields:
    """Routers (`modeling/router.py`)."""

    # fmt: off
    router_type: Literal["topk", "topk_softmax", "topk_sigmoid", "sparsemixer"] = says(
        "see `modeling/router.py`", default="topk",
        wrong=(WrongValue("softmax and sigmoid of the chosen logits exchanged",
            lambda c: {"router_type": TOP_LOGITS[c.router_type]},
            lambda c: c.router_type in TOP_LOGITS and (_several(c) or not c.norm_topk_prob),
            distinct_experts=True),))
    scoring_func: Literal["softmax", "sigmoid"] = says(
        "turns router logits into scores", default="softmax", needs=(must(_TOPK),),
        wrong=(WrongValue("softmax and sigmoid scores exchanged",
            lambda c: {"scoring_func": "sigmoid" if c.scoring_func == "softmax" else "softmax"},
            _weighs_scores, distinct_experts=True),))
    norm_topk_prob: bool = says(
        "renormalise the chosen scores to sum to 1 (`topk_sigmoid` too)", default=True, per_layer=True,
        needs=(Needs(lambda c: c.router_type in ("topk", "topk_sigmoid"),
            "router_type 'topk' or 'topk_sigmoid'"),),
        wrong=(WrongValue("renormalisation of the chosen scores flipped",
            lambda c: {"norm_topk_prob": not c.norm_topk_prob}, chooses),))
    norm_topk_eps: float = says(
        "added to that sum", default=0.0, per_layer=True, within=NOT_NEGATIVE, needs=(_NORMALISED, _TOPK),
        wrong=(WrongValue("epsilon of the scores times a million, on faint inputs",
            lambda c: {"norm_topk_eps": 1e6 * c.norm_topk_eps},
            lambda c: c.scoring_func == "sigmoid" and c.norm_topk_eps > 0, seen="faint"),))
    norm_topk_min: float = says(
        "the least that it counts as", default=0.0, per_layer=True, within=NOT_NEGATIVE,
        needs=(_NORMALISED, _TOPK), unplanted="lost in rounding")
    topk_sorted: bool = says(
        "sum the chosen scores best first, or as top-k leaves them", default=True, per_layer=True,
        needs=(_TOPK,), effect="rounding")
    n_group: int = says(
        "groups of experts", default=1, per_layer=True, within=between(1, MOST_EXPERTS),
        needs=(must(_TOPK),), unplanted="as topk_group")
    topk_group: int = says(
        "experts are chosen from that many best groups", default=1, per_layer=True,
        within=between(1, MOST_EXPERTS), needs=(_GROUPS,),
        wrong=(WrongValue("more or fewer expert groups open", _other_groups, _closes_groups,
            distinct_experts=True),))
    group_scoring: Literal["top2_sum", "max"] = says(
        "of a group's experts: its score", default="top2_sum", per_layer=True, needs=(_GROUPS,),
        unplanted="as topk_group")
    group_mask: Literal["excluded", "zero"] = says(
        "what becomes of the other groups' experts: they score nothing, or `zero` (Mistral 4)",
        default="excluded", per_layer=True, needs=(_GROUPS,), unplanted="differs where scores are zero")
    router_selection_bias: bool = says(
        "a buffer added to the scores for choosing only (loss-free balancing)", default=False,
        needs=(must(_TOPK),), unplanted="a fault of tensors")
    routed_scaling_factor: float | int = says(
        "factor on the routed experts' weights", default=1.0, per_layer=True, within=POSITIVE,
        needs=(must(_TOPK),), wrong=(dropped("routed scaling factor dropped", "routed_scaling_factor", 1.0),))
    router_bias: bool = says(
        "bias of the router's projection", default=False, per_layer=True, unplanted="a fault of tensors")
    router_logit_softcapping: float | int | None = says(
        "router logits become `c * tanh(logits / c)`", default=None, per_layer=True, within=POSITIVE,
        small=lambda cap: cap and max(cap, 2.0),
        wrong=(dropped("router softcap dropped", "router_logit_softcapping", None, distinct_experts=True,
            shows=_weights_vary),))
    router_param_dtype: Literal["model", "float32"] = says(
        "of the router's parameter", default="model", needs=(_IN_MODEL_DTYPE,), may_idle=True,
        unplanted=_HALF_PRECISION)
    router_matmul_dtype: Literal["model", "float32"] = says(
        "of its product", default="model", per_layer=True,
        wrong=(WrongValue("router's product in another precision",
            lambda c: {"router_matmul_dtype": "float32" if c.router_matmul_dtype == "model" else "model"},
            seen="half"),))
    router_score_dtype: Literal["model", "float32"] = says(
        "of the scores", default="float32", per_layer=True, needs=(_TOPK,), unplanted=_HALF_PRECISION)
    router_weight_dtype: Literal["model", "float32"] = says(
        "of the weights that result; all four decide which experts win in bf16", default="model",
        per_layer=True, unplanted=_HALF_PRECISION)
    sparsemixer_eps: float = says(
        "logits so much below the best are left out, as a share", default=0.01, within=NOT_NEGATIVE,
        needs=(Needs(lambda c: c.router_type == "sparsemixer", "router_type='sparsemixer'"),),
        unplanted="acts on close logits")
    router_jitter_noise: float | int = says(
        "in training, the layer input is multiplied by uniform(1 - x, 1 + x)", default=0.0, within=FRACTION,
        may_idle=True, effect="training")
    router_jitter_draws: int = says(
        "that many times (Phi-3.5-MoE: 2)", default=1, within=between(1, 64), needs=(_JITTER,), may_idle=True,
        effect="training")
    router_loss: Literal["training", "with_router_logits", "none"] = says(
        "when router losses join `.loss` (`modeling/balancing.py`): in `training`, and only there; "
            "`with_router_logits`, as in transformers' own models, in evaluation too; or never",
        default="training", may_idle=True, effect="training", live=True)
    router_aux_loss_coef: float | int = says(
        "factor of the balance loss", default=0.001, within=NOT_NEGATIVE, needs=(_LOSSES,), may_idle=True,
        effect="training", live=True,
        wrong=(WrongValue("coefficient of the balance loss raised",
            lambda c: {"router_aux_loss_coef": c.router_aux_loss_coef + 0.01},
            lambda c: c.router_loss == "with_router_logits", seen="loss"),))
    router_z_loss_coef: float | int = says(
        "factor of the z-loss", default=0.0, within=NOT_NEGATIVE, may_idle=True,
        needs=(must(Needs(lambda c: c.router_loss == "training", "router_loss='training'")),),
        effect="training", live=True)
    output_router_logits: bool = says(
        "return each router's logits", default=False, may_idle=True, effect="training", live=True)


def router_problems(config: Any) -> Iterator[str]:
    """What a router may not say together; nothing where there are no experts."""
    if not config.num_experts:
        return
    if not 1 <= config.num_experts_per_tok <= config.num_experts:
        yield (
            f"num_experts_per_tok={config.num_experts_per_tok} must be between 1 and "
            f"num_experts={config.num_experts}"
        )
    if config.router_type == "sparsemixer" and config.num_experts_per_tok != 2:
        yield f"router_type='sparsemixer' picks 2 experts, not num_experts_per_tok={config.num_experts_per_tok}"
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
