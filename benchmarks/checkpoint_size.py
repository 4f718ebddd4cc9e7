"""How much memory and time operations on a large checkpoint take, beside a plain copy of its files.

    python benchmarks/checkpoint_size.py --gigabytes 12 --folder /tmp/size

Makes a random bf16 checkpoint shaped like Llama, then converts it, upcycles its last layers to 8 experts, and exports
that. Each operation is the `moeba` command in a process of its own: its memory, and the bytes it read and
wrote, are what /proc says of that process. Every run stands beside a copy of the same source, made just before
it with shutil.copyfile and fsync. Linux only; needs room for four times the checkpoint.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, PreTrainedTokenizerFast

import moeba
from moeba.conversion.shards import Recipe
from moeba.conversion.weight_files import TensorInfo
from moeba.conversion.writing import write_checkpoint

COMMAND = [sys.executable, "-c", "from moeba.cli import main; main()"]
GB = 1e9
# From a size on, in bytes: vocabulary, hidden, intermediate, heads, key-value heads.
SHAPES = {
    8 * GB: (128_256, 4096, 14_336, 32, 8),
    1 * GB: (32_000, 2048, 8192, 32, 8),
    0: (512, 128, 512, 4, 2),
}


class NoSource:
    """A source without tensors: everything written is made up."""

    tensors: dict[str, TensorInfo] = {}

    def read(self, name: str) -> torch.Tensor:
        raise KeyError(name)


def llama_config(nbytes: float) -> LlamaConfig:
    """A Llama of the smallest depth that has so many bytes in bf16."""
    vocabulary, hidden, width, heads, kv_heads = next(
        shape for size, shape in SHAPES.items() if nbytes >= size
    )
    a_layer = 2 * hidden * (hidden // heads) * (heads + kv_heads) + 3 * hidden * width + 2 * hidden
    rest = 2 * vocabulary * hidden + hidden
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=width, num_attention_heads=heads,
        num_key_value_heads=kv_heads, num_hidden_layers=max(2, -int(-(nbytes / 2 - rest) // a_layer)),
        tie_word_embeddings=False, architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip


def make_llama(folder: Path, config: LlamaConfig, seed: int, max_shard_size: str = "5GB") -> None:
    """Write a random checkpoint, some rows at a time."""
    hidden, width = config.hidden_size, config.intermediate_size
    query, key = (
        count * config.head_dim for count in (config.num_attention_heads, config.num_key_value_heads)
    )
    shapes = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (rows, hidden) for name, rows in
                   (("q", query), ("k", key), ("v", key))}  # fmt: skip
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, query)
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (width, hidden) for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, width)
        shapes |= {f"{layer}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (config.vocab_size, hidden)}
    noise = torch.randn(1 << 24, generator=torch.Generator().manual_seed(seed)).mul_(0.02).bfloat16()
    recipes = [
        Recipe((TensorInfo(name, shape, torch.bfloat16),), (), partial(random_rows, noise, shape, number))
        for number, (name, shape) in enumerate(shapes.items())
    ]
    write_checkpoint(
        recipes,
        NoSource(),
        folder,
        digest=f"{seed}",
        finish=config.save_pretrained,
        max_shard_size=max_shard_size,
    )


def random_rows(
    noise: torch.Tensor, shape: tuple[int, ...], number: int, _: Sequence[torch.Tensor]
) -> list[Iterator[torch.Tensor]]:
    """One tensor in pieces, each cut from `noise` at another place."""

    def rows() -> Iterator[torch.Tensor]:
        if len(shape) == 1:
            yield 1 + noise[number : number + shape[0]]
            return
        half = noise.numel() // 2
        step = half // shape[1]
        for piece, row in enumerate(range(0, shape[0], step)):
            start = (number * 7919 + piece * 104_729) % half
            count = min(step, shape[0] - row)
            yield noise[start : start + count * shape[1]].reshape(count, shape[1])

    return [rows()]


@dataclass(frozen=True)
class Usage:
    """What one process took: seconds, and bytes."""

    seconds: float
    processor: float  # seconds of it, over all cores
    memory: int  # peak resident, file pages it had mapped included
    anonymous: int  # the largest sample of its own memory
    read: int  # asked for, from the disk or its cache
    written: int


def measure(command: Sequence[str | Path], log: Path) -> Usage:
    """Run a command and watch it.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(moeba.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, env=environment)
        most: dict[str, int] = {}
        watcher = threading.Thread(target=watch, args=(process.pid, most))
        watcher.start()
        # The process has ended then, and its figures are still there.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.perf_counter() - start
        counts = numbers(Path(f"/proc/{process.pid}/io"))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{command} failed:\n{log.read_text()[-2000:]}")
    processor = usage.ru_utime + usage.ru_stime
    return Usage(seconds, processor, most["VmHWM"], most["RssAnon"], counts["rchar"], counts["wchar"])


def watch(pid: int, most: dict[str, int]) -> None:
    """Keep the peak of a process's memory, and the largest sample of its anonymous memory, until it ends.

    The peak that `wait4` reports will not do: it counts what this process itself held when it forked.
    """
    while True:
        try:
            found = numbers(Path(f"/proc/{pid}/status"))
            most |= {name: max(most.get(name, 0), found[name] * 1024) for name in ("VmHWM", "RssAnon")}
        except (OSError, KeyError):
            return
        time.sleep(0.01)


def numbers(path: Path) -> dict[str, int]:
    """By name, from a file of lines such as `RssAnon:  123 kB`."""
    parts = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {part[0]: int(part[1]) for part in parts if len(part) > 1 and part[1].isdigit()}


