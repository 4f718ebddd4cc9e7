"""What may be overwritten: a checkpoint, and no file that neither Moeba nor transformers wrote."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moeba.conversion import destination
from moeba.conversion.destination import check_destination
from moeba.conversion.replaceable import check_replaceable


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return make(tmp_path / "out")


def make(folder: Path, **config: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("config", ["{}", "", "[]", '{"model_type": 3}', '{"name": "my-npm-package"}'])
def test_a_folder_that_is_no_checkpoint_is_kept(checkpoint, config):
    (checkpoint / "config.json").write_text(config)
    with pytest.raises(ValueError, match="may be no checkpoint: it is not overwritten"):
        check_replaceable(checkpoint)


def test_a_config_without_weights_is_kept(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights beside it"):
        check_replaceable(checkpoint)


def test_what_is_written_beside_weights_may_go(checkpoint):
    for name in (
        *("tokenizer.json", "vocab.txt", "parity.json", "moeba_provenance.json", "surgery.json", "README.md"),
        *("LICENSE.txt", "generation_config.json", "model-00001-of-00002.safetensors", "training_args.bin"),
        *("figures/expert-load.svg", ".eval_results/a.yaml", "modeling_moeba.py", ".lock", ".progress.json"),
    ):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text("{}")
    check_replaceable(checkpoint)


def test_code_that_the_config_names_may_go(tmp_path):
    folder = make(tmp_path / "out", auto_map={"AutoConfig": "me/repo--configuration_mine.Mine"})
    (folder / "configuration_mine.py").touch()
    check_replaceable(folder)


@pytest.mark.parametrize(
    "name",
    ["thesis.tex", "notes.txt", "results.json", "lora.safetensors", "train.py", "checkpoint-5/optimizer.pt",
     "figures/cat.jpg", ".git/HEAD", "deep/er/vocab.txt"],
)  # fmt: skip
def test_other_files_are_named_and_kept(checkpoint, name):
    (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
    (checkpoint / name).write_text("mine")
    with pytest.raises(ValueError, match=f"would be lost: {name}; move them away"):
        check_replaceable(checkpoint)


def test_of_many_other_files_ten_are_named(checkpoint):
    for number in range(30):
        (checkpoint / f"{number:02}.tex").touch()
    with pytest.raises(ValueError, match=r"00.tex; .*; 09.tex; … and 20 more; move"):
        check_replaceable(checkpoint)


def test_what_lies_in_the_source_too_is_not_lost(checkpoint, tmp_path):
    source = make(tmp_path / "source")
    for folder in (source, checkpoint):
        (folder / "notes.txt").write_text("of the authors")
    check_destination(source, checkpoint, overwrite=True)
    (checkpoint / "notes.txt").write_text("of the authors, and mine")
    with pytest.raises(ValueError, match="would be lost: notes.txt"):
        check_destination(source, checkpoint, overwrite=True)


def test_a_link_to_a_folder_is_named(checkpoint, tmp_path):
    (tmp_path / "data").mkdir()
    (checkpoint / "data").symlink_to(tmp_path / "data")
    with pytest.raises(ValueError, match="would be lost: data;"):
        check_replaceable(checkpoint)


def test_places_that_people_stand_in(tmp_path, monkeypatch):
    source, home = make(tmp_path / "source"), make(tmp_path / "home")
    here = make(make(tmp_path / "around") / "here")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    for place, message in (
        (".", "is the current folder"),
        ("", "is the current folder"),
        ("..", "is around the current folder"),
        ("~", "is your home folder"),
        ("/", "is around the source"),
    ):
        with pytest.raises(ValueError, match=message):
            check_destination(source, place, overwrite=True)
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(ValueError, match="is a mount point"):
        check_destination(source, make(tmp_path / "disk"), overwrite=True)
    with pytest.raises(ValueError, match="is around"):
        destination.check_free(Path("/"), overwrite=True)


def test_a_source_that_links_into_the_destination_keeps_its_files(checkpoint, tmp_path):
    source = make(tmp_path / "source")
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").symlink_to(checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match="holds files that the source .* links to: model.safetensors"):
        check_destination(source, checkpoint, overwrite=True)
