"""Which layers are mixtures of experts, and what the experts of one are."""

from collections.abc import Iterator
from typing import Any, Literal

from .fields import Filled, Needs, WrongValue, dropped, must, part, says
from .model_facts import layer_view
from .ranges import COUNT, MOST, MOST_EXPERTS, between


def is_sparse(config: Any) -> bool:
    """Whether some layer is a mixture of experts."""
    return bool(config.sparse_layers)


SPARSE = Needs(is_sparse, "experts (num_experts)")
_SHARED = Needs(lambda c: bool(c.shared_expert_intermediate_size), "shared_expert_intermediate_size")


def first_sparse(config: Any) -> Any:
    """The view of the first sparse layer."""
    return layer_view(config, config.sparse_layers[0])


def is_uneven(config: Any, name: str) -> bool:
    """Whether a field differs between layers: a wrong value would have to choose one."""
    if not config.is_heterogeneous:
        return False
    return len({getattr(layer_view(config, i), name) for i in range(config.num_hidden_layers)}) > 1


def _other_combination_shows(config: Any) -> bool:
    # Half of an answer is the whole of it to a norm that follows at once.
    normed = config.moe_output_norm or config.block_order in ("sandwich_norm", "output_norm")
    return first_sparse(config).shared_expert_intermediate_size > 0 and not normed


@part()
class LayerKindFields:
    """Which feed-forwards are mixtures."""

    # fmt: off
    num_experts: int = says(
        "routed experts of a sparse layer; 0 makes the model dense", default=0, per_layer=True,
        within=between(0, MOST_EXPERTS), unplanted="a shape")
    mlp_layer_types: Filled[list[str]] = says(
        "`dense` or `sparse` for each layer; default: all sparse if there are experts", default=None,
        fills=lambda c: ["sparse" if c.num_experts else "dense"] * c.num_hidden_layers,
        unplanted="other tensors")


@part(SPARSE)
class ExpertFields:
    """Experts (`modeling/experts.py`)."""

    # fmt: off
    num_experts_per_tok: int = says(
        "experts that each token visits", default=2, per_layer=True, within=between(1, MOST_EXPERTS),
        wrong=(WrongValue("one expert fewer a token",
            lambda c: {"num_experts_per_tok": c.num_experts_per_tok - 1}, lambda c: not is_uneven(c,
            "num_experts_per_tok") and c.num_experts_per_tok > 1 and c.router_type != "sparsemixer",
            distinct_experts=True),))
    moe_intermediate_size: Filled[int] = says(
        "width of one expert; default `intermediate_size`", default=None, per_layer=True, within=COUNT,
        fills=lambda c: c.intermediate_size, unplanted="a shape")
    expert_bias: bool = says(
        "biases inside the routed experts", default=False, unplanted="a fault of tensors")
    shared_expert_intermediate_size: int = says(
        "width of the expert that every token visits; 0 for none", default=0, per_layer=True,
        within=between(0, MOST), unplanted="a fault of tensors")
    shared_expert_gate: bool = says(
        "multiply the shared expert by the sigmoid of a learned score", default=False,
        needs=(must(_SHARED),), unplanted="a fault of tensors")
    shared_expert_combination: Literal["sum", "average"] = says(
        "of routed and shared answers", default="sum", needs=(_SHARED,),
        wrong=(WrongValue("shared and routed answers combined otherwise",
            lambda c: {"shared_expert_combination": "sum" if c.shared_expert_combination == "average" else "average"},
            _other_combination_shows),))
    moe_output_norm: bool = says(
        "normalise what a sparse feed-forward returns (A.X-K1)", default=False,
        wrong=(dropped("norm after the experts dropped", "moe_output_norm", False),))


def expert_problems(config: Any) -> Iterator[str]:
    """What layers and experts may not say together."""
    sparse = set(config.mlp_layer_types) - {"dense"}
    if sparse - {"sparse"}:
        yield f"mlp_layer_types has {sorted(sparse - {'sparse'})}; only 'dense' and 'sparse' exist"
    if len(config.mlp_layer_types) != config.num_hidden_layers:
        yield (
            f"mlp_layer_types has {len(config.mlp_layer_types)} entries for "
            f"num_hidden_layers={config.num_hidden_layers}"
        )
    if sparse and not config.num_experts:
        yield "mlp_layer_types has 'sparse' but num_experts=0"
    if config.num_experts and not sparse and config.num_hidden_layers:
        yield f"num_experts={config.num_experts} but every entry of mlp_layer_types is 'dense'"
