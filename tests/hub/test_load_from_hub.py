"""What was pushed is fetched in fresh processes with empty caches, with Moeba installed and without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_client import contents, hub_environment
from transformers import LlamaForCausalLM

from moeba import MoebaForCausalLM
from moeba.conversion.alignment import align

FETCH = """
import sys
from pathlib import Path

if sys.argv[1] == "bare":
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "moeba":
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Absent())
else:
    import moeba
import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

ids = torch.arange(5, 15)[None]
words = {"trust_remote_code": True, "experts_implementation": "grouped_mm"}  # there wherever the model is loaded

def load(name):
    model = AutoModelForCausalLM.from_pretrained(name, **words).eval()
    for tensor in model.parameters():
        tensor.data = tensor.data.clone()  # out of the mapped file: aligned alike, however it was written
    return model

model = load("ada/model")
assert type(model).__module__.startswith("transformers_modules." if sys.argv[1] == "bare" else "moeba."), type(model)
torch.save(model(ids).logits, "logits.pt")
tokenizer = AutoTokenizer.from_pretrained("ada/model")
speak = pipeline("text-generation", model="ada/model", trust_remote_code=True)
torch.save(tokenizer.encode(speak("one two", max_new_tokens=4, do_sample=False)[0]["generated_text"]), "text.pt")
Path("snapshot.txt").write_text(snapshot_download("ada/model"))

# Fine-tune, save, reload and push again from here.
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model.train()(ids, labels=ids).loss.backward()
optimizer.step()
model.eval().save_pretrained("tuned")
again = load("tuned")
assert torch.equal(again(ids).logits, model(ids).logits)
again.push_to_hub(f"ada/{sys.argv[1]}")
torch.save(again(ids).logits, "tuned.pt")
"""


def in_fresh_process(program: str, *words: str, hub, home: Path) -> None:
    home.mkdir()
    python_path = {"PYTHONPATH": ""} if words[0] == "bare" else {}
    environment = hub_environment(hub.url, home / "cache", **python_path)
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_model_comes_back_from_the_hub(hub, client, moe):
    """In the process that pushed it."""
    client.push(moe, "ada/back")
    program = """
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("ada/back", trust_remote_code=True).eval()
result = model(torch.arange(5, 15)[None]).logits.tolist()
"""
    expected = MoebaForCausalLM.from_pretrained(moe).eval()(torch.arange(5, 15)[None]).logits
    assert torch.equal(torch.tensor(client.done(program)), expected)
    assert hub.count("GET /cdn/")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["installed", "bare"])
def test_fetched_in_a_fresh_process(hub, client, moe, tmp_path, where):
    client.push(moe, private=True)
    home = tmp_path / "home"
    in_fresh_process(FETCH, where, hub=hub, home=home)
    # grouped_mm: what runs where moeba's kernels are not installed
    model = align(MoebaForCausalLM.from_pretrained(moe, experts_implementation="grouped_mm").eval())
    ids = torch.arange(5, 15)[None]
    assert torch.equal(torch.load(home / "logits.pt"), model(ids).logits)
    assert len(torch.load(home / "text.pt")) > 2
    on_hub = {path: file.data for path, file in hub.repos["ada/model"].files.items()}
    assert contents(Path((home / "snapshot.txt").read_text())) == on_hub

    client.push(moe, "ada/other")  # what was pushed from there loads here
    program = """
import torch
from moeba.conversion.alignment import align
from transformers import AutoModelForCausalLM
model = align(AutoModelForCausalLM.from_pretrained(repo, experts_implementation="grouped_mm").eval())
result = model(torch.arange(5, 15)[None]).logits.tolist()
"""
    tuned = torch.tensor(client.done(program, repo=f"ada/{where}"))
    assert torch.equal(tuned, torch.load(home / "tuned.pt"))
    assert not torch.equal(tuned, model(ids).logits)


def test_a_download_that_breaks_off_is_made_again(hub, client, moe):
    client.push(moe, "ada/broken")
    hub.fail("GET /cdn/", drop="truncate", times=1)
    program = "from huggingface_hub import snapshot_download; result = snapshot_download('ada/broken')"
    folder = Path(client.done(program))
    shards = [path.name for path in moe.glob("*.safetensors")]
    assert all((folder / name).read_bytes() == (moe / name).read_bytes() for name in shards)
    assert hub.count("GET /cdn/") == len(shards) + 1


def test_a_model_on_the_hub_is_converted(hub, client, tmp_path):
    program = """
from transformers import LlamaConfig, LlamaForCausalLM
from moeba.cli.app import run
from moeba.hub_card import push

sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=99)
LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
push(folder, "ada/llama")
result = run(["convert", "ada/llama", target])
"""
    target = tmp_path / "moeba"
    assert client.done(program, folder=tmp_path / "llama", target=target) == 0
    model = align(MoebaForCausalLM.from_pretrained(target))
    ids = torch.arange(5, 15)[None]
    source = align(LlamaForCausalLM.from_pretrained(tmp_path / "llama"))
    assert torch.equal(model.eval()(ids).logits, source.eval()(ids).logits)
    assert "ada/llama" in (target / "README.md").read_text()
