"""A Hub on this machine: enough of the real one's HTTP interface for `huggingface_hub` to push and fetch models.

Tokens are checked, private repositories hidden, commits atomic, and anything can be made to fail; see `Fault`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import yaml
from hub_http import JSON, Answer, Handler, Request, as_json
from hub_state import (
    Fault,
    File,
    HubState,
    Refusal,
    Repo,
    apply,
    check_write,
    is_large,
    require_user,
)

SIGNATURE = "signed"  # of the addresses that large files are sent to: these take no token


class LoopbackHub(HubState):
    """Runs while it is a context; `url` is its address."""

    def __enter__(self) -> LoopbackHub:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        bound = {"state": self, "routes": ROUTES, "url": self.url, "lock": threading.Lock()}
        self.server.RequestHandlerClass = type("BoundHandler", (Handler,), bound)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, where: str, status: int | None = None, **settings: Any) -> Fault:
        self.faults.append(Fault(where, status, **settings))
        return self.faults[-1]

    # What each address does. The methods are found by `ROUTES`.

    def whoami(self, request: Request) -> Answer:
        user = require_user(request.user)
        role = "write" if user.writes else "read"
        return as_json(
            {"type": "user", "name": user.name, "orgs": [], "auth": {"accessToken": {"role": role}}}
        )

    def create(self, request: Request) -> Answer:
        user = require_user(request.user)
        repo_id = f"{request.json.get('organization') or user.name}/{request.json['name']}"
        check_write(repo_id, user)
        url = f"{request.url}/{repo_id}"
        if repo_id in self.repos:
            raise Refusal(409, "You already created this model repo", url=url)
        self.repos[repo_id] = Repo(repo_id, private=request.json.get("visibility") == "private")
        return as_json({"url": url, "name": repo_id})

    def delete(self, request: Request) -> Answer:
        repo_id = f"{request.json.get('organization') or request.user.name}/{request.json['name']}"
        self.writable(repo_id, request.user)
        del self.repos[repo_id]
        return as_json({})

    def validate(self, request: Request) -> Answer:
        found = re.match(r"---\r?\n(.*?)\r?\n---", request.json["content"], re.DOTALL)
        errors = []
        try:
            data = yaml.safe_load(found[1]) if found else {}
        except yaml.YAMLError as error:
            data, errors = {}, [str(error)]
        if not isinstance(data, dict):
            errors.append("the metadata is no mapping")
        elif (relation := data.get("base_model_relation", "finetune")) not in (
            "adapter",
            "merge",
            "quantized",
            "finetune",
        ):
            errors.append(f'"base_model_relation" must not be {relation}')
        texts = [{"message": text} for text in errors]
        return as_json({"errors": texts, "warnings": []}, 400 if errors else 200)

    def info(self, request: Request, repo_id: str, revision: str = "main") -> Answer:
        repo = self.readable(repo_id, request.user)
        commit = self.commit_at(repo, revision)
        files = [{"rfilename": path} for path in sorted(commit.files)]
        return as_json(
            {
                "id": repo.id,
                "modelId": repo.id,
                "sha": commit.oid,
                "private": repo.private,
                "siblings": files,
                "tags": [],
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
            }
        )

    def branch(self, request: Request, repo_id: str, name: str) -> Answer:
        repo = self.writable(repo_id, request.user)
        if request.method == "DELETE":
            if name == "main" or name not in repo.branches:
                raise Refusal(403 if name == "main" else 404, f"Branch {name} cannot be deleted")
            del repo.branches[name]
        elif name in repo.branches:
            raise Refusal(409, "Reference already exists")
        else:
            repo.branches[name] = self.commit_at(repo, request.json.get("startingPoint", "main"))
        return as_json({})

    def refs(self, request: Request, repo_id: str) -> Answer:
        tips = self.readable(repo_id, request.user).branches
        branches = [
            {"name": n, "ref": f"refs/heads/{n}", "targetCommit": c.oid}
            for n, c in tips.items()
            if not n.startswith("refs/")
        ]
        return as_json({"branches": branches, "tags": [], "converts": []})

    def tree(self, request: Request, repo_id: str, revision: str, under: str = "") -> Answer:
        commit = self.commit_at(self.readable(repo_id, request.user), revision)
        recursive = request.query.get("recursive") == ["true"]
        paths = [p for p in sorted(commit.files) if p.startswith(under)]
        paths = [p for p in paths if recursive or "/" not in p[len(under) :].strip("/")]
        return as_json([_entry(path, commit.files[path]) for path in paths])

    def paths_info(self, request: Request, repo_id: str, revision: str) -> Answer:
        files = self.commit_at(self.readable(repo_id, request.user), revision).files
        wanted = request.json["paths"] if request.headers["Content-Type"] == JSON else request_form(request)
        return as_json([_entry(path, files[path]) for path in wanted if path in files])

    def preupload(self, request: Request, repo_id: str, revision: str) -> Answer:
        repo = self._for_commit(request, repo_id)
        files = self.commit_at(repo, revision).files
        ignored = request.json.get("gitIgnore")
        if ignored is None and ".gitignore" in files:
            ignored = files[".gitignore"].data.decode()
        patterns = [line.strip() for line in (ignored or "").splitlines() if line.strip()]
        answers = []
        for item in request.json["files"]:
            path, standing = item["path"], files.get(item["path"])
            answers.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if is_large(path, item["size"]) else "regular",
                    "shouldIgnore": any(fnmatch.fnmatch(path.split("/")[-1], p) for p in patterns),
                    **({"oid": standing.oid} if standing else {}),
                }
            )
        return as_json({"files": answers})

    def lfs_batch(self, request: Request, repo_id: str) -> Answer:
        # A reader may open a pull request, and for that send large files.
        require_user(request.user)
        repo = self.readable(repo_id, request.user)
        if "ref" in request.json:
            check_write(repo_id, request.user)
        objects = []
        for item in request.json["objects"]:
            oid, size = item["oid"], item["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in repo.objects:
                put = f"{request.url}/lfs/{repo_id}/{oid}?{SIGNATURE}=1"
                upload: dict[str, Any] = {"href": put}
                if self.part_size and size > self.part_size:
                    parts = range(1, -(-size // self.part_size) + 1)
                    upload["header"] = {"chunk_size": str(self.part_size)}
                    upload["header"] |= {str(part): f"{put}&part={part}" for part in parts}
                verify = {"href": f"{request.url}/lfs-verify/{repo_id}"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        return as_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, request: Request, repo_id: str, oid: str) -> Answer:
        repo = self._signed(request, repo_id)
        if "part" in request.query:
            repo.parts[oid, int(request.query["part"][0])] = request.body
            return Answer(headers={"ETag": hashlib.md5(request.body).hexdigest()})
        return self._store(repo, oid, request.body)

    def lfs_complete(self, request: Request, repo_id: str, oid: str) -> Answer:
        repo = self._signed(request, repo_id)
        numbers = [part["partNumber"] for part in request.json["parts"]]
        return self._store(repo, oid, b"".join(repo.parts.pop((oid, n)) for n in numbers))

    def lfs_verify(self, request: Request, repo_id: str) -> Answer:
        require_user(request.user)
        data = self.repos[repo_id].objects.get(request.json["oid"])
        if data is None or len(data) != request.json["size"]:
            raise Refusal(404, "The object does not exist or has another size")
        return as_json({})

    def commit(self, request: Request, repo_id: str, revision: str) -> Answer:
        repo = self._for_commit(request, repo_id)
        lines = [json.loads(line) for line in request.body.splitlines()]
        header = lines[0]["value"]
        tip = self.commit_at(repo, revision)
        if header.get("parentCommit", tip.oid) != tip.oid:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = apply(repo, tip.files, lines)
        answer = {}
        if request.query.get("create_pr") == ["1"]:
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
            revision = f"refs/pr/{number}"
            repo.branches[revision] = tip
            answer["pullRequestUrl"] = f"{request.url}/{repo_id}/discussions/{number}"
        commit = repo.add(revision, header["summary"], files)
        answer |= {"success": True, "commitOid": commit.oid}
        return as_json({**answer, "commitUrl": f"{request.url}/{repo_id}/commit/{commit.oid}"})

    def resolve(self, request: Request, repo_id: str, revision: str, path: str) -> Answer:
        commit = self.commit_at(self.readable(repo_id, request.user), revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            return Answer(b"", 404, {**headers, "X-Error-Code": "EntryNotFound"})
        file = commit.files[path]
        if not file.is_lfs:
            return _ranged(request, file.data, {**headers, "ETag": f'"{file.blob}"'})
        # Large files lie on another host, as far as the client can tell: it sends no token there.
        host = request.url.replace("127.0.0.1", "localhost")
        place = f"{host}/cdn/{repo_id}/{file.sha256}?{SIGNATURE}=1"
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
        return Answer(b"", 302, {**headers, "Location": place, "ETag": f'"{file.blob}"'})

    def cdn(self, request: Request, repo_id: str, oid: str) -> Answer:
        if request.user is not None:
            raise Refusal(400, "A token has no business here")
        return _ranged(request, self._signed(request, repo_id).objects[oid], {"ETag": f'"{oid}"'})

    def _for_commit(self, request: Request, repo_id: str) -> Repo:
        """A pull request takes the right to read; anything else, to write."""
        require_user(request.user)
        if request.query.get("create_pr") == ["1"]:
            return self.readable(repo_id, request.user)
        return self.writable(repo_id, request.user)

    def _signed(self, request: Request, repo_id: str) -> Repo:
        if SIGNATURE not in request.query:
            raise Refusal(403, "This address needs a signature")
        return self.repos[repo_id]

    def _store(self, repo: Repo, oid: str, data: bytes) -> Answer:
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refusal(400, "The content is not what its name says")
        repo.objects[oid] = data
        return Answer()


REPO, REST = r"([\w.-]+/[\w.-]+)", r"(.+)"
ROUTES: list[tuple[str, Callable[..., Answer]]] = [
    (r"GET /api/whoami-v2", LoopbackHub.whoami),
    (r"POST /api/repos/create", LoopbackHub.create),
    (r"DELETE /api/repos/delete", LoopbackHub.delete),
    (r"POST /api/validate-yaml", LoopbackHub.validate),
    (rf"GET /api/models/{REPO}", LoopbackHub.info),
    (rf"GET /api/models/{REPO}/revision/{REST}", LoopbackHub.info),
    (rf"GET /api/models/{REPO}/refs", LoopbackHub.refs),
    (rf"(?:POST|DELETE) /api/models/{REPO}/branch/{REST}", LoopbackHub.branch),
    (rf"GET /api/models/{REPO}/tree/(refs/pr/\d+|[^/]+)", LoopbackHub.tree),
    (rf"GET /api/models/{REPO}/tree/(refs/pr/\d+|[^/]+)/{REST}", LoopbackHub.tree),
    (rf"POST /api/models/{REPO}/paths-info/{REST}", LoopbackHub.paths_info),
    (rf"POST /api/models/{REPO}/preupload/{REST}", LoopbackHub.preupload),
    (rf"POST /api/models/{REPO}/commit/{REST}", LoopbackHub.commit),
    (rf"POST /{REPO}.git/info/lfs/objects/batch", LoopbackHub.lfs_batch),
    (rf"PUT /lfs/{REPO}/(\w+)", LoopbackHub.lfs_put),
    (rf"POST /lfs/{REPO}/(\w+)", LoopbackHub.lfs_complete),
    (rf"POST /lfs-verify/{REPO}", LoopbackHub.lfs_verify),
    (rf"(?:GET|HEAD) /cdn/{REPO}/(\w+)", LoopbackHub.cdn),
    (rf"(?:GET|HEAD) /{REPO}/resolve/(refs/pr/\d+|[^/]+)/{REST}", LoopbackHub.resolve),
]


def request_form(request: Request) -> list[str]:
    return parse_qs(request.body.decode()).get("paths", [])


def _entry(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(file.data), "oid": file.blob}
    if file.is_lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.data), "pointerSize": len(file.pointer)}
    return entry


def _ranged(request: Request, data: bytes, headers: dict[str, str]) -> Answer:
    headers = {**headers, "Accept-Ranges": "bytes"}
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
    if not found:
        return Answer(data, 200, headers)
    start, end = int(found[1]), min(int(found[2] or len(data) - 1), len(data) - 1)
    if start > end:
        return Answer(b"", 416, headers)
    headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
    return Answer(data[start : end + 1], 206, headers)
