"""What goes along from a source, and that nothing does which must not: secrets, links elsewhere, code, paths."""

from __future__ import annotations

import json
import os
import re
import sys

import native
import pytest
from native import read_all

from moeba import MoebaTokenizer, convert, export, merge
from moeba.conversion.provenance import describe_source
from moeba.conversion.selection import (
    leads_out,
    names_only,
    scrub_card,
    secret_in,
    select_side_files,
    what_it_is,
)
from moeba.conversion.selection.private_paths import rewritten, without_paths
from moeba.conversion.selection.side_files import travels
from moeba.hub_card.bundle import bundle

TOKEN = "hf_" + "abcdefghijklmnopqrSTUVWXYZ01234567"
# As the repositories of well-known models hold them.
GO_ALONG = """
added_tokens.json merges.txt vocab.json vocab.txt tokenizer.json tokenizer.model tokenizer.model.v3
tokenizer_config.json special_tokens_map.json chat_template.jinja chat_template.json
additional_chat_templates/tool_use.jinja qwen.tiktoken tiktoken.model spiece.model sentencepiece.bpe.model
source.spm tekken.json bpe.codes dict.txt generation_config.json preprocessor_config.json
processor_config.json LICENSE LICENSE.txt LICENCE License.md NOTICE Notice.txt USE_POLICY.md MODEL_LICENSE
THIRD_PARTY_NOTICES.txt COPYING CITATION.cff LICENSES/MIT.txt license-2.0 modules.json
config_sentence_transformers.json sentence_bert_config.json 1_Pooling/config.json 2_Dense/model.safetensors
"""
STAY = """
config.json README.md modeling_x.py tokenization_x.py license.py evil.so notes.txt thesis.docx data.csv params.json
consolidated.safetensors pytorch_model.bin model.gguf optimizer.pt training_args.bin trainer_state.json parity.json
original/params.json onnx/tokenizer.json sub/LICENSE runs/events .gitattributes vocab.py 1_Pooling/evil.py
license.safetensors quantize_config.json train.sh
"""


@pytest.mark.parametrize("path", GO_ALONG.split())
def test_what_readers_of_models_read_goes_along(path):
    assert travels(path)


@pytest.mark.parametrize("path", STAY.split())
def test_everything_else_stays(path):
    assert not travels(path)


SECRETS = {
    "a.txt": f"x={TOKEN}\n",
    "b.txt": "AKIAIOSFODNN7EXAMPLE",
    "c.txt": "key: sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCD",
    "d.txt": "sk-0123456789abcdef0123456789abcdef",
    "e.txt": "-----BEGIN RSA PRIVATE KEY-----",
    "f.txt": "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789",
    "g.txt": "AIza" + "SyA1234567890abcdefghijklmnopqrstuv",
    "h.txt": "url: https://me:hunter2secret@example.org/x",
    "i.txt": "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "j.json": '{"wandb_api_key": "0123456789abcdef0123456789abcdef01234567"}',
    "k.txt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9",
    "l.yaml": "db_password: correct4horse-battery_staple",
    "m.txt": "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "n.txt": "https://hooks.slack.com/services/T0001/B0002/abcdefghij0123456789abcd",
    ".env": "",
    ".netrc": "",
    "token.txt": "",
    "Secrets.JSON": "",
    "credentials": "",
    "aws_credentials.csv": "",
    "server.pem": "",
}
NONE = {
    "a.txt": "hf_" + "x" * 40,
    "b.txt": "task-0123456789abcdef0123456789abcdef, risk-",
    "c.json": '{"hf_token": 1, "sk-": 2, "AKIA": 3}',
    "d.txt": "git clone https://user:password@host/x, http://[::1]:80/@x, see https://a.org:8000/me@b.org",
    "e.json": '{"password": 123456, "api_key": "os.environ/API_KEY", "hub_token": "<HUB_TOKEN>"}',
    "f.yaml": "secret_key: the_name_of_the_environment_variable",
    "tokenizer.json": "{}",
    "special_tokens_map.json": "{}",
    "key.pub": "ssh-rsa",
}


