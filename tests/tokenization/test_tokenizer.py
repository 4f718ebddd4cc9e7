"""MoebaTokenizer trained on real text, and tokenizers taken over from a source."""

import argparse
import ast
import inspect
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, TokenizersBackend

from moeba.tokenization import (
    CHAT_MARKERS,
    CHAT_TEMPLATE,
    MoebaTokenizer,
    check_stock_reading,
    copy_tokenizer,
    tokenizer_files,
    use_stock_names,
)
from moeba.tokenization.sentencepiece_form import SPACE, UNKNOWN

VOCAB_SIZE = 1024
TEXTS = [inspect.getsource(module) for module in (argparse, ast, inspect, json, subprocess, textwrap)]
PROBE = "def f(x):\n    return x ** 2024  # naïve 日本語 🦠 DON'T\r\n\r\n\t<|im_start|>user"


def train(texts=TEXTS, vocab_size=VOCAB_SIZE, **settings):
    return MoebaTokenizer.train(texts, vocab_size, show_progress=False, **settings)


@pytest.fixture(scope="module", params=["sentencepiece", "byte_level"])
def tokenizer(request) -> MoebaTokenizer:
    return train(form=request.param)


@pytest.fixture
def folder(tokenizer, tmp_path) -> Path:
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_vocabulary_holds_specials_first_then_bytes_then_merges(tokenizer):
    assert len(tokenizer) == VOCAB_SIZE
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["<|bos|>", "<|eos|>", "<|pad|>", *CHAT_MARKERS]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert tokenizer.unk_token_id in (None, 5)


def test_training_compresses_text_it_has_not_seen(tokenizer):
    unseen = inspect.getsource(__import__("dataclasses"))
    assert len(tokenizer(unseen).input_ids) < 0.5 * len(unseen.encode())


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text(alphabet=" \t\r\n'sé\u0301字9<|im_start|>", max_size=40))
def test_decoding_gives_back_any_text(text):
    assert _BYTE_LEVEL.decode(_BYTE_LEVEL(text).input_ids) == text
    assert _PIECES.decode(_PIECES(text).input_ids) == text.replace(SPACE, " ")


_BYTE_LEVEL, _PIECES = (train(TEXTS[:2], 400, form=form) for form in ("byte_level", "sentencepiece"))


def test_offsets_cover_the_text_without_gaps(tokenizer):
    text = TEXTS[0][:2000]
    assert text.isascii()
    offsets = tokenizer(text, return_offsets_mapping=True).offset_mapping
    assert "".join(text[start:end] for start, end in offsets) == text


def test_nothing_is_added_around_a_text(tokenizer):
    assert tokenizer("abc").input_ids == tokenizer("abc", add_special_tokens=False).input_ids
    assert tokenizer("").input_ids == []


def test_batches_are_padded_on_the_left(tokenizer):
    batch = tokenizer(["a much longer text", "b"], padding=True)
    short, mask = batch.input_ids[1], batch.attention_mask[1]
    padding = len(short) - 1
    assert short == [tokenizer.pad_token_id] * padding + tokenizer("b").input_ids
    assert mask == [0] * padding + [1]


def test_chat_template_renders_chatml(tokenizer):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    turns = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == turns + "Yo<|im_end|>\n"
    assert tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True) == turns


def test_chat_template_marks_what_the_assistant_wrote(tokenizer):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    out = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    written = [token for token, mine in zip(out["input_ids"], out["assistant_masks"], strict=True) if mine]
    assert tokenizer.decode(written) == "Yo<|im_end|>"


def test_own_specials_template_and_length_are_kept(tmp_path):
    mine = train(
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        special_tokens=["<think>"],
        chat_template="{{ messages[0]['content'] }}",
        model_max_length=77,
    )
    mine.save_pretrained(tmp_path)
    loaded = MoebaTokenizer.from_pretrained(tmp_path)
    assert loaded.all_special_tokens == ["<s>", "</s>", UNKNOWN, "<pad>", "<think>"]
    assert loaded.model_max_length == 77
    assert loaded.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"


def test_without_a_template_chatting_is_refused():
    plain = train(TEXTS[:1], 300, special_tokens=(), chat_template=None)
    with pytest.raises(ValueError, match="chat_template"):
        plain.apply_chat_template([{"role": "user", "content": "x"}])


