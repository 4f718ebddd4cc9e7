"""Train a byte-pair vocabulary of characters in SentencePiece's form.

Beside byte-level BPE, because llama.cpp's converter knows a byte-level tokenizer by a hash of its ids, and so refuses
each that it has not met. SentencePiece's form it takes from any vocabulary, for the layouts whose models have it.

SentencePiece, and llama.cpp with it, joins in the whole text the neighbours that make the earliest learnt piece, whatever
two parts it is made of. So that `tokenizer.json` gives the same ids,

- words end where two neighbours say so and nothing else: at a fall in the order of blanks, marks and letters, and at
  digits and line breaks. No piece holds such a pair, so joining within words is joining in the whole text;
- a piece can be joined from any two pieces that spell it, in the order in which pieces were learnt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

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
    """Learn from `texts`: first `special`, UNKNOWN and bytes, then pieces as learnt."""
    fixed = [*special, UNKNOWN, *BYTE_PIECES]
    room = vocab_size - len(fixed)
    counts: Counter[str] = Counter()
    learner = _backend(models.BPE())
    # Every character enters the trainer's vocabulary, and those that are left out below make room for more merges.
    trainer = trainers.BpeTrainer(
        vocab_size=room + room // 2, min_frequency=min_frequency, show_progress=show_progress
    )
    learner.train_from_iterator(_counted(texts, counts), trainer, length=length)
    # Rarer characters are spelt in bytes.
    characters = _common(counts, max(room // 4, min(room // 2, 128)), min_frequency)
    pieces = [*sorted(characters), *_merged(learner, characters, set(fixed))][:room]
    vocabulary = {piece: place for place, piece in enumerate([*fixed, *pieces])}
    backend = _backend(
        models.BPE(vocab=vocabulary, merges=list(_joins(pieces)), byte_fallback=True, fuse_unk=False)
    )
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in fixed[: len(special) + 1]])
    return backend


def _backend(model: models.BPE) -> Tokenizer:
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    return backend


def _counted(texts: Iterable[str], counts: Counter[str]) -> Iterator[str]:
    for text in texts:
        counts.update(text)
        yield text


def _common(counts: Counter[str], limit: int, min_frequency: int) -> list[str]:
    """The most frequent characters, ties by code. NUL is spelt in bytes: it would end a piece's text in C."""
    counts[SPACE] += counts.pop(" ", 0)
    counts.pop("\0", None)
    often = [character for character, count in counts.items() if count >= min_frequency]
    return sorted(often, key=lambda character: (-counts[character], character))[:limit]


def _merged(learner: Tokenizer, characters: Iterable[str], taken: set[str]) -> Iterator[str]:
    """What the trainer merged, in its order, of characters that stay and unlike tokens that are there already."""
    known = {*characters}
    for token, _ in sorted(learner.get_vocab().items(), key=lambda item: item[1]):
        if len(token) > 1 and token not in taken and known.issuperset(token):
            yield token


def _joins(pieces: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every two pieces that spell a third, by the place of the third, the longer left part first."""
    known = {*pieces}
    for piece in pieces:
        for cut in range(len(piece) - 1, 0, -1):
            if piece[:cut] in known and piece[cut:] in known:
                yield piece[:cut], piece[cut:]
