"""A bundle in an environment without Moeba: proven there, trained there, saved there, and taken up again here.

The process that runs it has no Moeba, no cache and no network. It is given the certificate's inputs and what the
installed package makes of them, and has to find the same, and to find a planted fault.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from card_folders import EXPERTS, SIZES, save_tokenizer
from support import WITHOUT_MOEBA
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import moeba
from moeba import MoebaConfig, MoebaForCausalLM, MoebaForSequenceClassification
from moeba.conversion.alignment import align
from moeba.conversion.certificate.battery import build_battery
from moeba.conversion.certificate.twin import randomise
from moeba.hub_card import bundle
from moeba.modeling import modeling_moeba
from moeba.modeling.code_files import AUTO_MAP

# argv: folder, inputs and expected outputs, folder to save to.
ELSEWHERE = (
    WITHOUT_MOEBA
    + """import torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, pipeline

folder, told, again = sys.argv[1:]
told = torch.load(told)

def load(where, **more):
    model = AutoModelForCausalLM.from_pretrained(where, trust_remote_code=True, **more)
    for tensor in model.parameters():
        tensor.data = tensor.data.clone()  # out of the mapped file: aligned alike, however it was written
    return model

def measure(model):
    model.zero_grad()
    out = []
    for ids in told["inputs"]:
        result = model(ids, labels=ids, output_hidden_states=True)
        out += [result.logits.detach(), *(state.detach() for state in result.hidden_states)]
    result.loss.backward()
    out += [p.grad for _, p in sorted(model.named_parameters()) if p.grad is not None]
    with torch.no_grad():
        longest = told["inputs"][-1]
        past = model(longest[:, :-1], use_cache=True).past_key_values
        out.append(model(longest[:, -1:], past_key_values=past).logits)
        padded = torch.cat([torch.zeros_like(longest[:, :3]), longest], dim=1)
        mask = (torch.arange(padded.shape[1]) >= 3).long().expand_as(padded)
        out.append(model(padded, attention_mask=mask).logits[:, 3:])
        out.append(model.generate(longest[:1, :4], max_new_tokens=4, do_sample=False))
    return out

def agrees(found):
    assert len(found) == len(told["outputs"])
    return all(torch.equal(a, b) for a, b in zip(found, told["outputs"]))

tokenizer = AutoTokenizer.from_pretrained(folder)
assert tokenizer("one two three")["input_ids"] == told["tokens"] and tokenizer.chat_template
model = load(folder).eval()
assert type(model).__module__.startswith("transformers_modules.")
assert model.config.tie_word_embeddings == (model.lm_head.weight is model.model.embed_tokens.weight)
assert agrees(measure(model))
with torch.no_grad():
    model.model.layers[0].input_layernorm.weight[0] += 0.1  # the planted fault
assert not agrees(measure(model))
assert len(pipeline("text-generation", model=load(folder), tokenizer=tokenizer)("one", max_new_tokens=2)) == 1

