"""A Hub folder made on one release of transformers, loaded where Moeba is not installed on another one, and back.

`MOEBA_OTHER_PYTHON` is the interpreter of an environment with the other release: `make test-oldest` sets it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import WITHOUT_MOEBA

OTHER = os.environ.get("MOEBA_OTHER_PYTHON")
ROOT = Path(__file__).resolve().parents[2]
# What both scripts share: every head, measured with and without the cache and by its gradients.
MEASURE = """
import sys
import torch
import transformers

folder, figures = sys.argv[1:]
AUTO = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForTokenClassification",
        "AutoModelForQuestionAnswering")

def measure(load):
    found = {"release": transformers.__version__}
    for variant in VARIANTS:
        for name in AUTO:
            model = load(getattr(transformers, name), variant, f"{folder}/{variant}-{name}").eval()
            ids, told = torch.arange(1, 11).reshape(2, 5), f"{variant} {name} "
            output = next(value for value in model(ids).values() if isinstance(value, torch.Tensor))
            output.sum().backward()
            found[told + "output"], found[told + "gradient"] = output, model.get_input_embeddings().weight.grad
            if name == "AutoModelForCausalLM":
                words = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
                found[told + "tokens"] = model.generate(ids, **words)
                found[told + "static"] = model.generate(ids, cache_implementation="static", **words)
    return found
"""
WRITE = (
    MEASURE
    + """
import moeba
from moeba.conversion.certificate.twin import randomise
from moeba.hub_card import bundle
sizes = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, num_labels=3)

def load(auto_class, variant, path):
    model = auto_class.from_config(moeba.MoebaConfig(**(sizes | VARIANTS[variant])))
    randomise(model)
    model.save_pretrained(path + "-source")
    bundle(path + "-source", path)
    return auto_class.from_pretrained(path, experts_implementation="eager")

torch.save(measure(load), figures)
"""
)
READ = (
    WITHOUT_MOEBA
    + MEASURE
    + """
import warnings

def load(auto_class, variant, path):
    return auto_class.from_pretrained(path, trust_remote_code=True, experts_implementation="eager")

told = torch.load(figures)
with warnings.catch_warnings():
    warnings.filterwarnings("error", message=".*past_key_values.*is deprecated")
    found = measure(load)
assert found.pop("release") != told.pop("release"), "both interpreters have the same transformers"
for name in told:
    torch.testing.assert_close(found[name], told[name], atol=1e-5, rtol=1e-5, msg=name)
"""
)
VARIANTS = {
    "dense": dict(tie_word_embeddings=True, qk_norm="head"),
    "moe": dict(
        num_experts=12, num_experts_per_tok=3, moe_intermediate_size=24, shared_expert_intermediate_size=24
    ),
    "alibi": dict(position_embedding_type="alibi", norm_type="layernorm", block_order="parallel"),
    "latent": dict(
        attention_type="latent", kv_lora_rank=12, qk_rope_head_dim=4, v_head_dim=8, num_key_value_heads=4
    ),
}


def run(python: str, code: str, *words: Path, cwd: Path, isolated: bool) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON", "TRANSFORMERS"))}
    environment |= {"HF_HOME": str(cwd / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, *(["-I"] if isolated else []), "-c", code, *map(str, words)]
    done = subprocess.run(
        command, cwd=cwd if isolated else ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.skipif(OTHER is None, reason="MOEBA_OTHER_PYTHON names no environment with another transformers")
@pytest.mark.parametrize("direction", ["here to there", "there to here"])
def test_made_on_one_release_and_loaded_on_the_other(direction, tmp_path):
    writer, reader = (sys.executable, OTHER) if direction == "here to there" else (OTHER, sys.executable)
    figures = tmp_path / "figures.pt"
    shared = f"VARIANTS = {VARIANTS!r}\n"
    run(writer, shared + WRITE, tmp_path / "hub", figures, cwd=tmp_path, isolated=False)
    run(reader, shared + READ, tmp_path / "hub", figures, cwd=tmp_path, isolated=True)
