"""Does growing experts pay? A small language model continued in several ways, each for the same number of FLOPs.

    python benchmarks/upcycling_experiment.py --folder /tmp/upcycling      # --quick: seconds, and learns nothing

- Text: Python's standard library as two domains, code without comments and docstrings, and the docstrings. Both are
  cut to the same number of tokens; a file is wholly on the training side or wholly held out.
- A Llama is trained on the mix: the checkpoint that one has. Every way starts from it and sees text that it has not.
- FLOPs are `flops_per_token` of the config at the mean context length, times three for a step of training. A model with
  more active weights takes fewer steps. What the two specialists of the merge cost counts as the merge's.
- All train with the stock `Trainer`, the same learning rate and schedule; a seed decides the order of the windows, the
  router's start and which neurons are dropped. Perplexity is on the same held-out tokens for all.

Finished runs are taken over when the command is repeated; give another folder after changing the code.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
import upcycling_report
from datasets import Dataset, DatasetDict, concatenate_datasets, disable_progress_bars, load_from_disk
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, set_seed

from moeba import MoebaConfig, MoebaTokenizer
from moeba.conversion import convert
from moeba.demo.corpus import docstrings, documents, split
from moeba.demo.journal import Entry, Journal, complete_or_absent, key_of
from moeba.demo.settings import DemoSettings
from moeba.demo.training import train
from moeba.evaluation import perplexity
from moeba.modeling.services import provide
from moeba.surgery import merge, upcycle
from moeba.training import RouterStatistics

DOMAINS = ("code", "prose")
CORPUS, BASE = "corpus", "base"
# What decides nothing of the corpus and the base.
OF_CONTINUING = ("dense_steps", "continue_lr", "specialist_share", "layers", "experts", "top_k")
UPCYCLED: dict[str, dict[str, Any]] = {
    "copy": {"method": "copy"},
    "copy-zeros": {"method": "copy", "router_init": "zeros"},
    "copy-calibration": {"method": "copy", "router_init": "calibration"},
    "fine-grained": {"method": "fine-grained", "granularity": 2},
    "drop": {"method": "drop", "drop_ratio": 0.5},
}
# The last one tells how much of a copy's result is due to its fewer steps: it is no contender, and spends less.
VARIANTS = ("dense", *UPCYCLED, "merged", "dense-copy-steps")


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        every_file: 2 takes every second file of the library.
        held_out: expected share of the files that is kept for evaluation.
        base_share: of the training windows, the part that the base reads, over and over if need be; the rest is for
            what continues it.
        base_steps, dense_steps: of the base; of the dense model that is continued, which sets everyone's FLOPs.
        specialist_share: of those FLOPs, what each of the two specialists of the merge gets.
        held_out_windows: of each domain.
    """

    every_file: int = 1
    held_out: float = 0.1
    base_share: float = 0.6
    vocab_size: int = 1024
    hidden_size: int = 96
    intermediate_size: int = 256
    num_layers: int = 4
    sequence_length: int = 256
    batch_size: int = 8
    base_steps: int = 700
    dense_steps: int = 120
    base_lr: float = 4e-3
    continue_lr: float = 2e-3
    specialist_share: float = 0.25
    layers: str = "from:1"
    experts: int = 8
    top_k: int = 2
    held_out_windows: int = 64


QUICK = Settings(
    every_file=24,
    held_out=0.3,
    vocab_size=384,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    sequence_length=32,
    base_steps=4,
    dense_steps=8,
    held_out_windows=4,
)


