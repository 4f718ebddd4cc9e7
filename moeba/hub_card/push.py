"""Pushes a model folder to the Hub in one commit: code, card and figures are made anew, then everything is sent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, ModelCard

from ..configuration import MoebaConfig
from ..conversion.checkpoint import Checkpoint
from ..conversion.paths import expanded
from ..conversion.scratch import scratch
from ..conversion.selection import names_foreign_code
from ..conversion.weight_files import WEIGHT_SUFFIXES
from ..library.notices import say_untested
from ..modeling.code_files import code_files
from ..version import __version__
from .bundle import prepare
from .card import CARD_FILE
from .pushing.card_on_hub import adopt_card, validate_card
from .pushing.guard import guard
from .pushing.hub_errors import PushError, explain, persist, status_of
from .pushing.push_files import LeftOut, PushFile, all_files, select_files
from .pushing.remote import Remote

_ADAPTER_FILE = "adapter_config.json"
_COPIED = 10_000_000  # bytes; larger files are linked while the push is made ready


@dataclass(frozen=True)
class PushResult:
    """What was pushed, or would be.

    Attributes:
        files: what the commit consists of; files that the Hub already has unchanged are among them.
        left_out: what stays behind.
        commit: None for a dry run; its `commit_url`, `oid` and `pr_url` say where the model is now.
        is_new: False where nothing had changed, so that no commit was made, and for a dry run.
        notes: what a person should know.
    """

    repo_id: str
    files: tuple[PushFile, ...]
    left_out: tuple[LeftOut, ...]
    commit: CommitInfo | None = None
    is_new: bool = False
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    branch: str | None = None,
    pr: bool = False,
    message: str | None = None,
    description: str | None = None,
    include_training: bool = False,
    dry_run: bool = False,
    tags: Sequence[str] = (),
    token: bool | str | None = None,
) -> PushResult:
    """Upload a model folder to the Hub in one commit, with its code and a renewed card; the folder stays as it is.

    What a person wrote in the card, here or on the Hub, is kept. An interrupted push continues where it stopped
    when it is made again.

    Args:
        repo_id: `user/name`, or `name` alone for the owner of the token; created if it does not exist.
        private: whether a repository that is created is private; default what its owner has set.
        branch: the branch to commit to, created from the main one if it does not exist; default the main one.
        pr: open a pull request instead, which takes no right to write.
        message, description: of the commit: its first line, and what follows.
        include_training: also the checkpoints and optimiser states of a Trainer.
        dry_run: say what would be pushed, and reach for no network.
        tags: to add to the card.
        token: default the one that is logged in, or HF_TOKEN.

    Raises:
        ValueError: the folder is no complete model or holds secrets, or the words contradict each other.
        PushError: the Hub or the network refused; nothing was committed, or the message says otherwise.
    """
    say_untested()
    folder = expanded(folder)
    if pr and branch:
        raise ValueError(
            f"pr and branch={branch!r}: a pull request is opened on the main branch; leave one out"
        )
    is_moeba = _check_complete(folder)
    files, left_out = select_files(folder, include_training, code_files() if is_moeba else ())
    with _staged(folder, files) as stage:
        left_out += guard(stage)
        if dry_run:
            prepare(stage)
            return PushResult(repo_id, all_files(stage), left_out)
        api = HfApi(token=token, library_name="moeba", library_version=__version__)
        remote = None
        try:
            remote = Remote(api, repo_id, branch, pr)
            remote.find(private)
            notes = adopt_card(stage / CARD_FILE, remote.read(CARD_FILE))
            prepare(stage)
            _add_tags(stage / CARD_FILE, tags)
            files = all_files(stage)
            persist(lambda: validate_card(stage / CARD_FILE, api))  # before anything is made or sent
            remote.make(private)
            message = message or f"Upload model with moeba {__version__}"
            commit = remote.commit({file.path: stage / file.path for file in files}, message, description)
        except BaseException as error:
            outcome = remote.withdraw(error) if remote else "Nothing was committed."
            reason = explain(error, repo_id, api)
            if isinstance(error, ValueError) and reason is None:
                raise ValueError(f"{error}. {outcome}") from error
            if reason is None:
                raise
            raise PushError(f"{reason} {outcome}", status_of(error)) from error
    return PushResult(remote.repo_id, files, left_out, commit, commit.oid != remote.head, notes)


def _check_complete(folder: Path) -> bool:
    """Refuse a folder that no model could be loaded from; whether it is Moeba's."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if (folder / _ADAPTER_FILE).is_file():
        return False
    checkpoint = Checkpoint(folder)  # refuses missing shards and damaged files
    is_moeba = checkpoint.config.get("model_type") == MoebaConfig.model_type
    if not is_moeba and names_foreign_code(checkpoint.config):
        raise ValueError(
            f"{folder}/config.json names code (auto_map) that its readers would have to trust, and code of others is "
            "not pushed: take the entry out if transformers knows the model, or else upload it with `hf upload`"
        )
    return is_moeba


@contextmanager
def _staged(folder: Path, files: Sequence[PushFile]) -> Iterator[Path]:
    """A folder that shows `files` and can be written to: weights and large files are links, others copies."""
    with scratch("push") as stage:
        for file in files:
            source, target = (folder / file.path).resolve(), stage / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix in WEIGHT_SUFFIXES or file.size > _COPIED:
                _link(source, target)
            else:
                shutil.copyfile(source, target)
        yield stage


def _link(source: Path, target: Path) -> None:
    try:
        os.symlink(source, target)
    except OSError:  # Windows allows it to some users only
        shutil.copyfile(source, target)


def _add_tags(path: Path, tags: Sequence[str]) -> None:
    """As words of a person: they stay when the card is written again."""
    if tags:
        card = ModelCard.load(path)
        card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags]))
        card.save(path)
