"""The hidden folder in which an output is made: continued after a kill, of no use to anyone else, published at once.

- Finished weight files lie in it under their names; `.progress.json` says which they are, and of what they are made.
- What is added at the end, config.json among it, goes into a folder inside, where the weights are links. They lead
  through this process's open files and end with it: whatever a kill leaves lacks its config or its weights, and no
  library loads it as a model that was never proven. Where there is no /proc (macOS, Windows), the links are plain ones:
  killed while it is proven, a run leaves `.NAME.partial/unproven`, which would load, and which the next one clears.
- When all is proven, the files move up, config.json last, and the folder is renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from .destination import check_free, locked, move_into_place, partial_folder, recover, refuse_link, remove
from .inputs import Inputs
from .json_files import listing, read_json
from .replaceable import LOCK, PROGRESS, strangers

_VERSION = 2  # of the progress file
_STAGE, _LAST = "unproven", ".config.json"
_LEFT = ("*.tmp", f"{_STAGE}/*", f"{_STAGE}/*/*", _LAST)  # by a killed run, beside what a checkpoint holds
_FIELDS = {"version": int, "digest": str, "layout": dict, "inputs": list, "finished": dict}


class Workplace:
    """
    Args:
        destination: resolved; the folder to appear.
        inputs: the files that are read.
        origins: the folders that they lie in.
        overwrite: replace a checkpoint at the destination, and discard the unfinished output of another run.
        disposable: what is left of this run may be discarded by any other one; if it fails, nothing is left.
    """

    def __init__(
        self,
        destination: Path,
        inputs: Inputs,
        origins: list[Path],
        overwrite: bool = False,
        disposable: bool = False,
    ) -> None:
        self.destination, self.inputs, self.origins = destination, inputs, origins
        self.overwrite, self.disposable = overwrite, disposable
        self.folder = partial_folder(destination)
        self.finished: dict[str, str] = {}  # SHA-256 of the finished files by name
        self._state: dict[str, Any] = {}

    @contextmanager
    def opened(self, digest: str, layout: Mapping[str, str]) -> Iterator[None]:
        """Hold the folder for this run alone, with what an earlier run of the same work has finished in it.

        Args:
            digest: stands for the work; an unfinished run is continued only under the same one.
            layout: what each file is to be, in any words, by name.

        Raises:
            ValueError: the destination is taken, another run is at work, or what is there is another run's.
        """
        check_free(self.destination, self.overwrite, self.origins)
        self.destination.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            recover(self.destination)
            check_free(self.destination, self.overwrite, self.origins)
            fresh = {"version": _VERSION, "digest": digest, "layout": dict(layout)}
            self.finished = self._left_over(fresh)
            self._state = {**fresh, "disposable": self.disposable, "finished": self.finished}
            self._clear()
            self._save()
            try:
                yield
            except BaseException:
                if self.disposable and self.folder.exists():
                    remove(self.folder)
                raise

    def keep(self, name: str, sha256: str) -> None:
        """A file is finished and on the disk: a later run need not write it again."""
        self.finished[name] = sha256
        self._save()

    def publish(self, finish: Callable[[Path], None]) -> None:
        """Have `finish` add everything else, and make the folder the destination.

        If that fails, only finished files stay here.

        Args:
            finish: called with a folder that shows the finished files, and what it writes there itself.

        Raises:
            ValueError: a file changed while it was read, or the destination has appeared meanwhile.
        """
        self._save()
        try:
            with self._staged() as stage:
                finish(stage)
                if changed := self.inputs.changed():
                    raise ValueError(
                        f"{listing(list(map(str, changed)))} changed while it was read: run again"
                    )
                check_free(
                    self.destination, self.overwrite, self.origins
                )  # it may have appeared in the hours since
                self._move_up(stage)
            move_into_place(self.folder, self.folder / _LAST, self.destination)
        except BaseException:
            if self.folder.exists():
                self._clear()
                self._save()
            raise

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        stage = self.folder / _STAGE
        stage.mkdir()
        with _reached_by_this_process(self.folder) as way:
            for name in self.finished:
                _show(self.folder / name, stage / name, way)
            yield stage
        stage.rmdir()

    def _move_up(self, stage: Path) -> None:
        for path in stage.iterdir():
            if path.name in self.finished:
                path.unlink()
            elif path.name != "config.json":
                os.rename(path, self.folder / path.name)
        os.rename(stage / "config.json", self.folder / _LAST)

    def _left_over(self, fresh: dict[str, Any]) -> dict[str, str]:
        """The files that an earlier run of the same work has finished."""
        if not any(path.name != LOCK and path.suffix != ".tmp" for path in self.folder.iterdir()):
            return {}
        remedy = f"delete {self.folder}, or overwrite it (--overwrite; in Python, overwrite=True)"
        if not (self.folder / PROGRESS).is_file():
            raise ValueError(
                f"{self.folder} is in the way and has no {PROGRESS} to continue from: move it away, or delete it"
            )
        refuse_link(self.folder / PROGRESS)
        try:
            return self._continued(fresh)
        except ValueError as error:
            if not (self.overwrite or self._is_disposable()):
                raise ValueError(f"{self.folder} {error}; {remedy}") from error
        if found := list(islice(strangers(self.folder, more=_LEFT), 1000)):
            raise ValueError(f"{self.folder} holds files of somebody else: {listing(found)}; move them away")
        return {}

    def _continued(self, fresh: dict[str, Any]) -> dict[str, str]:
        try:
            state = read_json(self.folder / PROGRESS)
        except ValueError as error:
            raise ValueError(f"cannot be continued, as its {PROGRESS} is damaged") from error
        if state.get("version") != _VERSION:
            raise ValueError("was left by another version of Moeba")
        if not all(isinstance(state.get(name), kind) for name, kind in _FIELDS.items()):
            raise ValueError(f"cannot be continued, as its {PROGRESS} is damaged")
        other = "is the unfinished output of another run: its source or its recipe differs"
        if state["digest"] != fresh["digest"]:
            raise ValueError(other)
        if state["layout"] != fresh["layout"]:
            raise ValueError(
                "is the unfinished output of a run with other shards: their size or metadata differs"
            )
        try:
            changed = self.inputs.changed_since(state["inputs"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"cannot be continued, as its {PROGRESS} is damaged") from error
        if state["finished"] and changed:
            raise ValueError(f"{other} ({listing(list(map(str, changed)))} was replaced since)")
        return {name: sha256 for name, sha256 in state["finished"].items() if name in fresh["layout"]}

    def _is_disposable(self) -> bool:
        try:
            return read_json(self.folder / PROGRESS).get("disposable") is True
        except ValueError:
            return False

    def _save(self) -> None:
        self._state["inputs"] = self.inputs.record()  # more of them may be hashed by now
        unfinished = self.folder / f"{PROGRESS}.tmp"
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(self._state, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, self.folder / PROGRESS)

    def _clear(self) -> None:
        """Remove all but the finished files: nothing else is continued."""
        keep = {LOCK, PROGRESS, *self.finished}
        for path in self.folder.iterdir():
            if path.name not in keep or (path.is_symlink() and path.name != LOCK):
                remove(path)


@contextmanager
def _reached_by_this_process(folder: Path) -> Iterator[Path]:
    """A path to `folder`, for links inside of it, that leads nowhere once this process has ended (on Linux)."""
    descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else None
    way = Path("/proc", str(os.getpid()), "fd", str(descriptor))
    try:
        yield way if descriptor is not None and _leads_to(way, folder) else Path("..")
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _leads_to(way: Path, folder: Path) -> bool:
    try:
        return way.samefile(folder)
    except OSError:
        return False


def _show(source: Path, target: Path, way: Path) -> None:
    try:
        os.symlink(way / source.name, target)
    except OSError:  # Windows allows it to some users only
        os.link(source, target)
