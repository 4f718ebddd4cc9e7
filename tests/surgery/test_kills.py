"""Killed before any step that it takes on the disk, a run leaves nothing that loads, and what was there before."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
from functools import cache
from pathlib import Path

import pytest
from fault_operations import call, make_sources, process, run_and_count, run_and_die_at_step
from native import snapshot
from transformers import AutoModelForCausalLM

OPTIONS = dict(max_shard_size="4KB", certificate=False, overwrite=True)
PROVEN = dict(max_shard_size="4KB", overwrite=True)
FEW = ("convert", "upcycle copy", "merge", "bundle")
EVERY = (*FEW, "export", "upcycle exported", "split", "grow", "prune", "densify")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    make_sources(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(sources, tmp_path_factory):
    """The files of a run that nothing stopped, and how many steps it took beside its destination."""

    @cache
    def whole(name: str, certificate: bool = False) -> tuple[dict[str, str], int]:
        out = earlier(sources, tmp_path_factory.mktemp("whole"))
        receive, send = multiprocessing.Pipe(duplex=False)
        child = process(run_and_count, name, sources, out, OPTIONS | {"certificate": certificate}, send)
        send.close()
        steps = receive.recv()
        child.join()
        return snapshot(out), steps

    return whole


def earlier(sources: Path, parent: Path) -> Path:
    """A destination that holds another checkpoint."""
    return Path(shutil.copytree(sources / "sparse", parent / "out"))


def kill(name: str, sources: Path, out: Path, step: int, certificate: bool = False) -> bool:
    """Whether the run got as far as that step: one more or less is taken where a temporary file's name is taken."""
    child = process(run_and_die_at_step, name, sources, out, step, OPTIONS | {"certificate": certificate})
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), f"{name} before step {step}: {child.exitcode}"
    return child.exitcode != 0


def assert_nothing_loads(parent: Path, old: dict[str, str], new: dict[str, str]) -> None:
    """But for the earlier folder and the whole new one, neither has lost a file."""
    for folder in [path for path in parent.rglob("*") if path.is_dir() and (path / "config.json").exists()]:
        found = {
            n: h
            for n, h in snapshot(folder).items()
            if n not in (".lock", ".progress.json", ".progress.json.tmp")
        }
        if found not in (old, new):
            with pytest.raises((OSError, ValueError)):
                AutoModelForCausalLM.from_pretrained(folder)


def check_kill(
    name: str,
    sources: Path,
    parent: Path,
    step: int,
    undisturbed: tuple[dict[str, str], int],
    certificate: bool = False,
) -> None:
    expected, steps = undisturbed
    old, out = snapshot(sources / "sparse"), earlier(sources, parent)
    if not kill(name, sources, out, step, certificate):
        assert steps - step < 12, f"{name} took {steps} steps, and now fewer than {step}"
        assert snapshot(out) == expected
        shutil.rmtree(parent)
        return
    assert_nothing_loads(parent, old, expected)
    held = snapshot(out if out.exists() else out.with_name(".out.replaced"))
    assert held == old or held.items() >= expected.items(), f"{name} before step {step}"
    call(name, sources)(out, **OPTIONS | {"certificate": certificate})
    assert snapshot(out) == expected
    assert [path.name for path in parent.iterdir()] == ["out"]
    shutil.rmtree(parent)


def moments(name: str, steps: int, count: int) -> list[int]:
    """Some at random, of the last ones more: there the folder changes hands."""
    rng = random.Random(name)
    return sorted(rng.sample(range(1, steps - 12), count) + rng.sample(range(steps - 12, steps + 1), count))


@pytest.mark.parametrize("name", FEW)
def test_killed_before_some_steps(sources, tmp_path, undisturbed, name):
    expected, steps = undisturbed(name)
    for step in moments(name, steps, 1):
        check_kill(name, sources, tmp_path / str(step), step, (expected, steps))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EVERY if name not in FEW])
def test_killed_before_some_steps_of_other_verbs(sources, tmp_path, undisturbed, name):
    expected, steps = undisturbed(name)
    for step in moments(name, steps, 2):
        check_kill(name, sources, tmp_path / str(step), step, (expected, steps))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", EVERY)
def test_killed_before_every_step(sources, tmp_path, undisturbed, name):
    """Of the many in the middle, every third."""
    expected, steps = undisturbed(name)
    for step in sorted({*range(1, steps, 3), *range(steps - 30, steps + 1)}):
        check_kill(name, sources, tmp_path / str(step), step, (expected, steps))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convert", "export", "upcycle copy", "merge", "split"])
def test_killed_with_the_proof(sources, tmp_path, undisturbed, name):
    expected, steps = undisturbed(name, certificate=True)
    for step in moments(name, steps, 2):
        check_kill(name, sources, tmp_path / str(step), step, (expected, steps), certificate=True)
