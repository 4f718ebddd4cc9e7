from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors.torch import save_file

from moeba.conversion import checkpoint
from moeba.conversion.checkpoint import Checkpoint, count_nonfinite, resolve
from moeba.conversion.json_files import listing
from moeba.conversion.selection import select_side_files
from moeba.conversion.weight_files import DTYPES, SafetensorsFile, TensorInfo

LEGACY_ADVICE = "safetensors.torch.save_file"


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "fp32": torch.randn(3, 5, generator=generator),
        "bf16": torch.randn(4, 3, generator=generator).bfloat16(),
        "fp16": torch.randn(7, generator=generator).half(),
        "fp8": torch.randn(6, generator=generator).to(torch.float8_e4m3fn),
        "int64": torch.arange(-3, 4),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
    }


def make_folder(path: Path, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A checkpoint with one weight file, or none where `tensors` is None."""
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "toy"}')
    if tensors is not None:
        save_file(tensors, path / "model.safetensors")
    return path


def make_sharded(
    path: Path, shards: dict[str, dict[str, torch.Tensor]], index: dict[str, str] | None = None
) -> Path:
    """A sharded checkpoint; `index` overrides the true weight map."""
    make_folder(path)
    for name, tensors in shards.items():
        save_file(tensors, path / name)
    if index is None:
        index = {key: name for name, tensors in shards.items() for key in tensors}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return path


def write_raw(path: Path, header: str, data: bytes) -> None:
    text = header.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert ours.is_contiguous()
    assert torch.equal(ours.reshape(-1).view(torch.uint8), theirs.reshape(-1).view(torch.uint8))


def test_every_kind_of_tensor_is_read_bit_for_bit(tmp_path):
    tensors = some_tensors()
    opened = Checkpoint(make_folder(tmp_path / "m", tensors))
    assert opened.config == {"model_type": "toy"}
    assert opened.tensors == {name: TensorInfo(name, tuple(t.shape), t.dtype) for name, t in tensors.items()}
    for name, tensor in tensors.items():
        assert opened.tensors[name].nbytes == tensor.nbytes
        assert_same(opened.read(name), tensor)


def test_what_is_read_belongs_to_the_reader(tmp_path):
    opened = Checkpoint(make_folder(tmp_path / "m", some_tensors()))
    opened.read("fp32").zero_()
    assert opened.read("fp32").abs().sum() > 0


def test_shards_are_read_from_where_the_index_says(tmp_path):
    tensors = some_tensors()
    names = list(tensors)
    shards = {
        "b.safetensors": {n: tensors[n] for n in names[:3]},
        "a.safetensors": {n: tensors[n] for n in names[3:]},
    }
    opened = Checkpoint(make_sharded(tmp_path / "m", shards))
    assert [path.name for path in opened.weight_files] == ["a.safetensors", "b.safetensors"]
    for name, tensor in tensors.items():
        assert_same(opened.read(name), tensor)


def test_opening_needs_no_tensor_data(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "m", some_tensors())
    monkeypatch.setattr(SafetensorsFile, "read", lambda *_: pytest.fail("a tensor was read"))
    opened = Checkpoint(folder)
    opened.fingerprint()
    assert opened.tensors["fp32"].shape == (3, 5)


@pytest.mark.parametrize("sharded", [False, True])
def test_pickled_weights(tmp_path, sharded):
    tensors = some_tensors() | {"transposed": torch.arange(6.0).view(2, 3).t(), "tied": torch.ones(2)}
    tensors["tied_too"] = tensors["tied"]
    folder = make_folder(tmp_path / "m")
    if sharded:
        names = list(tensors)
        parts = {"x-1.bin": names[:4], "x-2.bin": names[4:]}
        for file, keys in parts.items():
            torch.save({key: tensors[key] for key in keys}, folder / file)
        weight_map = {key: file for file, keys in parts.items() for key in keys}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(tensors, folder / "pytorch_model.bin")
    opened = Checkpoint(folder)
    assert set(opened.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert_same(opened.read(name), tensor.contiguous())
    opened.read("tied").zero_()
    assert opened.read("tied_too").sum() == 2
    assert len(opened.fingerprint()) == 64


class Malicious:
    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_refused_and_not_run(tmp_path, zipped):
    folder = make_folder(tmp_path / "m")
    proof = tmp_path / "executed"
    content = {"weight": torch.ones(2), "payload": Malicious(proof)}
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=LEGACY_ADVICE):
        Checkpoint(folder)
    assert not proof.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)  # the payload is a live one
    assert proof.exists()


@pytest.mark.parametrize("content", [pickle.dumps({"a": 1}), b"", b"garbage"])
def test_file_that_torch_cannot_map_is_refused(tmp_path, content):
    folder = make_folder(tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=LEGACY_ADVICE):
        Checkpoint(folder)


def test_pickle_of_other_things_than_tensors_is_refused(tmp_path):
    folder = make_folder(tmp_path / "m")
    torch.save(
        {"weight": torch.ones(2), "epoch": 3, "model": {"w": torch.ones(1)}}, folder / "pytorch_model.bin"
    )
    with pytest.raises(ValueError, match="not dense tensors: epoch; model"):
        Checkpoint(folder)


def test_safetensors_win_over_pickles(tmp_path):
    folder = make_folder(tmp_path / "m", {"a": torch.ones(2)})
    torch.save({"a": torch.zeros(2)}, folder / "pytorch_model.bin")
    opened = Checkpoint(folder)
    assert opened.read("a").sum() == 2
    assert [path.name for path in opened.weight_files] == ["model.safetensors"]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2, torch.float64]
)
def test_nan_and_inf_are_refused_when_read(tmp_path, dtype):
    bad = torch.tensor([1.0, float("nan"), float("inf"), -float("inf"), 2.0]).to(dtype)
    opened = Checkpoint(make_folder(tmp_path / "m", {"good": torch.ones(2), "bad": bad}))
    opened.read("good")
    with pytest.raises(ValueError, match=r"bad in .*model\.safetensors holds 3 NaN or Inf values of 5"):
        opened.read("bad")


def test_count_nonfinite_looks_into_every_chunk(monkeypatch):
    monkeypatch.setattr(checkpoint, "_CHUNK", 4)
    values = torch.zeros(11)
    values[[2, 9, 10]] = float("nan")
    assert count_nonfinite(values) == 3
    assert count_nonfinite(torch.full((9,), torch.finfo(torch.float32).max)) == 0
    assert count_nonfinite(torch.tensor([complex(0, float("inf"))])) == 1
    assert count_nonfinite(torch.arange(3)) == count_nonfinite(torch.empty(0)) == 0


def test_unknown_tensor_and_shrunk_file(tmp_path):
    opened = Checkpoint(make_folder(tmp_path / "m", some_tensors()))
    with pytest.raises(KeyError, match="nope is not in"):
        opened.read("nope")
    os.truncate(opened.weight_files[0], 400)
    with pytest.raises(ValueError, match="changed while it was being read"):
        for name in opened.tensors:
            opened.read(name)


@pytest.mark.parametrize("change", [-1, 3])
def test_file_of_the_wrong_length_is_refused(tmp_path, change):
    folder = make_folder(tmp_path / "m", some_tensors())
    path = folder / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size + change)
    with pytest.raises(ValueError, match=rf"model\.safetensors.*expected {size} bytes, got {size + change}"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x01", "truncated or no safetensors file"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "truncated or no safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        ((2).to_bytes(8, "little") + b"[]", "must hold a JSON object"),
        ((2).to_bytes(8, "little") + b"{,", "not valid JSON"),
    ],
)
def test_file_that_is_no_safetensors_is_refused(tmp_path, content, message):
    folder = make_folder(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1]}}',
            "stand twice: a",
        ),
        (
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
            "a starts at byte 4 of the data, expected 0",
        ),
        (
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[5],"data_offsets":[3,8]}}',
            "b starts at byte 3 of the data, expected 4",
        ),
        (
            '{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}',
            "a has 8 bytes, its shape and dtype need 12",
        ),
        ('{"a":{"dtype":"F4X","shape":[2],"data_offsets":[0,8]}}', "unknown header entries: a: .*F4X"),
        ('{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', "malformed"),
        ('{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,8]}}', "malformed"),
        ('{"a":{"dtype":"F32","shape":[2]},"b":3}', "a: .*; b: 3"),
    ],
)
def test_header_that_does_not_add_up_is_refused(tmp_path, header, message):
    folder = make_folder(tmp_path / "m")
    write_raw(folder / "model.safetensors", header, bytes(8))
    with pytest.raises(ValueError, match=message):
        Checkpoint(folder)


ONE, TWO = {"x": torch.ones(1)}, {"y": torch.ones(1)}


@pytest.mark.parametrize(
    ("shards", "index", "message"),
    [
        (
            {"a.safetensors": ONE},
            {"x": "../a.safetensors"},
            r"only name files beside it, not: \.\./a\.safetensors",
        ),
        ({"a.safetensors": ONE}, {"x": "/etc/a", "y": "..", "z": "d\\e"}, r"not: \.\.; /etc/a; d\\e"),
        (
            {"a.safetensors": ONE},
            {"x": "a.safetensors", "y": "b", "z": "c"},
            "files that are not there: b; c",
        ),
        (
            {"a.safetensors": ONE},
            {"x": "a.safetensors", "y": "a.safetensors"},
            "y is missing from a.safetensors",
        ),
        ({"a.safetensors": ONE | TWO}, {"x": "a.safetensors"}, "y is in a.safetensors but not in the index"),
        (
            {"a.safetensors": ONE | TWO, "b.safetensors": TWO},
            {"x": "a.safetensors", "y": "b.safetensors"},
            "y is in a.safetensors and b.safetensors",
        ),
        (
            {"a.safetensors": ONE, "b.safetensors": TWO},
            {"x": "b.safetensors", "y": "a.safetensors"},
            "x is in a.safetensors, the index says b.safetensors; y is in b.safetensors, the index says",
        ),
        ({"a.safetensors": ONE}, {}, "has no weight_map"),
    ],
)
def test_index_that_disagrees_with_its_files_is_refused(tmp_path, shards, index, message):
    folder = make_sharded(tmp_path / "m", shards, index)
    with pytest.raises(ValueError, match=message):
        Checkpoint(folder)


def test_all_damaged_shards_are_named_at_once(tmp_path):
    folder = make_sharded(tmp_path / "m", {f"{n}.safetensors": {str(n): torch.ones(2)} for n in range(12)})
    for path in folder.glob("*.safetensors"):
        os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError) as caught:
        Checkpoint(folder)
    assert str(caught.value).count("is damaged") == 10
    assert str(caught.value).endswith("… and 2 more")
    assert "\n" not in str(caught.value)


def test_duplicate_key_in_the_index_is_refused(tmp_path):
    folder = make_sharded(tmp_path / "m", {"a.safetensors": ONE})
    text = '{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="stand twice: x"):
        Checkpoint(folder)


def test_single_file_beside_an_index_is_refused(tmp_path):
    folder = make_sharded(tmp_path / "m", {"model.safetensors": ONE})
    with pytest.raises(ValueError, match="remove the one that is out of date"):
        Checkpoint(folder)


def test_linked_files_as_in_the_hub_cache_are_read(tmp_path):
    blobs = make_sharded(tmp_path / "blobs", {"a.safetensors": ONE})
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("..") / "blobs" / path.name)
    assert Checkpoint(snapshot).read("x") == 1


def test_folder_without_config_or_weights_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        Checkpoint(tmp_path / "nothing")
    folder = make_folder(tmp_path / "m")
    with pytest.raises(ValueError, match="is a file"):
        Checkpoint(folder / "config.json")
    with pytest.raises(ValueError, match="found no weights at all"):
        Checkpoint(folder)
    (folder / "consolidated.safetensors").touch()
    with pytest.raises(ValueError, match="found only consolidated.safetensors"):
        Checkpoint(folder)
    for text, message in (
        ('{"a": 1', "not valid JSON"),
        ("[]", "JSON object"),
        ('{"a": 1, "a": 2}', "stand twice: a"),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            Checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="has no config.json"):
        Checkpoint(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="PEFT adapter: merge it"):
        Checkpoint(folder)


def test_side_files_are_those_that_travel(tmp_path):
    folder = make_folder(tmp_path / "m", {"a": torch.ones(1)})
    travel = [
        "LICENSE",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "tokenizer.json",
        "vocab.json",
    ]
    stay = ["README.md", ".gitattributes", "modeling_x.py", "optimizer.pt", "flax_model.msgpack.index.json"]
    for name in (*travel, *stay, "stale-00001-of-00002.safetensors"):
        (folder / name).touch()
    (folder / "original").mkdir()
    assert list(select_side_files(folder).files) == travel


def test_sha256_and_fingerprint(tmp_path):
    folder = make_folder(tmp_path / "m", some_tensors())
    opened = Checkpoint(folder)
    first, sums = opened.fingerprint(), opened.sha256()
    assert list(sums) == ["model.safetensors"]
    assert Checkpoint(folder).fingerprint() == first
    (folder / "tokenizer.json").touch()
    assert Checkpoint(folder).fingerprint() == first
    assert opened.sha256() == Checkpoint(shutil.copytree(folder, tmp_path / "copy")).sha256()

    (folder / "config.json").write_text('{"model_type": "other"}')
    second = Checkpoint(folder).fingerprint()
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(1, 1))
    assert len({first, second, Checkpoint(folder).fingerprint()}) == 3
    assert Checkpoint(folder).sha256() != sums


def test_listing_is_capped():
    assert listing(["a", "b"]) == "a; b"
    assert listing([str(n) for n in range(13)]) == "0; 1; 2; 3; 4; 5; 6; 7; 8; 9; … and 3 more"


def test_dtype_codes_are_those_of_safetensors(tmp_path):
    for code, dtype in DTYPES.items():
        save_file(
            {"a": torch.zeros(2, dtype=torch.uint8).repeat(dtype.itemsize).view(dtype)}, tmp_path / code
        )
        assert SafetensorsFile(tmp_path / code).tensors["a"].dtype == dtype


class FakeHub:
    """A repository at one commit, downloaded as huggingface_hub does: only what the patterns allow."""

    def __init__(self, folder: Path, cache: Path):
        self.folder, self.cache, self.revisions = folder, cache, []

    def __call__(self, repo_id, *, revision, allow_patterns, ignore_patterns):
        from huggingface_hub.utils import filter_repo_objects

        self.revisions.append(revision)
        names = [str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()]
        for name in filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.folder / name, self.cache / name)
        return str(self.cache)

    def file(self, repo_id, name, *, revision):
        if not (self.folder / name).is_file():
            raise RemoteEntryNotFoundError(f"there is no {name}", response=Mock())
        self(repo_id, revision=revision, allow_patterns=[name], ignore_patterns=["*/*"])
        return str(self.cache / name)

    def fetched(self) -> set[str]:
        return {str(path.relative_to(self.cache)) for path in self.cache.rglob("*") if path.is_file()}


def fake_hub(monkeypatch, repo: Path, cache: Path) -> FakeHub:
    hub = FakeHub(repo, cache)
    monkeypatch.setattr(checkpoint, "snapshot_download", hub)
    monkeypatch.setattr(checkpoint, "hf_hub_download", hub.file)
    return hub


def test_hub_id_fetches_only_what_is_needed(tmp_path, monkeypatch):
    repo = make_sharded(tmp_path / "repo", {"one.safetensors": ONE, "two.safetensors": TWO})
    (repo / "original").mkdir()
    for name in (
        "consolidated.safetensors",
        "pytorch_model.bin",
        "original/params.json",
        "tokenizer.json",
        "x.gguf",
        "README.md",
        "USE_POLICY.md",
        "License.txt",
        "additional_chat_templates/tool_use.jinja",
        "additional_chat_templates/notes/x.jinja",
        "train.py",
    ):
        (repo / name).parent.mkdir(exist_ok=True)
        (repo / name).write_text("{}")
    hub = fake_hub(monkeypatch, repo, tmp_path / "commit")
    folder = resolve("user/name", revision="v1", any_type=True)
    index = "model.safetensors.index.json"
    assert hub.fetched() == {
        "config.json", "tokenizer.json", index, "one.safetensors", "two.safetensors", "README.md", "USE_POLICY.md",
        "License.txt", "additional_chat_templates/tool_use.jinja",
    }  # fmt: skip
    assert hub.revisions == ["v1", "commit", "commit"]  # everything after config.json is of the same commit
    assert Checkpoint(folder).read("y") == 1


def test_hub_id_falls_back_to_pickles(tmp_path, monkeypatch):
    repo = make_folder(tmp_path / "repo")
    torch.save({"a": torch.ones(1)}, repo / "pytorch_model.bin")
    fake_hub(monkeypatch, repo, tmp_path / "commit")
    assert Checkpoint(resolve("user/name", any_type=True)).read("a") == 1


@pytest.mark.parametrize(
    "model_type, message",
    [
        ("mamba", "model_type='mamba' is not supported: its layers are Mamba's state spaces"),
        ("toy", "model_type='toy' is not supported. `moeba families` lists all"),
    ],
)
def test_hub_model_of_an_unsupported_type_is_refused_before_its_weights(
    tmp_path, monkeypatch, model_type, message
):
    repo = make_folder(tmp_path / "repo", {"a": torch.ones(1)})
    (repo / "config.json").write_text(json.dumps({"model_type": model_type}))
    hub = fake_hub(monkeypatch, repo, tmp_path / "commit")
    with pytest.raises(ValueError, match=message):
        resolve("user/name")
    assert hub.fetched() == {"config.json"}


@pytest.mark.parametrize("model_type", ["moeba", "llama"])
def test_hub_model_of_a_supported_type_is_fetched(tmp_path, monkeypatch, model_type):
    repo = make_folder(tmp_path / "repo", {"a": torch.ones(1)})
    (repo / "config.json").write_text(json.dumps({"model_type": model_type}))
    fake_hub(monkeypatch, repo, tmp_path / "commit")
    assert Checkpoint(resolve("user/name")).read("a") == 1


def test_hub_repository_without_a_config_says_what_it_is(tmp_path, monkeypatch):
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "adapter_config.json").write_text("{}")
    fake_hub(monkeypatch, repo, tmp_path / "commit")
    with pytest.raises(ValueError, match="holds a PEFT adapter"):
        Checkpoint(resolve("user/name"))


def test_resolve_refuses_what_it_cannot_find(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "m")
    assert resolve(folder) == resolve(str(folder)) == folder
    monkeypatch.setattr(checkpoint, "hf_hub_download", lambda *a, **k: pytest.fail("the Hub was asked"))
    for wrong in (tmp_path / "nothing", "./nothing", "no spaces/allowed", "gpt2", "a/b/c"):
        with pytest.raises(ValueError, match="neither a folder here nor a Hub id"):
            resolve(wrong)
    with pytest.raises(ValueError, match="is a file"):
        resolve(folder / "config.json")

    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("no\nconnection")

    monkeypatch.setattr(checkpoint, "hf_hub_download", offline)
    with pytest.raises(
        ValueError, match="user/name is no folder here and could not be fetched .*: no connection"
    ):
        resolve("user/name")
