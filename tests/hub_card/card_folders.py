"""Model folders for the tests of the card: tiny, real, and described by the records that operations write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from moeba import MoebaConfig, MoebaForCausalLM, MoebaTokenizer
from moeba.conversion import Checkpoint

SIZES = dict(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)
EXPERTS = dict(num_experts=4, mlp_layer_types=["dense", "sparse", "sparse"])


def save_model(folder: Path, **fields: Any) -> MoebaConfig:
    torch.manual_seed(0)
    config = MoebaConfig(**{**SIZES, **fields})
    MoebaForCausalLM(config).save_pretrained(folder)
    return config


def save_tokenizer(folder: Path) -> None:
    MoebaTokenizer.train(["one two three"] * 20, 265, show_progress=False).save_pretrained(folder)


def write_json(folder: Path, name: str, values: Any) -> None:
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


def source(**values: Any) -> dict[str, Any]:
    return {
        "path": "/home/somebody/secret/dense-model",
        "repo_id": None,
        "revision": None,
        "model_type": "llama",
        "license": None,
        "files": {"model.safetensors": "ab" * 32},
        **values,
    }


def provenance(operation: str = "upcycle", **values: Any) -> dict[str, Any]:
    return {
        "format_version": 1,
        "operation": operation,
        "moeba_version": "0.1.0",
        "transformers_version": "5.23.0",
        "torch_version": "2.13.0",
        "source": source(),
        "recipe": {"num_experts": 4, "noise": 0.0},
        "notes": [],
        "history": [],
        **values,
    }


def certificate(folder: Path | None, **values: Any) -> dict[str, Any]:
    """A certificate of the weights in `folder`, or of others."""
    files = {"model.safetensors": "00" * 32} if folder is None else Checkpoint(folder).sha256()
    return {
        "format_version": 1,
        "verdict": "verified",
        "operation": "upcycle",
        "source": {"path": "/home/somebody/secret/dense-model", "files": {}},
        "target": {"path": "/home/somebody/secret/out", "files": files},
        "versions": {"torch": "2.13.0"},
        "config_differences": [
            {"field": "hidden_size", "source": 32, "target": 32, "verdict": "same"},
            {"field": "num_experts", "source": 0, "target": 4, "verdict": "derived"},
        ],
        "keys": {"source": 30, "target": 34, "dropped": ["inv_freq"], "round_trip": "not applicable"},
        "checks": [
            {
                "name": "logits",
                "on": "checkpoint",
                "status": "verified",
                "figures": {"max_abs": 1.5e-6, "tokens": 24, "by_layer": [1e-7, 3e-7]},
                "detail": "float32",
            },
            {"name": "flash attention", "status": "unsupported", "figures": {}, "detail": "no GPU here"},
        ],
        "negative_controls": [{"fault": "gate and up swapped", "caught": True, "max_abs_diff": 2.583}],
        **values,
    }


def training_log(steps: int = 60, layers: tuple[int, ...] = (1, 2)) -> list[dict[str, Any]]:
    """What Trainer and `RouterStatisticsCallback` log: smooth curves, so that a picture of them is legible."""
    log: list[dict[str, Any]] = []
    for step in range(5, steps + 1, 5):
        entry = {"step": step, "loss": 2.0 + 4.0 * 0.96**step, "learning_rate": 1e-3}
        for layer in layers:
            entry[f"router/layer_{layer}/max_load"] = 1.0 + layer * 0.98**step
            entry[f"router/layer_{layer}/entropy"] = 0.9 - 0.1 * layer + 0.1 * 0.97**step
        entry["router/max_load"] = max(entry[f"router/layer_{layer}/max_load"] for layer in layers)
        entry["router/entropy"] = sum(entry[f"router/layer_{layer}/entropy"] for layer in layers) / len(
            layers
        )
        log.append(entry)
        if step % 20 == 0:
            log.append({"step": step, "eval_loss": 2.1 + 3.9 * 0.96**step, "eval_runtime": 1.0})
    return log


def save_training(folder: Path, steps: int = 60, counts: dict[int, list[int]] | None = None) -> None:
    """A trainer state, and what each expert of layers 1 and 2 got."""
    counts = counts or {1: [400, 300, 200, 124], 2: [700, 300, 24, 0]}
    write_json(
        folder,
        "trainer_state.json",
        {"global_step": steps, "epoch": 1.0, "log_history": training_log(steps, tuple(counts))},
    )
    layers = [
        {"layer": layer, "tokens": sum(row) // 2, "counts": row, "entropy": 0.8}
        for layer, row in counts.items()
    ]
    write_json(folder, "router_statistics.json", {"format_version": 1, "step": steps, "layers": layers})


def surgery(**values: Any) -> dict[str, Any]:
    """The record of a merge of two models."""
    sources = [
        {"name": "user/one", "tokens": 512, "source_nll": 1.8, "target_nll": 1.9, "kl": 0.09, "top1": 0.883},
        {"name": "user/two", "tokens": 512, "source_nll": 2.2, "target_nll": 2.3, "kl": 0.05, "top1": 0.859},
    ]
    whole = {
        "text": "calibration.txt",
        "tokens": 1024,
        "source_nll": 2.0,
        "target_nll": 2.1,
        "kl": 0.07,
        "top1": 0.871,
    }
    return {
        "format_version": 1,
        "operation": "merge",
        "recipe": {"router": "centroids"},
        "recipe_text": "# mine\nrouter: centroids   # of true inputs\n",
        "sources": [],
        "exact": False,
        "gap": {**whole, "per_source": sources},
        "reports": {"router_degeneracy": [{"layer": 1, "largest_cosine": 0.25}], "identical_experts": False},
        **values,
    }


def evaluation(folder: Path | None, **values: Any) -> dict[str, Any]:
    """An evaluation of the weights in `folder`, or of others."""
    files = {"model.safetensors": "00" * 32} if folder is None else Checkpoint(folder).sha256()
    result = {
        "task": "text-generation",
        "dataset": {"id": "user/corpus", "config": "small", "split": "test", "revision": "abc"},
        "metrics": {"perplexity": 21.83, "bits_per_byte": 1.02, "unknown": None},
        "settings": {"window": 512, "stride": 256},
    }
    return {"format_version": 1, "files": files, "results": [result], **values}
