"""What is known of a field of MoebaConfig, said once, where the field is declared.

Each file `…_fields.py` holds the whole schema of one part: its fields, and the rules between them. On disk the fields
lie flat, as tools expect them. Validation, idleness, comparison of configs, planted faults, twins and the documentation
of `MoebaConfig` are derived from what is said here.
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Optional,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
)

from .ranges import Range

Part = TypeVar("Part", bound=type)
Value = TypeVar("Value")

if TYPE_CHECKING:
    # A field that may be left out, and has a value as soon as the config is made.
    Filled = Annotated[Value, "filled in"]
    Settings = dict[str, Any]
else:
    Filled = Optional
    Settings = dict  # what it holds is its part's to check, and to name


@dataclass(frozen=True)
class Needs:
    """What must hold for a field to change anything, and the same in words: `has no effect without …`.

    Attributes:
        strict: a file that says the field without it is refused too, as a model that was trained with it is no such
            model. Other idle values of files are harmless, and stay.
    """

    holds: Callable[[Any], bool]
    words: str
    strict: bool = False


def must(needs: Needs) -> Needs:
    """The same, strictly."""
    return replace(needs, strict=True)


@dataclass(frozen=True)
class WrongValue:
    """A wrong value that a certificate must notice wherever the field acts.

    Attributes:
        name: as it stands in certificates.
        change: config -> the fields that are wrong, with their values.
        shows: what else must hold of a config, so that its model computes otherwise.
        distinct_experts: only where the experts of a layer are no copies of each other.
        seen: where it shows: in logits, in half precision alone, in training, in the loss beside router logits, or on
            inputs so faint that an epsilon decides.
    """

    name: str
    change: Callable[[Any], dict[str, Any]]
    shows: Callable[[Any], bool] = lambda config: True
    distinct_experts: bool = False
    seen: Literal["logits", "half", "training", "loss", "faint"] = "logits"


def dropped(name: str, field_name: str, value: Any, **conditions: Any) -> WrongValue:
    """The field at the value that leaves nothing of it, where it has another."""
    shows = conditions.pop("shows", lambda config: True)
    return WrongValue(
        name,
        lambda config: {field_name: value},
        lambda config: getattr(config, field_name) != value and shows(config),
        **conditions,
    )


@dataclass(frozen=True)
class Facts:
    """
    Attributes:
        meaning: for the documentation, a phrase.
        within: the numbers that it may be.
        needs: what must hold for it to act; of its part, and its own.
        may_idle: it may be said where it does not act: a size that tools read, or what a script says of any model.
        fills: config -> what it is where nobody says it. Fields declared earlier have their values by then.
        effect: what it changes: what inference computes (`function`), only how that is rounded in float32 too
            (`rounding`), training or the form of outputs (`training`), or nothing that is computed (`metadata`).
        per_layer: attention, routers or experts read it of their own layer's config (`per_layer_config`); all else is
            read for all layers at once.
        live: models read it anew at each forward, or never: it may be set on the config of a model that is built.
        wrong: the wrong values that certificates plant.
        unplanted: why there are none.
        small: its value -> its value in a small model with the same parts.
        means: config -> its value in the plainest spelling, by which configs are compared.
    """

    meaning: str
    within: Range | None = None
    needs: tuple[Needs, ...] = ()
    may_idle: bool = False
    fills: Callable[[Any], Any] | None = None
    effect: Literal["function", "rounding", "training", "metadata"] = "function"
    per_layer: bool = False
    live: bool = False
    wrong: tuple[WrongValue, ...] = ()
    unplanted: str = ""
    small: Callable[[Any], Any] = lambda value: value
    means: Callable[[Any], Any] | None = None


def says(meaning: str, *, default: Any, **facts: Any) -> Any:
    """A field with its default and what is known of it; see `Facts`."""
    return field(default=default, metadata={"facts": Facts(meaning, **facts)})


@dataclass_transform(kw_only_default=True, field_specifiers=(says,))
def part(*needs: Needs) -> Callable[[Part], Part]:
    """Decorate a class of fields that act only where `needs` hold."""

    def declare(cls: Part) -> Part:
        dataclass(kw_only=True, init=False, repr=False, eq=False)(cls)
        for item in fields(cls):
            facts = item.metadata["facts"]
            item.metadata = MappingProxyType({"facts": replace(facts, needs=(*needs, *facts.needs))})
        return cls

    return declare


def facts_of(*parts: type) -> dict[str, Facts]:
    """Field -> what is known of it, in the order of declaration."""
    return {item.name: item.metadata["facts"] for one in parts for item in fields(one)}


def documented(*parts: type) -> str:
    """The fields as an `Args:` section, part by part."""
    lines = ["Args:"]
    for item in (item for one in parts for item in fields(one)):
        said = f"{item.name} ({_type(item.type)}, defaults to `{item.default!r}`): {item.metadata['facts'].meaning}."
        lines += textwrap.wrap(said, 110, initial_indent="    ", subsequent_indent="        ")
    return "\n".join(lines)


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(f"`{option!r}`" for option in get_args(annotation))
    named = (
        annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    )
    return f"`{named}`"
