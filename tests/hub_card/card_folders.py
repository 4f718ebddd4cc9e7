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
