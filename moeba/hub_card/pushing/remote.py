"""The repository on the Hub that a push goes to: opened or created, read, committed to once, or left as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelInfo
from huggingface_hub.errors import HfHubHTTPError

from ...conversion.json_files import listing
from ...library.hub_internals import is_ignored_by_hub
from .hub_errors import is_passing, is_silent, persist, status_of, wait_or_raise
from .time_limits import patience, time_limits


class Remote:
    """One branch of a repository, or a pull request to it.

    Requests that huggingface_hub repeats by itself (those that carry files) are left to it; the others, creating
    and committing, are repeated here.
    """

    def __init__(self, api: HfApi, repo_id: str, branch: str | None = None, pr: bool = False) -> None:
        self.api, self.branch, self.pr = api, branch, pr
        self.repo_id = repo_id if "/" in repo_id else f"{persist(api.whoami)['name']}/{repo_id}"
        self.exists = self.has_branch = False
        self.made_repo = self.made_branch = self.is_committing = False
        self.head: str | None = None  # the newest commit before this push
        self.names: frozenset[str] = frozenset()  # the files there before this push

    def find(self, private: bool | None) -> None:
        """See what is there; change nothing.

        Raises:
            ValueError: a repository that should be private exists and is public.
        """
        info = self._info()
        if info is None:
            if self.pr:
                raise ValueError(
                    f"{self.repo_id} does not exist, or is hidden from you: a pull request needs a repository"
                )
            return
        self.exists = True
        if private and info.private is False:
            raise ValueError(
                f"{self.repo_id} exists and is public: make it private in its settings first, or push to another name"
            )
        if self.branch:
            of_branch = self._info(self.branch)
            self.has_branch, info = of_branch is not None, of_branch or info
        self.head, self.names = info.sha, frozenset(file.rfilename for file in info.siblings or ())

    def make(self, private: bool | None) -> None:
        """Create the repository and the branch where they do not exist."""
        if not self.exists:
            self._create(private)
        if self.branch and not self.has_branch and not self.branch.startswith("refs/"):
            branch = self.branch
            persist(lambda: self.api.create_branch(self.repo_id, branch=branch, exist_ok=True))
            self.made_branch = True
        if self.made_repo:
            self.head = self._head_now()

    def read(self, name: str) -> str | None:
        """The text of a file that was there before this push; None if there was none."""
        if name not in self.names:
            return None
        path = persist(lambda: self.api.hf_hub_download(self.repo_id, name, revision=self.head))
        return Path(path).read_text(encoding="utf-8")

    def commit(self, files: Mapping[str, Path], message: str, description: str | None = None) -> CommitInfo:
        """Send the files, the large ones first, and commit them all at once.

        Files that arrived before, in this push or in one that failed, are not sent again: the Hub is asked which
        it has, by SHA-256. A commit whose answer was lost is not made twice.

        Raises:
            ValueError: a `.gitignore` in the repository names some of the files.
        """
        additions = self._send_large(files)
        tries = 0
        while True:
            try:
                self.is_committing = True
                with time_limits(work=True):
                    return self.api.create_commit(
                        self.repo_id,
                        additions,
                        commit_message=message,
                        commit_description=description,
                        revision=self.branch,
                        create_pr=self.pr,
                    )
            except Exception as error:
                if self.pr and status_of(error) != 429:
                    raise  # if it was made after all, a second one would be opened
                wait_or_raise(error, tries)
                tries += 1
            additions = self._send_large(files, additions)

    def withdraw(self, error: BaseException) -> str:
        """After a failed push, remove what it made for itself, and say in a sentence how things stand.

        An empty repository stays where pushing again may succeed, as it holds the large files that arrived.
        """
        if not (self.is_committing or self.made_repo or self.made_branch):
            return "Nothing was committed."
        head, again = self._head_now(), is_passing(error) or not isinstance(error, Exception)
        unknown = head != self.head or (self.pr and status_of(error) != 429) or is_silent(error)
        if self.is_committing and again and unknown:
            return (
                f"Whether the commit was made is not known: look at {self.api.endpoint}/{self.repo_id} first."
            )
        what = self.repo_id if self.made_repo else f"the branch {self.branch} of {self.repo_id}"
        if head != self.head or not (self.made_repo or self.made_branch):
            return "Nothing was committed."
        if again:
            return f"Nothing was committed; {what} was made for it and stays, to push to again."
        try:
            self._delete()
        except Exception:
            return f"Nothing was committed, but {what}, made for it, could not be deleted again."
        return f"Nothing was committed, and {what}, made for it, is deleted again."

    def _delete(self) -> None:
        """Delete the repository or branch that this push made; nothing was committed to it since."""
        if self.made_repo:
            persist(lambda: self.api.delete_repo(self.repo_id))
        elif branch := self.branch:
            persist(lambda: self.api.delete_branch(self.repo_id, branch=branch))

    def _create(self, private: bool | None) -> None:
        try:
            persist(lambda: self.api.create_repo(self.repo_id, private=private))
            self.made_repo = True
        except HfHubHTTPError as error:
            # Somebody was faster, or the answer to our own first try was lost.
            if status_of(error) != 409 or self._info() is None:
                raise

    def _info(self, revision: str | None = None) -> ModelInfo | None:
        """What the Hub says of the repository; None where it does not exist, or is hidden from this token."""
        try:
            return persist(lambda: self.api.model_info(self.repo_id, revision=revision, timeout=patience()))
        except HfHubHTTPError as error:
            # Without a token, what does not exist and what is hidden are both 401: creating it will tell.
            if status_of(error) == 404 or (status_of(error) == 401 and not (revision or self.pr)):
                return None
            raise

    def _send_large(
        self, files: Mapping[str, Path], known: list[CommitOperationAdd] | None = None
    ) -> list[CommitOperationAdd]:
        """Ask the Hub what it has and wants, and send the large files it lacks; `known` hashes are kept."""
        additions = [CommitOperationAdd(path, file) for path, file in files.items()]
        for addition, before in zip(additions, known or (), strict=bool(known)):
            addition.upload_info = before.upload_info
        with time_limits(work=True):
            self.api.preupload_lfs_files(
                self.repo_id, additions, revision=self.branch, create_pr=self.pr, free_memory=False
            )
        ignored = [a.path_in_repo for a in additions if is_ignored_by_hub(a)]
        if ignored:
            raise ValueError(
                f"the .gitignore in {self.repo_id} would leave out {listing(ignored)}: delete it there, then push again"
            )
        return additions

    def _head_now(self) -> str | None:
        try:
            return self.api.model_info(self.repo_id, revision=self.branch, timeout=patience()).sha
        except Exception:
            return None  # not known
