"""What a push does to the Hub, seen on the Hub; every request is a real one over HTTP."""

from __future__ import annotations

import json
import os

import pytest
import torch
from hub_client import contents
from hub_state import File
from huggingface_hub import ModelCard
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from moeba.modeling.code_files import code_files

SHARDS = r"PUT /lfs/"


def test_a_push_is_one_commit_of_everything(hub, client, moe):
    before = contents(moe)
    pushed = client.push(moe, message="First words")
    repo = hub.repos["ada/model"]
    (commit,) = repo.commits
    assert (commit.title, commit.oid) == ("First words", pushed["commit"]["oid"])
    assert pushed["is_new"] and not repo.private
    on_hub = {path: file.data for path, file in repo.files.items() if path != ".gitattributes"}
    assert on_hub.items() >= {k: v for k, v in before.items() if k != "README.md"}.items()
    assert on_hub["figures/pages/deep/page.html"] == b"<p>seen</p>"
    assert pushed["files"] == {path: len(data) for path, data in on_hub.items()}
    assert set(code_files()) < set(on_hub)
    large = {path for path, file in repo.files.items() if file.is_lfs}
    assert large == {path for path in before if path.endswith(".safetensors")} and len(large) > 1
    assert hub.count(SHARDS) == hub.count("POST /lfs-verify/") == len(large)
    card = ModelCard(on_hub["README.md"].decode())
    assert "moe" in card.data.tags and "experts" in card.text
    assert contents(moe) == before, "the folder itself was changed"


def test_what_arrived_is_not_sent_again(hub, client, moe):
    first = client.push(moe)
    hub.requests.clear()
    again = client.push(moe)
    assert not again["is_new"] and again["commit"]["oid"] == first["commit"]["oid"]
    (moe / "notes.txt").write_text("new")
    assert client.push(moe)["is_new"]
    repo = hub.repos["ada/model"]
    assert len(repo.commits) == 2 and repo.files["notes.txt"].data == b"new"
    assert not hub.count(SHARDS)


def test_code_and_card_are_made_anew(hub, client, moe):
    (moe / "router.py").unlink()
    (moe / "norms.py").write_text("raise SystemExit")
    client.push(moe)
    files = hub.repos["ada/model"].files
    for name, text in code_files().items():
        assert files[name].data.decode() == text


def test_large_files_go_in_parts_if_the_hub_asks(hub, client, moe):
    hub.part_size = 30_000
    client.push(moe)
    files = hub.repos["ada/model"].files
    for path in moe.glob("*.safetensors"):
        assert files[path.name].data == path.read_bytes()
    assert hub.count(r"PUT /lfs/.*part=3") and hub.count("POST /lfs/")


def test_a_private_repository(hub, client, moe):
    client.push(moe, private=True)
    assert hub.repos["ada/model"].private
    said = client.run("from huggingface_hub import HfApi; HfApi(token='hf_other').model_info('ada/model')")
    assert said.error["type"] == "RepositoryNotFoundError"
    client.push(moe, "ada/open")
    said = client.refused(moe, "ada/open", private=True)
    assert said.error["type"] == "ValueError" and "exists and is public" in said.text


def test_a_name_alone_is_one_of_your_own(hub, client, moe):
    assert client.push(moe, "mine")["repo_id"] == "ada/mine"


def test_a_branch(hub, client, moe):
    client.push(moe, branch="dev")
    repo = hub.repos["ada/model"]
    assert set(repo.branches) == {"main", "dev"}
    assert not repo.commits and "config.json" in repo.branches["dev"].files
    (moe / "notes.txt").write_text("new")
    client.push(moe, branch="dev")
    assert len(repo.branches["dev"].history()) == 3 and not repo.commits


def test_a_pull_request_takes_no_right_to_write(hub, client, moe):
    client.push(moe)
    before = hub.repos["ada/model"].files
    (moe / "notes.txt").write_text("new")
    pushed = client.push(moe, pr=True, token="hf_other")
    repo = hub.repos["ada/model"]
    assert pushed["commit"]["pr_url"] == f"{hub.url}/ada/model/discussions/1"
    assert repo.files == before and "notes.txt" in repo.branches["refs/pr/1"].files
    (moe / "more.txt").write_text("more")
    client.push(moe, branch="refs/pr/1")
    assert {"notes.txt", "more.txt"} < set(repo.branches["refs/pr/1"].files)


def test_words_that_contradict_each_other(hub, client, moe):
    assert "leave one out" in client.refused(moe, pr=True, branch="dev").text
    assert "a pull request needs a repository" in client.refused(moe, pr=True).text
    assert not hub.repos


def test_a_dry_run_reaches_for_no_network(hub, client, moe):
    (moe / "checkpoint-3").mkdir()
    (moe / "checkpoint-3" / "optimizer.pt").write_bytes(b"x" * 10)
    (moe / "router.py").unlink()
    before = contents(moe)
    planned = client.push(moe, dry_run=True)
    assert planned["commit"] is None and planned["left_out"] == {"checkpoint-3/": "training state"}
    assert not hub.requests and contents(moe) == before
    assert client.push(moe)["files"] == planned["files"]