class Experiment:
    """The steps of one experiment in `folder`, each done once."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.settings = settings
        self.journal = Journal(folder)
        self.root = folder

    def run(self, seeds: Sequence[int], variants: Sequence[str]) -> list[dict[str, Any]]:
        """The figures of every run, seed by seed."""
        self.step(CORPUS, self.make_corpus, OF_CONTINUING)
        self.step(BASE, self.train_base, OF_CONTINUING)
        runs = []
        for seed in seeds:
            for variant in variants:
                figures = self.step(f"{variant}-{seed}", self.maker(variant, seed))
                runs.append({"variant": variant, "seed": seed, **figures})
        return runs

    def maker(self, variant: str, seed: int) -> Callable[[Path], dict[str, Any]]:
        if variant == "merged":
            return lambda folder: self.merged(folder, seed)
        if variant == "dense-copy-steps":
            return lambda folder: self.dense_for_steps_of_copy(folder, seed)
        return lambda folder: self.continued(folder, variant, seed)

    def step(
        self, name: str, work: Callable[[Path], dict[str, Any]], without: Sequence[str] = ()
    ) -> dict[str, Any]:
        """What `work` returns once it has filled its folder, or returned when it did."""
        versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        deciding = {key: value for key, value in asdict(self.settings).items() if key not in without}
        key = key_of(name, deciding, [], versions)
        entry = self.journal.find(name, key)
        if entry is None:
            self.journal.forget(name)
            started = time.perf_counter()
            with complete_or_absent(self.root / name) as folder:
                figures = work(folder)
            seconds = time.perf_counter() - started
            entry = Entry(name, name, key, seconds, "", figures)
            self.journal.record(entry)
            reached = figures.get("after", {}).get("overall", math.nan)
            print(f"{name}: {seconds:.0f} s, held-out perplexity {reached:.3f}", flush=True)
        return entry.figures

    def make_corpus(self, folder: Path) -> dict[str, Any]:
        """The tokenizer, calibration texts, and windows of each domain and side in random order."""
        settings = self.settings
        sides = split(documents("code")[:: settings.every_file], settings.held_out)
        texts = {
            f"{side}-{domain}": [text for document in found if (text := reader(document.text))]
            for side, found in zip(("train", "held_out"), sides, strict=True)
            for domain, reader in zip(DOMAINS, (bare_code, docstrings), strict=True)
        }
        code, prose = texts["train-code"], texts["train-prose"]
        thinning = max(1, sum(map(len, code)) // max(1, sum(map(len, prose))))
        tokenizer = MoebaTokenizer.train(
            code[::thinning] + prose, settings.vocab_size, model_max_length=2 * settings.sequence_length,
            show_progress=False,
        )  # fmt: skip
        tokenizer.save_pretrained(folder)
        windows = {name: self.windows(tokenizer, found) for name, found in texts.items()}
        for side in ("train", "held_out"):
            count = min(len(windows[f"{side}-{domain}"]) for domain in DOMAINS)
            for domain in DOMAINS:
                name = f"{side}-{domain}"
                windows[name] = windows[name].shuffle(seed=0).select(range(count))
        DatasetDict(windows).save_to_disk(str(folder / "windows"))
        for domain in DOMAINS:
            # Windows are in random order, so the first ones are from all over the library.
            text = "\n\n".join(
                tokenizer.decode(ids, skip_special_tokens=True)
                for ids in windows[f"train-{domain}"].select(range(10))["input_ids"]
            )
            (folder / f"{domain}.txt").write_text(text, encoding="utf-8")
        return {
            "files": {name: len(found) for name, found in texts.items()},
            "tokens": {name: len(found) * settings.sequence_length for name, found in windows.items()},
            "vocabulary": len(tokenizer),
        }

    def windows(self, tokenizer: Any, texts: Sequence[str]) -> Dataset:
        length = self.settings.sequence_length
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        stream = list(chain.from_iterable([*ids, tokenizer.eos_token_id] for ids in encoded))
        return Dataset.from_dict(
            {"input_ids": [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]}
        )

    def train_base(self, folder: Path) -> dict[str, Any]:
        """A native Llama, and the same as a Moeba checkpoint with its certificate."""
        settings, tokenizer = self.settings, self.tokenizer()
        set_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=settings.hidden_size,
                intermediate_size=settings.intermediate_size,
                num_hidden_layers=settings.num_layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2 * settings.sequence_length,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        steps, rate = settings.base_steps, settings.base_lr
        self.train(model, folder / "llama", self.text(DOMAINS, first=True), 0, steps, rate)
        result = convert(folder / "llama", folder / "moeba")
        return {
            "steps": steps,
            "parameters": model.num_parameters(),
            "certificate": result.certificate.verdict,
            "after": self.measure(model)[0],
        }

    def continued(self, folder: Path, variant: str, seed: int) -> dict[str, Any]:
        """The base, or what one surgery made of it, trained with the whole budget."""
        start = self.base
        if variant != "dense":
            arguments = UPCYCLED[variant]
            if arguments.get("router_init") == "calibration":
                arguments = {**arguments, "calibration": [self.calibration(domain) for domain in DOMAINS]}
            settings, start = self.settings, folder / "start"
            upcycle(
                self.base, start, experts=settings.experts, top_k=settings.top_k, layers=settings.layers, seed=seed,
                certificate=False, **arguments,
            )  # fmt: skip
        return self.finish(start, folder / "trained", seed, self.budget)

    def dense_for_steps_of_copy(self, folder: Path, seed: int) -> dict[str, Any]:
        """The base on the very windows that the copies of the same seed read."""
        copies = self.root / f"copy-{seed}" / "start"
        if not copies.is_dir():
            raise ValueError(
                f"dense-copy-steps needs the steps of copy: run --variants copy with seed {seed} first"
            )
        steps = self.steps_for(MoebaConfig.from_pretrained(copies), self.budget)
        flops = steps * self.flops_per_step(MoebaConfig.from_pretrained(self.base))
        return self.finish(self.base, folder / "trained", seed, flops)

    def merged(self, folder: Path, seed: int) -> dict[str, Any]:
        """Two specialists and the base as experts, trained with what the specialists left of the budget."""
        spent, specialists = 0.0, {}
        for domain in DOMAINS:
            model = load(self.base)
            steps = self.steps_for(model.config, self.settings.specialist_share * self.budget)
            spent += steps * self.flops_per_step(model.config)
            rate = self.settings.continue_lr
            self.train(model, folder / domain, self.text([domain]), seed, steps, rate)
            specialists[domain] = self.measure(model)[0]
        experts = [
            {"source_model": str(self.base), "calibration": [str(self.calibration(d)) for d in DOMAINS]}
        ]
        experts += [
            {"source_model": str(folder / domain), "calibration": [str(self.calibration(domain))]}
            for domain in DOMAINS
        ]
        recipe = {
            "base_model": str(self.base),
            "experts": experts,
            "experts_per_token": self.settings.top_k,
            "gate_mode": "calibration",
            "others": "average",
            "layers": self.settings.layers,
            "seed": seed,
        }
        merge(recipe, folder / "start", certificate=False)
        figures = self.finish(folder / "start", folder / "trained", seed, self.budget - spent)
        return {**figures, "flops": figures["flops"] + spent, "specialists": specialists}

    def finish(self, start: Path, folder: Path, seed: int, flops: float) -> dict[str, Any]:
        """Train the checkpoint `start` for `flops` and measure it before and after."""
        model = load(start)
        before, _ = self.measure(model)
        steps = self.steps_for(model.config, flops)
        seconds = self.train(model, folder, self.text(DOMAINS), seed, steps, self.settings.continue_lr)
        after, balance = self.measure(model)
        return {
            "parameters": model.config.num_params(),
            "active_parameters": model.config.num_params(active_only=True),
            "steps": steps,
            "tokens": steps * self.settings.batch_size * self.settings.sequence_length,
            "flops": steps * self.flops_per_step(model.config),
            "training_seconds": seconds,
            "before": before,
            "after": after,
            "balance": balance,
        }

    def train(
        self, model: Any, folder: Path, windows: Dataset, seed: int, steps: int, learning_rate: float
    ) -> float:
        """Seconds that the stock Trainer took."""
        settings = self.settings
        shape = DemoSettings(
            batch_size=settings.batch_size, sequence_length=settings.sequence_length, seed=seed
        )
        speed = train(
            model, self.tokenizer(), windows, folder, shape, steps=steps, learning_rate=learning_rate, what="",
            report=lambda *_: None,
        )  # fmt: skip
        return steps * settings.batch_size * settings.sequence_length / speed

    def measure(self, model: Any) -> tuple[dict[str, float], dict[str, Any]]:
        """Held-out perplexity by domain and over both, and how the routers spread those tokens."""
        reached, loads = {}, {}
        for domain in DOMAINS:
            windows = self.corpus[f"held_out-{domain}"]
            chosen = windows.select(range(min(self.settings.held_out_windows, len(windows))))
            with RouterStatistics(model) as statistics:
                reached[domain] = perplexity(model, chosen["input_ids"][:])
            loads[domain] = statistics.layers()
        # Both domains have the same number of tokens.
        reached["overall"] = math.sqrt(reached["code"] * reached["prose"])
        return reached, upcycling_report.balance(loads["code"], loads["prose"])

    def text(self, domains: Sequence[str], first: bool = False) -> Dataset:
        """Training windows: those of the base, or those that are left."""
        parts = []
        for domain in domains:
            windows = self.corpus[f"train-{domain}"]
            border = int(self.settings.base_share * len(windows))
            parts.append(windows.select(range(border) if first else range(border, len(windows))))
        return concatenate_datasets(parts)

    def flops_per_step(self, config: MoebaConfig) -> float:
        length = self.settings.sequence_length
        return 3.0 * config.flops_per_token((length - 1) // 2) * self.settings.batch_size * length

    def steps_for(self, config: MoebaConfig, flops: float) -> int:
        return round(flops / self.flops_per_step(config))

    @property
    def budget(self) -> float:
        return self.settings.dense_steps * self.flops_per_step(MoebaConfig.from_pretrained(self.base))

    @property
    def base(self) -> Path:
        return self.root / BASE / "moeba"

    @property
    def corpus(self) -> DatasetDict:
        return load_from_disk(str(self.root / CORPUS / "windows"))

    def calibration(self, domain: str) -> Path:
        return self.root / CORPUS / f"{domain}.txt"

    def tokenizer(self) -> MoebaTokenizer:
        return MoebaTokenizer.from_pretrained(self.root / CORPUS)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


def bare_code(source: str) -> str:
    """Source printed from its syntax tree without docstrings, so without comments too; empty if it does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    for node in ast.walk(tree):
        owner = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if owner and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
    return ast.unparse(tree)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("upcycling-experiment"))
    parser.add_argument("--quick", action="store_true", help="a tiny model for a few steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--learning-rate", type=float, help="peak, of all that continue the base")
    asked = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    provide(None)  # no cards
    torch.set_num_threads(1)
    settings = QUICK if asked.quick else Settings()
    if asked.learning_rate is not None:
        settings = replace(settings, continue_lr=asked.learning_rate)
    experiment = Experiment(asked.folder, settings)
    runs = experiment.run(asked.seeds, asked.variants)
    steps = experiment.journal.entries
    results = {
        "settings": asdict(settings),
        "machine": f"{platform.machine()}, 1 thread, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        "corpus": steps[CORPUS].figures,
        "base": steps[BASE].figures,
        "runs": runs,
    }
    (asked.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(upcycling_report.markdown(results))


if __name__ == "__main__":
    main()
