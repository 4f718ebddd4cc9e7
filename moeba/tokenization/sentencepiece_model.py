"""Write SentencePiece's `tokenizer.model`, which llama.cpp's converter reads, from a backend of that form.

The file is one protocol buffer (`sentencepiece_model.proto`): pieces with score and kind, then how the model was
trained and how a text is normalised. Scores fall by one a piece, so that earlier learnt pieces are joined first.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path

from tokenizers import Tokenizer

from .sentencepiece_form import BYTE_PIECES, UNKNOWN, WORDS

FILE = "tokenizer.model"


class _Kind(IntEnum):
    NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def has_sentencepiece_form(folder: str | os.PathLike[str]) -> bool:
    """Whether the tokenizer in `folder` was trained by `sentencepiece_form`, and neither byte-level nor elsewhere."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file() or not (Path(folder) / "tokenizer_config.json").is_file():
        return False
    state = json.loads(path.read_text(encoding="utf-8"))
    cut = state.get("pre_tokenizer")
    has_unknown = any(token["content"] == UNKNOWN for token in state["added_tokens"])
    return isinstance(cut, dict) and cut.get("pattern") == {"Regex": WORDS} and has_unknown


def write_sentencepiece(folder: str | os.PathLike[str], adds: Mapping[str, bool] | None = None) -> str | None:
    """Write `tokenizer.model` for the `tokenizer.json` in `folder`, and return its path; None if that has another form.

    `adds` says whether `bos` and `eos` are put around a text. It goes into tokenizer_config.json, where transformers
    leaves it out and llama.cpp's converter needs it: for this form llama.cpp puts `bos` before a text unless told.
    """
    root = Path(folder)
    if not has_sentencepiece_form(root):
        return None
    backend = Tokenizer.from_file(str(root / "tokenizer.json"))
    path = root / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    if adds is not None:
        settings |= adds
        path.write_text(
            json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    special = {name: _id_of(backend, settings.get(f"{name}_token")) for name in ("bos", "eos", "pad")}
    (root / FILE).write_bytes(sentencepiece_model(backend, special))
    return str(root / FILE)


def _id_of(backend: Tokenizer, token: str | Mapping[str, str] | None) -> int | None:
    text = token["content"] if isinstance(token, Mapping) else token
    return None if text is None else backend.token_to_id(text)


def sentencepiece_model(backend: Tokenizer, special: Mapping[str, int | None]) -> bytes:
    """The contents of `tokenizer.model`; `special` gives the ids of `bos`, `eos` and `pad`, or None.

    Raises:
        ValueError: there is no unknown piece.
    """
    pieces = list(_pieces(backend))
    unknown = backend.token_to_id(UNKNOWN)
    if unknown is None:
        raise ValueError(
            f"the tokenizer has no {UNKNOWN}, and SentencePiece cannot do without an unknown piece"
        )
    trained = (
        _number(3, 2) + _number(4, len(pieces)) + _number(35, 1) + _number(40, unknown) + _text(45, UNKNOWN)
    )
    for name, (number, text) in {"bos": (41, 46), "eos": (42, 47), "pad": (43, 48)}.items():
        place = special[name]
        trained += (
            _number(number, -1) if place is None else _number(number, place) + _text(text, pieces[place][0])
        )
    normalised = _text(1, "identity") + _number(3, 0) + _number(4, 0) + _number(5, 1)
    body = b"".join(
        _block(1, _text(1, text) + _real(2, -float(place)) + _number(3, kind))
        for place, (text, kind) in enumerate(pieces)
    )
    return body + _block(2, trained) + _block(3, normalised)


def _pieces(backend: Tokenizer) -> Iterator[tuple[str, _Kind]]:
    """Text and kind by id. Ids that nothing has are unused ones."""
    added = {token["id"]: token for token in json.loads(backend.to_str())["added_tokens"]}
    texts = {place: text for text, place in backend.get_vocab(with_added_tokens=True).items()}
    for place in range(max(texts) + 1):
        text = texts.get(place, f"<|unused_{place}|>")
        if text == UNKNOWN:
            yield text, _Kind.UNKNOWN
        elif place in added:
            yield text, _Kind.CONTROL if added[place]["special"] else _Kind.USER_DEFINED
        elif place not in texts:
            yield text, _Kind.UNUSED
        else:
            yield text, _Kind.BYTE if text in BYTE_PIECES else _Kind.NORMAL


def _varint(value: int) -> bytes:
    # Negative numbers are written as 64 bits in two's complement.
    value &= (1 << 64) - 1
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _real(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _block(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _block(field, text.encode("utf-8"))
