from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from moeba.conversion import destination, shards, workplace, writing
from moeba.conversion.checkpoint import Checkpoint
from moeba.conversion.hashes import remember, sha256_of
from moeba.conversion.inputs import Inputs
from moeba.conversion.weight_files import DTYPES, TensorInfo
from moeba.conversion.writing import Recipe, check_destination, write_checkpoint


class Memory:
    """A source of tensors in memory that counts how often each is read."""

    def __init__(self, values: dict[str, torch.Tensor]):
        self.values = values
        self.tensors = {name: info_of(name, value) for name, value in values.items()}
        self.reads: list[str] = []

    def read(self, name: str) -> torch.Tensor:
        self.reads.append(name)
        return self.values[name]


def info_of(name: str, value: torch.Tensor) -> TensorInfo:
    return TensorInfo(name, tuple(value.shape), value.dtype)


def copies(source: Memory, names: list[str] | None = None) -> list[Recipe]:
    return [
        Recipe((source.tensors[name],), (name,), lambda inputs: inputs) for name in names or source.tensors
    ]


def numbered(count: int, size: int = 8) -> Memory:
    return Memory({f"w{n}": torch.full((size,), float(n)) for n in range(count)})


def add_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')


def write(source: Memory, destination: Path, recipes: list[Recipe] | None = None, **options):
    options = {"digest": "d", "finish": add_config, **options}
    return write_checkpoint(copies(source) if recipes is None else recipes, source, destination, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def left_beside(destination: Path) -> list[str]:
    return sorted(path.name for path in destination.parent.iterdir())


def every_kind() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "bool": torch.tensor([True, False, True]),
        "bf16": torch.randn(3, 3, generator=generator).bfloat16(),
        "fp32": torch.randn(3, 5, generator=generator),
        "scalar": torch.tensor(2.5),
        "fp16": torch.randn(7, generator=generator).half(),
        "empty": torch.empty(0, 4),
        "int64": torch.arange(-3, 4),
        "scalar_bf16": torch.tensor(1.5, dtype=torch.bfloat16),
    }


@pytest.mark.parametrize("max_shard_size", ["5GB", 40])
def test_round_trip_of_every_kind_of_tensor(tmp_path, max_shard_size):
    source = Memory(every_kind())
    report = write(source, tmp_path / "out", max_shard_size=max_shard_size)
    opened = Checkpoint(tmp_path / "out")
    assert report.shards == len(opened.weight_files) == (1 if max_shard_size == "5GB" else 5)
    assert (report.reused_shards, report.tensors) == (0, len(source.values))
    assert report.bytes_written == sum(path.stat().st_size for path in opened.weight_files)
    loaded = {name: tensor for path in opened.weight_files for name, tensor in load_file(path).items()}
    for name, value in source.values.items():
        for tensor in (opened.read(name), loaded[name]):
            assert (tensor.shape, tensor.dtype) == (value.shape, value.dtype)
            assert torch.equal(tensor, value)
    assert left_beside(tmp_path / "out") == ["out"]
    assert not {".progress.json", ".lock"} & set(contents(tmp_path / "out"))


def test_every_dtype_the_format_knows(tmp_path):
    source = Memory({c: torch.zeros(3 * d.itemsize, dtype=torch.uint8).view(d) for c, d in DTYPES.items()})
    write(source, tmp_path / "out")
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in loaded.items()} == DTYPES


