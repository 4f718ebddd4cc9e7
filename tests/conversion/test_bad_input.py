"""What is wrong with a source or a destination is said in one line, and neither of them is touched."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import native
import pytest
import torch
from native import snapshot
from safetensors.torch import load_file, save_file

from moeba import MoebaForCausalLM, convert, export
from moeba.conversion import shards, writing

SQUARE = dict(
    hidden_size=24, intermediate_size=24, num_attention_heads=3, num_key_value_heads=3, head_dim=8, num_hidden_layers=3,
    tie_word_embeddings=False, attention_bias=False, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
)  # fmt: skip
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A single-file and a sharded Llama, made once."""
    folder = tmp_path_factory.mktemp("originals")
    native.make(folder / "single", "llama", **SQUARE)
    config = native.draw("llama", 0)
    model = native.build(type(config)(**{**native.plain(config), **SQUARE}))
    native.save(model, folder / "sharded", shards=True)
    return folder


@pytest.fixture
def single(originals, tmp_path):
    return Path(shutil.copytree(originals / "single", tmp_path / "native"))


@pytest.fixture
def sharded(originals, tmp_path):
    return Path(shutil.copytree(originals / "sharded", tmp_path / "native"))


def assert_refused(
    source: Path, message: str, destination: Path | None = None, error=ValueError, run=convert, **options
) -> None:
    """One line that says it, nothing at the destination, and the source as it was."""
    destination = destination or source.parent / "out"
    existed = destination.exists()
    before = snapshot(source)
    with pytest.raises(error, match=message) as caught:
        run(source, destination, **options)
    assert "\n" not in str(caught.value)
    assert destination.exists() == existed
    assert snapshot(source) == before


def edit_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


