"""What a demo has done so far, so that a second run takes it over and a killed one goes on.

A step appears in `steps.json` only after its folder is complete. It is taken over when its key is the same: a
hash of its name, the settings, the program, and the keys of the steps it reads from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = "steps.json"
VERSION = 1
_UNFINISHED = ".*.unfinished"


@dataclass(frozen=True)
class Entry:
    """One finished step.

    Attributes:
        title: what it does, in a few words.
        figures: what it measured, for the table and for whoever reads the file.
        proof: the same in one line for people.
    """

    name: str
    title: str
    key: str
    seconds: float
    proof: str
    figures: dict[str, Any]


class Journal:
    """The finished steps of one demo folder.

    Raises:
        ValueError: the folder holds something that no demo wrote, or its journal is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file: choose another folder for the demo")
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / FILE).exists():
            self._read()
        elif any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and no demo wrote it: choose another folder")
        else:
            self._write()

    @classmethod
    @contextmanager
    def opened(cls, folder: Path) -> Iterator[Journal]:
        """Hold the folder for this run alone, without what a killed one left unfinished.

        Raises:
            ValueError: see the class; or another run is at work.
        """
        # Here, as `moeba --help` reads this file and loads no library.
        from ..conversion.destination import locked, remove
        from ..conversion.replaceable import LOCK

        cls(folder)  # before a lock is put into somebody else's folder
        with locked(folder):
            for left in folder.glob(_UNFINISHED):
                remove(left)
            try:
                yield cls(folder)
            finally:
                (folder / LOCK).unlink(missing_ok=True)

    def find(self, name: str, key: str) -> Entry | None:
        """The entry of a step that was done with the same key and whose folder is still there."""
        entry = self.entries.get(name)
        if entry is None or entry.key != key or not (self.folder / name).is_dir():
            return None
        return entry

    def record(self, entry: Entry) -> None:
        """Remember a step whose folder is complete."""
        self.entries[entry.name] = entry
        self._write()

    def forget(self, name: str) -> None:
        """Remove what an earlier run left of a step: its entry first, then its folders."""
        if self.entries.pop(name, None) is not None:
            self._write()
        for path in (self.folder / name, *self.folder.glob(f".{name}.*")):
            if path.is_dir():
                shutil.rmtree(path)

    def _read(self) -> None:
        path = self.folder / FILE
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            known = record["version"] == VERSION
            entries = [Entry(**entry) for entry in record["steps"]] if known else []
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete {self.folder} to start again") from error
        self.entries = {entry.name: entry for entry in entries}

    def _write(self) -> None:
        record = {"version": VERSION, "steps": [asdict(entry) for entry in self.entries.values()]}
        unfinished = self.folder / f".{FILE}.tmp"
        unfinished.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, self.folder / FILE)


def key_of(name: str, settings: dict[str, Any], inputs: Sequence[str], versions: dict[str, str]) -> str:
    """Stands for everything that decides what a step writes."""
    text = json.dumps([name, settings, list(inputs), versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def complete_or_absent(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes its name only when the block ends well; else it is gone."""
    unfinished = folder.with_name(_UNFINISHED.replace("*", folder.name))
    unfinished.mkdir()
    try:
        yield unfinished
        os.rename(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
