"""On a transformers that is newer than the newest tested one, whoever writes a folder is told so, once."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
from support import tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

import moeba
from moeba.hub_card import push
from moeba.library import window

SAYS = "is newer than the newest that Moeba was tested on (5.0.0): `moeba doctor` checks"


@pytest.fixture
def newer(monkeypatch):
    """The installed transformers is newer than every tested one."""
    monkeypatch.setitem(window.TESTED, "transformers", window.Tested("5.0.0", "5.0.0"))
    logging.Logger.warning_once.cache_clear()
    yield
    logging.Logger.warning_once.cache_clear()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notices") / "llama"
    sizes = dict(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notices") / "sparse"
    tiny_model("moe", mlp_layer_types=["sparse", "sparse"], qk_norm="head").save_pretrained(folder)
    return folder


JOBS = {
    "convert": lambda llama, sparse, to: moeba.convert(llama, to, dry_run=True),
    "export": lambda llama, sparse, to: moeba.export(sparse, to, dry_run=True),
    "upcycle": lambda llama, sparse, to: moeba.upcycle(llama, to, experts=2, top_k=1, dry_run=True),
    "split": lambda llama, sparse, to: moeba.split(llama, to, experts=2, top_k=1, dry_run=True),
    "merge": lambda llama, sparse, to: moeba.merge(
        {"base_model": str(llama), "gate_mode": "random", "experts": [{"source_model": str(llama)}] * 2},
        to,
        dry_run=True,
    ),
    "grow": lambda llama, sparse, to: moeba.grow(sparse, to, times=2, dry_run=True),
    "prune": lambda llama, sparse, to: moeba.prune(sparse, to, calibration=[__file__], keep=4, dry_run=True),
    "densify": lambda llama, sparse, to: moeba.densify(sparse, to, dry_run=True),
    "push": lambda llama, sparse, to: push(sparse, "me/it", dry_run=True),
}


def said(caplog):
    return [record.name for record in caplog.records if SAYS in record.getMessage()]


@pytest.mark.parametrize("job", JOBS)
def test_every_job_says_it(newer, caplog, llama, sparse, tmp_path, job):
    JOBS[job](llama, sparse, tmp_path / "out")
    assert said(caplog) == ["moeba.library.notices"]


def test_it_is_said_before_a_job_fails(newer, caplog, llama, tmp_path):
    config = json.loads((llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "unheard of"}))
    with pytest.raises(ValueError):
        moeba.convert(tmp_path, tmp_path / "out")
    assert said(caplog) == ["moeba.library.notices"]


@pytest.mark.parametrize("job", ["convert", "push"])
def test_nothing_is_said_of_a_tested_release(caplog, monkeypatch, llama, sparse, tmp_path, job):
    monkeypatch.setitem(window.TESTED, "transformers", window.Tested("5.0.0", "99.0.0"))
    JOBS[job](llama, sparse, tmp_path / "out")
    assert said(caplog) == []


# A fresh process whose table ends before the installed release; the rest of the code is given.
OLD_TABLE = (
    "import moeba; from moeba.library import window;"
    "window.TESTED['transformers'] = window.Tested('5.0.0', '5.0.0');"
)


def fresh(code, *words):
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", OLD_TABLE + code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})


def test_the_command_says_it_once_on_stderr(llama, tmp_path):
    code = "from moeba_command import main; main()"
    done = fresh(code, "convert", llama, tmp_path / "out", "--json", "--no-certify")
    assert done.returncode == 0
    notes = [line for line in done.stderr.splitlines() if SAYS in line]
    assert len(notes) == 1 and notes[0].startswith("note: transformers ")
    assert json.loads(done.stdout)["report"]["tensors"] == 21


def test_two_jobs_of_one_process_say_it_once_and_importing_says_nothing(llama, tmp_path):
    code = (
        "import sys; llama = sys.argv[1]; print('imported', file=sys.stderr);"
        "[moeba.convert(llama, 'x', dry_run=True) for _ in range(2)]"
    )
    done = fresh(code, llama)
    assert done.returncode == 0
    before, after = done.stderr.split("imported")
    assert "newer" not in before and after.count(SAYS) == 1