STAYING = {
    "optimizer.pt": "training state",
    "scheduler.pt": "training state",
    "rng_state_0.pth": "training state",
    "checkpoint-12/model.safetensors": "training state",
    "__pycache__/router.cpython-311.pyc": "cache",
    "wandb/run/files.log": "cache",
    ".git/config": "hidden",
    ".cache/huggingface/x.metadata": "hidden",
    ".DS_Store": "hidden",
}


def test_what_stays_behind(hub, client, moe):
    for path in STAYING:
        (moe / path).parent.mkdir(parents=True, exist_ok=True)
        (moe / path).write_text("[core]")
    (moe / ".eval_results").mkdir()
    (moe / ".eval_results" / "arc.yaml").write_text("[]")
    (moe / "linked").symlink_to(moe / "figures")
    pushed = client.push(moe)
    stays = {(path.split("/")[0] + "/" if "/" in path else path): why for path, why in STAYING.items()}
    assert pushed["left_out"] == {**stays, "linked/": "a link to a folder"}
    files = hub.repos["ada/model"].files
    assert ".eval_results/arc.yaml" in files and not set(STAYING) & set(files)
    pushed = client.push(moe, include_training=True)
    assert {path for path, why in STAYING.items() if why == "training state"} < set(pushed["files"])
    assert set(pushed["left_out"].values()) == {"cache", "hidden", "a link to a folder"}


SECRETS = {
    ".env": b"",
    "deploy.pem": b"",
    "keys/id_rsa": b"",
    "token": b"",
    "notes/token.txt": b"",
    "credentials.json": b"{}",
    "notes.txt": b"my token is hf_" + b"abcdefghijklmnopqrSTUVWXYZ01234567",
    "training_args.bin": b"\x80\x02X\x00hf_" + b"abcdefghijklmnopqrSTUVWXYZ01234567" + b"q\x01",
    "run.sh": b"-----BEGIN OPENSSH PRIVATE KEY-----\nabc",
    "README.md": b"see AKIAIOSFODNN7EXAMPLE",
}


def test_secrets_are_refused_and_not_shown(hub, client, moe):
    for path, data in SECRETS.items():
        (moe / path).parent.mkdir(parents=True, exist_ok=True)
        (moe / path).write_bytes(data)
    for words in ({}, {"dry_run": True}, {"include_training": True}):
        said = client.refused(moe, **words)
        assert said.error["type"] == "ValueError"
        assert all(path in said.text for path in SECRETS), said.text
        assert "abcdefghij" not in said.text
    assert not hub.requests


def test_the_token_of_a_trainer_is_refused_in_any_form(hub, client, moe):
    torch.save(TrainingArguments("out", hub_token="ancient"), moe / "training_args.bin")
    said = client.refused(moe)
    assert "training_args.bin (it holds the token of a Trainer)" in said.text and "ancient" not in said.text
    assert not hub.requests


def test_what_a_record_says_of_this_machine_is_not_sent(hub, client, moe, tmp_path):
    torch.save(TrainingArguments(str(tmp_path / "run"), seed=11), moe / "training_args.bin")
    (moe / "trainer_state.json").write_text(
        json.dumps({"best_model_checkpoint": str(tmp_path / "run" / "best")})
    )
    before = contents(moe)
    planned = client.push(moe, dry_run=True)
    pushed = client.push(moe)
    files = hub.repos["ada/model"].files
    assert not any(bytes(tmp_path) in file.data for file in files.values()) and contents(moe) == before
    assert pushed["left_out"].keys() == planned["left_out"].keys() == {"training_args.bin"}
    assert json.loads(files["training_args.json"].data)["seed"] == 11
    assert json.loads(files["trainer_state.json"].data) == {"best_model_checkpoint": "best"}
    torch.save(TrainingArguments("run"), moe / "training_args.bin")  # which says nothing of the kind
    client.push(moe)
    assert hub.repos["ada/model"].files["training_args.bin"].data == (moe / "training_args.bin").read_bytes()


