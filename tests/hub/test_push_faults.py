"""What goes wrong on the way is said in one sentence, mended where waiting mends it, and leaves no ruin."""

from __future__ import annotations

import pytest
from hub_state import File

CREATE, PREUPLOAD, COMMIT = (
    "POST /api/repos/create",
    "POST /api/models/.*/preupload/",
    "POST /api/models/.*/commit/",
)
BATCH, PUT, VERIFY = r"\.git/info/lfs/objects/batch", "PUT /lfs/", "POST /lfs-verify/"


def sentence(said, *words: str) -> str:
    """The message of a failed push: one line that has these words."""
    assert said.error["type"] == "PushError", said.error["trace"]
    assert "\n" not in said.text and len(said.text) < 300
    assert all(word in said.text for word in words), said.text
    return said.text


def test_without_a_token(hub, client, moe):
    said = client.refused(moe, token=False)
    sentence(said, "does not know who you are: log in with `hf auth login`, or set HF_TOKEN")
    assert said.waits == [] and not hub.repos
    sentence(client.refused(moe, token=False, pr=True), "does not know who you are")
    client.push(moe)
    (moe / "notes.txt").write_text("new")
    sentence(client.refused(moe, token=False), "does not know who you are")
    sentence(client.refused(moe, token=False, pr=True), "does not know who you are")


def test_with_a_wrong_token(hub, client, moe):
    said = client.refused(moe, token="hf_wrong")
    sentence(said, "refuses your token", "Nothing was committed.")
    assert said.waits == [] and not hub.repos


def test_without_the_right_to_write(hub, client, moe):
    said = client.refused(moe, token="hf_reader")
    sentence(said, "may not write to ada/model (403)", "Nothing was committed.")
    assert not hub.repos
    client.push(moe)
    (moe / "notes.txt").write_text("new")
    for token in ("hf_reader", "hf_other"):
        sentence(client.refused(moe, token=token), "may not write to ada/model (403)", "--pr")
    assert len(hub.repos["ada/model"].commits) == 1


def test_a_private_repository_of_somebody_else(hub, client, moe):
    client.push(moe, private=True)
    sentence(client.refused(moe, token="hf_other"), "ada/model", "403")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "refuses the push (400): as was asked for"),
        (402, "needs more space"),
        (404, "does not exist or is hidden from you (404)"),
        (409, "Somebody else is changing ada/model"),
        (412, "Somebody else committed to ada/model"),
        (413, "does not take files of this size"),
    ],
)
def test_a_refused_commit_leaves_nothing_behind(hub, client, moe, status, words):
    """The repository was made for this push, and the large files had arrived."""
    hub.fail(COMMIT, status)
    said = client.refused(moe)
    sentence(said, words, "Nothing was committed, and ada/model, made for it, is deleted again.")
    assert said.error["status"] == status and said.waits == []
    assert hub.count(PUT) and not hub.repos


def test_a_refused_commit_leaves_a_model_as_it_was(hub, client, moe):
    client.push(moe)
    before = hub.repos["ada/model"].files
    hub.fail(COMMIT, 413)
    (moe / "notes.txt").write_text("new")
    sentence(client.refused(moe), "(413)", "Nothing was committed.")
    sentence(client.refused(moe, branch="dev"), "the branch dev of ada/model, made for it, is deleted again")
    assert hub.repos["ada/model"].files == before and set(hub.repos["ada/model"].branches) == {"main"}


def test_what_cannot_be_deleted_again_is_said(hub, client, moe):
    hub.fail(COMMIT, 413)
    hub.fail("DELETE /api/repos", 403)
    sentence(
        client.refused(moe),
        "(413)",
        "Nothing was committed, but ada/model, made for it, could not be deleted",
    )
    assert not hub.repos["ada/model"].commits


