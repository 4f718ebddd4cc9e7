"""A Moeba checkpoint made ready for the Hub: it loads where Moeba is not installed, and says what it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from transformers.utils import logging

from ..configuration import MoebaConfig
from ..conversion.checkpoint import Checkpoint
from ..conversion.companions import check_companions
from ..conversion.convert import moeba_config
from ..conversion.copying import CopiedPart
from ..conversion.json_files import listing, read_json
from ..conversion.paths import expanded, resolved
from ..conversion.provenance import OWN_FILES
from ..conversion.selection import (
    ENTRIES,
    LeftOut,
    check_read,
    drop_foreign_code,
    refuse,
    secret_in,
    select_side_files,
    what_it_is,
)
from ..conversion.weight_files import PICKLE_INDEX, SAFE_INDEX
from ..conversion.writing import check_destination, write_folder
from ..modeling.code_files import AUTO_MAP, code_files, write_code
from .card import CARD_FILE, write_card
from .pictures.figures import FOLDER as FIGURES
from .pushing.guard import guard
from .reading.training_arguments import FILE as ARGUMENTS
from .text.evaluation import LEADERBOARD_FOLDER
from .text.surgery import FILE as SURGERY

logger = logging.get_logger(__name__)

_STATES = (".pt", ".pth")  # of a Trainer
_FURTHER_FOLDERS = (FIGURES, LEADERBOARD_FOLDER)


def bundle(
    source: str | Path, destination: str | Path, *, overwrite: bool = False, hardlink: bool = False
) -> Path:
    """Make a copy of a Moeba checkpoint that is ready to upload, and return its folder.

    Weights are copied, sharing their space on the disk where the file system can. Tokenizer, generation config,
    licences, provenance, certificate and evaluations are copied byte for byte, but for absolute paths
    in records; code, `auto_map`, card and its figures are written anew. Whatever else lies in the folder stays
    behind, and a warning names it: code of others, possible secrets, optimiser states. The folder appears all at once
    or not at all; run again after a kill, it continues.

    Args:
        overwrite: replace a checkpoint at the destination.
        hardlink: make the weights hard links, which take no space: whoever writes into one changes both folders.

    Raises:
        ValueError: the source is no complete Moeba checkpoint, or it changed meanwhile; a file that would go along
            holds a secret or is a link that leads out of the folder; or the destination is taken, would damage
            something or cannot be linked to.
    """
    source = expanded(source)
    check_destination(source, destination, overwrite)
    checkpoint = Checkpoint(source)
    moeba_config(checkpoint, keeps_unknown=True)
    check_companions(source, checkpoint.config.get("vocab_size"), (SURGERY,))
    check_read(source, [path.name for path in checkpoint.weight_files])
    destination = resolved(destination)
    files, left_out = _side_files(checkpoint)

    def finish(folder: Path) -> None:
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint.folder / name, folder / name)
        left_out.extend(guard(folder))
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
    if left_out:
        names = listing([f"{left.path} ({left.reason})" for left in left_out])
        logger.warning(f"not carried over from {source}: {names}")
    return destination


def prepare(folder: str | Path) -> Path:
    """Make a model folder ready for the Hub in place, and return its card: operations call this at their end.

    A Moeba folder gets its code and the `auto_map` that names it. Entries of any folder's tokenizer and processors that
    name other code are dropped. A folder of another model type gets a card besides.
    """
    folder = Path(folder)
    config_file = folder / "config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    if config.get("model_type") == MoebaConfig.model_type:
        write_code(folder)
        own = {name: value for name, value in config.items() if name not in ENTRIES} | {"auto_map": AUTO_MAP}
        if own != config:
            _replace_text(config_file, json.dumps(own, indent=2, ensure_ascii=False) + "\n")
    for dropped in drop_foreign_code(folder):
        logger.warning(f"left out: {dropped.path} ({dropped.reason})")
    return write_card(folder)


def _replace_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def _side_files(checkpoint: Checkpoint) -> tuple[list[str], list[LeftOut]]:
    """Everything but the weights that goes along, sorted, and what stays behind.

    Raises:
        ValueError: something that would go along must not.
    """
    root = checkpoint.folder
    weights = {path.name for path in checkpoint.weight_files}
    selected = select_side_files(root, {*weights, *OWN_FILES, *code_files(), SAFE_INDEX, PICKLE_INDEX})
    is_safe = checkpoint.weight_files[0].suffix == ".safetensors"
    own = {"config.json", CARD_FILE, SAFE_INDEX if is_safe else PICKLE_INDEX}
    own.update(name for name in OWN_FILES if not name.endswith(_STATES))
    found = {root / name for name in own if os.path.lexists(root / name)}
    for name in _FURTHER_FOLDERS:
        found.update(path for path in (root / name).rglob("*") if not path.is_dir())
    offenders = []
    for path in sorted(found):
        # A Trainer's arguments may hold its token: what of them is published is seen to afterwards.
        reason = what_it_is(path, root) or (secret_in(path) if path.name != ARGUMENTS else "")
        if reason:
            offenders.append(f"{path.relative_to(root)} ({reason})")
    refuse(root, offenders)
    return sorted({*selected.files, *(path.relative_to(root).as_posix() for path in found)}), [
        *selected.left_out
    ]