model = load(folder)
ids = told["inputs"][-1]
data = [{"input_ids": row, "labels": row} for row in ids]
settings = dict(max_steps=1, learning_rate=0.01, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no")
trainer = Trainer(model, TrainingArguments(again, **settings), train_dataset=data, processing_class=tokenizer)
trainer.train()
trainer.save_model(again)
trainer.save_state()
trained = load(again).eval()
with torch.no_grad():
    logits = trained(ids).logits
    assert torch.equal(logits, model.eval()(ids).logits) and not torch.equal(logits, told["outputs"][-5])
trained.save_pretrained(again, max_shard_size="40kB")
assert len(list(Path(again).glob("model-*.safetensors"))) > 1
Path(again, "model.safetensors").unlink(missing_ok=True)
with torch.no_grad():
    torch.save(load(again).eval()(ids).logits, str(Path(again, "logits.pt")))
"""
)
VARIANTS = {
    "dense, tied": dict(tie_word_embeddings=True, qk_norm="head"),
    "sparse, sharded": dict(EXPERTS, shared_expert_intermediate_size=24, scoring_func="sigmoid"),
}


def measure(model, inputs):
    """The same figures as in the other process, by the installed package."""
    names = {"told": {"inputs": inputs}, "torch": torch}
    source = ELSEWHERE.split("def measure(model):")[1].split("def agrees")[0]
    exec(f"def measure(model):{source}", names)
    return names["measure"](model)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*past_key_values.*is deprecated:FutureWarning"
)  # `measure` is an older script
@pytest.mark.parametrize("variant", VARIANTS)
def test_proven_trained_and_saved_elsewhere(variant, tmp_path):
    source = tmp_path / "source"
    save_tokenizer(source)
    torch.manual_seed(0)
    model = MoebaForCausalLM(MoebaConfig(**SIZES, **VARIANTS[variant]))
    randomise(model)
    model.tie_weights()
    model.save_pretrained(source, max_shard_size="40kB" if "sharded" in variant else "5GB")
    made = bundle(source, tmp_path / "hub")
    assert (len(list(made.glob("*.safetensors"))) > 1) == ("sharded" in variant)

    inputs = build_battery(model.config, 64).inputs
    # grouped_mm: what runs where moeba's kernels are not installed
    here = align(MoebaForCausalLM.from_pretrained(made, experts_implementation="grouped_mm").eval())
    tokens = AutoTokenizer.from_pretrained(made)("one two three")["input_ids"]
    torch.save({"inputs": inputs, "outputs": measure(here, inputs), "tokens": tokens}, tmp_path / "told.pt")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON", "TRANSFORMERS"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    again = tmp_path / "again"
    command = [sys.executable, "-I", "-c", ELSEWHERE, str(made), str(tmp_path / "told.pt"), str(again)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-3000:]

    for path in made.glob("*.py"):
        assert (again / path.name).read_bytes() == path.read_bytes()
    back = align(MoebaForCausalLM.from_pretrained(again, experts_implementation="grouped_mm").eval())
    with torch.no_grad():
        assert torch.equal(back(inputs[-1]).logits, torch.load(again / "logits.pt"))
    second = bundle(again, tmp_path / "hub2")
    assert "Optimiser steps:** 1" in (second / "README.md").read_text(encoding="utf-8")


def test_every_head_has_its_auto_class():
    heads = {name for name in dir(modeling_moeba) if name.startswith("MoebaFor")} | {"MoebaModel"}
    assert {reference.split(".")[1] for reference in AUTO_MAP.values()} == heads | {"MoebaConfig"}


def test_the_installed_class_wins_for_every_head(dense, tmp_path):
    made = bundle(dense, tmp_path / "hub")
    import transformers

    assert type(AutoConfig.from_pretrained(made, trust_remote_code=True)) is MoebaConfig
    for auto_class, reference in AUTO_MAP.items():
        if auto_class != "AutoConfig":
            loaded = getattr(transformers, auto_class).from_pretrained(made, trust_remote_code=True)
            assert type(loaded) is getattr(moeba, reference.split(".")[1])


def test_another_head_is_bundled(tmp_path):
    save_tokenizer(tmp_path / "source")
    MoebaForSequenceClassification(MoebaConfig(**SIZES, num_labels=3)).save_pretrained(tmp_path / "source")
    made = bundle(tmp_path / "source", tmp_path / "hub")
    assert json.loads((made / "config.json").read_text())["auto_map"] == AUTO_MAP
    text = (made / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in text and "## Serving" not in text
    assert "AutoModelForSequenceClassification.from_pretrained(model_id, trust_remote_code=True)" in text


def test_a_bundle_is_byte_stable(upcycled, tmp_path):
    first, second = bundle(upcycled, tmp_path / "one"), bundle(upcycled, tmp_path / "two")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_figures_and_evaluations_go_along(trained, tmp_path):
    (trained / ".eval_results").mkdir()
    (trained / ".eval_results" / "a.yaml").write_text("[]\n")
    (trained / "figures" / "deep" / "er").mkdir(parents=True)
    (trained / "figures" / "deep" / "er" / "b.txt").write_text("b")
    made = bundle(trained, tmp_path / "hub")
    assert (made / ".eval_results" / "a.yaml").is_file()
    assert (made / "figures" / "deep" / "er" / "b.txt").is_file()
    assert len(list((made / "figures").glob("*.svg"))) == 3
    assert isinstance(AutoModelForCausalLM.from_pretrained(made), MoebaForCausalLM)
