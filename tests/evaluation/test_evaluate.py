"""Any models on the same data: the source and its conversion, at every batch size, from files and streams."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaModel

from moeba import evaluate
from moeba.conversion.checkpoint import Checkpoint
from moeba.conversion.provenance import EVALUATION_FILE

pytest.importorskip("datasets")


def test_source_and_conversion_are_measured_alike(llama, converted, corpus):
    first, second = evaluate([llama, converted], corpus, window=32, stride=16)
    assert (first.model, second.model) == ("llama", "moeba")
    assert first.metrics == pytest.approx(second.metrics, rel=1e-6)
    assert (first.dataset, first.settings) == (second.dataset, second.settings)
    assert first.settings["start_tokens"] == [0]


def test_the_figures_are_those_of_the_model(sparse, tmp_path):
    """Against the model's own logits: one text at a time, in one piece, after the BOS token."""
    texts = ["the dog saw a cat", "a naïve mat: 中文", "log"]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in texts))
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(sparse).eval(),
        AutoTokenizer.from_pretrained(sparse),
    )
    losses, hits = [], []
    for text in texts:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].double()
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
        hits.append(logits.argmax(-1) == ids[0, 1:])
    loss = torch.cat(losses)
    nbytes = sum(len(text.encode()) for text in texts)
    (measured,) = evaluate(sparse, tmp_path / "texts.jsonl", field="body")
    assert measured.metrics == pytest.approx(
        {
            "perplexity": loss.mean().exp().item(),
            "loss": loss.mean().item(),
            "bits_per_byte": loss.sum().item() / math.log(2) / nbytes,
            "token_accuracy": torch.cat(hits).double().mean().item(),
        },
        rel=1e-5,
    )
    assert measured.counts == {"tokens": len(loss), "bytes": nbytes}


@pytest.mark.parametrize("streaming", [False, True])
def test_batches_and_streams_change_nothing(sparse, corpus, streaming):
    (expected,) = evaluate(sparse, corpus, window=32, batch_size=1)
    (found,) = evaluate(sparse, corpus, window=32, batch_size=5, streaming=streaming)
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-5)


def test_all_models_read_the_same_text_however_they_cut_it(llama, tmp_path, corpus):
    """A model whose tokenizer knows bytes alone reads what the first one's budget allows."""
    from moeba import MoebaConfig, MoebaForCausalLM
    from moeba.tokenization import MoebaTokenizer

    tokenizer = MoebaTokenizer.train(["ab"], 262, show_progress=False)
    other = tmp_path / "bytes"
    MoebaForCausalLM(
        MoebaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    ).save_pretrained(other)
    tokenizer.save_pretrained(other)
    first, second = (found.counts for found in evaluate([llama, other], corpus, max_tokens=40))
    assert first["bytes"] == second["bytes"]
    assert first["tokens"] <= 40 < second["tokens"]
    assert evaluate(llama, corpus, max_tokens=40)[0].counts["tokens"] == first["tokens"]


def test_without_a_start_token_the_first_token_is_not_predicted(sparse, corpus):
    with_start, without = (evaluate(sparse, corpus, bos=bos)[0] for bos in (True, False))
    assert without.counts["tokens"] == with_start.counts["tokens"] - 2  # the third document is empty
    assert without.metrics["bits_per_byte"] is None
    assert without.settings["start_tokens"] == []


def test_joined_rows_are_one_context(sparse, corpus):
    (apart,), (joined,) = (evaluate(sparse, corpus, join=join) for join in (None, "\n"))
    assert joined.counts["bytes"] == apart.counts["bytes"] + 2
    assert joined.metrics["loss"] != pytest.approx(apart.metrics["loss"], rel=1e-4)


def test_choices(llama, converted, quiz):
    fields = dict(prompt="{question}", choices="choices", label="answer")
    first, second = evaluate([llama, converted], quiz, **fields)
    assert first.task == "multiple-choice"
    assert first.metrics == second.metrics
    assert first.counts["questions"] == 4
    (again,) = evaluate(llama, quiz, batch_size=1, streaming=True, **fields)
    assert again.metrics == first.metrics


def test_results_are_of_the_weights_that_lie_there(sparse, corpus, tmp_path):
    folder = tmp_path / "moe"
    folder.mkdir()
    for path in sparse.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (measured,) = evaluate(folder, corpus, save_results=True)
    record = json.loads((folder / EVALUATION_FILE).read_text())
    assert record["files"] == Checkpoint(folder).sha256()
    assert record["results"] == [vars(measured)]
    assert str(tmp_path) not in json.dumps(record)


