"""The steps of the demo: each reads the folders of earlier steps, writes its own, and says what it proved.

A step's folder appears complete or not at all: those made by Moeba's operations by their own doing, others
by `complete_or_absent`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..conversion import provenance
from ..evaluation import perplexity
from .journal import complete_or_absent
from .settings import PROMPTS, DemoSettings
from .training import train
from .watcher import Report

TOKENIZER, CORPUS, LLAMA, MOEBA = "01-tokenizer", "02-corpus", "03-llama", "04-moeba"
MOE, MOE_TRAINED, DENSE_TRAINED = "05-moe", "06-moe-trained", "07-dense-trained"
SAMPLES, MIXTRAL, HUB = "08-samples", "09-mixtral", "10-hub"


@dataclass(frozen=True)
class Workspace:
    """Where a step reads and writes, with what settings, and whom it tells how far it is."""

    root: Path
    settings: DemoSettings
    report: Report

    def folder(self, name: str) -> Path:
        return self.root / name


@dataclass(frozen=True)
class Outcome:
    """One line for people, and the figures behind it."""

    proof: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Step:
    """
    Attributes:
        name: of its folder.
        title: what it does, in a few words.
        reads: names of the steps whose folders it reads.
        run: does it.
    """

    name: str
    title: str
    reads: tuple[str, ...]
    run: Callable[[Workspace], Outcome]


def make_tokenizer(space: Workspace) -> Outcome:
    from ..tokenization import MoebaTokenizer

    texts, _ = _texts(space.settings)
    tokenizer = MoebaTokenizer.train(
        texts,
        space.settings.vocab_size,
        model_max_length=2 * space.settings.sequence_length,
        show_progress=False,
    )
    with complete_or_absent(space.folder(TOKENIZER)) as folder:
        tokenizer.save_pretrained(folder)
    figures = {"files": len(texts), "characters": sum(map(len, texts)), "tokens": len(tokenizer)}
    return Outcome(
        f"{figures['tokens']:,} tokens learnt from {figures['files']:,} files, "
        f"{figures['characters'] / 1e6:.1f} MB",
        figures,
    )


def make_corpus(space: Workspace) -> Outcome:
    """Training and held-out windows; a file is wholly on one side."""
    from datasets import Dataset, DatasetDict

    tokenizer = _tokenizer(space)
    length = space.settings.sequence_length
    sides = {}
    for name, texts in zip(("train", "held_out"), _texts(space.settings), strict=True):
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        stream = list(chain.from_iterable([*ids, tokenizer.eos_token_id] for ids in encoded))
        windows = [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]
        sides[name] = Dataset.from_dict({"input_ids": windows})
    with complete_or_absent(space.folder(CORPUS)) as folder:
        DatasetDict(sides).save_to_disk(str(folder))
    figures = {name: len(windows) * length for name, windows in sides.items()}
    return Outcome(f"{figures['train']:,} tokens to train on, {figures['held_out']:,} held out", figures)


def train_llama(space: Workspace) -> Outcome:
    """A native model, made and trained with nothing of Moeba but its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    from ..tokenization import use_stock_names

    settings, tokenizer = space.settings, _tokenizer(space)
    set_seed(settings.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.num_layers,
            num_attention_heads=settings.num_heads,
            num_key_value_heads=settings.num_kv_heads,
            max_position_embeddings=2 * settings.sequence_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return _train(space, LLAMA, model, first=True, after=use_stock_names)


def convert_llama(space: Workspace) -> Outcome:
    from ..conversion import convert

    result = convert(space.folder(LLAMA), space.folder(MOEBA), progress=space.report)
    return _certified(space, result, MOEBA)


def grow_experts(space: Workspace) -> Outcome:
    from ..surgery import upcycle

    result = upcycle(
        space.folder(MOEBA),
        space.folder(MOE),
        experts=space.settings.experts,
        top_k=space.settings.top_k,
        layers="all",  # Mixtral, the target of the export, has no dense layers
        seed=space.settings.seed,
        progress=space.report,
    )
    return _certified(space, result, MOE)


def train_moe(space: Workspace) -> Outcome:
    from ..training import RouterStatisticsCallback

    callback = RouterStatisticsCallback()
    outcome = _train(space, MOE_TRAINED, _load(space, MOE), callback=callback, after=_carry_history(space))
    loads = [round(layer.max_load, 2) for layer in callback.last]
    dead = [layer.dead_fraction for layer in callback.last]
    figures = {**outcome.figures, "max_load": loads, "dead_fraction": dead}
    listed = " ".join(f"{load:.2f}" for load in loads)
    return Outcome(f"{outcome.proof}; busiest expert's load by layer (1 = balanced): {listed}", figures)


def train_dense(space: Workspace) -> Outcome:
    """The control: the dense model of the same function, on the same windows, for as many steps."""
    return _train(space, DENSE_TRAINED, _load(space, MOEBA))


def sample(space: Workspace) -> Outcome:
    from transformers import pipeline, set_seed

    set_seed(space.settings.seed)
    generate = pipeline("text-generation", model=str(space.folder(MOE_TRAINED)), device="cpu")
    samples = []
    for done, prompt in enumerate(PROMPTS, start=1):
        answers = generate(prompt, max_new_tokens=space.settings.new_tokens, do_sample=True, temperature=0.7)
        samples.append({"prompt": prompt, "text": answers[0]["generated_text"]})
        space.report(done, len(PROMPTS), "samples")
    with complete_or_absent(space.folder(SAMPLES)) as folder:
        (folder / "samples.json").write_text(json.dumps(samples, indent=2) + "\n", encoding="utf-8")
    grown = sum(len(item["text"]) - len(item["prompt"]) for item in samples)
    return Outcome(f"{len(samples)} prompts continued by {grown} characters", {"samples": samples})


def export_mixtral(space: Workspace) -> Outcome:
    from ..conversion import export

    result = export(space.folder(MOE_TRAINED), space.folder(MIXTRAL), to="mixtral", progress=space.report)
    return _certified(space, result, MIXTRAL)


def make_hub_folder(space: Workspace) -> Outcome:
    from ..hub_card import bundle

    folder = bundle(space.folder(MOE_TRAINED), space.folder(HUB))
    files = sorted(path.name for path in folder.iterdir())
    size = sum(path.stat().st_size for path in folder.iterdir())
    code = sum(name.endswith(".py") for name in files)
    figures = {"files": files, "bytes": size}
    return Outcome(f"{len(files)} files, {size / 1e6:.0f} MB: weights, card, {code} files of code", figures)


STEPS = (
    Step(TOKENIZER, "train a tokenizer", (), make_tokenizer),
    Step(CORPUS, "tokenize the corpus", (TOKENIZER,), make_corpus),
    Step(LLAMA, "train a native Llama", (CORPUS, TOKENIZER), train_llama),
    Step(MOEBA, "convert it to Moeba", (LLAMA, CORPUS), convert_llama),
    Step(MOE, "grow experts", (MOEBA, CORPUS), grow_experts),
    Step(MOE_TRAINED, "train the experts", (MOE, CORPUS), train_moe),
    Step(DENSE_TRAINED, "train the dense control", (MOEBA, CORPUS), train_dense),
    Step(SAMPLES, "generate text", (MOE_TRAINED,), sample),
    Step(MIXTRAL, "export to Mixtral", (MOE_TRAINED, CORPUS), export_mixtral),
    Step(HUB, "make a folder for the Hub", (MOE_TRAINED,), make_hub_folder),
)


def _texts(settings: DemoSettings) -> tuple[list[str], list[str]]:
    from .corpus import documents, split

    found = documents(settings.corpus)[:: settings.every_file]
    train_side, held_out = split(found, settings.held_out, settings.seed)
    return [document.text for document in train_side], [document.text for document in held_out]


def _tokenizer(space: Workspace) -> Any:
    from ..tokenization import MoebaTokenizer

    return MoebaTokenizer.from_pretrained(space.folder(TOKENIZER))


def _load(space: Workspace, name: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(space.folder(name), dtype="float32")


def _windows(space: Workspace, side: str) -> Any:
    from datasets import load_from_disk

    return load_from_disk(str(space.folder(CORPUS)))[side]


def _measure(space: Workspace, model: Any) -> float:
    """Perplexity on the held-out windows, spread evenly over the held-out files."""
    windows = _windows(space, "held_out")
    wanted = min(space.settings.held_out_windows, len(windows))
    chosen = [position * len(windows) // wanted for position in range(wanted)]
    return perplexity(model, windows.select(chosen)["input_ids"][:])


def _train(
    space: Workspace,
    name: str,
    model: Any,
    *,
    first: bool = False,
    callback: Any = None,
    after: Callable[[Path], Any] | None = None,
) -> Outcome:
    """Train `model` and measure it before and after. `after` adds to the folder before it appears."""
    settings = space.settings
    steps = settings.pretrain_steps if first else settings.finetune_steps
    before = _measure(space, model)
    with complete_or_absent(space.folder(name)) as folder:
        speed = train(
            model,
            _tokenizer(space),
            _training_windows(space, first),
            folder,
            settings,
            steps=steps,
            learning_rate=settings.pretrain_lr if first else settings.finetune_lr,
            what=f"step of {steps}",
            report=space.report,
            callbacks=[callback] if callback else [],
        )
        if after is not None:
            after(folder)
        reached = _measure(space, model)
    figures = {
        "perplexity_before": before,
        "perplexity_after": reached,
        "steps": steps,
        "tokens_per_second": round(speed),
    }
    return Outcome(f"held-out perplexity {before:,.2f} → {reached:,.2f} in {steps} steps", figures)


def _training_windows(space: Workspace, first: bool) -> Any:
    """Shuffled windows; the first training and the later ones get different ones, while there are enough."""
    settings = space.settings
    windows = _windows(space, "train").shuffle(seed=settings.seed)
    border = min(settings.pretrain_steps * settings.batch_size, len(windows) // 2)
    return windows.select(range(border) if first else range(border, len(windows)))


def _certified(space: Workspace, result: Any, name: str) -> Outcome:
    """The certificate's figures, and the perplexity of the folder as stock transformers loads it."""
    certificate = result.certificate
    model = _load(space, name)
    reached = _measure(space, model)
    logits = [
        check.figures["max_abs"]
        for check in certificate.checks
        if check.name.startswith("logits") and check.on == "checkpoint" and check.status == "verified"
    ]
    faults = certificate.negative_controls
    caught = sum(fault.caught for fault in faults)
    figures = {
        "class": f"{type(model).__module__}.{type(model).__name__}",
        "parameters": model.num_parameters(),
        "perplexity": reached,
        "verdict": certificate.verdict,
        "largest_logit_difference": max(logits),
        "planted_faults": len(faults),
        "planted_faults_caught": caught,
    }
    proof = (
        f"{type(model).__name__}, {model.num_parameters() / 1e6:.1f}M parameters, {certificate.verdict}: "
        f"logits differ by at most {max(logits):.1g}, {caught} of {len(faults)} planted "
        f"faults caught; held-out perplexity {reached:,.2f}"
    )
    return Outcome(proof, figures)


def _carry_history(space: Workspace) -> Callable[[Path], Any]:
    """Trainer saves a model and not where it came from; the model's card wants to know."""

    def carry(folder: Path) -> None:
        shutil.copyfile(space.folder(MOE) / provenance.FILE, folder / provenance.FILE)

    return carry