def test_training_twice_writes_the_same_bytes(folder, tmp_path):
    again = tmp_path / "again"
    # In another process, because hash seeds differ between processes and not within one.
    code = f"""
        import sys
        sys.path[:] = {sys.path!r}
        from pathlib import Path
        from moeba.tokenization import MoebaTokenizer
        import argparse, ast, inspect, json, subprocess, textwrap
        texts = [inspect.getsource(m) for m in (argparse, ast, inspect, json, subprocess, textwrap)]
        form = "sentencepiece" if {(folder / "tokenizer.model").exists()} else "byte_level"
        MoebaTokenizer.train(texts, {VOCAB_SIZE}, form=form, show_progress=False).save_pretrained({str(again)!r})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
    assert contents(again) == contents(folder)


def test_loading_and_saving_keeps_vocabulary_and_template(folder, tmp_path):
    MoebaTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "again")
    again, first = contents(tmp_path / "again"), contents(folder)
    assert again.keys() == first.keys()
    assert again["tokenizer.json"] == first["tokenizer.json"]
    assert again.get("tokenizer.model") == first.get("tokenizer.model")
    assert again["chat_template.jinja"] == first["chat_template.jinja"] == CHAT_TEMPLATE.encode()


def test_auto_tokenizer_gives_back_the_class_once_registered(tokenizer, folder):
    class ProbeConfig(PreTrainedConfig):
        model_type = "moeba_tokenizer_probe"

    AutoConfig.register(ProbeConfig.model_type, ProbeConfig, exist_ok=True)
    AutoTokenizer.register(ProbeConfig, tokenizer_class=MoebaTokenizer, exist_ok=True)
    ProbeConfig().save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    assert type(loaded) is MoebaTokenizer
    assert loaded(PROBE).input_ids == tokenizer(PROBE).input_ids
    assert loaded.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("rename", [False, True], ids=["as saved", "stock names"])
@pytest.mark.parametrize("model_type", [None, "moeba", "llama", "mixtral", "qwen2", "qwen3_moe"])
def test_stock_transformers_loads_it_without_moeba(tokenizer, folder, model_type, rename, stock):
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if model_type == "qwen2" and (folder / "tokenizer.model").exists():
        with pytest.raises(
            ValueError, match="qwen2"
        ):  # read as Qwen2's, whatever it is: an export refuses it
            check_stock_reading(folder, model_type)
        return
    if rename:
        assert use_stock_names(folder)
    ids, chat, size = stock(folder, PROBE)
    assert ids == tokenizer(PROBE).input_ids
    # As saved, in a folder of type qwen2, transformers adds a token of its own.
    assert size == len(tokenizer) or not rename
    assert chat == "<|im_start|>user\nHi<|im_end|>\n"


@pytest.fixture(scope="module")
def stock():
    """Tokenizes a text with the tokenizer in a folder, in a process that cannot import moeba."""
    code = """
        import json, sys
        sys.modules["moeba"] = None  # importing it fails from here on
        from transformers import AutoTokenizer
        for line in sys.stdin:
            folder, text = json.loads(line)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
            print(json.dumps([tokenizer(text).input_ids, chat, len(tokenizer)]), flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(folder: Path, text: str):
            process.stdin.write(json.dumps([str(folder), text]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        (TEXTS, {"vocab_size": 260, "form": "byte_level"}, "vocab_size is 260.*at least 261"),
        (TEXTS, {"vocab_size": 261}, "vocab_size is 261.*at least 262"),
        (TEXTS, {"form": "unigram"}, "form is 'unigram'; pass one of 'sentencepiece', 'byte_level'"),
        (TEXTS, {"min_frequency": 0}, "min_frequency is 0"),
        (TEXTS, {"model_max_length": 0}, "model_max_length is 0"),
        (TEXTS, {"special_tokens": [*CHAT_MARKERS, "<|eos|>"]}, r"\['<\|eos\|>'\] more than once"),
        (TEXTS, {"pad_token": ""}, "special tokens include ''"),
        (TEXTS, {"special_tokens": [*CHAT_MARKERS, "a"]}, r"\['a'\], which already stand for bytes"),
        (TEXTS, {"special_tokens": ["<|im_end|>"]}, r"special_tokens lacks \['<\|im_start\|>'\]"),
        ([], {}, "no text at all"),
        (["", ""], {}, "no text at all"),
        ("one text", {}, "texts is one str"),
        (["fine", 3], {}, r"texts\[1\] is 3, of type int"),
        (["fine", "half \ud83e"], {}, r"texts\[1\] holds '\\ud83e' at position 5"),
    ],
)
def test_bad_input_is_refused(texts, settings, message):
    with pytest.raises(ValueError, match=message):
        train(texts, **settings)


def test_tokenizer_files_are_found_and_nothing_else(tmp_path):
    wanted = [
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "additional_chat_templates/tool_use.jinja",
    ]
    for name in [*wanted, "config.json", "model.safetensors", "README.md"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert tokenizer_files(tmp_path) == sorted(tmp_path / name for name in wanted)


def test_copy_is_byte_for_byte(folder, tmp_path):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_bytes(b"crlf\r\n")
    (folder / "config.json").write_text("{}")
    copies = copy_tokenizer(folder, tmp_path / "new" / "model")
    assert copies == tokenizer_files(tmp_path / "new" / "model")
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in tokenizer_files(folder)]
    assert not (tmp_path / "new" / "model" / "config.json").exists()


def test_copy_follows_links(folder, tmp_path):
    linked = tmp_path / "snapshot"
    linked.mkdir()
    (linked / "tokenizer.json").symlink_to(folder / "tokenizer.json")
    (copy,) = copy_tokenizer(linked, tmp_path / "copy")
    assert not copy.is_symlink()
    assert copy.read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_copy_refuses_to_mix_two_tokenizers(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "vocab.txt").write_text("a")
    with pytest.raises(ValueError, match=r"already holds \['vocab.txt'\]"):
        copy_tokenizer(folder, tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["vocab.txt"]


def test_a_source_without_tokenizer_copies_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    assert copy_tokenizer(tmp_path / "empty", tmp_path / "out") == []
    with pytest.raises(ValueError, match="not a folder"):
        copy_tokenizer(tmp_path / "missing", tmp_path / "out")


def test_stock_names_replace_only_those_of_moeba(folder, tmp_path):
    before = json.loads((folder / "tokenizer_config.json").read_text())
    assert use_stock_names(folder)
    after = json.loads((folder / "tokenizer_config.json").read_text())
    extra = before.pop("extra_special_tokens")
    stock_names = {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": extra}
    assert after == {"unk_token": None} | before | stock_names
    assert not use_stock_names(folder)
    assert not use_stock_names(tmp_path)
    loaded = AutoTokenizer.from_pretrained(folder)
    assert type(loaded) is TokenizersBackend
    assert {*loaded.all_special_tokens} - {UNKNOWN} == {"<|bos|>", "<|eos|>", "<|pad|>", *CHAT_MARKERS}
