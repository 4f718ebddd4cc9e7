"""A Moeba checkpoint made ready for the Hub: it loads where Moeba is not installed, and says what it is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ..configuration import MoebaConfig
from ..conversion.checkpoint import Checkpoint
from ..conversion.companions import check_companions
from ..conversion.copying import CopiedPart
from ..conversion.json_files import read_json
from ..conversion.weight_files import PICKLE_INDEX, SAFE_INDEX
from ..conversion.writing import check_destination, write_folder
from ..modeling.code_files import AUTO_MAP, write_code
from ..tokenization.adopt import tokenizer_files
from .card import CARD_FILE, write_card
from .pictures.figures import FOLDER as FIGURES
from .text.evaluation import LEADERBOARD_FOLDER

# Beside the side files of a checkpoint: they show whether a Trainer wrote the folder.
_FURTHER_FILES = (CARD_FILE, "training_args.bin")
_FURTHER_FOLDERS = ("explorer", FIGURES, LEADERBOARD_FOLDER)


def bundle(
    source: str | Path, destination: str | Path, *, overwrite: bool = False, hardlink: bool = False
) -> Path:
    """Make a copy of a Moeba checkpoint that is ready to upload, and return its folder.

    Weights are copied, sharing their space on the disk where the file system can. Tokenizer, provenance, certificate,
    evaluations, explorer page and other side files are copied byte for byte; code, `auto_map`, card and its figures
    are written anew.
    Hidden files, other folders and the optimiser states of a Trainer stay behind. The folder appears all at
    once or not at all; run again after a kill, it continues.

    Args:
        overwrite: replace a checkpoint at the destination.
        hardlink: make the weights hard links, which take no space: whoever writes into one changes both folders.

    Raises:
        ValueError: the source is no complete Moeba checkpoint, it changed meanwhile, the destination is taken or would
            damage something, or it cannot be linked to.
    """
    source = Path(source).expanduser()
    check_destination(source, destination, overwrite)
    checkpoint = Checkpoint(source)
    if checkpoint.config.get("model_type") != MoebaConfig.model_type:
        raise ValueError(
            f"{source} is a '{checkpoint.config.get('model_type')}' checkpoint and not a Moeba one: "
            "convert it first (moeba.convert), then bundle the result"
        )
    check_companions(source, checkpoint.config.get("vocab_size"))
    destination = Path(destination).expanduser().resolve()

    def finish(folder: Path) -> None:
        _copy_side_files(checkpoint, folder)
        prepare(folder)

    write_folder(
        [CopiedPart.of(path, hardlink) for path in checkpoint.weight_files],
        destination,
        digest=f"bundle {checkpoint.fingerprint()}",
        finish=finish,
        overwrite=overwrite,
        inputs=checkpoint.inputs,
        origins=[source],
        disposable=True,
    )
    return destination


def prepare(folder: str | Path) -> Path:
    """Make a model folder ready for the Hub in place, and return its card: operations call this at their end.

    A Moeba folder gets its code and the full `auto_map`. A folder of another model type gets a card only.
    """
    folder = Path(folder)
    config_file = folder / "config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    if config.get("model_type") == MoebaConfig.model_type:
        write_code(folder)
        auto_map = {**(config.get("auto_map") or {}), **AUTO_MAP}
        if auto_map != config.get("auto_map"):
            text = json.dumps({**config, "auto_map": auto_map}, indent=2, ensure_ascii=False) + "\n"
            _replace_text(config_file, text)
    return write_card(folder)


def _replace_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def _copy_side_files(checkpoint: Checkpoint, folder: Path) -> None:
    for path in _side_files(checkpoint):
        target = folder / path.relative_to(checkpoint.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _side_files(checkpoint: Checkpoint) -> Iterable[Path]:
    """Everything but the weights that goes along, sorted."""
    root = checkpoint.folder
    found = {root / "config.json", *checkpoint.side_files, *tokenizer_files(root), *root.glob("*.py")}
    is_safe = checkpoint.weight_files[0].suffix == ".safetensors"
    found.update(root / name for name in (*_FURTHER_FILES, SAFE_INDEX if is_safe else PICKLE_INDEX))
    for name in _FURTHER_FOLDERS:
        found.update((root / name).rglob("*"))
    return sorted(path for path in found if path.is_file())
