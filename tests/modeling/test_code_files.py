"""A saved folder is a model of its own: it loads where moeba is not installed."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import WITHOUT_MOEBA, random_ids, tiny_config, tiny_model
from transformers import AutoModelForCausalLM

import moeba
from moeba.modeling.code_files import AUTO_MAP, code_files, write_code

PACKAGE = Path(moeba.__file__).parent

# Run in an interpreter of its own, isolated, with the package out of reach; `folder` and `again` are
# argv[1:].
BARE = (
    WITHOUT_MOEBA
    + """
import json
try:
    import moeba
    raise SystemExit("moeba could be imported")
except ModuleNotFoundError:
    pass

import torch, transformers
folder, ids_file, again = sys.argv[1:4]
ids = torch.load(ids_file)
outputs = {}
config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
assert type(config).__name__ == "MoebaConfig", type(config)
for auto_class in json.loads(sys.argv[4]):
    loader = getattr(transformers, auto_class)
    model, info = loader.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    heads = {"score.weight", "score.bias", "qa_outputs.weight", "qa_outputs.bias"}
    assert set(info["missing_keys"]) <= heads and not info["mismatched_keys"], info
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.data = tensor.data.clone()  # out of the mapped file: aligned as the other process's is
        out = model.eval()(ids)
        hidden = out if auto_class == "AutoModel" else model.model(ids)
    outputs[auto_class] = hidden.last_hidden_state
    if auto_class == "AutoModelForCausalLM":
        outputs["logits"] = out.logits
        outputs["generated"] = model.generate(ids, max_new_tokens=3, do_sample=False)
        from_config = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
        assert type(from_config).__name__ == "MoebaForCausalLM"
        model.save_pretrained(again)
torch.save(outputs, ids_file + ".out")
"""
)


def run_bare(folder: Path, ids: torch.Tensor, again: Path, home: Path, auto_classes=tuple(AUTO_MAP)) -> dict:
    home.mkdir(exist_ok=True)
    torch.save(ids, home / "ids.pt")
    wanted = json.dumps([name for name in auto_classes if name != "AutoConfig"])
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON", "TRANSFORMERS"))}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-I", "-c", BARE, str(folder), str(home / "ids.pt"), str(again), wanted],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(home / "ids.pt.out")


def check_bare(model, folder: Path, tmp_path: Path, name: str) -> None:
    ids = random_ids()
    outputs = run_bare(folder, ids, tmp_path / f"{name}_again", tmp_path / f"{name}_home")
    model.set_experts_implementation("grouped_mm")  # what runs where moeba's kernels are not installed
    with torch.no_grad():
        assert torch.equal(outputs["logits"], model(ids).logits)
        hidden = model.model(ids).last_hidden_state
    for auto_class in set(AUTO_MAP) - {"AutoConfig"}:
        assert torch.equal(outputs[auto_class], hidden), auto_class
    assert torch.equal(outputs["generated"], model.generate(ids, max_new_tokens=3, do_sample=False))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["shared_sigmoid", "learned_mlp"])  # sparse, and tied
def test_loads_and_saves_without_the_package(variant, tmp_path):
    """Every head, from a sharded folder; then again from the folder which that process saved."""
    model = tiny_model(variant)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    check_bare(model, tmp_path / "model", tmp_path, "first")
    again = tmp_path / "first_again"
    for name in code_files():
        assert (again / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    assert json.loads((again / "config.json").read_text())["auto_map"] == AUTO_MAP
    check_bare(model, again, tmp_path, "second")


@pytest.mark.slow
def test_uneven_experts_load_without_the_package(tmp_path):
    fields = dict(
        per_layer_config={1: {"num_experts": 5, "moe_intermediate_size": 16}}, num_experts_per_tok=2
    )
    model = tiny_model("moe", mlp_layer_types=["sparse", "sparse"], **fields)
    model.save_pretrained(tmp_path / "model")
    ids = random_ids()
    outputs = run_bare(
        tmp_path / "model", ids, tmp_path / "again", tmp_path / "home", ["AutoModelForCausalLM", "AutoModel"]
    )
    model.set_experts_implementation("grouped_mm")  # what runs where moeba's kernels are not installed
    with torch.no_grad():
        assert torch.equal(outputs["logits"], model(ids).logits)


def test_the_installed_class_wins(tmp_path):
    model = tiny_model("moe")
    model.save_pretrained(tmp_path)
    for trust in (True, False):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=trust)
        assert type(loaded) is type(model)
        assert type(loaded.config) is type(model.config)


def test_a_saved_folder_holds_the_code_and_every_head(tmp_path):
    tiny_model("moe").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    for reference in AUTO_MAP.values():
        module, name = reference.split(".")
        tree = ast.parse((tmp_path / f"{module}.py").read_text())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert {path.name for path in tmp_path.glob("*.py")} == set(code_files())


def test_only_the_main_process_writes_code(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.glob("*.py"))


def test_all_of_the_model_travels_and_nothing_else():
    written = {
        path.name
        for folder in ("configuration", "modeling")
        for path in (PACKAGE / folder).glob("*.py")
        if path.name != "__init__.py"
    } | {"contract.py", "peft_tables.py", "upstream.py", "window.py"}
    assert set(code_files()) == written
    assert code_files() == code_files()


def test_the_config_imports_by_itself_all_that_it_needs():
    """transformers 4 fetches no more than that, and has to get as far as the sentence that it is too old."""
    files = code_files()

    def siblings(name: str) -> set[str]:
        return {
            f"{found}.py" for found in re.findall(r"^from \.(\w+) import ", files[name], flags=re.MULTILINE)
        }

    direct = siblings("configuration_moeba.py")
    assert {"window.py", "upstream.py"} <= direct
    assert set().union(*(siblings(name) for name in direct)) <= direct


OF_ONE_NAME = (
    WITHOUT_MOEBA
    + """
