"""Whatever stops an operation, nothing is lost, nothing half-made is left, and it goes on to the very same bytes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import stat
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_operations import (
    OPERATIONS,
    call,
    counting,
    make_sources,
    process,
    run_and_die,
    run_without_rights,
)
from native import snapshot

from moeba.conversion import shards, writing
from moeba.conversion.checkpoint import Checkpoint

QUICK = dict(max_shard_size="4KB", certificate=False)
PROVEN = dict(max_shard_size="4KB")
# One of each operation; the other ways of each are slow only because they are many.
FEW = ("upcycle copy", "split", "merge", "grow", "prune", "densify")
EVERY = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in OPERATIONS]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    make_sources(folder)
    return folder


@pytest.fixture
def folder(originals):
    """The sources, which a test leaves as they are."""
    before = snapshot(originals)
    yield originals
    assert snapshot(originals) == before


@pytest.fixture(scope="module")
def undisturbed(originals, tmp_path_factory):
    """The bytes of every file of a run that nothing stopped, and in how many writes its weights were written."""

    @cache
    def whole(name: str, certificate: bool = False) -> tuple[dict[str, str], int]:
        out = tmp_path_factory.mktemp("whole") / "out"
        writes = [0]
        with pytest.MonkeyPatch.context() as patch:
            put = counting(lambda calls: writes.__setitem__(0, calls))
            patch.setattr(shards, "put", put)
            patch.setattr(writing, "put", put)
            report = run(name, originals, out, max_shard_size="4KB", certificate=certificate).report
        assert report.shards > 3 and report.reused_shards == 0
        assert (out / "surgery.json").exists() and not list(out.glob(".*"))
        return snapshot(out), writes[0]

    return whole


def run(name: str, folder: Path, out: Path, **options: Any) -> Any:
    return call(name, folder)(out, **options)


def kill(name: str, folder: Path, out: Path, moment: str | int, **options: Any) -> None:
    child = process(run_and_die, name, folder, out, moment, torch.get_num_threads(), options)
    child.join()
    assert child.exitcode == -signal.SIGKILL, f"{name} at {moment}: {child.exitcode}"


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """The shards that an unfinished run has finished: by name, the file on the disk and when it was written."""
    partial = out.with_name(f".{out.name}.partial")
    names = json.loads((partial / ".progress.json").read_text())["finished"]
    return {name: on_disk(partial / name) for name in names}


def on_disk(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def assert_refused(
    name: str, folder: Path, out: Path, message: str, error=ValueError, **options: Any
) -> None:
    existed = out.exists()
    with pytest.raises(error, match=message) as caught:
        run(name, folder, out, **options)
    assert "\n" not in str(caught.value)
    assert out.exists() == existed


@pytest.mark.parametrize("name", EVERY)
def test_killed_and_continued(folder, tmp_path, undisturbed, name):
    """Killed again and again, amid writing, before the proof and before publishing; then run once more."""
    expected, writes = undisturbed(name)
    out = tmp_path / "out"
    done: dict[str, tuple[int, int]] = {}
    for moment in (writes // 2, writes // 3, "unproven", "finished"):
        kill(name, folder, out, moment, **QUICK)
        assert not out.exists()
        now = finished(out)
        assert now.items() >= done.items()
        assert len(now) > len(done) or moment == "finished"
        done = now
        if moment == writes // 2:
            assert_only_the_same_run_continues(name, folder, out, tmp_path / "copies")
    result = run(name, folder, out, **QUICK)
    assert result.report.reused_shards == result.report.shards == len(done)
    assert {file: on_disk(out / file) for file in done} == done
    assert snapshot(out) == expected
    assert not (tmp_path / ".out.partial").exists()


def assert_only_the_same_run_continues(name: str, folder: Path, out: Path, copies: Path) -> None:
    """Another recipe, a source that was touched or replaced since, and what is there stays as it is."""
    partial = out.with_name(f".{out.name}.partial")
    before = snapshot(partial)
    (sources, _), other = OPERATIONS[name]
    message = "is the unfinished output of another run: its source or its recipe differs"
    assert_refused(name, folder, out, f"{message}; delete .*, or overwrite it", **QUICK, **other)
    shutil.copytree(folder, copies)
    for source in sources:
        weights = copies / source / "model.safetensors"
        times = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
        os.utime(weights, (1, 1))
        assert_refused(name, copies, out, message, **QUICK)
        change_last_byte(weights)
        os.utime(weights, ns=times)
        assert_refused(name, copies, out, f"{message}( .*model.safetensors was replaced since)?", **QUICK)
        shutil.copy2(folder / source / "model.safetensors", weights)
    assert snapshot(partial) == before


def change_last_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read()
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_and_continued_with_the_proof(folder, tmp_path, undisturbed, name):
    """Certificates and measured gaps are the same bytes too."""
    expected, writes = undisturbed(name, certificate=True)
    for moment in (writes // 2, "finished"):
        kill(name, folder, tmp_path / "out", moment, **PROVEN)
    assert run(name, folder, tmp_path / "out", **PROVEN).report.reused_shards > 0
    assert snapshot(tmp_path / "out") == expected
    record = json.loads((tmp_path / "out" / "surgery.json").read_text())
    assert record["exact"] == ("parity.json" in expected) == (record["gap"] is None)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_killed_at_random_moments(folder, tmp_path, undisturbed, name):
    """From outside, whenever it may be: five times, and then to the end."""
    expected, _ = undisturbed(name, certificate=True)
    started = time.perf_counter()
    run(name, folder, tmp_path / "timed" / "out", **PROVEN)
    needed = time.perf_counter() - started
    out, rng, killed = tmp_path / "out", random.Random(name), 0
    while killed < 5 and not out.exists():
        child = process(run_and_die, name, folder, out, None, torch.get_num_threads(), PROVEN)
        child.join(rng.uniform(0.1, 1.1) * needed)
        if child.exitcode is None:
            child.kill()
            child.join()
            killed += 1
        else:
            assert child.exitcode == 0
    if not out.exists():
        run(name, folder, out, **PROVEN)
    assert without_scaffolds(out) == expected


def without_scaffolds(out: Path) -> dict[str, str]:
    """What a run that is killed between the last rename and the removal of its own files leaves, but for those."""
    return {name: sum for name, sum in snapshot(out).items() if name not in (".lock", ".progress.json")}


def test_killed_once_the_folder_is_there(folder, tmp_path, undisturbed):
    expected, _ = undisturbed("split")
    kill("split", folder, tmp_path / "out", "published", **QUICK)
    assert without_scaffolds(tmp_path / "out") == expected
    assert_refused("split", folder, tmp_path / "out", "out exists: choose another destination", **QUICK)


@pytest.mark.parametrize("name", EVERY)
def test_full_disk(folder, tmp_path, monkeypatch, undisturbed, name):
    expected, writes = undisturbed(name)
    room = writes // 2

    def until_full(calls: int) -> None:
        if calls > room:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        put = counting(until_full)
        patch.setattr(shards, "put", put)
        patch.setattr(writing, "put", put)
        message = "stopped: No space left on device; .* bytes of tensors were still to be written.*run again"
        assert_refused(name, folder, tmp_path / "out", message, OSError, **QUICK)
    done = finished(tmp_path / "out")
    assert done
    report = run(name, folder, tmp_path / "out", **QUICK).report
    assert report.reused_shards == len(done)
    assert snapshot(tmp_path / "out") == expected


@pytest.mark.parametrize("name", FEW)
def test_destinations(folder, tmp_path, name):
    for source in OPERATIONS[name][0][0]:
        for overwrite in (False, True):
            options = {**QUICK, "overwrite": overwrite}
            assert_refused(name, folder, folder / source, "is the source itself", **options)
            assert_refused(name, folder, folder / source / "in" / "it", "is inside the source", **options)
            assert_refused(name, folder, folder, "is around the source|holds text, which is read", **options)
        link = tmp_path / f"link to {source}"
        link.symlink_to(folder / source)
        assert_refused(name, folder, link, "is the source itself", **QUICK, overwrite=True)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    assert_refused(name, folder, taken, "taken exists: choose another destination, or overwrite it", **QUICK)
    assert_refused(name, folder, taken, "it is not overwritten", **QUICK, overwrite=True)
    (tmp_path / "file").write_text("mine")
    assert_refused(name, folder, tmp_path / "file", "file is a file", **QUICK)
    assert snapshot(taken).keys() == {"notes.txt"} and (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("name", ["upcycle calibrated", *FEW])
def test_taken_destination_is_refused_before_any_model_runs(folder, tmp_path, monkeypatch, name):
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a tensor was read"))
    (tmp_path / "out").mkdir()
    assert_refused(name, folder, tmp_path / "out", "out exists: choose another destination", **QUICK)


@pytest.fixture
def in_the_open(originals):
    """The sources where anybody may read them, and a folder where nobody may write."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        shutil.copytree(originals, top / "sources")
        (top / "closed").mkdir()
        for path in (top, *top.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (top / "closed").chmod(0o555)
        yield top
        (top / "closed").chmod(0o755)


@pytest.mark.parametrize("name", FEW)
def test_folder_that_may_not_be_written(in_the_open, name):
    """Tried without root's rights, which a permission would not stop."""
    out = in_the_open / "closed" / "deep" / "out"
    receive, send = multiprocessing.Pipe(duplex=False)
    child = process(run_without_rights, name, in_the_open / "sources", in_the_open / "first", out, send)
    send.close()
    kind, message = receive.recv()
    child.join()
    assert (kind, "cannot be written: choose another destination" in message) == ("ValueError", True), message
    assert list((in_the_open / "closed").iterdir()) == []
    assert stat.S_IMODE((in_the_open / "closed").stat().st_mode) == 0o555


def test_the_kill_is_real(folder, tmp_path):
    """A planted fault of these tests: a run that nothing kills ends well."""
    child = process(run_and_die, "split", folder, tmp_path / "out", 10**9, torch.get_num_threads(), QUICK)
    child.join()
    assert child.exitcode == 0 and (tmp_path / "out" / "config.json").exists()
