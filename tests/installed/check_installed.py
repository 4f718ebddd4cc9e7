"""What a user gets from the wheel. Run outside the tree, on an installed Moeba (`make test-wheel`); pytest does not
collect it by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import moeba
from moeba import MoebaConfig, MoebaForCausalLM
from moeba.kernels import composed, cpu
from moeba.kernels.cpu import build

SITE = Path(sysconfig.get_paths()["purelib"])
COMMAND = Path(sysconfig.get_paths()["scripts"]) / "moeba"
STEPS = 10
# Loads a folder of the Hub, says a few tokens, and prints where its class comes from. argv: libraries, folder.
BARE = """
import sys
sys.path.append(sys.argv[1])
try:
    import moeba
    raise SystemExit("moeba can be imported")
except ModuleNotFoundError:
    pass
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True)
ids = AutoTokenizer.from_pretrained(sys.argv[2], trust_remote_code=True)("import os", return_tensors="pt").input_ids
assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, ids.shape[1] + 3)
print(type(model).__module__)
"""


def run(command: list[str | Path], **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def road(tmp_path_factory) -> Path:
    """What `moeba demo --tiny` leaves: native, converted, grown, trained, exported and bundled models."""
    folder = tmp_path_factory.mktemp("road") / "demo"
    entries = json.loads(run([COMMAND, "demo", "--tiny", "--folder", folder, "--json"]))
    assert len(entries) == STEPS
    return folder


def test_it_is_the_installed_package():
    assert Path(moeba.__file__).parent == SITE / "moeba"
    assert not any(Path(entry).joinpath("setup.cfg").exists() for entry in sys.path)


def test_the_kernels_compile_and_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEBA_CACHE", str(tmp_path))
    build.library.cache_clear()
    assert not isinstance(why := build.library(), str), why
    assert list(tmp_path.glob("*.so"))
    ran = []
    for module in (cpu, composed):

        def watched(*given, inner=module.run, name=module.__name__):
            ran.append(name)
            return inner(*given)

        monkeypatch.setattr(module, "run", watched)
    config = MoebaConfig(
        vocab_size=67,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
    )
    model = MoebaForCausalLM(config)
    model(torch.arange(1, 13)[None]).logits.sum().backward()
    assert ran == ["moeba.kernels.cpu"] * 2


def test_the_demo_leaves_what_the_hub_takes(road):
    names = {path.name for path in (road / "10-hub").iterdir()}
    assert {"README.md", "config.json", "modeling_moeba.py", "configuration_moeba.py"} <= names


def test_a_card_is_written_anew(road):
    card = road / "06-moe-trained" / "README.md"
    card.unlink(missing_ok=True)
    run([COMMAND, "card", card.parent])
    assert card.read_text(encoding="utf-8").startswith("---\n")


def test_the_hub_folder_loads_where_moeba_is_not_installed(road, tmp_path):
    """In an interpreter whose only packages are links to those installed here, without Moeba."""
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for path in SITE.iterdir():
        if not path.name.lower().startswith(("moeba", "__editable__")):
            (libraries / path.name).symlink_to(path)
    said = run(
        [sys.executable, "-I", "-S", "-c", BARE, libraries, road / "10-hub"], HF_HOME=str(tmp_path / "home")
    )
    assert said.strip().startswith("transformers_modules.")