def test_shards_and_index_follow_the_conventions(tmp_path):
    source = numbered(5)  # 32 bytes each
    write(source, tmp_path / "out", max_shard_size=64, metadata={"made_by": "a test"})
    folder = tmp_path / "out"
    files = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert sorted(contents(folder)) == sorted(["config.json", *files, "model.safetensors.index.json"])
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 160}
    assert list(index["weight_map"].items()) == [(f"w{n}", files[n // 2]) for n in range(5)]
    with safe_open(folder / files[0], "pt") as file:
        assert file.metadata() == {"format": "pt", "made_by": "a test"}


def test_large_recipe_keeps_its_targets_together(tmp_path):
    source = numbered(6)
    together = tuple(source.tensors[f"w{n}"] for n in range(1, 5))
    recipes = [
        *copies(source, ["w0"]),
        Recipe(together, ("w1", "w2", "w3", "w4"), tuple),
        *copies(source, ["w5"]),
    ]
    assert write(source, tmp_path / "out", recipes, max_shard_size=64).shards == 3
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len({index["weight_map"][info.name] for info in together}) == 1


def test_every_tensor_is_aligned_even_in_recipes_of_mixed_dtypes(tmp_path):
    source = Memory(
        {f"byte{n}": torch.tensor([n], dtype=torch.uint8) for n in range(3)}
        | {f"half{n}": torch.full((3,), float(n)).half() for n in range(3)}
        | {f"wide{n}": torch.full((3,), float(n)).double() for n in range(3)}
    )
    recipes = []
    for n in range(3):
        names = (f"byte{n}", f"wide{n}", f"half{n}")
        recipes.append(Recipe(tuple(source.tensors[name] for name in names), names, list))
    write(source, tmp_path / "out", recipes)
    path = tmp_path / "out" / "model.safetensors"
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    for name, info in source.tensors.items():
        assert (8 + length + header[name]["data_offsets"][0]) % info.dtype.itemsize == 0
    assert all(torch.equal(tensor, source.values[name]) for name, tensor in load_file(path).items())


def test_views_with_strides_and_gradients_are_written_by_value(tmp_path):
    source = Memory({"a": torch.arange(6.0).view(2, 3).requires_grad_()})
    recipe = Recipe((TensorInfo("t", (3, 2), torch.float32),), ("a",), lambda inputs: [inputs[0].t()])
    write(source, tmp_path / "out", [recipe])
    assert torch.equal(Checkpoint(tmp_path / "out").read("t"), source.values["a"].detach().t())


@pytest.mark.parametrize(("size", "shards"), [("64B", 2), ("0.064 kb", 2), ("1KiB", 1), (32, 4), ("1", 4)])
def test_shard_size_in_words(tmp_path, size, shards):
    assert write(numbered(4), tmp_path / "out", max_shard_size=size).shards == shards


@pytest.mark.parametrize("size", ["", "big", "5 apples", 0, -1, "0.1B"])
def test_shard_size_that_is_none(tmp_path, size):
    with pytest.raises(ValueError, match="max_shard_size"):
        write(numbered(1), tmp_path / "out", max_shard_size=size)


def test_progress_ends_at_the_total(tmp_path):
    seen = []
    write(numbered(3), tmp_path / "out", progress=lambda *step: seen.append(step))
    assert seen == [(32, 96, "w0"), (64, 96, "w1"), (96, 96, "w2")]


def test_memory_is_bounded_by_the_largest_recipe(tmp_path):
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    class Lazy(Memory):
        def read(self, name: str) -> torch.Tensor:
            nonlocal most
            tensor = super().read(name).clone()
            alive.add(tensor)
            most = max(most, len(alive))
            return tensor

    def double(inputs):
        nonlocal most
        output = inputs[0] * 2
        alive.add(output)
        most = max(most, len(alive))
        return [output]

    source = Lazy(numbered(30).values)
    recipes = [Recipe((info,), (name,), double) for name, info in source.tensors.items()]
    write(source, tmp_path / "out", recipes, max_shard_size=320)
    assert most == 2  # one source and one target


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda inputs: [inputs[0].view(2, 4)], r"expected: \[8\] torch.float32 on cpu\s+got: +\[2, 4\]"),
        (lambda inputs: [inputs[0].half()], r"got: +\[8\] torch.float16"),
        (lambda inputs: [inputs[0].to("meta")], "on meta"),
        (lambda inputs: [], "computed 0 tensors, expected 1"),
    ],
)
def test_recipe_that_breaks_its_promise_leaves_no_destination(tmp_path, compute, message):
    source = numbered(3)
    recipes = copies(source)
    recipes[2] = Recipe((source.tensors["w2"],), ("w2",), compute, description="the third")
    with pytest.raises(AssertionError, match=f"(?s)the third.*{message}"):
        write(source, tmp_path / "out", recipes, max_shard_size=32)
    assert left_beside(tmp_path / "out") == [".out.partial"]
    with pytest.raises(ValueError, match="has no config.json"):
        Checkpoint(tmp_path / ".out.partial")


def test_value_out_of_range_is_refused(tmp_path):
    source = Memory({"a": torch.tensor([1.0, 70000.0, -70000.0])})
    recipe = Recipe((TensorInfo("a", (3,), torch.float16),), ("a",), lambda inputs: [inputs[0].half()])
    with pytest.raises(ValueError, match="a .* 2 NaN or Inf values of 3; .* out of range for torch.float16"):
        write(source, tmp_path / "out", [recipe])
    assert not (tmp_path / "out").exists()


