"""The real `huggingface_hub` in a process of its own, which knows no other Hub than that of the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub_state import User

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
TOKENS = {"hf_writer": User("ada"), "hf_reader": User("ada", writes=False), "hf_other": User("bob")}
PUSH = """
from dataclasses import asdict
from moeba.hub_card import push

pushed = push(folder, repo, **words)
result = {
    "repo_id": pushed.repo_id,
    "is_new": pushed.is_new,
    "files": {file.path: file.size for file in pushed.files},
    "left_out": {left.path: left.reason for left in pushed.left_out},
    "notes": list(pushed.notes),
    "commit": pushed.commit and {"oid": pushed.commit.oid, "pr_url": pushed.commit.pr_url},
}
"""


@dataclass
class Said:
    """What became of a program: `result`, or the error and its text; and how long it would have waited."""

    result: Any = None
    error: dict[str, Any] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.error["text"]


def hub_environment(url: str, home: Path, **further: str) -> dict[str, str]:
    """Of a process that knows this Hub and no other: nothing of the tests' own settings, and an empty cache."""
    private = ("HF_", "HUGGING", "TRANSFORMERS_", "MOEBA_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    hub = {"HF_ENDPOINT": url, "HF_TOKEN": "hf_writer", "HF_HOME": str(home)}
    quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {**kept, **hub, **quiet, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **further}


class Client:
    """The real `huggingface_hub` in a fresh process that lives for all tests, as starting one takes seconds."""

    def __init__(self, url: str, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "client_process.py")],
            env=hub_environment(url, home),
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(home / "stderr.txt").open("w"),
            text=True,
        )

    def run(self, program: str, **values: Any) -> Said:
        print(
            json.dumps({"program": program, "values": values}, default=str),
            file=self.process.stdin,
            flush=True,
        )
        return Said(**json.loads(self.process.stdout.readline()))

    def done(self, program: str, **values: Any) -> Any:
        """The result of a program that must succeed."""
        said = self.run(program, **values)
        assert not said.error, said.error["trace"]
        return said.result

    def push(self, folder: Path, repo: str = "ada/model", **words: Any) -> Any:
        return self.done(PUSH, folder=folder, repo=repo, words=words)

    def refused(self, folder: Path, repo: str = "ada/model", **words: Any) -> Said:
        """What is said of a push that must fail."""
        said = self.run(PUSH, folder=folder, repo=repo, words=words)
        assert said.error, f"it was pushed: {said.result}"
        return said


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