def test_secrets_by_name_and_by_text(tmp_path):
    for name, text in SECRETS.items():
        (tmp_path / name).write_text(text)
        reason = secret_in(tmp_path / name)
        assert reason and (not text or text not in reason), name
    for name, text in NONE.items():
        (tmp_path / name).write_text(text)
        assert not secret_in(tmp_path / name), name


def test_what_lies_behind_a_name(tmp_path):
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir(), outside.mkdir()
    (outside / "x").write_text("x"), (folder / "own").write_text("x")
    (folder / "inside").symlink_to("own")
    assert [what_it_is(folder / name, folder) for name in ("own", "inside")] == ["", ""]
    for name, target in (("out", outside / "x"), ("up", "../outside/x")):
        (folder / name).symlink_to(target)
        assert what_it_is(folder / name, folder) == "a link that leads out of the folder"
    (folder / "through").symlink_to(outside)  # a folder on the way
    assert (
        leads_out(folder / "through" / "x", folder) and what_it_is(folder / "through", folder) == "a folder"
    )
    for name in ("loop", "nowhere"):
        (folder / name).symlink_to(name if name == "loop" else "not here")
        assert what_it_is(folder / name, folder) == "a link that leads nowhere"
    os.mkfifo(folder / "pipe")
    assert what_it_is(folder / "pipe", folder) == "a named pipe"
    (folder / "null").symlink_to("/dev/null")
    assert what_it_is(folder / "null", folder) == "a device"


def test_a_repository_in_the_cache_of_the_hub_is_one_folder(tmp_path):
    repository = tmp_path / "models--user--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True), (repository / "blobs").mkdir()
    for name, target in (
        ("LICENSE", repository / "blobs" / "1"),
        ("NOTICE", tmp_path / "models--other" / "1"),
    ):
        target.parent.mkdir(exist_ok=True)
        target.write_text("x")
        (snapshot / name).symlink_to(target)
    assert not what_it_is(snapshot / "LICENSE", snapshot) and what_it_is(snapshot / "NOTICE", snapshot)
    (tmp_path / "mine").symlink_to(snapshot)
    assert not what_it_is(tmp_path / "mine" / "LICENSE", tmp_path / "mine")


