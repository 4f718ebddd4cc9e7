"""Which files of a model folder go along into a folder that is made from it, beside what that operation writes itself.

A positive list: what transformers, tokenizers, sentence-transformers and vLLM read with a model, whatever its layout,
and licences. A model folder is also where people train and keep things: what is not on the list stays, and is named.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ...modeling.folders import leads_out
from ...tokenization.adopt import TOKENIZER_FILES, TOKENIZER_PATTERNS
from ..json_files import listing
from ..weight_files import PICKLE_INDEX, SAFE_INDEX, WEIGHT_SUFFIXES
from .links import what_it_is
from .private_paths import head_of_card
from .secrets import secret_in, secret_in_text, secret_name

_READ = (
    *TOKENIZER_FILES,
    *TOKENIZER_PATTERNS,
    "generation_config.json",
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    # of sentence-transformers: a pooling or a projection after the model lies in a folder of its own
    *("modules.json", "sentence_*_config.json", "config_sentence_transformers.json"),
    *("[0-9]*_*/config.json", "[0-9]*_*/model.safetensors", "[0-9]*_*/pytorch_model.bin"),
)
# Whatever their writing: LICENSE.txt, LICENCE, Notice, MODEL_LICENSE, USE_POLICY.md, LICENSES/MIT.txt …
_LEGAL = (
    *("*licen[sc]e*", "*notice*", "copying*", "copyright*", "*use_policy*", "*use-policy*"),
    *("*acceptable_use*", "*terms_of_use*", "third_party*", "third-party*", "authors*", "attribution*"),
    *("citation*", "licen[sc]es/*"),
)
_LEGAL_SUFFIXES = ("", ".txt", ".md", ".rst", ".pdf", ".html", ".cff", ".bib")
# The same for the client of the Hub, which tells capitals apart.
HUB_PATTERNS = (
    *_READ,
    *("".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in p.replace("[sc]", "?")) for p in _LEGAL),
)
_CODE_SUFFIXES = (".py", ".pyc", ".so", ".pyd", ".dll", ".dylib")
# Written anew, or of no use elsewhere: they stay and nobody needs to be told.
_QUIET = ("config.json", "README.md", "__pycache__", "figures")


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that stays behind, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class SideFiles:
    """`files` travel, as paths relative to the folder; `left_out` stays behind. Both are sorted."""

    files: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


def is_code(name: str) -> bool:
    """Whether a file is one that Python could be made to run."""
    return Path(name).suffix.lower() in _CODE_SUFFIXES


def travels(path: str) -> bool:
    """Whether a file at this path of a model folder, `/` between its parts, is one that goes along."""
    if is_code(path):
        return False
    depth = path.count("/")
    if any(pattern.count("/") == depth and fnmatchcase(path, pattern) for pattern in _READ):
        return True
    lower = path.lower()
    legal = any(pattern.count("/") == depth and fnmatchcase(lower, pattern) for pattern in _LEGAL)
    return legal and _suffix(lower) in _LEGAL_SUFFIXES


def select_side_files(folder: Path, known: Collection[str] = ()) -> SideFiles:
    """What goes along from `folder`, by names first: nothing else is opened.

    Args:
        known: names that are taken care of otherwise, such as the weights that are read: they need no mention.

    Raises:
        ValueError: a file that would go along holds a secret, is a link to somewhere else, or is no file.
    """
    files, left_out, offenders = [], [], []
    for path, full in _candidates(folder):
        if not travels(path) or secret_name(full.name):
            if reason := _reason(path, full, folder, known):
                left_out.append(LeftOut(path, reason))
        elif reason := what_it_is(full, folder) or secret_in(full):
            offenders.append(f"{path} ({reason})")
        else:
            files.append(path)
    refuse(folder, offenders)
    return SideFiles(tuple(sorted(files)), tuple(sorted(left_out, key=lambda left: left.path)))


def check_read(folder: Path, names: Collection[str]) -> None:
    """The same for what is read and written anew: config.json, weights and their index, and the head of the card.

    Args:
        names: of the files that tensors are read from.

    Raises:
        ValueError: one is a link to somewhere else, whose contents would be published, or holds a secret.
    """
    offenders = []
    for name in (*names, SAFE_INDEX, PICKLE_INDEX, "config.json"):
        if os.path.lexists(folder / name) and (reason := what_it_is(folder / name, folder)):
            offenders.append(f"{name} ({reason})")
    for name in ("config.json", "README.md"):
        if not what_it_is(folder / name, folder):
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
            if reason := secret_in_text(head_of_card(text) if name == "README.md" else text):
                offenders.append(f"{name} ({reason})")
    refuse(folder, offenders)


def refuse(folder: Path, offenders: list[str]) -> None:
    """
    Raises:
        ValueError: there are any.
    """
    if offenders:
        raise ValueError(
            f"{folder} holds files that would go along and must not: {listing(offenders)}. Put the file itself where a "
            "link is, and take secrets out; one that was public once has to be revoked"
        )


def _candidates(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files of the folder, files of those folders in it from which something goes along, and other folders as one."""
    for full in sorted(folder.iterdir()):
        if not full.is_dir():
            yield full.name, full
            continue
        inside = (
            [(f"{full.name}/{path.name}", path) for path in full.iterdir()] if _may_hold(full.name) else []
        )
        if any(travels(path) for path, _ in inside):
            yield from sorted(inside)
        else:
            yield f"{full.name}/", full


def _may_hold(name: str) -> bool:
    """Whether something goes along from a folder of this name."""
    patterns = [pattern.split("/")[0] for pattern in (*_READ, *_LEGAL) if "/" in pattern]
    return any(fnmatchcase(name, pattern) or fnmatchcase(name.lower(), pattern) for pattern in patterns)


def _reason(path: str, full: Path, folder: Path, known: Collection[str]) -> str:
    """Why a file stays; empty where that goes without saying."""
    name = full.name
    if reason := secret_name(name):
        return reason
    if name in known or name in _QUIET or name.startswith("."):
        return ""
    if full.is_symlink() and leads_out(full, folder):
        return "a link that leads out of the folder"
    if is_code(name):
        return "code"
    if full.suffix in WEIGHT_SUFFIXES or name.endswith(".index.json"):
        return "other weights"
    return "a folder" if path.endswith("/") else "nothing reads it with a model"


def _suffix(path: str) -> str:
    """As of `Path`, but a version number is none: `license-2.0`."""
    suffix = Path(path).suffix
    return "" if suffix[1:].isdigit() else suffix
