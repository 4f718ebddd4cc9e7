"""A dataset of the Hub, read over HTTP by the real libraries: at one commit, which is recorded."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

pytest.importorskip("datasets")

COMMIT = "c0ffee" + "0" * 34
FILES = {
    "README.md": b"---\nconfigs:\n- config_name: en\n  data_files:\n  - split: test\n    path: test.jsonl\n---\n",
    "test.jsonl": b'{"text": "the cat sat"}\n{"text": "a dog"}\n{"text": "a log"}\n',
}
READER = """
import json
from moeba.evaluation.datasets import load_rows, texts_of

def read(**arguments):
    try:
        rows = load_rows(**{"dataset": "me/words", "config": "en", **arguments})
        return [list(texts_of(rows, "text")), list(texts_of(rows, "text")), rows.count, rows.source]
    except ValueError as error:
        return str(error)

print(json.dumps({
    "whole": read(),
    "stream": read(streaming=True, revision="main", max_rows=2),
    "split": read(split="train"),
    "config": read(config="fr"),
    "missing": read(dataset="me/nothing"),
}))
"""


class Hub(BaseHTTPRequestHandler):
    """What the Hub answers about one dataset. Files are served at the commit alone, so that no branch is read."""

    def do_GET(self):
        path = self.path.split("?")[0]
        about, files = "/api/datasets/me/words", f"/datasets/me/words/resolve/{COMMIT}/"
        if path.startswith(f"{about}/tree/{COMMIT}"):
            self.answer(
                [{"type": "file", "path": p, "size": len(d), "oid": sha1(d)} for p, d in FILES.items()]
            )
        elif path == about or path in (f"{about}/revision/{at}" for at in (COMMIT, "main")):
            self.answer(
                {"id": "me/words", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
            )
        elif path.startswith(files) and (content := FILES.get(path.removeprefix(files))):
            self.answer(content, **{"X-Repo-Commit": COMMIT, "ETag": f'"{sha1(content)}"'})
        else:
            missing = "EntryNotFound" if "/me/words" in path else "RepoNotFound"
            self.answer({}, 404, **{"X-Error-Code": missing})

    do_HEAD = do_GET

    def answer(self, body, status=200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def sha1(content):
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_whole_and_streamed_at_the_commit_that_is_recorded(hub, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run([sys.executable, "-c", READER], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    source = {"id": "me/words", "config": "en", "split": "test", "revision": COMMIT}
    texts = ["the cat sat", "a dog", "a log"]
    assert found["whole"] == [texts, texts, 3, source]
    assert found["stream"] == [texts[:2], texts[:2], None, source]
    assert "train" in found["split"] and "test" in found["split"]
    assert "fr" in found["config"] and "en" in found["config"]
    assert found["missing"].startswith("me/nothing is no file here and could not be found on the Hub: ")