def test_contradictory_recipes_are_refused_before_anything_is_read(tmp_path):
    source = numbered(2)
    unknown = Recipe((TensorInfo("x", (1,), torch.float32),), ("nope",), list)
    strange = Recipe((TensorInfo("y", (1,), torch.complex128),), (), list)
    with pytest.raises(AssertionError) as caught:
        write(source, tmp_path / "out", [*copies(source), *copies(source, ["w1"]), unknown, strange])
    for offender in ("w1 is produced 2 times", "nope is not in the source", "y has dtype torch.complex128"):
        assert offender in str(caught.value)
    with pytest.raises(AssertionError, match="nothing to write"):
        write(source, tmp_path / "out", [])
    assert source.reads == [] and left_beside(tmp_path / "out") == []


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_writing import Recipe, copies, numbered, write

def die(inputs):
    os.kill(os.getpid(), signal.SIGKILL)

source = numbered(8)
recipes = copies(source)
recipes[5] = Recipe(recipes[5].targets, recipes[5].sources, die)
write(source, Path({destination!r}), recipes, max_shard_size=64)
"""


def test_killed_run_is_continued_to_the_same_bytes(tmp_path):
    destination = tmp_path / "out"
    script = KILLED.format(tests=str(Path(__file__).parent), destination=str(destination))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert left_beside(destination) == [".out.partial"]
    partial = contents(tmp_path / ".out.partial")
    assert "config.json" not in partial and "model-00003-of-00004.safetensors.tmp" in partial

    source = numbered(8)
    seen = []
    report = write(source, destination, max_shard_size=64, progress=lambda *step: seen.append(step[:2]))
    assert (report.shards, report.reused_shards) == (4, 2)
    assert source.reads == ["w4", "w5", "w6", "w7"]
    assert seen[-1] == (256, 256)
    assert left_beside(destination) == ["out"]
    write(numbered(8), tmp_path / "fresh", max_shard_size=64)
    assert contents(destination) == contents(tmp_path / "fresh")


def interrupt(destination: Path, at: int = 2, **options) -> None:
    """A run over four tensors, one a shard, that stops in the middle of shard number `at`."""
    source = numbered(4)
    recipes = copies(source)

    def stop(inputs):
        raise KeyboardInterrupt

    recipes[at] = Recipe(recipes[at].targets, recipes[at].sources, stop)
    with pytest.raises(KeyboardInterrupt):
        write(source, destination, recipes, max_shard_size=32, **options)


@pytest.mark.parametrize("damage", ["data", "header", "truncate", "append", "delete"])
def test_damaged_shard_is_written_again(tmp_path, damage):
    interrupt(tmp_path / "out")
    shard = tmp_path / ".out.partial" / "model-00001-of-00004.safetensors"
    content = shard.read_bytes()
    if damage == "data":
        shard.write_bytes(content[:-1] + b"\x01")
    elif damage == "header":
        shard.write_bytes(content.replace(b"w0", b"w9"))
    elif damage == "append":
        shard.write_bytes(content + b"\x00")
    elif damage == "truncate":
        os.truncate(shard, 50)
    else:
        shard.unlink()
    source = numbered(4)
    assert write(source, tmp_path / "out", max_shard_size=32).reused_shards == 1
    assert source.reads == ["w0", "w2", "w3"]
    assert Checkpoint(tmp_path / "out").read("w0").sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digest": "other"}, "another run: its source or its recipe differs"),
        ({"max_shard_size": 64}, "other shards: their size or metadata differs"),
        ({"metadata": {"made_by": "another"}}, "other shards: their size or metadata differs"),
    ],
)
def test_unfinished_output_of_another_run_is_refused_or_discarded(tmp_path, change, message):
    interrupt(tmp_path / "out")
    before = contents(tmp_path / ".out.partial")
    options = {"max_shard_size": 32, **change}
    with pytest.raises(ValueError, match=f"{message}; delete .*partial, or overwrite it"):
        write(numbered(4), tmp_path / "out", **options)
    assert contents(tmp_path / ".out.partial") == before
    assert write(numbered(4), tmp_path / "out", **options, overwrite=True).reused_shards == 0
    assert left_beside(tmp_path / "out") == ["out"]


def test_files_of_a_killed_finish_are_not_published(tmp_path):
    interrupt(tmp_path / "out")
    (tmp_path / ".out.partial" / "tokenizer.json").touch()
    assert write(numbered(4), tmp_path / "out", max_shard_size=32).reused_shards == 2
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_overwrite_continues_its_own_unfinished_output(tmp_path):
    interrupt(tmp_path / "out", overwrite=True)
    assert write(numbered(4), tmp_path / "out", max_shard_size=32, overwrite=True).reused_shards == 2


def test_folder_of_someone_else_in_the_way_is_left_alone(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="is in the way and has no .progress.json"):
        write(numbered(1), tmp_path / "out")
    assert (tmp_path / ".out.partial" / "thesis.txt").exists()


def test_failing_finish_leaves_finished_shards_only(tmp_path):
    def fail(folder: Path) -> None:
        assert {"model-00001-of-00004.safetensors", "model.safetensors.index.json"} <= set(contents(folder))
        add_config(folder)
        (folder / "tokenizer").mkdir()
        raise RuntimeError("no tokenizer")

    with pytest.raises(RuntimeError, match="no tokenizer"):
        write(numbered(4), tmp_path / "out", max_shard_size=32, finish=fail)
    assert left_beside(tmp_path / "out") == [".out.partial"]
    kept = set(contents(tmp_path / ".out.partial"))
    assert kept == {".lock", ".progress.json", *(f"model-0000{n}-of-00004.safetensors" for n in range(1, 5))}
    source = numbered(4)
    assert write(source, tmp_path / "out", max_shard_size=32).reused_shards == 4
    assert source.reads == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_full_disk_says_what_is_missing_and_can_be_continued(tmp_path, monkeypatch, code):
    put, room = shards.put, [3]

    def put_until_full(file, offset, data):
        if not isinstance(data, bytes):  # a tensor and not a header
            room[0] -= 1
            if room[0] < 0:
                raise OSError(code, os.strerror(code))
        put(file, offset, data)

    for module in (shards, writing):
        monkeypatch.setattr(module, "put", put_until_full)
    stopped = f"writing {re.escape(str(tmp_path / 'out'))} stopped: {os.strerror(code)}"
    message = f"{stopped}; 32 bytes of tensors .* run again to continue"
    with pytest.raises(OSError, match=message) as caught:
        write(numbered(4), tmp_path / "out", max_shard_size=32)
    assert caught.value.errno == code
    assert left_beside(tmp_path / "out") == [".out.partial"]
    room[0] = 100
    assert write(numbered(4), tmp_path / "out", max_shard_size=32).reused_shards == 3


def test_existing_destination_is_replaced_only_on_request(tmp_path):
    write(numbered(1), tmp_path / "out")
    (tmp_path / "out" / "vocab.txt").touch()
    source = numbered(3)
    with pytest.raises(ValueError, match="out exists: choose another destination, or overwrite it"):
        write(source, tmp_path / "out")
    assert source.reads == []
    write(source, tmp_path / "out", overwrite=True)
    assert sorted(contents(tmp_path / "out")) == ["config.json", "model.safetensors"]
    assert len(Checkpoint(tmp_path / "out").tensors) == 3
    assert left_beside(tmp_path / "out") == ["out"]


def test_failing_replacement_puts_the_old_folder_back(tmp_path, monkeypatch):
    write(numbered(1), tmp_path / "out")
    before = contents(tmp_path / "out")
    rename = os.rename

    def fail_into_place(old, new):
        if Path(old).name == ".out.partial":
            raise OSError(errno.EIO, "the disk went away")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail_into_place)
    with pytest.raises(OSError, match="went away"):
        write(numbered(3), tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before
    assert left_beside(tmp_path / "out") == [".out.partial", "out"]
    assert "config.json" not in contents(tmp_path / ".out.partial")
    monkeypatch.undo()
    assert write(numbered(3), tmp_path / "out", overwrite=True).reused_shards == 1


def test_replacement_killed_between_its_renames_is_undone(tmp_path):
    write(numbered(1), tmp_path / "out")
    before = contents(tmp_path / "out")
    os.rename(tmp_path / "out", tmp_path / ".out.replaced")
    with pytest.raises(ValueError, match="exists"):
        write(numbered(2), tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert not (tmp_path / ".out.replaced").exists()


def test_destination_that_appears_meanwhile_is_kept(tmp_path):
    def race(folder: Path) -> None:
        add_config(folder)
        (tmp_path / "out").mkdir()

    with pytest.raises(ValueError, match="out exists"):
        write(numbered(1), tmp_path / "out", finish=race)
    assert contents(tmp_path / "out") == {}


@pytest.mark.skipif(destination.fcntl is None, reason="this system has no file locks")
def test_two_runs_at_once_are_refused(tmp_path):
    def second(inputs):
        with pytest.raises(ValueError, match="another run is writing"):
            write(numbered(1), tmp_path / "out", overwrite=True)
        return inputs

    source = numbered(1)
    write(source, tmp_path / "out", [Recipe((source.tensors["w0"],), ("w0",), second)])
    assert left_beside(tmp_path / "out") == ["out"]


@pytest.mark.skipif(destination.fcntl is None, reason="this system has no file locks")
def test_folder_published_while_its_lock_was_waited_for_is_left_alone(tmp_path, monkeypatch):
    flock, elsewhere = destination.fcntl.flock, tmp_path / "published"

    def flock_too_late(*args):
        if not elsewhere.exists():
            os.rename(tmp_path / ".out.partial", elsewhere)
        flock(*args)

    monkeypatch.setattr(destination.fcntl, "flock", flock_too_late)
    write(numbered(1), tmp_path / "out")
    assert list(contents(elsewhere)) == [".lock"]
    assert sorted(contents(tmp_path / "out")) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("missing", ["module", "support"])
def test_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch, missing):
    if missing == "module":
        monkeypatch.setattr(destination, "fcntl", None)
    else:

        def flock(*args):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(destination.fcntl, "flock", flock)
    write(numbered(1), tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["config.json", "model.safetensors"]


def test_linked_destination_is_replaced_where_it_is(tmp_path):
    write(numbered(1), tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(numbered(2), tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert len(Checkpoint(tmp_path / "real").tensors) == 2


def test_check_destination(tmp_path, monkeypatch):
    source = tmp_path / "a" / "source"
    write(numbered(1), source)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "file").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "empty").mkdir()
    check_destination(source, tmp_path / "new" / "deep")
    check_destination(source, source.with_name("source2"))
    check_destination(source, tmp_path / "empty", overwrite=True)
    for taken, overwrite, message in (
        (source, True, "is the source itself"),
        (tmp_path / "link", True, "is the source itself"),
        (source / "inner", True, "is inside the source"),
        (tmp_path / "a", True, "is around the source"),
        (tmp_path / "file", True, "is a file"),
        (tmp_path / "file" / "below", False, "cannot be written"),
        (tmp_path / "empty", False, "exists: choose another destination, or overwrite it"),
        (tmp_path / "photos", True, "holds no config.json that names a model type.* may be no checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            check_destination(source, taken, overwrite)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="cannot be written"):
        check_destination(source, tmp_path / "new")


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "source.bin"
    path.write_bytes(bytes(range(200)))
    os.utime(path, ns=(10**18, 10**18))
    return path


def replace_unseen(path: Path) -> None:
    """Other bytes, of the same number and the same time."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=times)


