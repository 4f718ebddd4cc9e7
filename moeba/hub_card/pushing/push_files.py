"""Which files of a folder are pushed: everything that belongs to the model, nothing that stays at home.

- What looks like a secret, by its name or by its text, is refused, so that a person decides about it; so is a link that
  leads out of the folder.
- Code that is not the model's own stays behind: nobody should run it for loading a model.
- Caches, hidden files and version control stay behind, and so do optimiser states unless they are asked for.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ...conversion.json_files import listing
from ...conversion.selection import LeftOut, is_code, leads_out, secret_in, secret_name, what_it_is
from ...modeling.code_files import code_files
from ..reading.training_arguments import holds_token

_TRAINING = (
    *("checkpoint-*", "last-checkpoint", "tmp-checkpoint*", "global_step*", "pytorch_model_fsdp_*"),
    *(
        "optimizer*.pt",
        "optimizer*.bin",
        "optimizer_[0-9]*",
        "*_optim_states.pt",
        "scheduler.pt",
        "scaler.pt",
    ),
    *("rng_state*.pth", "zero_to_fp32.py"),
)
_CACHES = ("__pycache__", "*.pyc", "wandb", "mlruns", "*.lock", "*.incomplete", "Thumbs.db", "*.egg-info")
_HIDDEN_BUT_SHARED = (".gitattributes", ".eval_results")


@dataclass(frozen=True)
class PushFile:
    """A file that goes along: where it will stand in the repository, and how large it is in bytes."""

    path: str
    size: int


def select_files(
    folder: Path,
    include_training: bool = False,
    renewed: Collection[str] = (),
) -> tuple[tuple[PushFile, ...], tuple[LeftOut, ...]]:
    """What of `folder` is pushed and what is left out, each sorted by path.

    Args:
        include_training: also the checkpoints, optimiser, scheduler and random states of a Trainer.
        renewed: names of code files that are written anew before the folder is sent: those that lie there need not go.

    Raises:
        ValueError: files that look like secrets, links that lead out of the folder or nowhere, or nothing to push.
    """
    files: list[PushFile] = []
    left_out: list[LeftOut] = []
    offenders: list[str] = []
    for path, is_folder in _walk(folder, left_out, include_training):
        full = folder / path
        if is_folder:
            left_out.append(LeftOut(f"{path}/", "a link to a folder"))
        elif reason := _secret(full, folder):
            offenders.append(f"{path} ({reason})")
        elif reason := _reason_to_stay(full.name, include_training):
            left_out.append(LeftOut(path, reason))
        elif is_code(path) and not _is_own_code(full):
            if path not in renewed:
                left_out.append(LeftOut(path, "code that is not the model's own"))
        elif reason := what_it_is(full, folder):
            offenders.append(f"{path} ({reason})")
        else:
            files.append(PushFile(path, full.stat().st_size))
    if offenders:
        raise ValueError(
            f"{folder} holds files that are not pushed: {listing(offenders)}. Nothing was sent. Move them out of "
            "the folder, and put the file itself where a link is; a secret that was public once has to be revoked"
        )
    if not files:
        raise ValueError(f"{folder} holds no file to push")
    return tuple(sorted(files, key=lambda file: file.path)), tuple(sorted(left_out, key=lambda out: out.path))


def all_files(folder: Path) -> tuple[PushFile, ...]:
    """Every file of a folder that was filled with what `select_files` chose."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(PushFile(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths)


def _is_own_code(path: Path) -> bool:
    """Whether a file is one of those that a model is saved with, to the byte, wherever it lies."""
    text = code_files().get(path.name)
    return text is not None and path.is_file() and path.read_bytes() == text.encode()


def _secret(path: Path, folder: Path) -> str:
    """By its name, whatever it is; by its text, where that is the folder's own."""
    if reason := secret_name(path.name):
        return reason
    if not path.is_file() or leads_out(path, folder):
        return ""
    if path.name == "training_args.bin" and holds_token(path):
        return "it holds the token of a Trainer"
    return secret_in(path)


def _walk(folder: Path, left_out: list[LeftOut], include_training: bool) -> Iterator[tuple[str, bool]]:
    """Files, and links to folders, as (path, is a folder); folders that stay behind are not entered."""
    for parent, folders, names in os.walk(folder):
        inside = PurePosixPath(Path(parent).relative_to(folder).as_posix())
        for name in list(folders):
            path = str(inside / name)
            if reason := _reason_to_stay(name, include_training):
                left_out.append(LeftOut(f"{path}/", reason))
                folders.remove(name)
            elif (Path(parent) / name).is_symlink():
                yield path, True
        yield from ((str(inside / name), False) for name in names)


def _reason_to_stay(name: str, include_training: bool) -> str:
    if not include_training and _matches(name, _TRAINING):
        return "training state"
    if _matches(name, _CACHES):
        return "cache"
    return "hidden" if name.startswith(".") and name not in _HIDDEN_BUT_SHARED else ""


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
