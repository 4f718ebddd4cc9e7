"""Pushing to the Hub, with the client replaced: what would be uploaded, and above all whose model card."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from support import tiny_config, tiny_model

from moeba import MoebaForCausalLM
from moeba.modeling import folders, modeling_moeba


class Hub:
    """A Hub of one repository: `remote` is its content, `commits` what was uploaded."""

    def __init__(self):
        self.remote: dict[str, str] = {}
        self.commits: list[tuple[str, dict[str, str], dict]] = []
        self.created: list[dict] = []
        self.branches: list[str] = []
        self.tokens: list = []

    def api(self, token=None):
        self.tokens.append(token)
        return self

    def create_repo(self, repo_id, **kwargs):
        self.created.append(kwargs)
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def create_branch(self, repo_id, *, branch, exist_ok):
        assert exist_ok
        self.branches.append(branch)

    def file_exists(self, repo_id, filename, *, revision=None):
        return filename in self.remote

    def hf_hub_download(self, repo_id, filename, *, revision=None):
        path = self.folder / filename
        path.write_text(self.remote[filename])
        return str(path)

    def upload_folder(self, *, repo_id, folder_path, revision=None, **kwargs):
        files = {
            str(path.relative_to(folder_path)): path.read_bytes().decode(errors="replace")
            for path in Path(folder_path).rglob("*")
            if path.is_file()
        }
        self.commits.append((repo_id, files, {"revision": revision, **kwargs}))
        self.remote |= files
        return "url"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = Hub()
    hub.folder = tmp_path / "download"
    hub.folder.mkdir()
    monkeypatch.setattr(folders, "HfApi", hub.api)

    def write(folder):
        card = Path(folder) / "README.md"
        card.write_text(
            (card.read_text(encoding="utf-8") if card.exists() else "") + "default card", encoding="utf-8"
        )

    writer = staticmethod(write)
    monkeypatch.setattr(modeling_moeba.MoebaPreTrainedModel, "card_writer", writer)
    return hub


def test_a_new_repository_gets_a_default_card_and_the_code(hub):
    assert tiny_model("moe").push_to_hub("me/model", private=True, token="t") == "url"
    ((repo_id, files, settings),) = hub.commits
    assert repo_id == "me/model" and files["README.md"] == "default card"
    assert {"config.json", "model.safetensors", "modeling_moeba.py", "configuration_moeba.py"} < set(files)
    assert settings["commit_message"] == "Upload MoebaForCausalLM"
    assert hub.created == [{"private": True, "exist_ok": True}] and hub.tokens == ["t"]


def test_a_remote_card_stays(hub):
    hub.remote["README.md"] = "written by a person"
    tiny_model().push_to_hub("me/model")
    assert hub.remote["README.md"] == "written by a person"
    assert "README.md" not in hub.commits[0][1]


def test_the_card_of_the_folder_the_model_came_from_goes_along(hub, tmp_path):
    deep = tmp_path / "a" / "b" / "c"
    tiny_model().save_pretrained(deep)
    (deep / "README.md").write_bytes("---\nlicense: mit\n---\nMein Modell: für alle\r\n".encode())
    hub.remote["README.md"] = "older"
    MoebaForCausalLM.from_pretrained(deep).push_to_hub("me/model")
    assert hub.remote["README.md"].startswith("---\nlicense: mit\n---\nMein Modell: für alle")


def test_a_repo_id_as_origin_is_no_folder(hub):
    model = tiny_model()
    model.config._name_or_path = "someone/base"
    model.push_to_hub("me/model")
    assert hub.remote["README.md"] == "default card"
    hub.remote["README.md"] = "edited"
    model.push_to_hub("me/model")
    assert hub.remote["README.md"] == "edited"


def test_saving_with_push(hub, tmp_path):
    """Repository named after the folder; a card already in it is the one to upload."""
    folder = tmp_path / "deep" / "my-model"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("mine")
    model = tiny_model()
    model.save_pretrained(
        folder, push_to_hub=True, token="t", revision="dev", commit_message="Step 3", create_pr=False
    )
    repo_id, files, settings = hub.commits[0]
    assert repo_id == "me/my-model" and files["README.md"] == "minedefault card"
    assert settings == {"revision": "dev", "commit_message": "Step 3", "create_pr": False}
    assert hub.branches == ["dev"] and hub.tokens == ["t"]
    model.save_pretrained(folder, push_to_hub=True, repo_id="org/other")
    assert hub.commits[1][0] == "org/other"


@pytest.mark.parametrize("remote", [None, "---\ntags:\n- old\n---\nText\n"])
def test_tags_are_added_to_the_card(hub, remote):
    if remote:
        hub.remote["README.md"] = remote
    tiny_model().push_to_hub("me/model", tags=["moe", "sft"])
    card = hub.remote["README.md"]
    assert "- moe\n- sft" in card
    assert ("- old" in card and "Text" in card) if remote else "default card" in card


def test_without_a_card_writer_none_is_made_up(hub, monkeypatch):
    monkeypatch.setattr(modeling_moeba.MoebaPreTrainedModel, "card_writer", None)
    MoebaForCausalLM(tiny_config()).push_to_hub("me/model", tags=["moe"])
    assert "README.md" not in hub.remote