def test_source_that_was_replaced_is_not_continued(tmp_path, weights):
    interrupt(tmp_path / "out", inputs=Inputs([weights]))
    before = contents(tmp_path / ".out.partial")
    replace_unseen(weights)
    with pytest.raises(
        ValueError, match=r"its source or its recipe differs \(.*source.bin was replaced since\)"
    ):
        write(numbered(4), tmp_path / "out", max_shard_size=32, inputs=Inputs([weights]))
    assert contents(tmp_path / ".out.partial") == before
    options = dict(max_shard_size=32, inputs=Inputs([weights]), overwrite=True)
    assert write(numbered(4), tmp_path / "out", **options).reused_shards == 0


def test_source_that_is_the_same_by_its_hash_is_continued(tmp_path, weights):
    """Its folder was copied, or its rights changed."""
    time.sleep(0.05)  # a file that just changed is hashed, but its hash is not kept
    inputs = Inputs([weights])
    remember(weights, sha256_of(weights), always=True)
    interrupt(tmp_path / "out", inputs=inputs)
    content, times = weights.read_bytes(), weights.stat().st_mtime_ns
    weights.unlink()
    weights.write_bytes(content)
    os.utime(weights, ns=(times, times))
    report = write(numbered(4), tmp_path / "out", max_shard_size=32, inputs=Inputs([weights]))
    assert report.reused_shards == 2


