"""Where a checkpoint came from: `moeba_provenance.json`, written beside the weights by every operation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import ModelCard

from ..version import __version__
from .checkpoint import Checkpoint
from .json_files import read_json
from .paths import expanded
from .selection import names_only, what_it_is

FILE = "moeba_provenance.json"
CERTIFICATE_FILE = "parity.json"
EVALUATION_FILE = "evaluation.json"
# Facts about one folder: they must not travel to a folder made from it.
OWN_FILES = {
    FILE, CERTIFICATE_FILE, EVALUATION_FILE,
    "trainer_state.json", "training_args.bin", "training_args.json", "optimizer.pt", "scheduler.pt", "rng_state.pth",
    "router_statistics.json", "all_results.json", "eval_results.json", "train_results.json", "surgery.json",
}  # fmt: skip
# Of a source's card, beside the licence.
_INHERITED = ("license_name", "license_link", "language", "datasets")


def versions() -> dict[str, str]:
    """Of the libraries that decide the result."""
    return {"moeba": __version__, "transformers": transformers.__version__, "torch": torch.__version__}


def describe_source(checkpoint: Checkpoint, given: str, revision: str | None) -> dict[str, Any]:
    """What identifies a source: folder name or Hub id, model type, licence if its card states one, and file hashes.

    The record is published with the model, so it holds no path of this machine.
    """
    local = expanded(given).exists()
    return {
        "path": checkpoint.folder.resolve().name if local else None,
        "repo_id": None if local else given,
        "revision": revision,
        "model_type": checkpoint.config.get("model_type"),
        **names_only(_card_facts(checkpoint.folder)),
        "files": checkpoint.sha256(),
    }


def write_provenance(
    folder: Path,
    operation: str,
    sources: list[dict[str, Any]],
    recipe: dict[str, Any],
    notes: list[str],
    history: list[Any],
    lossy: bool = False,
) -> None:
    """Write `moeba_provenance.json` for the weights in `folder`.

    Args:
        sources: of `describe_source`; `history` is the first one's.
        history: the earlier operations, oldest first.
        lossy: the operation does not keep the function.
    """
    found = versions()
    record = {
        "format_version": 1,
        "operation": operation,
        "moeba_version": found["moeba"],
        "transformers_version": found["transformers"],
        "torch_version": found["torch"],
        "source": sources[0],
        **({"sources": sources[1:]} if len(sources) > 1 else {}),
        **({"lossy": True} if lossy else {}),
        "target": {"files": Checkpoint(folder).sha256()},
        "recipe": recipe,
        "notes": notes,
        "history": history,
    }
    (folder / FILE).write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The operations that made a folder, oldest first; empty for a folder that Moeba did not write."""
    if not (folder / FILE).is_file():
        return []
    record = read_json(folder / FILE)
    history = record.pop("history", [])
    steps = [*(history if isinstance(history, list) else [history]), record]
    if not all(_is_step(step) for step in steps):
        raise ValueError(
            f"{folder / FILE} is no record of operations: restore it, or remove it to go on without"
        )
    return steps


def _is_step(step: Any) -> bool:
    return (
        isinstance(step, dict)
        and isinstance(step.get("operation"), str)
        and isinstance(step.get("source"), dict)
        and isinstance(step.get("recipe", {}), dict)
    )


def _card_facts(folder: Path) -> dict[str, Any]:
    """What a source's card says that holds of a model made from it, too."""
    card = folder / "README.md"
    is_own = not what_it_is(card, folder)  # no link to somewhere else, and no pipe
    data = ModelCard.load(card, ignore_metadata_errors=True).data if is_own else None
    found = {name: getattr(data, name, None) for name in ("license", *_INHERITED)}
    return {name: value for name, value in found.items() if value or name == "license"}