BAD_TENSORS = {
    "missing": (lambda t: t.pop(DOWN), f"not a complete llama checkpoint: missing {DOWN}"),
    "extra": (lambda t: t.update(extra=torch.ones(2)), "not a complete llama checkpoint: unexpected extra"),
    "both": (lambda t: t.update(extra=t.pop(DOWN)), f"missing {DOWN}; unexpected extra"),
    "wrong shape": (
        lambda t: t.update({DOWN: torch.ones(24, 25)}),
        rf"wrong shape: {DOWN} \[24, 25\] gives \[\[24, 25\]\], expected {DOWN} \[24, 24\]",
    ),
    "NaN": (lambda t: t[DOWN][0].fill_(float("nan")), f"{DOWN} in .* holds 24 NaN or Inf values of 576"),
    "one Inf": (lambda t: t[DOWN][0, 0].fill_(float("inf")), f"{DOWN} in .* holds 1 NaN or Inf"),
    "a layer too many": (
        lambda t: t.update({"model.layers.3.mlp.down_proj.weight": torch.ones(24, 24)}),
        "unexpected model.layers.3.mlp.down_proj.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_wrong_tensors(single, name):
    change, message = BAD_TENSORS[name]
    edit_tensors(single, change)
    assert_refused(single, message)


def test_wrong_shape_of_one_expert(tmp_path):
    source = native.make(tmp_path / "native", "mixtral", seed=0, num_local_experts=12, num_experts_per_tok=2)
    edit_tensors(
        source, lambda t: t.update({"model.layers.0.block_sparse_moe.experts.11.w1.weight": torch.ones(3, 3)})
    )
    assert_refused(
        source, "wrong shapes: model.layers.0.block_sparse_moe.experts.0.w1.weight .* cannot be combined"
    )


def test_missing_expert(tmp_path):
    source = native.make(tmp_path / "native", "mixtral", seed=0, num_local_experts=12, num_experts_per_tok=2)
    edit_tensors(source, lambda t: t.pop("model.layers.0.block_sparse_moe.experts.11.w3.weight"))
    assert_refused(source, "missing model.layers.0.block_sparse_moe.experts.11.w3.weight")


BAD_CONFIG = {
    "unknown type": (dict(model_type="bert"), "model_type='bert' is not supported: it is an encoder"),
    "no type": (dict(model_type=...), "config.json names no model_type: write there"),
    "a wrapped text model": (
        dict(model_type="gemma3", text_config={"model_type": "gemma3_text"}),
        "it takes images beside text. It wraps a 'gemma3_text' model .text_config., which is supported: load the whole",
    ),
    "already Moeba": (dict(model_type="moeba"), "model_type='moeba' is not supported"),
    "unknown field": (dict(rotary_dim=4), "LlamaConfig does not know, and that mean another.*: rotary_dim=4"),
    "field of another family": (dict(sliding_window=8), "sliding_window=8"),
    "wrong kind of value": (dict(hidden_size="many"), "config.json is refused by LlamaConfig.*hidden_size"),
    "impossible value": (dict(num_attention_heads=5), "config.json is refused by LlamaConfig.*multiple"),
    "value that Moeba has no part for": (dict(is_encoder_decoder=True), "is_encoder_decoder=True is supported"),
    "activation": (dict(hidden_act="tulip"), "tulip"),
    "rope type": (dict(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), "spiral"),
    "quantised": (dict(quantization_config={"quant_method": "gptq"}), "quantised .quant_method=.gptq..: convert"),
    "more layers than weights": (dict(num_hidden_layers=4), "missing model.layers.3.self_attn.q_proj.weight"),
    "fewer layers than weights": (dict(num_hidden_layers=2), "unexpected model.layers.2"),
    "biases without weights": (dict(attention_bias=True), "missing model.layers.0.self_attn.q_proj.bias"),
    "another width": (dict(intermediate_size=20), "wrong shape: model.layers.0.mlp.gate_proj.weight"),
    "another vocabulary": (dict(vocab_size=10), "wrong shape: model.embed_tokens.weight"),
    "tied, with a head of its own": (dict(tie_word_embeddings=True), "but lm_head.weight differs"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CONFIG)
def test_wrong_config(single, name):
    fields, message = BAD_CONFIG[name]
    edit_config(single, **fields)
    assert_refused(single, message)
    if name not in ("no type", "already Moeba"):
        assert_refused(single, message, run=lambda source, out: MoebaForCausalLM.from_pretrained(source))


def test_duplicate_config_key(single):
    text = (single / "config.json").read_text()
    (single / "config.json").write_text(text.replace("{", '{"model_type": "llama",', 1))
    assert_refused(single, "config.json is not valid JSON: these keys stand twice: model_type")


def test_missing_shard(sharded):
    name = sorted(path.name for path in sharded.glob("*.safetensors"))[1]
    (sharded / name).unlink()
    assert_refused(sharded, f"names files that are not there: {name}")


def test_truncated_shard(sharded):
    path = sorted(sharded.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-3])
    assert_refused(sharded, f"{path.name} is damaged: expected .* bytes, got")


def test_index_that_escapes_its_folder(sharded):
    outside = sharded.parent / "outside.safetensors"
    inside = sorted(sharded.glob("*.safetensors"))[0]
    shutil.move(inside, outside)
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"] = {
        key: "../outside.safetensors" if name == inside.name else name
        for key, name in index["weight_map"].items()
    }
    (sharded / INDEX).write_text(json.dumps(index))
    assert_refused(sharded, r"may only name files beside it, not: \.\./outside.safetensors")


def test_pickled_weights_are_converted(single, tmp_path):
    convert(single, tmp_path / "from_safetensors")
    torch.save(load_file(single / WEIGHTS), single / "pytorch_model.bin")
    (single / WEIGHTS).unlink()
    convert(single, tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "from_safetensors" / WEIGHTS).read_bytes()


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_refused_and_not_run(single, tmp_path, zipped):
    (single / WEIGHTS).unlink()
    content = {"model.embed_tokens.weight": Malicious(tmp_path / "owned")}
    if zipped:
        torch.save(content, single / "pytorch_model.bin")
    else:
        (single / "pytorch_model.bin").write_bytes(pickle.dumps(content))
    assert_refused(single, "is not plain tensors in torch's zip format")
    assert not (tmp_path / "owned").exists()


def test_adapter_is_refused(single):
    (single / "adapter_config.json").write_text("{}")
    assert_refused(single, "holds a PEFT adapter: merge it")


def test_destinations(single, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    assert_refused(single, "taken exists: choose another destination, or overwrite it", taken)
    assert_refused(single, "may be no checkpoint: it is not overwritten", taken, overwrite=True)
    assert snapshot(taken).keys() == {"notes.txt"}
    for overwrite in (False, True):
        assert_refused(single, "is the source itself", single, overwrite=overwrite)
        assert_refused(single, "is inside the source", single / "deep" / "er", overwrite=overwrite)
        assert_refused(single, "is around the source", tmp_path, overwrite=overwrite)
    (tmp_path / "link").symlink_to(single)
    assert_refused(single, "is the source itself", tmp_path / "link", overwrite=True)
    (tmp_path / "file").touch()
    assert_refused(single, "file is a file: choose another destination", tmp_path / "file")


def test_source_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="neither a folder here nor a Hub id"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", "has no config.json")


def test_native_source_is_not_exported(single):
    assert_refused(single, "holds a 'llama' model, not a Moeba one: convert it first", run=export)


def test_export_of_a_damaged_folder(single, tmp_path):
    convert(single, tmp_path / "moeba", certificate=False)
    edit_tensors(tmp_path / "moeba", lambda t: t.pop(DOWN))
    assert_refused(tmp_path / "moeba", f"does not fit its config: missing {DOWN}", run=export)
    edit_config(tmp_path / "moeba", hidden_sise=3)
    assert_refused(tmp_path / "moeba", "no field hidden_sise=3 .nearest field: hidden_size.", run=export)


def test_export_that_no_family_can_hold(single, tmp_path):
    convert(single, tmp_path / "moeba", certificate=False)
    edit_config(tmp_path / "moeba", logit_scale=0.5, final_logit_softcapping=30.0, clip_qkv=8.0)
    assert_refused(
        tmp_path / "moeba", "'mixtral' cannot hold this model: .*logit_scale=0.5", run=export, to="mixtral"
    )
    refusal = (
        "no native family can hold this model.*'llama' cannot hold .*logit_scale=0.5.*export --to NAME says"
    )
    assert_refused(tmp_path / "moeba", refusal, run=export)
    assert_refused(tmp_path / "moeba", "model_type='bert' is not supported", run=export, to="bert")


def test_full_disk(sharded, tmp_path, monkeypatch):
    put, room = shards.put, [40]

    def put_until_full(file, offset, data):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(file, offset, data)

    with monkeypatch.context() as patch:
        for module in (shards, writing):
            patch.setattr(module, "put", put_until_full)
        message = "stopped: No space left on device; .* bytes of tensors were still to be written.*run again"
        assert_refused(sharded, message, error=OSError, max_shard_size="4KB")
    report = convert(sharded, tmp_path / "out", max_shard_size="4KB").report
    assert report.reused_shards > 0
    convert(sharded, tmp_path / "fresh" / "out", max_shard_size="4KB")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "fresh" / "out")


KILLED = """
import os, signal, sys
from moeba import convert

steps = []

def progress(done, total, what):
    steps.append(done)
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)

convert(sys.argv[1], sys.argv[2], max_shard_size="4KB", progress=progress)
"""


def test_killed_run_is_continued_and_a_changed_source_is_not(sharded, tmp_path):
    command = [sys.executable, "-c", KILLED, str(sharded), str(tmp_path / "out")]
    before = snapshot(sharded)
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial" / "config.json").exists()
    shutil.copytree(tmp_path / ".out.partial", tmp_path / ".other.partial")

    result = convert(sharded, tmp_path / "out", max_shard_size="4KB")
    assert 0 < result.report.reused_shards < result.report.shards
    assert result.certificate.verdict == "verified"
    convert(sharded, tmp_path / "fresh" / "out", max_shard_size="4KB")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "fresh" / "out")
    assert snapshot(sharded) == before

    path = sorted(sharded.glob("*.safetensors"))[0]
    os.utime(path, (1, 1))
    message = "is the unfinished output of another run: its source or its recipe differs; delete .*, or overwrite it"
    assert_refused(sharded, message, tmp_path / "other", max_shard_size="4KB")
    assert (
        convert(sharded, tmp_path / "other", max_shard_size="4KB", overwrite=True).report.reused_shards == 0
    )