PLACES = [CREATE, PREUPLOAD, BATCH, PUT, VERIFY, COMMIT, "validate-yaml", "GET /api/models/"]
FAULTS = ["503", "429", "dropped", "answer lost"]
# Each place with one fault, and each fault at a few places; the others are like them.
QUICK = {(place, FAULTS[i % 4]) for i, place in enumerate(PLACES)} | {(COMMIT, fault) for fault in FAULTS}


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        pytest.param(place, fault, marks=() if (place, fault) in QUICK else pytest.mark.slow)
        for place in PLACES
        for fault in FAULTS
    ],
)
def test_what_waiting_mends(hub, client, moe, where, fault):
    """One failure anywhere; the push succeeds, and there is one commit."""
    if fault == "503":
        hub.fail(where, 503, times=1, body="<html>busy</html>")
    elif fault == "429":
        hub.fail(where, 429, times=1, headers={"Retry-After": "7"})
    else:
        hub.fail(where, drop="midway" if fault == "dropped" else "after", times=1)
    said = client.run(
        "from moeba.hub_card import push; result = push(folder, 'ada/model').is_new", folder=moe
    )
    assert said.result is True, said.error
    assert len(hub.repos["ada/model"].commits) == 1
    if fault == "429":
        # huggingface_hub adds a second to be safe.
        assert said.waits and set(said.waits) <= {7, 8}
    elif where != COMMIT or fault != "answer lost":
        assert said.waits == [1]


def test_a_large_file_is_cut_off_in_the_middle(hub, client, moe):
    """Every time: the push gives up, and the next one sends only what is missing."""
    shards = len(list(moe.glob("*.safetensors")))
    hub.fail(PUT, drop="midway", skip=1)
    said = client.refused(moe)
    sentence(
        said,
        "broke: push again, files that arrived are not sent twice",
        "ada/model was made for it and stays",
    )
    assert sum(said.waits) > 10
    repo = hub.repos["ada/model"]
    assert not repo.commits and len(repo.objects) == 1
    hub.faults.clear(), hub.requests.clear()
    client.push(moe)
    assert hub.count(f"{PUT}.* 200") == shards - 1
    assert len(repo.commits) == 1 and len(repo.objects) == shards


def test_a_part_of_a_large_file_is_sent_again_alone(hub, client, moe):
    hub.part_size = 30_000
    hub.fail(r"PUT /lfs/.*part=2", drop="midway", times=1)
    client.push(moe)
    files = hub.repos["ada/model"].files
    assert all(files[path.name].data == path.read_bytes() for path in moe.glob("*.safetensors"))
    assert hub.count("part=1 ") == hub.count("part=2 200")


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (429, {"Retry-After": "30"}, "too many requests from you (429): push again in 30 seconds"),
        (429, {"Retry-After": "3600"}, "push again in 3600 seconds"),
        (429, {}, "push again in a few minutes"),
        (500, {}, "has a fault of its own (500): push again later"),
        (504, {}, "has a fault of its own (504): push again later"),
    ],
)
def test_what_does_not_pass(hub, client, moe, status, headers, words):
    """Tried again a few times, no more, and an empty repository stays to be pushed to again."""
    hub.fail(COMMIT, status, headers=headers)
    said = client.refused(moe)
    sentence(said, words, "Nothing was committed; ada/model was made for it and stays, to push to again.")
    assert hub.count(COMMIT) == (1 if headers.get("Retry-After") == "3600" else 5)
    assert said.waits == {"30": [30] * 4, "3600": []}.get(headers.get("Retry-After"), [1, 2, 4, 8])
    assert not hub.repos["ada/model"].commits


def test_the_hub_is_not_there(hub, client, moe):
    program = "from huggingface_hub import constants; constants.ENDPOINT = url"
    client.done(program, url="http://127.0.0.1:9")
    try:
        sentence(client.refused(moe), "The connection to http://127.0.0.1:9 broke", "Nothing was committed.")
    finally:
        client.done(program, url=hub.url)