@pytest.mark.parametrize(
    "text, told",
    [
        ("/home/me/acme/model", "model"),
        ("~/models/x", "x"),
        ("C:\\Users\\me\\model", "model"),
        ("\\\\server\\share\\model", "model"),
        ("file:///home/me/x", "x"),
        ("/home/me/my models/x.txt: is empty", "x.txt: is empty"),
        ("from '/tmp/a b/c.txt' and (/x/y)", "from 'c.txt' and (y)"),
        ("recipe=/home/me/r.yaml", "recipe=r.yaml"),
        ("user/name", "user/name"),
        ("../relative/name", "../relative/name"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("0.5 nats/token, and/or 1/2", "0.5 nats/token, and/or 1/2"),
        ("model.layers.0, </s>", "model.layers.0, </s>"),
    ],
)
def test_paths_become_names(text, told):
    assert without_paths(text) == told
    assert names_only({"a": [text], text: 1}) == {"a": [told], told: 1}
    assert names_only({"positive_prompts": [text]}) == {"positive_prompts": [text]}


def test_the_head_of_a_card_names_no_folder_of_this_machine(tmp_path):
    """As PEFT writes it."""
    card = tmp_path / "README.md"
    text = "---\nbase_model: {0}x\ntags:\n- base_model:adapter:{0}x\n- a/b\n---\n\n# From /home/me/x\n"
    card.write_text(text.format("/home/me/acme/"))
    assert scrub_card(tmp_path) and card.read_text() == text.format("") and not scrub_card(tmp_path)


def test_the_text_of_a_recipe_keeps_all_but_paths():
    text = """# by me, from /home/me/acme
base_model: &base /home/me/acme/base  # of /data/acme
experts:
- source_model: "/home/me/code model"
  positive_prompts: [what is /etc/hosts/x, "/a/b"]
- source_model: *base
  calibration: ['/x/y.txt', z.txt]
"""
    assert (
        rewritten(text)
        == """# by me, from acme
base_model: &base base  # of acme
experts:
- source_model: "/home/me/code model"
  positive_prompts: [what is /etc/hosts/x, "/a/b"]
- source_model: *base
  calibration: [y.txt, z.txt]
""".replace('"/home/me/code model"', '"code model"' if "code model" in rewritten(text) else "")
    )
    assert rewritten("a: [") == "a: ["


@pytest.fixture(scope="module")
def tokenizer():
    return MoebaTokenizer.train(["one two three"] * 20, 265, show_progress=False)


@pytest.fixture
def source(tmp_path, tokenizer):
    native.make(tmp_path / "llama", "llama", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


LEFT = {
    "token.txt": "its name is that of a secret",
    "secrets.json": "its name is that of a secret",
    "credentials": "its name is that of a secret",
    ".env": "its name is that of a secret",
    "tokenization_evil.py": "code",
    "notes.txt": "nothing reads it with a model",
    "linked.txt": "a link that leads out of the folder",
    "consolidated.safetensors": "other weights",
    "original/": "a folder",
}


def test_a_folder_that_is_made_holds_what_is_known(source, tmp_path):
    before = {path.name for path in source.iterdir()}
    (tmp_path / "private").write_text("UNPUBLISHED")
    for name in LEFT:
        if name.endswith("/"):
            (source / name).mkdir()
        elif name == "linked.txt":
            (source / name).symlink_to(tmp_path / "private")
        else:
            (source / name).write_text(TOKEN)
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", ".gitattributes", "README.md"):
        (source / name).write_text(f"hub_token {TOKEN}" if name == "training_args.bin" else "")
    with_them = {
        "LICENSE.txt",
        "USE_POLICY.md",
        "additional_chat_templates/tools.jinja",
        "1_Pooling/config.json",
    }
    for name in with_them:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
    values = json.loads((source / "tokenizer_config.json").read_text())
    values |= {"tokenizer_file": "tokenizer.json", "chat_template": "{{ '/a/b/c' }}"}
    foreign = {**values, "auto_map": {"AutoTokenizer": ["me/evil--tokenization_evil.Evil", None]}}
    foreign["tokenizer_file"] = str(tmp_path / "tokenizer.json")  # as older releases of transformers saved it
    (source / "tokenizer_config.json").write_text(json.dumps(foreign))
    paths = {"cache_dir": str(tmp_path / "cache"), "stop_strings": ["/a/b/c"], "x": {"y": [f"{tmp_path}/z"]}}
    (source / "generation_config.json").write_text(json.dumps(paths))
    before.add("generation_config.json")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "other/repository--evil.Evil"}]
    (source / "modules.json").write_text(json.dumps(modules))
    dropped = dict.fromkeys(("auto_map of tokenizer_config.json", "modules.json"), "it names code of others")

    planned = convert(source, tmp_path / "moeba", dry_run=True)
    assert {left.path: left.reason for left in planned.left_out} == LEFT
    result = convert(source, tmp_path / "moeba", certificate=False)
    assert {left.path: left.reason for left in result.left_out} == LEFT | dropped
    names = {
        path.relative_to(result.folder).as_posix() for path in result.folder.rglob("*") if path.is_file()
    }
    code = {path.name for path in result.folder.glob("*.py")}
    assert names == before | code | with_them | {"README.md", "moeba_provenance.json"}
    assert json.loads((result.folder / "tokenizer_config.json").read_text()) == values
    generation = json.loads((result.folder / "generation_config.json").read_text())
    assert generation == {"cache_dir": "cache", "stop_strings": ["/a/b/c"], "x": {"y": ["z"]}}
    for path in result.folder.rglob("*"):
        if path.is_file():
            assert not any(
                word in path.read_bytes() for word in (TOKEN.encode(), b"UNPUBLISHED", bytes(tmp_path))
            )
    back = export(result.folder, tmp_path / "native", certificate=False)
    assert {path.name for path in back.folder.iterdir()} >= {"LICENSE.txt", "USE_POLICY.md", "1_Pooling"}
    assert not back.left_out and not list(back.folder.glob("*.py"))
    native.same_tensors(read_all(source), read_all(back.folder))


