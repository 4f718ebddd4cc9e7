"""What a loopback Hub holds: users, repositories with branches of commits, and objects of large files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".png", ".gguf")
LFS_SIZE = 10_000_000  # bytes from which any file is a large one


@dataclass(frozen=True)
class User:
    name: str
    writes: bool = True


@dataclass(frozen=True)
class File:
    data: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def blob(self) -> str:
        """What git would call it: for a large file, its pointer."""
        data = self.pointer if self.is_lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def oid(self) -> str:
        """What the client compares to see whether a file changed."""
        return self.sha256 if self.is_lfs else self.blob

    @property
    def pointer(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        ).encode()


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, File]
    parent: Commit | None = None

    def history(self) -> list[Commit]:
        """Newest first."""
        return [self, *(self.parent.history() if self.parent else [])]


@dataclass
class Repo:
    id: str
    private: bool
    branches: dict[str, Commit] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)  # of unfinished multipart uploads

    def __post_init__(self) -> None:
        first = File(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", is_lfs=False)
        self.add("main", "initial commit", {".gitattributes": first})

    @property
    def files(self) -> dict[str, File]:
        return self.branches["main"].files

    @property
    def commits(self) -> list[Commit]:
        """Of the main branch, newest first, without the one every repository begins with."""
        return self.branches["main"].history()[:-1]

    def at(self, revision: str) -> Commit | None:
        by_oid = {c.oid: c for tip in self.branches.values() for c in tip.history()}
        return self.branches.get(revision) or by_oid.get(revision)

    def add(self, branch: str, title: str, files: dict[str, File]) -> Commit:
        parent = self.branches.get(branch)
        text = repr(
            (self.id, branch, title, parent and parent.oid, sorted((p, f.oid) for p, f in files.items()))
        )
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), title, files, parent)
        self.branches[branch] = commit
        return commit

    def has_object(self, oid: str) -> bool:
        return oid in self.objects


@dataclass
class Fault:
    """Something that goes wrong with requests whose `METHOD path` matches `where`.

    Attributes:
        skip: how many matching requests pass unharmed first.
        times: how many are harmed then.
        status: answer this, having done nothing.
        drop: "midway" (the connection breaks while the body is read), "after" (the work is done, and the
            connection breaks before the answer), "truncate" (it breaks in the middle of the answer), or
            "silent" (nothing is done and nothing answered; after `seconds` the connection breaks).
    """

    where: str
    status: int | None = None
    drop: str | None = None
    seconds: float = 20.0
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    skip: int = 0
    times: int = 1_000_000
    hits: int = 0

    def strikes(self, request: str) -> bool:
        if not re.search(self.where, request):
            return False
        self.hits += 1
        return self.skip < self.hits <= self.skip + self.times


class Refusal(Exception):
    """An answer that is an error, in the Hub's form."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, {"error": message, **body}


@dataclass
class HubState:
    users: dict[str, User] = field(default_factory=dict)  # by token
    repos: dict[str, Repo] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(
        default_factory=list
    )  # "METHOD path status" of every answer; 0: none was sent
    part_size: int | None = None  # bytes; large files are asked for in parts of this size

    def count(self, pattern: str) -> int:
        """How many requests so far match."""
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    def reset(self) -> None:
        """Forget repositories, faults and requests; users stay."""
        self.repos.clear(), self.faults.clear(), self.requests.clear()
        self.part_size = None

    def readable(self, repo_id: str, user: User | None) -> Repo:
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and not _owns(user, repo_id)):
            # The real one does not tell a stranger which private names exist.
            raise Refusal(401 if user is None else 404, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, repo_id: str, user: User | None) -> Repo:
        require_user(user)
        repo = self.readable(repo_id, user)
        check_write(repo_id, user)
        return repo

    def commit_at(self, repo: Repo, revision: str) -> Commit:
        if commit := repo.at(revision):
            return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def require_user(user: User | None) -> User:
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    return user


def check_write(repo_id: str, user: User | None) -> None:
    if not (_owns(user, repo_id) and user.writes):
        raise Refusal(403, f"You don't have the rights to write to {repo_id.split('/')[0]}")


def is_large(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size >= LFS_SIZE)


def apply(repo: Repo, files: dict[str, File], lines: Iterable[dict[str, Any]]) -> dict[str, File]:
    """The files after a commit; nothing changes if a line of it is refused."""
    import base64

    files = dict(files)
    for line in lines:
        key, value = line["key"], line["value"]
        if key == "file":
            files[value["path"]] = File(base64.b64decode(value["content"]), is_lfs=False)
        elif key == "lfsFile":
            data = repo.objects.get(value["oid"])
            if data is None or len(data) != value.get("size", len(data)):
                raise Refusal(400, f"The LFS object of {value['path']} was never uploaded")
            files[value["path"]] = File(data, is_lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            gone = value["path"].rstrip("/")
            files = {p: f for p, f in files.items() if p != gone and not p.startswith(f"{gone}/")}
        elif key != "header":
            raise Refusal(400, f"Unknown operation {key}")
    return files


def _owns(user: User | None, repo_id: str) -> bool:
    return user is not None and repo_id.split("/")[0] == user.name