def test_progress_ends_at_the_whole(llama, converted, corpus, quiz):
    for arguments in (
        dict(dataset=corpus, window=32, batch_size=2),
        dict(dataset=quiz, prompt="{question}", choices="choices", label="answer", batch_size=2),
    ):
        told = []
        evaluate([llama, converted], progress=lambda *words, told=told: told.append(words), **arguments)
        for folder in (llama, converted):
            mine = [(done, total) for done, total, name in told if name == str(folder)]
            assert len(mine) > 1 and mine == sorted(mine)
            assert mine[-1][0] == mine[-1][1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_dtype_is_the_one_asked_for(sparse, corpus, dtype):
    (found,) = evaluate(sparse, corpus, dtype=dtype, device="cpu", max_tokens=20)
    assert (found.settings["dtype"], found.settings["device"]) == (dtype, "cpu")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(dtype="int8"), "dtype='int8': choose one of auto"),
        (dict(device="abacus"), "device='abacus'"),
        (dict(window=65), "window=65: .* is made for inputs of at most 64 tokens"),
        (dict(window=1), "window=1 must be at least 2"),
        (dict(stride=64), "stride=64 must be between 1 and 63"),
        (dict(batch_size=0), "batch_size=0 must be at least 1"),
        (dict(max_tokens=0), "max_tokens=0 must be at least 1"),
        (dict(max_rows=0), "max_rows=0 must be at least 1"),
        (dict(prompt="{text}"), "prompt, choices and label belong together"),
        (dict(prompt="{text}", choices="a", label="b", stride=2), "stride: these are for texts"),
        (dict(field="body"), "row 0 has no field 'body'"),
    ],
)
def test_arguments_that_make_no_sense(sparse, corpus, arguments, says):
    with pytest.raises(ValueError, match=says):
        evaluate(sparse, corpus, **arguments)


def copy(folder, target, leave=()):
    target.mkdir()
    for path in folder.iterdir():
        if path.name not in leave:
            (target / path.name).write_bytes(path.read_bytes())
    return target


def test_models_that_cannot_be_measured(llama, sparse, corpus, tmp_path):
    no_tokenizer = copy(llama, tmp_path / "bare", ("tokenizer.json", "tokenizer_config.json"))
    with pytest.raises(ValueError, match="bare has no tokenizer that loads"):
        evaluate(no_tokenizer, corpus)
    headless = copy(llama, tmp_path / "headless", ("model.safetensors", "config.json"))
    LlamaModel.from_pretrained(llama).save_pretrained(headless)
    with pytest.raises(ValueError, match="no complete causal language model, it lacks lm_head.weight"):
        evaluate(headless, corpus)
    with pytest.raises(ValueError, match="nowhere is neither a folder here nor a Hub id"):
        evaluate(tmp_path / "nowhere", corpus)
    with pytest.raises(ValueError, match="no model is given"):
        evaluate([], corpus)


HOSTILE = {
    "config.json": ({"num_hidden_layers": 10**12}, "num_hidden_layers=1000000000000"),
    "labels": ({"num_labels": 10**12}, "num_labels=1000000000000"),
    "heads": ({"num_attention_heads": 0}, "is not loaded by transformers"),
    "implementation": ({"attn_implementation": [1]}, r"attn_implementation=\[1\]"),
    "model.safetensors": (b"\xff" * 8 + b"{}", "truncated or no safetensors"),
    "pytorch_model.bin": (b"", "is not loaded by transformers"),
    "tokenizer_config.json": (b'{"model_max_length": "x"}', "has no tokenizer that loads"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused_before_anything_is_built(llama, corpus, tmp_path, name):
    said, message = HOSTILE[name]
    weights = ("model.safetensors",) if name == "pytorch_model.bin" else ()
    folder = copy(llama, tmp_path / "hostile", weights)
    if isinstance(said, dict):
        config = folder / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **said}))
    else:
        (folder / name).write_bytes(said)
    with pytest.raises(ValueError, match=message):
        evaluate(folder, corpus)


def test_a_tokenizer_of_another_model(llama, corpus, tmp_path):
    from moeba.tokenization import MoebaTokenizer

    folder = copy(llama, tmp_path / "mixed", ("tokenizer.json", "tokenizer_config.json"))
    texts = ["naïve mats on logs — 中文 😀 " * 4, "the dog saw a cat, and the cat saw the dog: 12 " * 4]
    MoebaTokenizer.train(texts, 400, show_progress=False).save_pretrained(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    with pytest.raises(ValueError, match=f"but the model embeds only {rows}: the two do not belong together"):
        evaluate(folder, corpus)
