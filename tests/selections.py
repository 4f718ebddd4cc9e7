"""What runs on other sets of libraries, on other processors, or not in CI: chosen in one place, by what it covers."""

from __future__ import annotations

import functools
import sys
from typing import Any, Literal, get_args, get_origin

import pytest
from native import draw

from moeba import MoebaConfig
from moeba.conversion import FAMILIES, family_of

# With the oldest set (`make test-oldest`): what touches transformers and the libraries around it.
OLDEST = (
    "configuration/",
    "conversion/test_certificate.py::test_dense_and_upcycled_folder",
    "conversion/test_certificate.py::test_every_fault_is_caught",
    "conversion/test_certificate.py::test_in_and_out_are_certified",
    "conversion/test_family_parity.py",
    "conversion/test_family_round_trip.py",
    "evaluation/",
    "hub/",
    "hub_card/test_bundle_life.py",
    "hub_card/test_card.py",
    "hub_card/test_card_training.py",
    "kernels/test_compiled.py",
    "kernels/test_experts_interface.py",
    "kernels/test_lora_with_peft.py",
    "kernels/test_native_experts.py",
    "library/",
    "modeling/",
    "surgery/test_adapters.py",
    "surgery/test_upcycle.py",
    "tokenization/",
    "training/",
    "upstream/",
)
# Slow ones that go along: the Hub folder where Moeba is not installed, and the whole road.
OLDEST_SLOW = (
    "demo/test_demo.py::test_the_main_road",
    "hub_card/test_bundle_life.py",
    "hub_card/test_other_release.py",
    "modeling/test_code_files.py::test_loads_and_saves_without_the_package[shared_sigmoid]",
)
# On lesser processors (`make test-processors`): the comparisons with stock models, and of the kernels.
PROCESSORS = (
    "conversion/test_family_parity.py::test_same_logits",
    "conversion/test_family_parity.py::test_same_gradients",
    "kernels/test_experts_interface.py",
    "kernels/test_gradients.py",
    "modeling/test_parity.py",
)
# Proofs over many configs of a family. CI runs them for the families that have all parts between them, `make test-full`
# for every family. Each family's default tests always run.
WIDE = (
    "conversion/test_family_mutations.py::test_one_field_changed",
    "conversion/test_pairs.py::test_every_target_holds_it",
    "conversion/test_family_parity.py::test_same_function_everywhere",
    "conversion/test_family_round_trip.py::test_comes_back_from_everywhere",
)
# What takes minutes and is sampled by other tests.
WHOLE = ("surgery/test_kills.py::test_killed_before_every_step",)


def in_exhaustive(item: pytest.Item) -> bool:
    place = _place(item)
    if place.startswith(WHOLE):
        return True
    return place.startswith(WIDE) and item.callspec.params["model_type"] not in families_by_part()


def in_oldest(item: pytest.Item) -> bool:
    place = _place(item)
    if item.get_closest_marker("slow"):
        return place.startswith(OLDEST_SLOW)
    return place.startswith(OLDEST) and _in_sample(item)


def in_processors(item: pytest.Item) -> bool:
    return _place(item).startswith(PROCESSORS) and not item.get_closest_marker("slow") and _in_sample(item)


def _place(item: pytest.Item) -> str:
    """`folder/file.py::test[case]`, below tests/."""
    return item.nodeid.removeprefix("tests/")


def _in_sample(item: pytest.Item) -> bool:
    """Whether a test is of no single family, or of one that was chosen, at its first seed."""
    case = getattr(item, "callspec", None) and item.callspec.params.get("case")
    return not isinstance(case, tuple) or (case[0] in families_by_part() and case[1] == 0)


@functools.cache
def families_by_part() -> tuple[str, ...]:
    """A few families, at the first seed of their draws, that between them have every part that any of them has.

    The one that adds most parts comes first, and so on: any family of the same parts would do as well.
    """
    parts = {model_type: _parts(model_type) for model_type in FAMILIES}
    wanted, chosen = set().union(*parts.values()), []
    while wanted:
        best = max(parts, key=lambda model_type: len(parts[model_type] & wanted))
        wanted -= parts[best]
        chosen.append(best)
    return tuple(chosen)


def _parts(model_type: str) -> set[tuple[str, Any]]:
    """Choices of the config as (field, value), and the operations that bring the tensors in."""
    family = family_of(model_type)
    config = family.to_moeba(draw(model_type, 0))
    found = {(name, getattr(config, name)) for name in _choices()}
    found |= {("layer type", kind) for kind in config.layer_types or ()}
    found |= {("operation", type(step).__name__) for row in family.rows for step in row.operations}
    return found


@functools.cache
def _choices() -> tuple[str, ...]:
    """The fields of a config that choose a part: names of one, and switches."""
    names = vars(sys.modules[MoebaConfig.__module__])
    hints = MoebaConfig.__annotations__.items()
    return tuple(n for n, hint in hints if _is_choice(eval(hint, names) if isinstance(hint, str) else hint))


def _is_choice(hint: Any) -> bool:
    if hint is bool or get_origin(hint) is Literal:
        return True
    return any(_is_choice(argument) for argument in get_args(hint) if argument is not type(None)) and (
        get_origin(hint) not in (list, dict, tuple)
    )
