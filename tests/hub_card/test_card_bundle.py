"""A bundle holds everything the Hub needs, appears all at once, and loads where Moeba is not installed."""

import errno
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from card_folders import certificate, provenance, save_model, save_tokenizer, surgery, write_json
from transformers import AutoTokenizer, TrainingArguments

from moeba import MoebaForCausalLM
from moeba.conversion import copying
from moeba.conversion.selection import names_only
from moeba.hub_card import bundle, prepare
from moeba.modeling.code_files import AUTO_MAP, code_files

SAME_FILES = (
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "parity.json",
    "moeba_provenance.json",
    "generation_config.json",
    "figures/index.html",
    "training_args.bin",
)
WITHOUT_MOEBA = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "moeba":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
torch.save(model(**tokenizer("one two three", return_tensors="pt")).logits, sys.argv[2])
"""


def test_a_bundle_is_complete(upcycled, tmp_path):
    save_tokenizer(upcycled)
    # As operations write them: without paths.
    write_json(upcycled, "parity.json", names_only(certificate(upcycled)))
    write_json(upcycled, "moeba_provenance.json", names_only(provenance()))
    (upcycled / "figures").mkdir()
    (upcycled / "figures" / "index.html").write_text("<html>")
    (upcycled / "checkpoint-5").mkdir()
    (upcycled / "checkpoint-5" / "optimizer.pt").write_bytes(b"x")
    (upcycled / "optimizer.pt").write_bytes(b"x")
    torch.save(TrainingArguments("out", report_to="none"), upcycled / "training_args.bin")
    (upcycled / "norms.py").unlink()
    config = json.loads((upcycled / "config.json").read_text())
    write_json(upcycled, "config.json", {k: v for k, v in config.items() if k != "auto_map"})

    made = bundle(upcycled, tmp_path / "deep" / "hub")
    assert made == tmp_path / "deep" / "hub"
    new = json.loads((made / "config.json").read_text())
    assert new.pop("auto_map") == AUTO_MAP
    assert new == {k: v for k, v in config.items() if k != "auto_map"}
    for name, text in code_files().items():
        assert (made / name).read_text(encoding="utf-8") == text
    for name in SAME_FILES:
        assert (made / name).read_bytes() == (upcycled / name).read_bytes(), name
    assert not (made / "model.safetensors").samefile(upcycled / "model.safetensors")
    assert not (made / "optimizer.pt").exists() and not (made / "checkpoint-5").exists()
    assert "**verified**" in (made / "README.md").read_text(encoding="utf-8")
    assert not list(made.glob(".*")) and os.listdir(made.parent) == ["hub"]
    assert not (upcycled / "README.md").exists()


@pytest.mark.parametrize("hardlink", [False, True])
def test_saving_into_a_bundle_leaves_the_source_alone(dense, tmp_path, hardlink):
    before = (dense / "model.safetensors").read_bytes()
    made = bundle(dense, tmp_path / "hub", hardlink=hardlink)
    model = MoebaForCausalLM.from_pretrained(made)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(made)
    assert (dense / "model.safetensors").read_bytes() == before != (made / "model.safetensors").read_bytes()


def test_writing_into_a_bundle_leaves_the_source_alone(dense, tmp_path):
    before = (dense / "model.safetensors").read_bytes()
    made = bundle(dense, tmp_path / "hub") / "model.safetensors"
    with made.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert (dense / "model.safetensors").read_bytes() == before != made.read_bytes()


@pytest.mark.parametrize("hardlink", [False, True])
def test_sharded_and_linked_weights(dense, tmp_path, hardlink):
    MoebaForCausalLM.from_pretrained(dense).save_pretrained(dense, max_shard_size="20kB")
    (dense / "model.safetensors").unlink(missing_ok=True)
    repository = tmp_path / "models--user--name"  # as in the cache of the Hub
    (repository / "snapshots").mkdir(parents=True)
    dense = dense.rename(repository / "snapshots" / "abc")
    shard = next(iter(sorted(dense.glob("model-*.safetensors"))))
    blob = shard.rename(repository / "blob")
    shard.symlink_to(blob)
    made = bundle(dense, tmp_path / "hub", hardlink=hardlink)
    assert (made / "model.safetensors.index.json").is_file()
    assert (made / shard.name).samefile(blob) == hardlink and not (made / shard.name).is_symlink()
    assert (made / shard.name).read_bytes() == blob.read_bytes()
    MoebaForCausalLM.from_pretrained(made)


def test_links_that_are_impossible_are_refused(dense, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EXDEV, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ValueError, match="cannot be linked into .* leave out --hardlink"):
        bundle(dense, tmp_path / "hub", hardlink=True)
    assert sorted(os.listdir(tmp_path)) == ["dense"]


@pytest.mark.parametrize("shared", [False, True])
def test_space_is_shared_where_the_file_system_can(dense, tmp_path, monkeypatch, shared):
    """The copy is the same, and its hash is that of its bytes, however it came about."""

    def ioctl(target, request, source):
        if not shared:
            raise OSError(errno.EOPNOTSUPP, "no such thing")
        os.pwrite(target, os.pread(source, 1 << 30, 0), 0)
        calls.append(request)

    calls: list[int] = []
    monkeypatch.setattr(copying, "fcntl", SimpleNamespace(ioctl=ioctl))
    made = bundle(dense, tmp_path / "hub")
    assert (made / "model.safetensors").read_bytes() == (dense / "model.safetensors").read_bytes()
    assert calls == ([0x40049409] if shared else [])


def test_two_at_once(dense, tmp_path, monkeypatch):
    """The second is told so, and the first is none the worse; with `overwrite` as well."""
    module = sys.modules[bundle.__module__]
    ours = module.write_card
    said = []

    def second(folder):
        with pytest.raises(ValueError) as caught:
            bundle(dense, tmp_path / "hub", overwrite=True)
        said.append(str(caught.value))
        return ours(folder)

    for _ in range(2):
        monkeypatch.setattr(module, "write_card", second)
        bundle(dense, tmp_path / "hub", overwrite=True)
    assert len(said) == 2 and all("another run is writing into" in text for text in said)
    assert sorted(os.listdir(tmp_path)) == ["dense", "hub"]


def test_a_source_that_changes_meanwhile_is_not_bundled(dense, tmp_path, monkeypatch):
    """Although its size and its time of modification are as they were."""
    module = sys.modules[bundle.__module__]
    ours, weights = module.write_card, dense / "model.safetensors"

    def change(folder):
        status = weights.stat()
        with weights.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x01")
        os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
        return ours(folder)

    monkeypatch.setattr(module, "write_card", change)
    with pytest.raises(ValueError, match="model.safetensors changed while it was read"):
        bundle(dense, tmp_path / "hub")
    assert sorted(os.listdir(tmp_path)) == ["dense"]


def test_a_persons_card_goes_along(dense, tmp_path):
    (dense / "README.md").write_text("---\nlanguage: de\n---\n# Mine\n", encoding="utf-8")
    text = (bundle(dense, tmp_path / "hub") / "README.md").read_text(encoding="utf-8")
    assert "language: de" in text and text.endswith("# Mine\n")
    assert (dense / "README.md").read_text(encoding="utf-8") == "---\nlanguage: de\n---\n# Mine\n"


TOKEN = "hf_" + "abcdefghijklmnopqrSTUVWXYZ01234567"


def test_nothing_private_or_foreign_goes_along(dense, tmp_path, caplog):
    config = json.loads((dense / "config.json").read_text())
    foreign = {
        **config["auto_map"],
        "AutoModelForMaskedLM": "evil.Evil",
        "AutoTokenizer": ["x/y--evil.Evil", None],
    }
    foreign = {"auto_map": foreign, "custom_pipelines": {"x": {"impl": "evil.Pipe"}}}
    write_json(dense, "config.json", {**config, **foreign})
    tokenizer = json.loads((dense / "tokenizer_config.json").read_text())
    write_json(
        dense, "tokenizer_config.json", {**tokenizer, "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    )
    left = (
        "evil.py",
        "token.txt",
        "secrets.json",
        ".env",
        "credentials_of_mine",
        "thesis.docx",
        "data/x.csv",
        "x.gguf",
    )
    for name in left:
        (dense / name).parent.mkdir(exist_ok=True)
        (dense / name).write_text("print('evil')")
    (dense / "norms.py").write_text("print('evil')")
    (dense / "LICENSE").write_text("mine")
    (dense / "additional_chat_templates").mkdir()
    (dense / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    recipe = {"base_model": "/home/me/acme/base", "positive_prompts": ["/a/b"]}
    text = "base_model: /home/me/acme/base  # /home/me/acme/x\npositive_prompts: [/a/b]\n"
    write_json(dense, "surgery.json", surgery(recipe=recipe, recipe_text=text))
    write_json(
        dense, "trainer_state.json", {"global_step": 3, "best_model_checkpoint": str(tmp_path / "run")}
    )
    torch.save(
        TrainingArguments(str(tmp_path / "run"), hub_token=TOKEN, seed=11), dense / "training_args.bin"
    )

    made = bundle(dense, tmp_path / "hub")
    config = {**config, "auto_map": AUTO_MAP}
    assert json.loads((made / "config.json").read_text()) == config
    assert json.loads((made / "tokenizer_config.json").read_text()) == tokenizer
    assert {path.name: path.read_text() for path in made.glob("*.py")} == code_files()
    for name in (*left, "training_args.bin"):
        assert not (made / name).exists() and name.split("/")[0] in caplog.text, name
    assert (made / "LICENSE").is_file() and (made / "additional_chat_templates" / "tools.jinja").is_file()
    for path in made.rglob("*"):
        if path.is_file():
            assert not any(
                word in path.read_bytes() for word in (b"evil", b"acme", TOKEN.encode(), bytes(tmp_path))
            )
    assert json.loads((made / "training_args.json").read_text())["seed"] == 11
    assert "| `seed` | `11` |" in (made / "README.md").read_text()
    record = json.loads((made / "surgery.json").read_text())
    assert record["recipe"] == {"base_model": "base", "positive_prompts": ["/a/b"]}
    assert record["recipe_text"] == "base_model: base  # x\npositive_prompts: [/a/b]\n"
    assert len(AutoTokenizer.from_pretrained(made)) == len(AutoTokenizer.from_pretrained(dense))


def test_a_card_is_not_renewed_from_elsewhere(dense, tmp_path):
    """In place: what a link shows would be taken for the words of a person."""
    (tmp_path / "private").write_text("private")
    (dense / "README.md").symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match="a link that leads out of the folder"):
        prepare(dense)
    assert (tmp_path / "private").read_text() == "private"


@pytest.mark.parametrize(
    "name", ["LICENSE", "README.md", "generation_config.json", "figures/x.html", "parity.json"]
)
@pytest.mark.parametrize("kind", ["link", "secret", "pipe"])
def test_a_file_that_must_not_go_along_is_refused_by_name(kind, name, dense, tmp_path):
    path = dense / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "link":
        (tmp_path / "private").write_text("{}")
        path.symlink_to(tmp_path / "private")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_text(f'{{"x": "{TOKEN}"}}')
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as refused:
        bundle(dense, tmp_path / "hub")
    assert TOKEN not in str(refused.value)
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"model_type": "llama"}, "holds a 'llama' model, not a Moeba one: convert it first"),
        ({"model_type": "moeba", "norm_eps": -1.0}, "dense/config.json: .*norm_eps=-1.0 must be positive"),
    ],
)
def test_other_checkpoints_are_refused(dense, tmp_path, said, message):
    write_json(dense, "config.json", said)
    with pytest.raises(ValueError, match=message):
        bundle(dense, tmp_path / "hub")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_a_taken_destination_is_refused_and_replaced_on_demand(dense, tmp_path):
    made = bundle(dense, tmp_path / "hub")
    with pytest.raises(ValueError, match="exists"):
        bundle(dense, made)
    with pytest.raises(ValueError, match="the source itself"):
        bundle(dense, dense, overwrite=True)
    (made / "evaluation.json").write_text("{}")
    bundle(dense, made, overwrite=True)
    assert not (made / "evaluation.json").exists()
    (made / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="would be lost: thesis.tex; move them away"):
        bundle(dense, made, overwrite=True)
    assert (made / "thesis.tex").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["dense", "hub"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_leaves_nothing_behind(dense, tmp_path, monkeypatch, overwrite):
    if overwrite:
        bundle(dense, tmp_path / "hub")
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(sys.modules[bundle.__module__], "write_card", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bundle(dense, tmp_path / "hub", overwrite=overwrite)
    assert sorted(os.listdir(tmp_path)) == before


def test_preparing_in_place(upcycled):
    (upcycled / "router.py").unlink()
    config = (upcycled / "config.json").read_bytes()
    assert prepare(upcycled) == upcycled / "README.md"
    assert (upcycled / "router.py").is_file()
    assert (upcycled / "config.json").read_bytes() == config  # its auto_map was complete


def test_preparing_a_native_folder_writes_a_card_only(tmp_path):
    write_json(tmp_path, "config.json", {"model_type": "alien"})
    write_json(tmp_path, "moeba_provenance.json", provenance("export"))
    prepare(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["README.md", "config.json", "moeba_provenance.json"]


@pytest.mark.slow
def test_a_bundle_loads_without_moeba(tmp_path):
    source = tmp_path / "source"
    save_model(source, num_experts=4)
    save_tokenizer(source)
    made = bundle(source, tmp_path / "hub")
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "PYTHONPATH": "",
    }
    command = [sys.executable, "-c", WITHOUT_MOEBA, str(made), str(tmp_path / "logits.pt")]
    subprocess.run(command, check=True, cwd=tmp_path, env=env, capture_output=True, timeout=300)

    from transformers import AutoTokenizer

    # grouped_mm: what runs where moeba's kernels are not installed
    model = MoebaForCausalLM.from_pretrained(source, experts_implementation="grouped_mm").eval()
    tokens = AutoTokenizer.from_pretrained(source)("one two three", return_tensors="pt")
    assert torch.equal(torch.load(tmp_path / "logits.pt"), model(**tokens).logits)
