"""Train a byte-pair vocabulary of characters in SentencePiece's form.

Beside byte-level BPE, because llama.cpp's converter knows a byte-level tokenizer by a hash of its ids, and so refuses
each that it has not met. SentencePiece's form it takes from any vocabulary, for the layouts whose models have it.

SentencePiece, and llama.cpp with it, joins in the whole text the neighbours that make the earliest learnt piece,
whatever two parts it is made of. So that `tokenizer.json` gives the same ids,

- words end where two neighbours say so and nothing else: at a fall in the order of blanks, marks and letters, and at
  digits and line breaks. No piece holds such a pair, so joining within words is joining in the whole text;
- a piece can be joined from any two pieces that spell it, in the order in which pieces were learnt.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPACE = "\u2581"
"""What stands for a space in pieces. Written in a text, it comes back as a space."""

UNKNOWN = "<|unk|>"
"""SentencePiece cannot do without an unknown piece. With all bytes in the vocabulary, no text gives it."""

BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))

_BLANK = rf"[{SPACE}[^\S\r\n]]"
_LETTER = r"[\p{L}\p{M}]"
_MARK = rf"[^\s{SPACE}\p{{L}}\p{{M}}\p{{N}}]"
WORDS = rf"\p{{N}}|[\r\n]+|(?=[^\r\n\p{{N}}]){_BLANK}*{_MARK}*{_LETTER}*"


def train_backend(
    texts: Iterable[str],
    vocab_size: int,
    special: Sequence[str],
    min_frequency: int,
    *,
    length: int | None,
    show_progress: bool,
) -> Tokenizer:
    """Learn from `texts`: first `special`, UNKNOWN and bytes, then characters by code, then what is merged of them.

    The texts are read once. In between they lie in a temporary file, since the characters must be counted before
    anything is merged.
    """
    fixed = [*special, UNKNOWN, *BYTE_PIECES]
    room = vocab_size - len(fixed)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        common = _by_frequency(_written(texts, file), min_frequency)
        # Rarer characters are spelt in bytes, unless merges leave room.
        characters = common[: max(room // 4, min(room // 2, 128))]
        trainer = trainers.BpeTrainer(
            vocab_size=room,
            min_frequency=min_frequency,
            initial_alphabet=characters,
            limit_alphabet=len(characters),
            show_progress=show_progress,
        )
        learner = _backend(models.BPE())
        learner.train_from_iterator(_spelt(file, characters), trainer, length=length)
    learnt = [token for token, _ in sorted(learner.get_vocab().items(), key=lambda item: item[1])]
    pieces = [*(token for token in learnt if token not in fixed), *common[len(characters) :]][:room]
    vocabulary = {piece: place for place, piece in enumerate([*fixed, *pieces])}
    backend = _backend(
        models.BPE(vocab=vocabulary, merges=list(_joins(pieces)), byte_fallback=True, fuse_unk=False)
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in fixed[: len(special) + 1]]
    )
    return backend


def _backend(model: models.BPE) -> Tokenizer:
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    return backend


def _written(texts: Iterable[str], file: IO[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
        file.write(json.dumps(text) + "\n")
    return counts


def _by_frequency(counts: Counter[str], min_frequency: int) -> list[str]:
    """Characters that occur as often, the most frequent first, ties by code.

    NUL is spelt in bytes: it would end a piece's text in C.
    """
    counts[SPACE] += counts.pop(" ", 0)
    counts.pop("\0", None)
    often = [character for character, count in counts.items() if count >= min_frequency]
    return sorted(often, key=lambda character: (-counts[character], character))


def _spelt(file: IO[str], characters: Sequence[str]) -> Iterator[list[str]]:
    """Each text in the parts between characters that are spelt in bytes: nothing is merged across these."""
    file.seek(0)
    spelt = re.compile(f"[^{re.escape(' ' + ''.join(characters))}]+")
    for line in file:
        yield spelt.split(json.loads(line))


def _joins(pieces: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every two pieces that spell a third, by the place of the third, the longer left part first."""
    known = {*pieces}
    for piece in pieces:
        for cut in range(len(piece) - 1, 0, -1):
            if piece[:cut] in known and piece[cut:] in known:
                yield piece[:cut], piece[cut:]
