"""A folder that a stranger made: refused in one line that names the file, in no time and little memory."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import native
import pytest
import torch
from safetensors.torch import load_file, save_file

from moeba import MoebaForCausalLM, convert, export, upcycle
from moeba.conversion import Checkpoint
from moeba.conversion.checkpoint import check_loadable
from moeba.conversion.convert import moeba_config
from moeba.conversion.json_files import read_json
from moeba.conversion.shards import parse_size
from moeba.surgery import grow, split
from moeba.tokenization import MoebaTokenizer

HUGE = 10**12
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A dense model with a tokenizer, a native and a converted mixture."""
    root = tmp_path_factory.mktemp("originals")
    tokenizer = MoebaTokenizer.train(["the cat sat on the mat"] * 4, 300, show_progress=False)
    native.make(
        root / "llama",
        "llama",
        vocab_size=len(tokenizer),
        intermediate_size=48,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    tokenizer.save_pretrained(root / "llama")
    native.make(root / "mixtral", "mixtral", num_local_experts=4, num_experts_per_tok=2)
    convert(root / "mixtral", root / "moeba", certificate=False)
    return root


@pytest.fixture
def folder(originals, tmp_path):
    return lambda name: Path(shutil.copytree(originals / name, tmp_path / name))


def edit(folder: Path, **fields) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


def assert_refused_at_once(run, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            run()
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


NATIVE = ["num_hidden_layers", "hidden_size", "num_local_experts", "intermediate_size", "vocab_size"]


@pytest.mark.parametrize("name", [*NATIVE, "num_attention_heads", "num_key_value_heads", "head_dim"])
def test_sizes_that_the_weights_do_not_bear_out(folder, tmp_path, name):
    source = edit(folder("mixtral"), **{name: HUGE})
    assert_refused_at_once(
        lambda: convert(source, tmp_path / "out"), rf"config.json does not fit .*{name}={HUGE}"
    )
    assert_refused_at_once(lambda: check_loadable(source), f"{name}={HUGE}")


@pytest.mark.parametrize(
    "name", ["num_hidden_layers", "num_experts", "n_group", "shared_expert_intermediate_size"]
)
def test_the_same_of_a_moeba_folder(folder, name):
    source = edit(folder("moeba"), **{name: HUGE}, layer_types=None, mlp_layer_types=None, rotary_layers=None)
    assert_refused_at_once(lambda: moeba_config(Checkpoint(source)), f"{name}={HUGE}")
    assert_refused_at_once(lambda: MoebaForCausalLM.from_pretrained(source), f"{name}={HUGE}")


def test_a_few_layers_too_many_are_no_matter_of_size(folder, tmp_path):
    with pytest.raises(ValueError, match="missing model.layers"):
        convert(edit(folder("mixtral"), num_hidden_layers=5), tmp_path / "out")


@pytest.mark.parametrize("count", [{"times": HUGE}, {"experts": 4 * HUGE}])
def test_growing_to_more_than_any_model_has(originals, tmp_path, count):
    assert_refused_at_once(lambda: grow(originals / "moeba", tmp_path / "out", **count), "experts")


@pytest.mark.parametrize("method", ["copy", "fine-grained"])
def test_upcycling_to_more_than_any_model_has(originals, tmp_path, method):
    more = {"granularity": 2} if method == "fine-grained" else {}
    assert_refused_at_once(
        lambda: upcycle(originals / "llama", tmp_path / "out", experts=HUGE, top_k=2, method=method, **more),
        "experts",
    )


THETA = {"rope_type": "default", "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 0, "original_max_position_embeddings": 8}
FIELDS = {
    "model_type list": (dict(model_type=[]), r"config.json has model_type=\[\]"),
    "model_type dict": (dict(model_type={"a": 1}), "config.json has model_type="),
    "architectures": (dict(architectures=5), "config.json has architectures=5"),
    "quantization_config": (dict(quantization_config=3), "config.json has quantization_config=3"),
    "auto_map": (dict(auto_map=3), "config.json has auto_map=3"),
    "dtype": (dict(dtype=2.5), "2.5"),
    "dtype name": (dict(dtype="banana"), "banana"),
    "pad_token_id": (dict(pad_token_id=HUGE), f"pad_token_id={HUGE} must be below vocab_size"),
    "eos_token_id": (dict(eos_token_id=[1, HUGE]), "eos_token_id"),
    "rope typo": (dict(rope_parameters={**THETA, "rope_thetaa": 5e5}), r"rope_thetaa.*nearest: rope_theta"),
    "rope twice": (dict(rope_theta=5e5, rope_parameters=THETA), "rope_theta=.* one"),
    "dtype twice": (dict(dtype="float32", torch_dtype="float16"), "torch_dtype='float16' and dtype='float32' are one"),
    "yarn": (dict(rope_parameters=YARN), "factor=0"),
    "NaN": (dict(rms_norm_eps=float("nan")), "norm_eps=nan"),
    "labels": (dict(num_labels=HUGE), f"num_labels={HUGE}"),
    "attention": (dict(attn_implementation=[1]), r"config.json has attn_implementation=\[1\]"),
    "layers": (dict(per_layer_config={"0": 3}), "config.json has per_layer_config="),
    "long": (dict(model_type="a" * 100_000), "characters"),
}  # fmt: skip


@pytest.mark.parametrize("case", FIELDS)
def test_fields_of_the_wrong_kind(folder, tmp_path, case):
    fields, message = FIELDS[case]
    source = edit(folder("llama"), **fields)
    with pytest.raises(ValueError, match=message) as caught:
        convert(source, tmp_path / "out", certificate=False)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


FILES = {
    "generation_config.json": "[1]",
    "tokenizer.json": "{",
    "tokenizer_config.json": "[]",
    "special_tokens_map.json": "3",
    "README.md": "---\nlicense: [\n---\nwords\n",
    "moeba_provenance.json": '{"operation": "convert", "source": 3}',
}


@pytest.mark.parametrize("name", FILES)
def test_files_beside_the_weights(folder, tmp_path, name):
    """Named where the user has them, before anything is written."""
    source = folder("llama")
    (source / name).write_text(FILES[name])
    with pytest.raises(ValueError, match=f"{source}/{name}"):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_a_tokenizer_of_no_known_make(folder, tmp_path):
    source = folder("llama")
    (source / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match="tokenizer.json is no tokenizer"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("operation", ["convert", "upcycle", "split"])
def test_a_tokenizer_larger_than_the_embedding(folder, tmp_path, operation):
    source = folder("llama")
    tokenizer = MoebaTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["<new>"])
    text = tmp_path / "text.txt"
    text.write_text("the <new> cat")
    tokenizer.save_pretrained(source)
    run = {
        "convert": lambda: convert(source, tmp_path / "out"),
        "upcycle": lambda: upcycle(source, tmp_path / "out", experts=2, top_k=1),
        # which runs the model on text before it writes
        "split": lambda: split(source, tmp_path / "out", experts=2, top_k=1, calibration=[text]),
    }[operation]
    with pytest.raises(ValueError, match=r"1 tokens beyond the embedding .*resize_token_embeddings"):
        run()
    assert not (tmp_path / "out").exists()


def test_a_header_with_metadata_that_safetensors_refuses(folder, tmp_path):
    source = folder("llama")
    data = (source / WEIGHTS).read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")].replace(b'"pt"', b" 3.0")
    (source / WEIGHTS).write_bytes(data[:8] + header + data[8 + len(header) :])
    with pytest.raises(ValueError, match="has a wrong header: its __metadata__ is"):
        convert(source, tmp_path / "out")


def test_a_record_that_is_nested_deeply(tmp_path):
    path = tmp_path / "moeba_provenance.json"
    for depth in (90, 900):
        path.write_text('{"a": ' + "[" * depth + "]" * depth + "}")
        if depth == 90:
            read_json(path)
    with pytest.raises(ValueError, match=r"moeba_provenance.json is nested more than 100 levels deep"):
        read_json(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_record_that_is_no_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "parity.json"
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    with pytest.raises(ValueError, match="parity.json is no file, but"):
        read_json(path)


def test_links_in_a_circle(folder, tmp_path):
    source = folder("llama")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ValueError, match="circle is a link that leads in a circle"):
        convert(source, tmp_path / "circle")
    with pytest.raises(ValueError, match="circle is neither a folder here"):
        convert(tmp_path / "circle", tmp_path / "out")
    (source / "LICENSE").symlink_to("LICENSE")
    with pytest.raises(ValueError, match=r"LICENSE \(a link"):
        convert(source, tmp_path / "out")


def test_the_home_of_nobody(tmp_path):
    with pytest.raises(ValueError, match="~nobody-of-this-name/model is neither a folder"):
        convert("~nobody-of-this-name/model", tmp_path / "out")


def test_an_index_that_transformers_does_not_load(folder, tmp_path):
    source = folder("llama")
    names = list(load_file(source / WEIGHTS))
    (source / WEIGHTS).rename(source / "model-00001-of-00001.safetensors")
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}))
    with pytest.raises(ValueError, match=f"{index} has no metadata"):
        convert(source, tmp_path / "out")


