"""How the vocabularies of several models become one: the four modes, each with what it refuses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ...conversion.json_files import listing
from .merge_recipe import BASE, VOCABULARIES
from .model_tokens import ModelTokens, cut_alike, difference
from .tokenizer_union import with_tokens
from .vocabulary import Vocabulary

_HINT = (
    "say vocab: trim (the rows that all share), pad (as many rows as the largest) or union (all tokens, by their "
    "text)"
)


def agree(models: Mapping[str, ModelTokens], mode: str, multiple: int | None) -> Vocabulary | None:
    """How the vocabularies of `models`, the base model first, become one; None where they are one already.

    Args:
        multiple: rows are filled up to a multiple of it.

    Raises:
        ValueError: they differ, and `mode` does not allow for it; what differs is named, with the modes that do.
    """
    assert mode in VOCABULARIES
    base = models[BASE]
    problems = []
    for name, model in models.items():
        if apart := difference(base, model) if name != BASE else "":
            problems.append(f"{model.called}: {apart}")
    if mode == "strict" and problems:
        raise ValueError(
            f"the vocabularies differ ({base.called} has {base.rows} rows and {len(base.ids)} tokens): "
            f"{listing(problems)}; {_HINT}."
        )
    alike = not problems and (multiple is None or base.rows % multiple == 0)
    found = None if alike else _MODES[mode](models, mode, multiple)
    spoken = [model for model in models.values() if model.tokenizer is not None]
    if cut := [model.called for model in spoken[1:] if not cut_alike(spoken[0], model)]:
        raise ValueError(
            f"the tokenizers differ: {listing(cut)}: the same tokens, but a text is cut into others than by "
            f"{spoken[0].called}: merge models of one tokenizer."
        )
    return found


def _trimmed(models: Mapping[str, ModelTokens], mode: str, multiple: int | None) -> Vocabulary:
    size = min(model.rows for model in models.values())
    spoken = [model for model in models.values() if model.tokenizer is not None]
    if spoken:
        size = next((at for at in range(size) if len({model.text_of.get(at) for model in spoken}) > 1), size)
    fitting = [name for name, model in models.items() if model.tokenizer is not None and model.last < size]
    if spoken and not fitting:
        raise ValueError(
            f"vocab='trim': all models mean the same by the first {size} ids only, and each tokenizer gives "
            f"larger ones ({listing([f'{model.called} up to {model.last}' for model in spoken])}): say vocab: union."
        )
    return _vocabulary(models, mode, _filled(size, multiple), fitting[0] if fitting else BASE)


def _padded(models: Mapping[str, ModelTokens], mode: str, multiple: int | None) -> Vocabulary:
    size = max(model.rows for model in models.values())
    ids: dict[str, int] = {}
    texts: dict[int, str] = {}
    problems = []
    for model in models.values():
        for token, place in model.known.items():
            if ids.setdefault(token, place) != place:
                problems.append(f"{model.called} has {token!r} at {place}, another model at {ids[token]}")
            elif texts.setdefault(place, token) != token:
                problems.append(
                    f"{model.called} has {token!r} at {place}, where another has {texts[place]!r}"
                )
    if problems:
        raise ValueError(
            f"vocab={mode!r} keeps ids, and these stand for several tokens: {listing(problems)}: say vocab: union."
        )
    whole = [
        name
        for name, model in models.items()
        if model.tokenizer is not None
        and model.last < _filled(size, multiple)
        and len(model.known) == len(ids)
    ]
    if ids and not whole:
        raise ValueError(
            f"vocab={mode!r} keeps one model's tokenizer, and none has all {len(ids)} tokens with a row for each: say "
            "vocab: union."
        )
    return _vocabulary(models, mode, _filled(size, multiple), whole[0] if whole else BASE)


def _united(models: Mapping[str, ModelTokens], mode: str, multiple: int | None) -> Vocabulary:
    base = models[BASE]
    if base.tokenizer is None:
        raise ValueError(
            f"vocab='union' puts tokens together by their text, and {base.called} has no tokenizer that loads: say "
            "vocab: pad or trim."
        )
    new: dict[str, Any] = {}
    problems = []
    for model in models.values():
        if model.tokenizer is None and model.rows > base.rows:
            problems.append(f"{model.called} has {model.rows} rows and no tokenizer that says what they are")
        if model.tokenizer is None:
            continue
        given = {token.content: token for token in model.tokenizer.added_tokens_decoder.values()}
        missing = [
            token for token in sorted(model.known, key=model.known.__getitem__) if token not in base.ids
        ]
        if inborn := [repr(token) for token in missing if token not in given]:
            problems.append(
                f"{model.called} has {len(inborn)} tokens that are no additions but of its own vocabulary: "
                f"{listing(inborn)}"
            )
        for token in missing:
            new.setdefault(token, given.get(token))
    if problems:
        raise ValueError(
            f"vocab='union' appends added tokens to the tokenizer of {base.called}, and cannot: {listing(problems)}."
        )
    tokenizer = with_tokens(base.folder, list(new.values())) if new else base.tokenizer
    size = max(base.rows, 1 + max(tokenizer.get_vocab().values()))
    return _vocabulary(models, mode, _filled(size, multiple), BASE, tokenizer, tuple(new.values()))


_MODES = {"strict": _padded, "pad": _padded, "trim": _trimmed, "union": _united}


def _filled(size: int, multiple: int | None) -> int:
    return size if multiple is None else size + -size % multiple


def _vocabulary(
    models: Mapping[str, ModelTokens],
    mode: str,
    size: int,
    home: str,
    tokenizer: Any = None,
    added: Iterable[Any] = (),
) -> Vocabulary:
    tokenizer = tokenizer or models[home].tokenizer
    ids = {} if tokenizer is None else tokenizer.get_vocab()
    nowhere = torch.full((size,), -1)
    unused = (
        nowhere.index_fill(
            0, torch.tensor(sorted({place for place in ids.values() if place < size})).long(), 0
        )
        < 0
    )
    rows, spare = {}, {}
    for name, model in models.items():
        # A model without a tokenizer means by its ids what the merged one means.
        known = model.known if model.tokenizer is not None else {
            token: place for token, place in ids.items() if place < model.rows
        }  # fmt: skip
        rows[name], spare[name] = nowhere.clone(), nowhere.clone()
        pairs = [(ids[token], own) for token, own in known.items() if ids.get(token, size) < size]
        if pairs:
            places, own = torch.tensor(pairs).T
            rows[name][places] = own
        free = [place for place in unused.nonzero().flatten().tolist()
                if place < model.rows and place not in model.text_of]  # fmt: skip
        spare[name][free] = torch.tensor(free).long()
    return Vocabulary(mode, size, home, models, tokenizer, tuple(added), rows, spare)
