"""How blocks are stacked and where they normalise."""

from typing import Any, Literal, get_args

from .fields import Needs, WrongValue, dropped, part, says
from .messages import nearest
from .ranges import EPSILON, MOST_LAYERS, between

NormType = Literal[
    "rmsnorm",
    "rmsnorm_float32",
    "rmsnorm_unit_offset",
    "rmsnorm_nonparametric",
    "layernorm",
    "layernorm_float32",
    "layernorm_unit_offset",
    "layernorm_nonparametric",
]


def norm_kind(name: Any) -> str | None:
    """The range of names of norms."""
    norms = get_args(NormType)
    return None if name in norms else f"is no norm_type (nearest: '{nearest(name, norms)}')"


NORMS_WITH_BIAS = ("layernorm", "layernorm_unit_offset")
NORMS_PER_BLOCK = {
    "pre_norm": 2,
    "pre_norm_normed_residual": 2,
    "post_norm": 2,
    "sandwich_norm": 4,
    "output_norm": 2,
    "parallel": 1,
    "parallel_stream_first": 1,
    "parallel_two_norms": 2,
}
_OTHER_ORDER = {"rmsnorm": "rmsnorm_float32", "rmsnorm_float32": "rmsnorm"}


@part()
class BlockFields:
    """Blocks and norms (`modeling/blocks.py`, `modeling/norms.py`)."""

    # fmt: off
    num_hidden_layers: int = says(
        "number of transformer blocks", default=12, within=between(0, MOST_LAYERS), live=True,
        unplanted="a shape")
    block_order: Literal["pre_norm", "pre_norm_normed_residual", "post_norm", "sandwich_norm", "output_norm",
            "parallel", "parallel_stream_first", "parallel_two_norms"] = says(
        "where the norms stand relative to the two residual branches, see `modeling/blocks.py`",
        default="pre_norm", unplanted="other orders have other tensors")
    residual_multiplier: float | int = says(
        "factor on each branch before it is added to the residual stream", default=1.0,
        wrong=(dropped("residual multiplier dropped", "residual_multiplier", 1.0),))
    final_norm: bool = says(
        "normalise once more after the last block", default=True, unplanted="a fault of tensors")
    norm_type: NormType = says(
        "see `modeling/norms.py`", default="rmsnorm",
        wrong=(WrongValue("norm weights taken without their offset",
            lambda c: {"norm_type": c.norm_type.removesuffix("_unit_offset")},
            lambda c: c.norm_type.endswith("unit_offset")),
            WrongValue("norms rounded before and after their weight exchanged",
            lambda c: {"norm_type": _OTHER_ORDER[c.norm_type]}, lambda c: c.norm_type in _OTHER_ORDER,
            seen="half"),))
    norm_eps: float = says(
        "added to a variance before its root is taken", default=1e-6, within=EPSILON,
        wrong=(WrongValue("norm epsilon times ten", lambda c: {"norm_eps": max(c.norm_eps * 10, 1e-5)}),
            WrongValue("norm epsilon times four, on faint inputs", lambda c: {"norm_eps": max(4 * c.norm_eps,
            1e-20)}, lambda c: not c.norm_type.endswith("nonparametric"), seen="faint"),))
    norm_bias: bool = says(
        "biases of layer norms", default=True,
        needs=(Needs(lambda c: c.norm_type in NORMS_WITH_BIAS, f"norm_type in {NORMS_WITH_BIAS}"),),
        unplanted="a fault of tensors")
