"""The arguments that a Trainer saved, read without running anything of its pickle.

`training_args.bin` is a pickled object of transformers. Unpickled the usual way it may run any code, so here every
class and function that it names becomes an inert record of its name and arguments: what is plain data comes out, and
nothing else happens.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

from .records import as_dict, read_record

FILE, PLAIN_FILE = "training_args.bin", "training_args.json"
_LARGEST = 1 << 20  # bytes; a real one has a few thousand


class _Inert:
    """Stands for whatever a pickle wants to make."""

    arguments: tuple[Any, ...] = ()

    def __new__(cls, *arguments: Any, **_: Any) -> _Inert:
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        """Takes anything."""


class _Reader(pickle.Unpickler):
    """Finds no class and no function, only inert ones."""

    def find_class(self, module: str, name: str) -> Any:
        return type(name, (_Inert,), {})

    def persistent_load(self, pid: Any) -> Any:
        return None


def read_training_arguments(folder: Path) -> dict[str, Any]:
    """Arguments by name: of `training_args.json`, else of `training_args.bin`; empty where neither can be read."""
    return read_record(folder, PLAIN_FILE) or read_pickled_arguments(folder / FILE)


def holds_token(path: Path) -> bool:
    """Whether a saved `TrainingArguments` has a token of the Hub in it, in whatever form."""
    values = read_pickled_arguments(path)
    return any(values.get(name) for name in ("hub_token", "push_to_hub_token"))


def read_pickled_arguments(path: Path) -> dict[str, Any]:
    """Of a `training_args.bin`; empty where it cannot be read."""
    text = _pickle_text(path)
    if text is None:
        return {}
    try:
        found = _Reader(io.BytesIO(text)).load()
    except Exception:  # a damaged or unusual pickle raises nearly anything: its facts are absent
        return {}
    values = as_dict(getattr(found, "__dict__", None))
    return {key: _plain(value) for key, value in values.items() if isinstance(key, str)}


def _pickle_text(path: Path) -> bytes | None:
    """The pickle inside the archive that torch writes."""
    if not path.is_file() or path.stat().st_size > _LARGEST:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
            if len(names) != 1 or names[0].file_size > _LARGEST:
                return None
            return archive.read(names[0])
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError):
        return None


def _plain(value: Any) -> Any:
    """An enumeration's member is pickled as its class called with its value."""
    if isinstance(value, _Inert):
        return _plain(value.arguments[0]) if len(value.arguments) == 1 else None
    return value if isinstance(value, str | int | float | bool) else None