def test_pickled_tensors_without_data(folder, tmp_path):
    source = folder("llama")
    tensors = {name: tensor.to("meta") for name, tensor in load_file(source / WEIGHTS).items()}
    (source / WEIGHTS).unlink()
    torch.save(tensors, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin holds entries that are not dense tensors"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("size", ["9" * 400, "9" * 400 + "GB", 10**400, "0", -1, "1e9", ""])
def test_shard_sizes(size):
    with pytest.raises(ValueError, match="max_shard_size is") as caught:
        parse_size(size)
    assert len(str(caught.value)) < 200


def test_a_shard_size_is_looked_at_first(originals, tmp_path):
    with pytest.raises(ValueError, match="max_shard_size"):
        convert(originals / "llama", tmp_path / "out", max_shard_size="9" * 400, dry_run=True)


def test_what_has_nothing_to_act_on_in_a_native_config_comes_back(tmp_path):
    native.make(
        tmp_path / "source", "qwen3_moe", mlp_only_layers=[0], num_hidden_layers=1, num_experts_per_tok=1
    )
    convert(tmp_path / "source", tmp_path / "moeba", certificate=False)
    export(tmp_path / "moeba", tmp_path / "out", to="qwen3_moe", certificate=False)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_experts_per_tok"] == 1


def test_a_saved_file_of_an_earlier_version_loads(originals, tmp_path):
    """With a value that has nothing to act on."""
    source = Path(shutil.copytree(originals / "moeba", tmp_path / "old"))
    save_file(load_file(source / WEIGHTS), source / WEIGHTS, {"format": "pt"})
    edit(source, alibi_bias_max=4, swiglu_alpha=2.0)
    ids = torch.arange(6)[None]
    expected = MoebaForCausalLM.from_pretrained(originals / "moeba").eval()(ids).logits
    assert torch.equal(MoebaForCausalLM.from_pretrained(source).eval()(ids).logits, expected)