def test_source_that_changes_meanwhile_is_not_published(tmp_path, weights):
    def change(folder: Path) -> None:
        add_config(folder)
        replace_unseen(weights)

    with pytest.raises(ValueError, match="source.bin changed while it was read: run again"):
        write(numbered(1), tmp_path / "out", finish=change, inputs=Inputs([weights]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 2, "finished": 3}'])
def test_damaged_progress_says_the_way_out(tmp_path, text):
    interrupt(tmp_path / "out")
    (tmp_path / ".out.partial" / ".progress.json").write_text(text)
    before = contents(tmp_path / ".out.partial")
    message = (
        r"as its .progress.json is damaged; delete .*\.out\.partial, or overwrite it \(--overwrite; in Python"
    )
    with pytest.raises(ValueError, match=message):
        write(numbered(4), tmp_path / "out", max_shard_size=32)
    assert contents(tmp_path / ".out.partial") == before
    assert write(numbered(4), tmp_path / "out", max_shard_size=32, overwrite=True).reused_shards == 0


def test_overwriting_spares_what_somebody_put_into_the_unfinished_output(tmp_path):
    interrupt(tmp_path / "out")
    (tmp_path / ".out.partial" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="holds files of somebody else: thesis.tex; move them away"):
        write(numbered(5), tmp_path / "out", max_shard_size=32, overwrite=True, digest="other")
    assert (tmp_path / ".out.partial" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", [".out.partial", ".out.partial/.lock", ".out.partial/.progress.json", ".out.replaced"]
)
def test_links_in_our_places_are_refused(tmp_path, name, overwrite):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.tex").write_text("mine")
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    is_folder = name in (".out.partial", ".out.replaced")
    (tmp_path / name).symlink_to(elsewhere if is_folder else tmp_path / "other.json")
    with pytest.raises(ValueError, match="is a link to .*, and is not followed: delete the link"):
        write(numbered(1), tmp_path / "out", overwrite=overwrite)
    assert contents(elsewhere) == {"thesis.tex": b"mine"}
    assert (tmp_path / "other.json").read_text() == "{}" and not (tmp_path / "out").exists()


def test_linked_shard_is_not_published(tmp_path):
    interrupt(tmp_path / "out")
    shard = tmp_path / ".out.partial" / "model-00001-of-00004.safetensors"
    shard.rename(tmp_path / "moved")
    shard.symlink_to(tmp_path / "moved")
    assert write(numbered(4), tmp_path / "out", max_shard_size=32).reused_shards == 1
    assert not (tmp_path / "out" / shard.name).is_symlink()


def test_nothing_of_somebody_elses_is_taken_for_a_replaced_folder(tmp_path):
    write(numbered(1), tmp_path / "out")
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="is in the way, and no killed run left it beside"):
        write(numbered(2), tmp_path / "out", overwrite=True)
    assert (tmp_path / ".out.replaced" / "thesis.tex").read_text() == "mine"


