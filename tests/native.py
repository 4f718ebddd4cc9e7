"""Random native checkpoints: a valid config of each family, its stock model with every tensor random, and its files."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import torch
from draws import DRAWS
from support import randomise
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from moeba.conversion.alignment import align
from moeba.conversion.checkpoint import Checkpoint


def draw(model_type: str, seed: int) -> PreTrainedConfig:
    """A valid stock config of the family, the same for the same seed.

    Raises:
        LookupError: the family has no draw.
    """
    return config_from(model_type, random.Random(f"{model_type} {seed}"))


def config_from(model_type: str, rng: random.Random) -> PreTrainedConfig:
    """The stock config of the family's draw from any source of randomness."""
    if model_type not in DRAWS:
        raise LookupError(
            f"family {model_type!r} has no draw: write one in tests/draws (CONTRIBUTING.md says how)"
        )
    return CONFIG_MAPPING[model_type](**DRAWS[model_type](rng))


def build(config: PreTrainedConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The stock model of a config, every parameter and buffer random."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed)
    model.tie_weights()
    model = model.to(dtype).eval()
    model.config.dtype = dtype
    return model


def save(model: PreTrainedModel, folder: Path, shards: bool = False) -> Path:
    """As stock transformers writes it, in one file or many."""
    model.save_pretrained(folder, max_shard_size="4KB" if shards else "5GB")
    return folder


def make(folder: Path, model_type: str, seed: int = 0, **overrides: Any) -> Path:
    """A native checkpoint of the family's draw, with some fields set."""
    config = draw(model_type, seed)
    return save(build(CONFIG_MAPPING[model_type](**{**plain(config), **overrides})), folder)


def plain(config: PreTrainedConfig) -> dict[str, Any]:
    """A config's fields, to build another one from."""
    values = config.to_dict()
    for name in ("model_type", "transformers_version", "architectures", "dtype"):
        values.pop(name, None)
    return values


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder by its name on disk."""
    opened = Checkpoint(folder)
    return {name: opened.read(name) for name in opened.tensors}


def same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Assert the same names, shapes, dtypes and bytes."""
    assert sorted(first) == sorted(second)
    for name, a in first.items():
        b = second[name]
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        assert torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)), name


def snapshot(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load(model_class: Any, folder: Path, **kwargs: Any) -> PreTrainedModel:
    """A model whose tensors were all in the files, and no other ones, in aligned memory."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True, **kwargs)
    wrong = {
        name: info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[name]
    }
    assert not wrong, wrong
    if any(name.endswith(".experts") for name, _ in model.named_modules()):
        model.set_experts_implementation("eager")
    return align(model).eval()