def test_code_of_others_stays_behind(hub, client, moe):
    config = json.loads((moe / "config.json").read_text())
    own = dict(config["auto_map"])
    config["auto_map"] |= {"AutoTokenizer": ["x/y--evil.Evil", None]}
    (moe / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((moe / "tokenizer_config.json").read_text())
    foreign = {**tokenizer, "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (moe / "tokenizer_config.json").write_text(json.dumps(foreign))
    left = ("evil.py", "custom_generate/generate.py", "sub/norms.py")
    for name in (*left, "norms.py"):  # the last is written anew
        (moe / name).parent.mkdir(exist_ok=True)
        (moe / name).write_text("print('evil')")
    (moe / "checkpoint-3").mkdir()
    (moe / "checkpoint-3" / "router.py").write_bytes((moe / "router.py").read_bytes())
    pushed = client.push(moe, include_training=True)
    assert pushed["left_out"].keys() == set(left) and "checkpoint-3/router.py" in pushed["files"]
    files = hub.repos["ada/model"].files
    assert not any(b"evil" in file.data for file in files.values())
    assert json.loads(files["config.json"].data)["auto_map"] == own
    assert json.loads(files["tokenizer_config.json"].data) == tokenizer


def test_links_that_lead_elsewhere_are_refused(hub, client, moe, tmp_path):
    (tmp_path / "private").write_text("{}")
    (moe / "notes.md").symlink_to(tmp_path / "private")
    os.mkfifo(moe / "pipe")
    said = client.refused(moe)
    assert (
        "notes.md (a link that leads out of the folder); pipe (a named pipe)" in said.text
        and not hub.requests
    )
    (moe / "notes.md").unlink(), (moe / "pipe").unlink()
    shard = min(moe.glob("*.safetensors"))
    shard.symlink_to(shard.rename(tmp_path / "of another model"))
    assert f"{shard.name} (a link that leads out of the folder)" in client.refused(moe).text
    assert not hub.requests
    data = shard.read_bytes()
    shard.unlink(), shard.symlink_to((tmp_path / "of another model").rename(moe / "blob"))
    (moe / "notes.md").symlink_to("config.json")
    client.push(moe)
    assert hub.repos["ada/model"].files[shard.name].data == data
    assert "notes.md" in hub.repos["ada/model"].files


def test_a_model_that_needs_code_of_others_is_refused(hub, client, tmp_path):
    sizes = dict(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "names code (auto_map)" in client.refused(tmp_path).text and not hub.requests


def test_what_only_looks_like_a_secret_goes_along(hub, client, moe):
    harmless = {
        "added_tokens.json": "{}",
        "docs/usage.md": f"Log in with hf_{'x' * 34}, and set your .env",
        "keys/id_rsa.pub": "ssh-rsa AAAA",
    }
    for path, text in harmless.items():
        (moe / path).parent.mkdir(exist_ok=True)
        (moe / path).write_text(text)
    assert set(harmless) < set(client.push(moe)["files"])


@pytest.mark.parametrize("damage", ["shard", "config", "folder", "link"])
def test_half_a_model_is_not_pushed(hub, client, moe, damage):
    if damage == "shard":
        min(moe.glob("*.safetensors")).unlink()
    elif damage == "config":
        (moe / "config.json").unlink()
    elif damage == "link":
        (moe / "notes.txt").symlink_to(moe / "nowhere")
    said = client.refused(moe / "nowhere" if damage == "folder" else moe)
    assert said.error["type"] == "ValueError"
    assert {"shard": "model-0000", "config": "config.json", "folder": "nowhere", "link": "notes.txt"}[
        damage
    ] in said.text
    assert not hub.requests


def test_words_of_a_person_on_the_hub_stay(hub, client, moe):
    client.push(moe)
    edit(hub, lambda text: text.replace("---\n", "---\nlicense: mit\n", 1) + "\n## My words\n")
    client.push(moe)
    card = ModelCard(hub.repos["ada/model"].files["README.md"].data.decode())
    assert card.data.license == "mit" and card.text.rstrip().endswith("## My words")
    assert card.text.count("<!-- moeba:start -->") == 1


def test_words_in_the_folder_come_before_those_on_the_hub(hub, client, moe):
    (moe / "README.md").write_text("---\nlanguage: de\n---\n# Mine\n")
    assert client.push(moe)["notes"] == []
    assert client.push(moe)["notes"] == []
    edit(hub, lambda text: text + "\n## Theirs\n")
    (note,) = client.push(moe)["notes"]
    assert "the card on the Hub has words of its own" in note
    text = hub.repos["ada/model"].files["README.md"].data.decode()
    assert "# Mine" in text and "Theirs" not in text and "language: de" in text


def test_tags_are_added(hub, client, moe):
    client.push(moe, tags=["mine", "moe"])
    card = ModelCard(hub.repos["ada/model"].files["README.md"].data.decode())
    assert card.data.tags.count("moe") == 1 and "mine" in card.data.tags


def test_other_models_are_pushed_with_a_card_alone(hub, client, tmp_path):
    sizes = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9
    )
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / "llama")
    files = set(client.push(tmp_path / "llama")["files"])
    assert {"README.md", "config.json", "model.safetensors"} <= files
    assert not any(name.endswith(".py") for name in files)


def edit(hub, change) -> None:
    """What a person does in a browser."""
    repo = hub.repos["ada/model"]
    text = change(repo.files["README.md"].data.decode())
    repo.add("main", "edit", {**repo.files, "README.md": File(text.encode(), is_lfs=False)})
