"""Which folders an operation may replace when it is told to: checkpoints, and nothing that is somebody's own."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from ..modeling.code_files import code_files
from ..tokenization.adopt import TOKENIZER_FILES, TOKENIZER_PATTERNS
from .json_files import listing, read_json
from .paths import resolved
from .provenance import FILE as PROVENANCE
from .provenance import OWN_FILES
from .weight_files import PICKLE_FILE, PICKLE_INDEX, SAFE_FILE, SAFE_INDEX

# What Moeba's operations, `save_pretrained`, the Trainer and a download from the Hub write into a model folder.
_NAMES = (
    *("config.json", "generation_config.json", "README.md", "LICENSE*", "NOTICE*", ".gitattributes"),
    *(SAFE_FILE, "model-[0-9]*-of-[0-9]*.safetensors", SAFE_INDEX),
    *(PICKLE_FILE, "pytorch_model-[0-9]*-of-[0-9]*.bin", PICKLE_INDEX),
    *(*TOKENIZER_FILES, *TOKENIZER_PATTERNS, *sorted(OWN_FILES)),
    *("figures/*.svg", ".eval_results/*.yaml", "__pycache__/*.pyc"),
)
# What serves a run alone; one that is killed may leave it in its folder, finished or not.
LOCK, PROGRESS = ".lock", ".progress.json"


def check_replaceable(folder: Path, origins: Iterable[Path] = ()) -> None:
    """Refuse to replace a folder that is no checkpoint, or that holds other files too; an empty one may go.

    A checkpoint has a `config.json` that names its model type, and weights; or Moeba's own record of its making.

    Args:
        origins: folders that are read; what lies there too, byte for byte, is not lost.

    Raises:
        ValueError: with what is in the way.
    """
    if not any(folder.iterdir()):
        return
    if not _is_checkpoint(folder):
        raise ValueError(
            f"{folder} holds no config.json that names a model type, or no weights beside it, and may be no "
            "checkpoint: it is not overwritten"
        )
    if found := list(islice(strangers(folder, origins), 1000)):
        raise ValueError(
            f"{folder} holds files that belong to no checkpoint and would be lost: {listing(found)}; move them away, "
            "or choose another destination"
        )


def strangers(folder: Path, origins: Iterable[Path] = (), more: Iterable[str] = ()) -> Iterator[str]:
    """Files in `folder`, by their paths in it, that neither Moeba nor transformers writes; links to folders too.

    Args:
        origins: see `check_replaceable`.
        more: further patterns of what belongs there, one a level of folders: `figures/*.svg`.
    """
    patterns = [
        PurePosixPath(p) for p in (*_NAMES, LOCK, PROGRESS, *code_files(), *_named_code(folder), *more)
    ]
    origins = list(origins)
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in sorted((*names, *links)):
            path = Path(parent) / name
            inside = PurePosixPath(path.relative_to(folder).as_posix())
            if not any(_fits(inside, p) for p in patterns) and not _lies_in(path, inside, origins):
                yield str(inside)


def _is_checkpoint(folder: Path) -> bool:
    if _read(folder / PROVENANCE):
        return True
    model_type = _read(folder / "config.json").get("model_type")
    weights = (SAFE_FILE, SAFE_INDEX, PICKLE_FILE, PICKLE_INDEX)
    return isinstance(model_type, str) and any((folder / name).is_file() for name in weights)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _named_code(folder: Path) -> set[str]:
    """The modules that the config's `auto_map` names, as `repo--module.Class`."""
    auto_map = _read(folder / "config.json").get("auto_map")
    values = auto_map.values() if isinstance(auto_map, dict) else ()
    return {f"{value.split('--')[-1].split('.')[0]}.py" for value in values if isinstance(value, str)}


def _fits(path: PurePosixPath, pattern: PurePosixPath) -> bool:
    return len(path.parts) == len(pattern.parts) and all(map(fnmatchcase, path.parts, pattern.parts))


def _lies_in(path: Path, inside: PurePosixPath, origins: Iterable[Path]) -> bool:
    twins = (origin / inside for origin in origins)
    return any(
        path.is_file()
        and twin.is_file()
        and resolved(twin) != resolved(path)
        and filecmp.cmp(path, twin, shallow=False)
        for twin in twins
    )