def test_a_native_model_that_is_made_names_no_code(source, tmp_path, monkeypatch):
    """Whatever becomes of a source's entry on the way: the code is not there, and the model needs none."""
    from moeba.conversion import convert as module

    def save(config, family, folder):
        family.to_native(config).save_pretrained(folder)
        values = json.loads((folder / "config.json").read_text())
        code = {"auto_map": {"AutoConfig": "evil.Evil"}, "tokenizer_file": str(tmp_path / "x")}
        (folder / "config.json").write_text(json.dumps({**values, **code}))

    made = convert(source, tmp_path / "moeba", certificate=False).folder
    monkeypatch.setattr(sys.modules[module.__module__], "save_native", save)
    back = export(made, tmp_path / "native", certificate=False)
    config = json.loads((back.folder / "config.json").read_text())
    assert "auto_map" not in config and config["tokenizer_file"] == "x"
    assert [left.path for left in back.left_out] == ["auto_map of config.json"]


@pytest.mark.parametrize("name", ["tokenizer.json", "LICENSE", "additional_chat_templates/x.jinja"])
@pytest.mark.parametrize("kind", ["link", "folder link", "loop", "pipe", "secret"])
def test_what_must_not_go_along_is_refused_by_name(kind, name, source, tmp_path):
    path = source / name
    path.unlink(missing_ok=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / path.name).write_text("UNPUBLISHED")
    if kind == "folder link" and "/" in name:
        path.parent.symlink_to(tmp_path / "elsewhere")
    else:
        path.parent.mkdir(exist_ok=True)
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere" / path.name)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "secret":
        path.write_text(TOKEN)
    elif "/" not in name:
        path.symlink_to(tmp_path / "elsewhere")
        assert not select_side_files(source).files or name not in select_side_files(source).files
        return
    with pytest.raises(ValueError, match=re.escape(name)) as refused:
        convert(source, tmp_path / "moeba", certificate=False)
    assert TOKEN not in str(refused.value) and not (tmp_path / "moeba").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_is_read_lies_in_the_folder(name, source, tmp_path):
    made = convert(source, tmp_path / "made", certificate=False).folder
    for folder, operation in ((source, convert), (made, bundle)):
        (folder / name).symlink_to((folder / name).rename(tmp_path / f"of {folder.name}"))
        with pytest.raises(ValueError, match=rf"{name} \(a link that leads out of the folder\)"):
            operation(folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, text",
    [
        ("config.json", '{"note": "%s"'),
        ("README.md", "---\nlicense: other\nlicense_name: %s\n---\nwords"),
    ],
)
def test_secrets_in_words_that_are_written_anew_are_refused(name, text, source, tmp_path):
    path = source / name
    more = "," + path.read_text().lstrip("{ \n") if name == "config.json" else ""
    path.write_text(text % TOKEN + more)
    with pytest.raises(ValueError, match=rf"{name} \(it holds a Hugging Face token\)") as refused:
        convert(source, tmp_path / "out", dry_run=True)
    assert TOKEN not in str(refused.value)


def test_a_secret_in_a_recipe_is_not_published(source, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    experts = f"- source_model: {source}\n" * 2
    recipe.write_text(f"# {TOKEN}\nbase_model: {source}\ngate_mode: random\nexperts:\n{experts}")
    with pytest.raises(ValueError, match=r"surgery.json \(it holds a Hugging Face token\)") as refused:
        merge(recipe, tmp_path / "out", certificate=False)
    assert TOKEN not in str(refused.value) and not (tmp_path / "out").exists()


def test_a_card_that_is_a_pipe_or_lies_elsewhere_is_not_read(source, tmp_path):
    (tmp_path / "private.md").write_text("---\nlicense: private\n---\n")
    (source / "README.md").symlink_to(tmp_path / "private.md")
    assert (
        b"private"
        not in (
            convert(source, tmp_path / "one", certificate=False).folder / "moeba_provenance.json"
        ).read_bytes()
    )
    (source / "README.md").unlink()
    os.mkfifo(source / "README.md")
    convert(source, tmp_path / "two", certificate=False)


def test_a_home_folder_is_a_folder_and_no_repository(source, tmp_path, monkeypatch):
    from moeba.conversion.checkpoint import Checkpoint

    monkeypatch.setenv("HOME", str(tmp_path))
    told = describe_source(Checkpoint(source), "~/llama", None)
    assert (told["path"], told["repo_id"]) == ("llama", None)