def test_clean_up_that_was_killed_is_finished_by_the_next_run(tmp_path, monkeypatch):
    write(numbered(1), tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(destination, "_clean_up", lambda _: None)
        write(numbered(2), tmp_path / "out", overwrite=True)
    assert left_beside(tmp_path / "out") == [".out.replaced", "out"]
    write(numbered(3), tmp_path / "out", overwrite=True)
    assert left_beside(tmp_path / "out") == ["out"]
    assert sorted(contents(tmp_path / "out")) == ["config.json", "model.safetensors"]


def test_unproven_folder_shows_weights_to_this_process_alone(tmp_path):
    """In another process, or once this one has ended, its links lead nowhere."""

    def look(folder: Path) -> None:
        add_config(folder)
        assert set(Checkpoint(folder).tensors) == {"w0"}
        link = os.readlink(folder / "model.safetensors")
        assert link.startswith(f"/proc/{os.getpid()}/fd/") or not Path("/proc/self/fd").exists()
        seen.append(link)

    seen: list[str] = []
    write(numbered(1), tmp_path / "out", finish=look)
    assert seen and not (tmp_path / "out" / "model.safetensors").is_symlink()


@pytest.mark.parametrize("missing", ["/proc", "links"])
def test_systems_without_such_links_write_the_same(tmp_path, monkeypatch, missing):
    def refuse(*args):
        raise OSError(errno.EPERM, "no links here")

    def look(folder: Path) -> None:
        add_config(folder)
        assert set(Checkpoint(folder).tensors) == {"w0"}
        assert (folder / "model.safetensors").is_symlink() == (missing == "/proc")

    write(numbered(1), tmp_path / "expected")
    with monkeypatch.context() as patch:
        patch.setattr(workplace, "_leads_to", lambda *_: False)
        if missing == "links":
            patch.setattr(os, "symlink", refuse)
        write(numbered(1), tmp_path / "out", finish=look)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert left_beside(tmp_path / "out") == ["expected", "out"]
