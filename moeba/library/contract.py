"""The calling convention between transformers and Moeba, checked when the model's code is imported.

A function with `**kwargs` takes any name and does nothing with it. So neither side may use a name that the other does
not have: transformers' own generic heads, generation and masks show the names of the installed release. It travels with
a model's code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

from .upstream import (
    ALL_ATTENTION_FUNCTIONS,
    CACHE,
    GenerationMixin,
    GenericForSequenceClassification,
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_masks_for_generate,
    create_sliding_window_causal_mask,
)
from .window import TESTED, installed

# Names by which Moeba calls the library's functions.
_MASK_NAMES = {"config", "inputs_embeds", "attention_mask", CACHE}
_CAUSAL = {"position_ids"}
_CALLS: tuple[tuple[str, Callable, set[str]], ...] = (
    ("create_causal_mask", create_causal_mask, _MASK_NAMES | _CAUSAL),
    ("create_sliding_window_causal_mask", create_sliding_window_causal_mask, _MASK_NAMES | _CAUSAL),
    ("create_bidirectional_mask", create_bidirectional_mask, _MASK_NAMES),
    ("create_bidirectional_sliding_window_mask", create_bidirectional_sliding_window_mask, _MASK_NAMES),
    ("create_masks_for_generate", create_masks_for_generate, _MASK_NAMES | _CAUSAL),
    ("sdpa attention", ALL_ATTENTION_FUNCTIONS["sdpa"], {"scaling", "dropout"}),
    ("flex attention", ALL_ATTENTION_FUNCTIONS["flex_attention"], {"scaling", "softcap", "s_aux"}),
    (
        "flash attention",
        ALL_ATTENTION_FUNCTIONS["flash_attention_2"],
        {"scaling", "dropout", "sliding_window", "softcap"},
    ),
)


def named(function: Callable) -> set[str]:
    """Names of the parameters that a function knows; what falls into `*args` and `**kwargs` it does not."""
    catch_all = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name for p in inspect.signature(function).parameters.values() if p.kind not in catch_all} - {
        "self"
    }


def broken_calls(
    forwards: Iterable[Callable],
    prepare_inputs: Callable,
    calls: Iterable[tuple[str, Callable, set[str]]] = _CALLS,
) -> list[str]:
    """What is called by a name that it does not take, one text each.

    Args:
        forwards: of the backbone and of heads, which the library calls.
        prepare_inputs: `prepare_inputs_for_generation`, whose names go on to the library's own.
    """
    found = []
    convention = named(GenericForSequenceClassification.forward) - {"labels"}
    for forward in forwards:
        if lacking := convention - named(forward):
            found.append(f"{forward.__qualname__} takes no {', '.join(sorted(lacking))}")
    stock = named(GenerationMixin.prepare_inputs_for_generation)
    theirs = [
        (
            "prepare_inputs_for_generation",
            GenerationMixin.prepare_inputs_for_generation,
            named(prepare_inputs),
        )
    ]
    if CACHE not in stock:
        found.append(f"{prepare_inputs.__qualname__} takes no name of the cache that the library knows")
    for name, function, names in (*calls, *theirs):
        if lacking := names - named(function):
            found.append(f"transformers' {name} takes no {', '.join(sorted(lacking))}")
    return found


def require_contract(forwards: Iterable[Callable], prepare_inputs: Callable) -> None:
    """Refuse a library that Moeba does not understand, or that would not understand Moeba.

    Raises:
        ImportError: it names the calls, the installed release and the newest tested one.
    """
    if broken := broken_calls(forwards, prepare_inputs):
        raise ImportError(
            f"transformers {installed('transformers')} and this version of Moeba call each other by names that the "
            f"other does not take: {'; '.join(broken)}. The newest release that this version was tested on is "
            f"transformers {TESTED['transformers'].newest}: install that one, or a newer Moeba."
        )
