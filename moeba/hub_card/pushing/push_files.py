"""Which files of a folder are pushed: everything that belongs to the model, nothing that stays at home.

- What looks like a secret, by its name or by its text, is refused, so that a person decides about it.
- Caches, hidden files and version control stay behind, and so do optimiser states unless they are asked for.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ...conversion.json_files import listing
from ...conversion.weight_files import WEIGHT_SUFFIXES

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

_SECRET_NAMES = (
    *(
        ".env",
        ".env.*",
        "*.env",
        "*.pem",
        "*.key",
        "*.p12",
        "*.pfx",
        "*.jks",
        "*.keystore",
        "*.kdbx",
        "*.ppk",
    ),
    *("id_rsa", "id_dsa", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".git-credentials", ".htpasswd"),
    *(".npmrc", ".pypirc", "credentials", "credentials.*", "secrets", "secrets.*", "client_secret*.json"),
    *("token", "token.txt", "token.json", "tokens.txt", ".token", "*.token", "hf_token*", "*_token.txt"),
    *("stored_tokens", "access_token*", "api_key*", "service_account*.json", "kubeconfig"),
)
_PUBLIC_NAMES = ("*.pub", ".env.example", ".env.sample", ".env.template")
_SECRET_TEXTS = {
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30,}",
    "a private key": rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})",
    "an AWS key": rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "an OpenAI key": rb"\bsk-(?:proj-)?[A-Za-z0-9_-]{40,}",
}
_DIFFERENT_CHARACTERS = 10  # of a token; `hf_xxxx…` in a text is an example of one
_UNREAD_WEIGHTS = 1 << 20  # bytes; a larger weight file is not searched for tokens


@dataclass(frozen=True)
class PushFile:
    """A file that goes along: where it will stand in the repository, and how large it is in bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that stays behind, and why."""

    path: str
    reason: str


def select_files(
    folder: Path, include_training: bool = False
) -> tuple[tuple[PushFile, ...], tuple[LeftOut, ...]]:
    """What of `folder` is pushed and what is left out, each sorted by path.

    Args:
        include_training: also the checkpoints, optimiser, scheduler and random states of a Trainer.

    Raises:
        ValueError: files that look like secrets, links that lead nowhere, or nothing to push.
    """
    files: list[PushFile] = []
    left_out: list[LeftOut] = []
    offenders: list[str] = []
    for path, is_folder in _walk(folder, left_out, include_training):
        full = folder / path
        if is_folder:
            left_out.append(LeftOut(f"{path}/", "a link to a folder"))
        elif reason := _secret_name(full.name) or (full.is_file() and _secret_text(full)):
            offenders.append(f"{path} ({reason})")
        elif reason := _reason_to_stay(full.name, include_training):
            left_out.append(LeftOut(path, reason))
        elif not full.is_file():
            offenders.append(f"{path} (it is no file that can be read)")
        else:
            files.append(PushFile(path, full.stat().st_size))
    if offenders:
        raise ValueError(
            f"{folder} holds files that are not pushed: {listing(offenders)}. Nothing was sent. Move them out of "
            "the folder; a secret that was public once has to be revoked"
        )
    if not files:
        raise ValueError(f"{folder} holds no file to push")
    return tuple(sorted(files, key=lambda file: file.path)), tuple(sorted(left_out, key=lambda out: out.path))


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


def _reason_to_stay(name: str, include_training: bool) -> str | None:
    if not include_training and _matches(name, _TRAINING):
        return "training state"
    if _matches(name, _CACHES):
        return "cache"
    return "hidden" if name.startswith(".") and name not in _HIDDEN_BUT_SHARED else None


def _secret_name(name: str) -> str | None:
    lower = name.lower()
    is_secret = _matches(lower, _SECRET_NAMES) and not _matches(lower, _PUBLIC_NAMES)
    return "its name is that of a secret" if is_secret else None


def _secret_text(path: Path) -> str | None:
    """What secret a file holds, in words; the secret itself is never shown."""
    size = path.stat().st_size
    if not size or (path.suffix in WEIGHT_SUFFIXES and size > _UNREAD_WEIGHTS):
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for what, pattern in _SECRET_TEXTS.items():
            for found in re.finditer(pattern, text):
                if len(set(found[0])) >= _DIFFERENT_CHARACTERS:
                    return f"it holds {what}"
    return None


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