def copy(source: Path, destination: Path) -> float:
    """Seconds to copy a folder's weight files and have the disk hold them; the copy is deleted."""
    destination.mkdir()
    start = time.perf_counter()
    for path in sorted(source.glob("*.safetensors")):
        shutil.copyfile(path, destination / path.name)
        with (destination / path.name).open("rb") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    shutil.rmtree(destination)
    return seconds


def settle(folder: Path, cold: bool) -> None:
    """Have the cache hold none of a folder's files, or as much as it can; nothing waits to be written."""
    os.sync()
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            if cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(1 << 24):
                    pass


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@dataclass(frozen=True)
class Bench:
    folder: Path
    rounds: int
    caches: Sequence[str]
    certificates: Sequence[bool | None]  # None: the command knows none

    def compare(self, name: str, source: Path, target: Path, command: Sequence[str | Path]) -> None:
        """Print a row for each certificate and cache: a command beside copies of its source. Its target stays."""
        for certificate in self.certificates:
            for cache in self.caches:
                runs: list[Usage] = []
                copies: list[float] = []
                for _ in range(self.rounds):
                    shutil.rmtree(target, ignore_errors=True)
                    settle(source, cache == "cold")
                    copies.append(copy(source, self.folder / "copy"))
                    settle(source, cache == "cold")
                    flags = ["--no-certify"] if certificate is False else []
                    runs.append(measure([*command, *flags], self.folder / "log"))
                words = f"{name} | {'yes' if certificate else 'no'} | {cache}"
                print(row(words, weight_bytes(target), runs, weight_bytes(source), copies), flush=True)


def row(words: str, nbytes: int, runs: Sequence[Usage], copied: int, copies: Sequence[float]) -> str:
    """A line of the table. The share of a copy's speed is the median of the pairs'."""
    rates = [nbytes / run.seconds for run in runs]
    shares = [rate * seconds / copied for rate, seconds in zip(rates, copies, strict=True)]
    figures = [
        f"{nbytes / GB:.2f}",
        f"{statistics.median(run.seconds for run in runs):.1f}",
        f"{statistics.median(run.processor for run in runs):.1f}",
        f"{statistics.median(rates) / GB:.2f}",
        f"{copied / statistics.median(copies) / GB:.2f}",
        f"{statistics.median(shares):.2f}",
        f"{max(run.memory for run in runs) / GB:.2f}",
        f"{max(run.anonymous for run in runs) / GB:.2f}",
        f"{statistics.median(run.read for run in runs) / GB:.1f}",
        f"{statistics.median(run.written for run in runs) / GB:.1f}",
    ]
    return f"| {words} | {' | '.join(figures)} |"


HEADINGS = (
    "operation", "certificate", "cache", "output GB", "s", "CPU s", "GB/s", "copy GB/s", "of copy", "peak GB",
    "of it anonymous", "read GB", "written GB",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=12.0)
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to measure; must not exist")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--layers", default="last:2", help="that become experts")
    parser.add_argument("--cache", choices=("cold", "warm", "both"), default="both")
    parser.add_argument("--certificate", choices=("no", "yes", "both"), default="both")
    parser.add_argument("--mergekit", type=Path, help="the mergekit-moe command, for that comparison alone")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True)
    try:
        run(given)
    finally:
        shutil.rmtree(given.folder)


def run(given: argparse.Namespace) -> None:
    folder: Path = given.folder.resolve()
    caches = ("cold", "warm") if given.cache == "both" else (given.cache,)
    certificates = (False, True) if given.certificate == "both" else (given.certificate == "yes",)
    bench = Bench(folder, given.rounds, caches, certificates)
    dense, converted, experts, exported = (folder / name for name in ("dense", "moeba", "experts", "native"))
    config = llama_config(given.gigabytes * GB)
    make_llama(dense, config, seed=0)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}; "
        f"{config.num_hidden_layers} layers of {config.hidden_size}, {weight_bytes(dense) / GB:.2f} GB in bf16; "
        f"medians of {given.rounds} rounds\n"
    )
    print(f"| {' | '.join(HEADINGS)} |\n|{' --- |' * len(HEADINGS)}", flush=True)
    if given.mergekit:
        against_mergekit(bench, given.mergekit, dense, folder / "mixtral")
        return
    bench.compare("convert", dense, converted, [*COMMAND, "convert", dense, converted])
    shutil.rmtree(converted)
    grow = ["--experts", "8", "--top-k", "2", "--layers", given.layers]
    bench.compare("upcycle", dense, experts, [*COMMAND, "upcycle", dense, experts, *grow])
    shutil.rmtree(dense)
    bench.compare("export", experts, exported, [*COMMAND, "export", experts, exported])


def against_mergekit(bench: Bench, command: Path, dense: Path, target: Path) -> None:
    """A Mixtral of 8 copies in every layer, by mergekit and by Moeba, with random routers."""
    # It loads one, though a random router needs none.
    words = Tokenizer(WordLevel({"?": 0, "x": 1}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(dense)
    recipe = bench.folder / "mergekit.yaml"
    lines = [
        f"base_model: {dense}",
        "gate_mode: random",
        "dtype: bfloat16",
        "experts_per_token: 2",
        "experts:",
    ]
    lines += [f"  - source_model: {dense}\n    positive_prompts: [x]" for _ in range(8)]
    recipe.write_text("\n".join(lines) + "\n")
    theirs = [command, recipe, target, "--i-understand-this-is-not-useful-without-training"]
    grow = ["--experts", "8", "--top-k", "2", "--layers", "all", "--to", "mixtral", "--export"]
    other = Bench(bench.folder, bench.rounds, bench.caches, (None,))
    other.compare("8 copies, mergekit", dense, target, theirs)
    bench.compare("8 copies, moeba", dense, target, [*COMMAND, "upcycle", dense, target, *grow])


if __name__ == "__main__":
    main()