@pytest.mark.parametrize("where", ["GET /api/models/", "POST /api/repos/create", "/commit/"])
def test_a_hub_that_takes_the_connection_and_is_silent(hub, client, moe, where):
    """The server breaks the connection at last, so that a push that waits on is told of that instead."""
    patience = "import os; os.environ |= {'HF_HUB_DOWNLOAD_TIMEOUT': seconds}"
    client.done(patience, seconds="1")
    hub.fail(where, drop="silent", seconds=5)
    try:
        words = (
            "Whether the commit was made is not known"
            if where == "/commit/"
            else "did not answer in time: push"
        )
        sentence(client.refused(moe), words)
    finally:
        client.done("import os; del os.environ['HF_HUB_DOWNLOAD_TIMEOUT']")
    limit = client.done("from huggingface_hub import get_session; result = repr(get_session().timeout)")
    assert "1.0" not in limit


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, client, moe):
    client.push(moe)
    (moe / "notes.txt").write_text("new")
    hub.fail(COMMIT, drop="after", times=1)
    assert client.push(moe)["is_new"]
    assert len(hub.repos["ada/model"].commits) == 2


def test_a_commit_of_unknown_outcome_is_said_to_be_that(hub, client, moe):
    hub.fail(COMMIT, drop="after", times=1)
    hub.fail("/preupload/", drop="midway", skip=1)
    sentence(client.refused(moe), "Whether the commit was made is not known: look at", "/ada/model first")
    assert len(hub.repos["ada/model"].commits) == 1


def test_a_pull_request_is_not_opened_twice(hub, client, moe):
    client.push(moe)
    (moe / "notes.txt").write_text("new")
    hub.fail(COMMIT, drop="after")
    sentence(client.refused(moe, pr=True), "Whether the commit was made is not known")
    assert set(hub.repos["ada/model"].branches) == {"main", "refs/pr/1"}


def test_a_gitignore_on_the_hub_cannot_take_files_out(hub, client, moe):
    client.push(moe)
    repo = hub.repos["ada/model"]
    repo.add("main", "edit", {**repo.files, ".gitignore": File(b"*.safetensors\n", is_lfs=False)})
    shard = min(moe.glob("*.safetensors"))
    (moe / "notes.txt").write_text("new")
    said = client.refused(moe)
    assert (
        said.error["type"] == "ValueError"
        and f".gitignore in ada/model would leave out {shard.name}" in said.text
    )
    assert len(repo.commits) == 2


def test_metadata_that_the_hub_refuses(hub, client, moe):
    (moe / "README.md").write_text("---\nbase_model_relation: cousin\n---\n# Mine\n")
    sentence(client.refused(moe), "(400)", "base_model_relation", "Nothing was committed.")
    assert not hub.repos


def test_an_interruption_keeps_what_arrived(hub, client, moe):
    program = """
from huggingface_hub import HfApi
from moeba.hub_card import push

def interrupted(*args, **kwargs):
    raise KeyboardInterrupt

real, HfApi.create_commit = HfApi.create_commit, interrupted
try:
    push(folder, "ada/model")
finally:
    HfApi.create_commit = real
"""
    assert client.run(program, folder=moe).error["type"] == "KeyboardInterrupt"
    hub.requests.clear()
    client.push(moe)
    assert not hub.count(PUT) and len(hub.repos["ada/model"].commits) == 1


def test_offline(hub, client, moe):
    client.done("from huggingface_hub import constants; constants.HF_HUB_OFFLINE = True")
    try:
        said = client.refused(moe)
        sentence(said, "huggingface_hub is offline: unset HF_HUB_OFFLINE")
        assert said.waits == [] and not hub.requests
    finally:
        client.done("from huggingface_hub import constants; constants.HF_HUB_OFFLINE = False")


def test_a_hub_without_xet_storage(hub, client, moe):
    pytest.importorskip("hf_xet")
    program = "from huggingface_hub import constants; constants.HF_HUB_DISABLE_XET = off"
    client.done(program, off=False)
    try:
        sentence(client.refused(moe), "has no Xet storage: set HF_HUB_DISABLE_XET=1", "is deleted again")
    finally:
        client.done(program, off=True)
    client.push(moe)
