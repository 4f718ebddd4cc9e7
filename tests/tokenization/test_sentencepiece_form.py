"""The form that llama.cpp takes: `tokenizer.model` gives the ids of `tokenizer.json`, where it is read rightly."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from native import build, draw, save
from support import tiny_model
from tokenizers import Tokenizer

from moeba import convert, export
from moeba.surgery.merging_parts.tokenizer_union import append_tokens
from moeba.tokenization import MoebaTokenizer, use_stock_names
from moeba.tokenization.sentencepiece_form import BYTE_PIECES, SPACE, UNKNOWN
from moeba.tokenization.sentencepiece_model import sentencepiece_model, write_sentencepiece

CODE = inspect.getsource(argparse)
SPECIALS = ["<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
NORMAL, UNKNOWN_KIND, CONTROL, USER_DEFINED, _, BYTE = range(1, 7)
SCRIPT = os.environ.get("MOEBA_LLAMA_CPP")


@pytest.fixture(scope="module")
def tokenizer() -> MoebaTokenizer:
    return MoebaTokenizer.train([CODE, "naïve日本語 日本語 aaaa abab " * 3], 512, show_progress=False)


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protocol buffer."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        elif key & 7 == 5:
            yield key >> 3, struct.unpack_from("<f", message, at)[0]
            at += 4
        else:
            assert key & 7 == 2
            size = varint()
            yield key >> 3, message[at : at + size]
            at += size


class Reader:
    """A `tokenizer.model`, used as SentencePiece and llama.cpp use it: in the whole text, the best neighbours first."""

    def __init__(self, folder: Path) -> None:
        parts = list(fields((folder / "tokenizer.model").read_bytes()))
        pieces = [dict(fields(part)) for number, part in parts if number == 1]
        self.texts = [piece[1].decode() for piece in pieces]
        self.kinds = [piece[3] for piece in pieces]
        self.scores = {piece[1].decode(): piece[2] for piece in pieces}
        self.ids = {text: place for place, text in enumerate(self.texts)}
        (self.trained,) = (dict(fields(part)) for number, part in parts if number == 2)
        (self.normalised,) = (dict(fields(part)) for number, part in parts if number == 3)

    def __call__(self, text: str) -> list[int]:
        symbols = list(text.replace(" ", SPACE))
        while True:
            joined = [first + second for first, second in zip(symbols, symbols[1:], strict=False)]
            known = [(-self.scores[piece], place) for place, piece in enumerate(joined) if piece in self.ids]
            if not known:
                break
            _, place = min(known)
            symbols[place : place + 2] = [joined[place]]
        return [token for symbol in symbols for token in self._spelt(symbol)]

    def _spelt(self, symbol: str) -> list[int]:
        return (
            [self.ids[symbol]] if symbol in self.ids else [self.ids[BYTE_PIECES[b]] for b in symbol.encode()]
        )


def test_the_model_file_gives_the_same_ids(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    read = Reader(tmp_path)
    rng = random.Random(0)
    parts = [
        *"ab e\n\t'.,-=_1é日ไ🦙\u0301\u00a0\u2028\0\r" + SPACE,
        "  ",
        "self",
        " return",
        "aa",
        "--",
        "def ",
        "\n\n",
    ]
    mixed = ["".join(rng.choices(parts, k=rng.randint(1, 40))) for _ in range(400)]
    cut = [CODE[start : start + 80] for start in range(0, 16_000, 400)]
    for text in [*mixed, *cut]:
        assert read(text) == tokenizer(text).input_ids, text


def test_the_model_file_says_what_each_piece_is(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    read = Reader(tmp_path)
    assert read.texts == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert read.kinds[:6] == [CONTROL] * 5 + [UNKNOWN_KIND] and read.texts[:6] == [*SPECIALS, UNKNOWN]
    assert read.kinds[6:262] == [BYTE] * 256 and {*read.kinds[262:]} == {NORMAL}
    assert [read.trained[number] for number in (3, 35, 40, 41, 42, 43)] == [2, 1, 5, 0, 1, 2]
    assert (read.normalised[3], read.normalised[4], read.normalised[5]) == (0, 0, 1)
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert [told[f"add_{name}"] for name in ("bos_token", "eos_token", "prefix_space")] == [False] * 3


def test_rare_characters_leave_room_for_merges():
    texts = ["the cat sat on the mat " * 40 + "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))]
    tokenizer = MoebaTokenizer.train(texts, 290, show_progress=False)
    learnt = tokenizer.convert_ids_to_tokens(range(262, len(tokenizer)))
    assert (
        {SPACE, *"thecasonm"} <= {*learnt}
        and SPACE + "the" in learnt
        and not any(piece[0] > "\u3000" for piece in learnt)
    )


def test_tokens_that_are_added_later_are_in_the_model_file(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "first")
    mine = MoebaTokenizer.from_pretrained(tmp_path / "first")
    mine.add_tokens(["<tool>"])
    mine.save_pretrained(tmp_path / "again")
    assert (Reader(tmp_path / "again").texts[-1], Reader(tmp_path / "again").kinds[-1]) == (
        "<tool>",
        USER_DEFINED,
    )
    # As `merge --vocab union` gives tokens to a folder.
    append_tokens(tmp_path / "first", mine, [mine.added_tokens_decoder[len(mine) - 1]])
    assert Reader(tmp_path / "first").texts[-1] == "<tool>"


def test_without_its_unknown_piece_a_tokenizer_has_another_form(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    state = json.loads(path.read_text())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != UNKNOWN]
    del state["model"]["vocab"][UNKNOWN]
    path.write_text(json.dumps(state))
    assert write_sentencepiece(tmp_path) is None
    with pytest.raises(ValueError, match="unknown piece"):
        sentencepiece_model(Tokenizer.from_file(str(path)), dict.fromkeys(("bos", "eos", "pad")))


def exported(tokenizer: MoebaTokenizer, folder: Path, to: str, **changes: Any) -> Path:
    tiny_model("dense", vocab_size=len(tokenizer), **changes).save_pretrained(folder / "moeba")
    tokenizer.save_pretrained(folder / "moeba")
    export(folder / "moeba", folder / "out", to=to, certificate=False)
    return folder / "out"


def test_an_export_has_the_model_file_where_llama_cpp_reads_it_rightly(tokenizer, tmp_path):
    out = exported(tokenizer, tmp_path, "llama")
    assert Reader(out).texts == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    # A stock class that saved it again left the file out.
    (out / "tokenizer.model").unlink()
    told = json.loads((out / "tokenizer_config.json").read_text()) | {"tokenizer_class": "MoebaTokenizer"}
    (out / "tokenizer_config.json").write_text(json.dumps(told))
    assert use_stock_names(out) and (out / "tokenizer.model").exists()
    # Where it would put a space before each text, llama.cpp's converter is left nothing that it takes.
    settings = json.loads((out / "config.json").read_text()) | {"architectures": ["Qwen3ForCausalLM"]}
    (out / "config.json").write_text(json.dumps(settings))
    (out / "tokenizer_config.json").write_text(json.dumps(told))
    assert use_stock_names(out) and not (out / "tokenizer.model").exists()


def test_an_export_that_transformers_would_read_otherwise_is_refused(tokenizer, tmp_path):
    save(build(draw("qwen2", 0)), tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "moeba", certificate=False)
    small = MoebaTokenizer.train(["ab"], 262, show_progress=False)
    small.save_pretrained(tmp_path / "moeba")
    with pytest.raises(ValueError, match='as a Qwen2Tokenizer.*form="byte_level"'):
        export(tmp_path / "moeba", tmp_path / "out", to="qwen2", certificate=False)
    assert not (tmp_path / "out").exists()


# Its interpreter has what the checkout's requirements/ ask for; by default ours.
@pytest.mark.skipif(not SCRIPT, reason="MOEBA_LLAMA_CPP names no checkout of llama.cpp")
@pytest.mark.parametrize("to", ["llama", "mistral"])
def test_llama_cpps_converter_takes_it(tokenizer, tmp_path, to):
    out = exported(tokenizer, tmp_path, to)
    python = os.environ.get("MOEBA_LLAMA_CPP_PYTHON", sys.executable)
    command = [python, f"{SCRIPT}/convert_hf_to_gguf.py", str(out), "--outfile", str(tmp_path / "model.gguf")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert (tmp_path / "model.gguf").stat().st_size > 0
