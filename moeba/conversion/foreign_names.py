"""Names of tensors that a wrapper has changed: one thing to say, where otherwise every tensor would be an offender."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cache

# What wrappers put into the names of a module's tensors, and how to get a checkpoint without it.
_WRAPPERS = {
    "_orig_mod.": "torch.compile puts it there: save model._orig_mod, or compile with model.compile()",
    "module.": "DataParallel and DistributedDataParallel put it there: save model.module",
    "_fsdp_wrapped_module.": "FSDP puts it there: save a full state dict (accelerator.get_state_dict, save_model)",
    "_checkpoint_wrapped_module.": "activation checkpointing puts it there: save the model that was wrapped",
    "base_model.model.": "PEFT puts it there: save what merge_and_unload() returns",
    "base_layer.": "PEFT puts it there: save what merge_and_unload() returns",
}
_MULTIMODAL = "a model of text and more has it: load that one and save its text model with save_pretrained"
_SHARE = 0.5  # of the expected names, that must be found without the prefix, and not with it


def describe_foreign_names(
    found: Collection[str], expected: Sequence[str], base_prefix: str = ""
) -> str | None:
    """One sentence if most of `found` are what was expected but for a prefix, or a wrapper's word inside; else None.

    Args:
        base_prefix: what all expected names may rightly leave off.
    """
    if not expected:
        return None
    plain = max(
        _matches(found, expected), _matches(found, [name.removeprefix(base_prefix) for name in expected])
    )
    words = [word for word in _WRAPPERS if any(_pattern(word).search(name) for name in found)]
    cut = {_without(name, words) for name in found}
    prefix = _common_prefix(cut, expected, base_prefix)
    bare = {name.removeprefix(prefix) for name in cut}
    matches = max(
        _matches(bare, expected), _matches(bare, [name.removeprefix(base_prefix) for name in expected])
    )
    if matches <= plain or matches < _SHARE * len(expected) or plain >= _SHARE * len(expected):
        return None
    foreign = [repr(word) for word in (*words, prefix) if word]
    remedies = list(dict.fromkeys(_WRAPPERS[word] for word in words))
    if prefix:
        textual = "language_model" in prefix or "text_model" in prefix
        remedies += [_MULTIMODAL] if textual else []
    remedies.append("write the file again with the tensors under their names without it")
    return (
        f"{matches} of {len(expected)} tensors are there, but their names have {' and '.join(foreign)} in front or "
        f"inside, as in {_example(found, words, prefix)}: {'; or '.join(remedies)}"
    )


def _matches(found: Collection[str], expected: Sequence[str]) -> int:
    known = set(found)
    return sum(name in known for name in expected)


def _without(name: str, words: Sequence[str]) -> str:
    for word in words:
        name = _pattern(word).sub("", name)
    return name


@cache
def _pattern(word: str) -> re.Pattern[str]:
    """The word as whole parts of a name."""
    return re.compile(r"(?:^|(?<=\.))" + re.escape(word))


def _common_prefix(found: Collection[str], expected: Sequence[str], base_prefix: str) -> str:
    """The one that most names have before an expected one; empty if most need none."""
    ends = {tail for name in expected for tail in (name, name.removeprefix(base_prefix))}
    counts: Counter[str] = Counter()
    for name in found:
        parts = name.split(".")
        for place in range(len(parts)):
            if ".".join(parts[place:]) in ends:
                counts[".".join(parts[:place]) + "." if place else ""] += 1
                break  # the longest expected name that it ends with
    if not counts:
        return ""
    return counts.most_common(1)[0][0]


def _example(found: Collection[str], words: Sequence[str], prefix: str) -> str:
    """A name with what is foreign in it."""
    return next(
        name for name in found if name != _without(name, words) or (prefix and name.startswith(prefix))
    )
