"""Every operation on tiny checkpoints, and a process of its own in which one is killed at a chosen moment."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import native
import torch

from moeba import MoebaTokenizer
from moeba.conversion import convert, export, job, shards, workplace, writing
from moeba.conversion.job import Result
from moeba.hub_card import bundle
from moeba.surgery.densify import densify
from moeba.surgery.grow import grow
from moeba.surgery.merge import merge
from moeba.surgery.prune import prune
from moeba.surgery.split import split
from moeba.surgery.upcycle import upcycle

TEXT = Path(argparse.__file__).read_text(encoding="utf-8")
PLAIN = dict(
    hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=2, head_dim=8,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0}, max_position_embeddings=128, sliding_window=None,
    tie_word_embeddings=False,
)  # fmt: skip
LLAMA = {k: v for k, v in PLAIN.items() if k != "sliding_window"} | dict(
    attention_bias=False, mlp_bias=False, hidden_act="silu"
)
TO_MIXTRAL: dict[str, Any] = dict(to="mixtral", export=True)
Call = Callable[..., Result]


def on(operation: Call, source: str, **options: Any) -> tuple[list[str], Callable[[Path], Call]]:
    """The folders that are read, and from where they lie the call that remains to be given a destination."""

    def bind(folder: Path) -> Call:
        given = dict(options)
        if "calibration" in given:
            given["calibration"] = [folder / "text"]
        return lambda destination, **more: operation(folder / source, destination, **{**given, **more})

    return [source], bind


def merging(**options: Any) -> tuple[list[str], Callable[[Path], Call]]:
    def bind(folder: Path) -> Call:
        def call(destination: Path, seed: int = 0, **more: Any) -> Result:
            texts = dict(zip(MERGED, ("text", "other text"), strict=True))
            experts = [
                {"source_model": str(folder / name), "calibration": str(folder / text)}
                for name, text in texts.items()
            ]
            recipe = {"base_model": str(folder / MERGED[0]), "experts": experts, "seed": seed}
            return merge(recipe, destination, **{**options, **more})

        return call

    return MERGED, bind


MERGED = ["dense", "other"]
SEED = dict(seed=1)
# By name: what is read, the call, and the argument that makes it another recipe.
OPERATIONS: dict[str, tuple[tuple[list[str], Callable[[Path], Call]], dict[str, Any]]] = {
    "upcycle copy": (on(upcycle, "dense", experts=4, top_k=2), SEED),
    "upcycle fine-grained": (on(upcycle, "dense", experts=4, top_k=2, method="fine-grained", granularity=2), SEED),
    "upcycle drop": (on(upcycle, "dense", experts=4, top_k=2, method="drop"), SEED),
    "upcycle noise": (on(upcycle, "dense", experts=4, top_k=2, method="noise"), SEED),
    "upcycle calibrated": (on(upcycle, "dense", experts=4, top_k=2, router_init="calibration", calibration=()), SEED),
    "upcycle exported": (on(upcycle, "dense", experts=4, top_k=2, layers="all", **TO_MIXTRAL), SEED),
    "split": (on(split, "dense", experts=6, top_k=2, shared=1, method="coactivation", calibration=()), SEED),
    "split exact": (on(split, "dense", experts=4, top_k=4), SEED),
    "split exported": (on(split, "dense", experts=6, top_k=2, layers="all", method="clusters", **TO_MIXTRAL), SEED),
    "merge": (merging(), SEED),
    "merge exported": (merging(**TO_MIXTRAL), SEED),
    "grow": (on(grow, "sparse", times=2), SEED),
    "grow exported": (on(grow, "sparse", times=2, **TO_MIXTRAL), SEED),
    "prune": (on(prune, "sparse", keep=3, calibration=()), dict(method="load")),
    "prune exported": (on(prune, "sparse", keep=3, calibration=(), **TO_MIXTRAL), dict(method="load")),
    "densify": (on(densify, "sparse", calibration=()), dict(method="expert", expert=1)),
    "densify exported": (on(densify, "sparse", to="llama", export=True), dict(method="expert", expert=1)),
    "densify exact": (on(densify, "copies"), dict(method="expert", expert=1)),
}  # fmt: skip

# The others that write a folder, with what they have of the options of operations.
OTHERS: dict[str, tuple[list[str], Callable[[Path], Call]]] = {
    "convert": on(convert, "dense"),
    "export": on(export, "copies", to="mixtral"),
    "bundle": on(lambda *at, overwrite=False, **_: bundle(*at, overwrite=overwrite), "copies"),
}  # fmt: skip


def make_sources(folder: Path) -> None:
    """Two dense models, one of random experts and one of copies, all with one tokenizer; and a text."""
    tokenizer = MoebaTokenizer.train([TEXT], vocab_size=300)
    (folder / "text").write_text(TEXT[:6000])
    (folder / "other text").write_text(TEXT[6000:12000])
    sizes = dict(vocab_size=len(tokenizer))
    for seed, name in enumerate(MERGED):
        config = native.draw("llama", 0)
        config = type(config)(**{**native.plain(config), **LLAMA, **sizes})
        native.save(native.build(config, seed), folder / name)
    native.make(
        folder / "sparse",
        "mixtral",
        **PLAIN,
        **sizes,
        num_local_experts=4,
        num_experts_per_tok=2,
        hidden_act="silu",
    )
    for name in (*MERGED, "sparse"):
        tokenizer.save_pretrained(folder / name)
    upcycle(folder / "dense", folder / "copies", experts=4, top_k=2, layers="all", certificate=False)


def call(name: str, folder: Path) -> Call:
    return (OTHERS[name] if name in OTHERS else OPERATIONS[name][0])[1](folder)


def counting(then: Callable[[int], None]) -> Callable[..., None]:
    """A `put` that tells how many times it has been called."""
    put, calls = shards.put, 0

    def counted(file: Any, offset: int, data: Any) -> None:
        nonlocal calls
        put(file, offset, data)
        calls += 1
        then(calls)

    return counted


def die(*_: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def die_at(moment: str | int) -> None:
    """Kill this process at that write, or: with all files but the proof; before, or after, the folder is in place."""
    if isinstance(moment, int):
        put = counting(lambda calls: die() if calls == moment else None)
        shards.put = writing.put = put  # type: ignore[assignment]
    elif moment == "unproven":
        companions = job.Job._write_companions
        job.Job._write_companions = lambda self, *given: (companions(self, *given), die())  # type: ignore
    elif moment == "finished":
        workplace.move_into_place = die
    elif moment == "published":
        move = os.rename

        def move_and_die(source: Any, target: Any) -> None:
            move(source, target)
            if Path(source).name.endswith(".partial"):
                die()

        os.rename = move_and_die  # type: ignore[assignment]


def run_and_die(
    name: str, folder: Path, out: Path, moment: str | int | None, threads: int, run: dict
) -> None:
    torch.set_num_threads(threads)
    die_at(moment) if moment is not None else None
    call(name, folder)(out, **run)


# What Python tells of before it does it: each changes a folder, or may.
STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate"}


def count_steps(below: Path, then: Callable[[int], None]) -> None:
    """Call `then` with a count before every step that this process takes in a folder, from now until it ends."""
    beginning, steps = str(below), 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal steps
        if event in STEPS and any(
            str(arg).startswith(beginning) for arg in args if isinstance(arg, str | Path)
        ):
            steps += 1
            then(steps)

    sys.addaudithook(hook)


def run_and_count(name: str, folder: Path, out: Path, run: dict, answer: Connection) -> None:
    """Run to the end, and answer with the number of steps taken beside `out`."""
    torch.set_num_threads(1)
    taken = [0]
    count_steps(out.parent, lambda steps: taken.__setitem__(0, steps))
    call(name, folder)(out, **run)
    answer.send(taken[0])


def run_and_die_at_step(name: str, folder: Path, out: Path, step: int, run: dict) -> None:
    torch.set_num_threads(1)
    count_steps(out.parent, lambda steps: die() if steps == step else None)
    call(name, folder)(out, **run)


def run_without_rights(name: str, folder: Path, first: Path, out: Path, answer: Connection) -> None:
    """Run as nobody, if this is root, whom no folder refuses; answer with the error.

    A first run imports all that is needed from places that nobody may be unable to read.
    """
    call(name, folder)(first, certificate=False)
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        call(name, folder)(out, certificate=False)
    except Exception as error:  # whatever it is, the test looks at it
        answer.send((type(error).__name__, str(error)))
    else:
        answer.send(None)


def process(target: Callable[..., None], *args: Any) -> multiprocessing.process.BaseProcess:
    """A process that forks from one in which everything is imported and nothing has run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pytest", "moeba.surgery", "moeba.hub_card", "moeba.tokenization", "transformers.models.llama.modeling_llama",
         "transformers.models.mixtral.modeling_mixtral"]
    )  # fmt: skip
    started = context.Process(target=target, args=args)
    started.start()
    return started
