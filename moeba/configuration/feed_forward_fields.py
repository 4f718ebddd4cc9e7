"""What each token is turned into by itself: the dense feed-forward, and the form that experts share."""

from typing import Any, Literal

from .attention_fields import SMALL_LIMIT, at_most
from .fields import Needs, WrongValue, dropped, part, says
from .ranges import COUNT, POSITIVE, activation

_CLAMPED = Needs(lambda c: c.feed_forward_type == "clamped_gated", "feed_forward_type='clamped_gated'")
_NEAR = {"gelu_new": "gelu", "gelu": "gelu_new", "gelu_pytorch_tanh": "gelu", "silu": "gelu"}


def _has_dense(config: Any) -> bool:
    return not config.mlp_layer_types or "dense" in config.mlp_layer_types


@part()
class FeedForwardFields:
    """Feed-forwards (`modeling/feed_forward.py`)."""

    # fmt: off
    intermediate_size: int = says(
        "width of a dense feed-forward", default=2048, per_layer=True, within=COUNT, may_idle=True,
        unplanted="a shape", needs=(Needs(_has_dense, "'dense' in mlp_layer_types"),))
    feed_forward_type: Literal["gated", "clamped_gated", "mlp"] = says(
        "`down(act(gate) * up)`, the same with GPT-OSS's clamps, or `down(act(up))`", default="gated",
        unplanted="other tensors")
    hidden_act: str = says(
        "any activation of transformers", default="silu", within=activation,
        needs=(Needs(lambda c: c.feed_forward_type != "clamped_gated",
            "feed_forward_type 'gated' or 'mlp'"),),
        wrong=(WrongValue("another activation", lambda c: {"hidden_act": _NEAR.get(c.hidden_act, "silu")}),))
    swiglu_alpha: float | int = says(
        "slope in the gate of `clamped_gated`", default=1.702, needs=(_CLAMPED,), unplanted="as its limit")
    swiglu_limit: float | int | None = says(
        "where its gate and values are clamped", default=7.0, within=POSITIVE, needs=(_CLAMPED,),
        small=at_most(SMALL_LIMIT), wrong=(dropped("gate unclamped", "swiglu_limit", None),))
    mlp_bias: bool = says(
        "biases in dense and shared feed-forwards", default=False, unplanted="a fault of tensors",
        needs=(Needs(lambda c: not c.sparse_layers or "dense" in c.mlp_layer_types
            or bool(c.shared_expert_intermediate_size), "'dense' in mlp_layer_types, or a shared expert"),))