import torch
from transformers import AutoConfig, AutoModelForCausalLM
outputs = []
for folder in [*sys.argv[1:], sys.argv[1]]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(AutoConfig.from_pretrained(folder, trust_remote_code=True)) is type(model.config)
    with torch.no_grad():
        outputs.append(model(torch.arange(1, 6)[None]).logits)
plain, doubled, other_norms, again = outputs
assert torch.equal(doubled, 2 * plain), "the second folder ran the first one's code"
assert not torch.allclose(other_norms, plain), "the third folder ran the first one's code"
assert torch.equal(again, plain)
"""
)
EDITS = {
    "modeling_moeba.py": ("        return logits\n", "        return 2 * logits\n"),
    "norms.py": ("return self.weight * self.normalize(", "return -self.weight * self.normalize("),
}


def test_folders_of_one_name_run_each_its_own_code(tmp_path):
    """transformers keeps classes by the folder's last name and a hash of the config's file and of what that names."""
    model = tiny_model("moe", num_hidden_layers=2)
    folders = [tmp_path / place / "model" for place in ("plain", *EDITS)]
    for folder, edited in zip(folders, (None, *EDITS), strict=True):
        model.save_pretrained(folder)
        if edited:
            text = (folder / edited).read_text()
            assert text.count(EDITS[edited][0]) == 1
            (folder / edited).write_text(text.replace(*EDITS[edited]))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON", "TRANSFORMERS"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", OF_ONE_NAME, *map(str, folders)]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.parametrize("version", ["4.57.6", "5.22.2", "6.0.0"])
def test_a_folder_says_which_transformers_it_needs(version, tmp_path):
    tiny_model("moe").save_pretrained(tmp_path / "model")
    code = f"""{WITHOUT_MOEBA}
import importlib.metadata
from transformers import AutoModelForCausalLM
real = importlib.metadata.version
importlib.metadata.version = lambda name: "{version}" if name == "transformers" else real(name)
AutoModelForCausalLM.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-I", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        done.stderr.strip().splitlines()[-1].startswith("ImportError: Moeba needs transformers>=5.23.0,<6, ")
    )


def test_travelling_code_is_flat_and_stands_alone():
    files = code_files()
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and f"{node.module}.py" in files, f"{name}: {ast.unparse(node)}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert "moeba." not in ast.unparse(node).replace("_moeba", ""), f"{name}: {ast.unparse(node)}"


def test_a_flat_folder_writes_itself_again(tmp_path):
    """What remote code does on saving: from its own folder, which may hold files that are not the model's."""
    flat, target = tmp_path / "flat", tmp_path / "target"
    flat.mkdir(), target.mkdir()
    write_code(flat)
    (flat / "handler.py").write_text("raise RuntimeError('not part of the model')\n")
    (tmp_path / "configuration").mkdir()
    (tmp_path / "configuration" / "model_facts.py").write_text("not the model's either")
    script = f"import sys; sys.path.insert(0, {str(flat)!r}); from code_files import write_code; "
    script += f"write_code({str(target)!r})"
    subprocess.run([sys.executable, "-I", "-c", script], check=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        name: text.encode() for name, text in code_files().items()
    }


def test_config_alone_takes_the_installed_class(tmp_path):
    tiny_config("moe").save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
