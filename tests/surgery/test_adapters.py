"""LoRA adapters, merged a tensor at a time, against PEFT's own merge of the whole model."""

from __future__ import annotations

import json
from pathlib import Path

import native
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moeba import convert, merge
from moeba.surgery.merging_parts.adapters import AdaptedCheckpoint
from moeba.surgery.running.sources import Source

peft = pytest.importorskip("peft")

PLAIN = dict(
    hidden_size=32, intermediate_size=20, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3,
    attention_bias=False, mlp_bias=False, hidden_act="silu", tie_word_embeddings=False, vocab_size=60,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0}, head_dim=8,
)  # fmt: skip
LLAMA = ("llama", PLAIN)
GPT2 = ("gpt2", dict(n_layer=3, n_embd=24, n_head=3, tie_word_embeddings=True))
NEOX = ("gpt_neox", dict(tie_word_embeddings=False))
PHI = ("phi", dict(tie_word_embeddings=False))
FORMS = {
    "plain": (*LLAMA, dict(target_modules=["q_proj", "down_proj"])),
    "all linear": (*LLAMA, dict(target_modules="all-linear")),
    "pattern": (*LLAMA, dict(target_modules=r".*\.layers\.[02]\..*(gate|down)_proj")),
    "ranks and alphas": (
        *LLAMA,
        dict(target_modules=["q_proj", "up_proj", "down_proj"], rank_pattern={"up_proj": 7, r"0\..*q_proj": 1},
             alpha_pattern={"up_proj": 3}, use_rslora=True),
    ),
    "chosen layers": (*LLAMA, dict(target_modules=["up_proj"], layers_to_transform=[0, 2], layers_pattern="layers")),
    "dora": (*LLAMA, dict(target_modules=["v_proj", "down_proj", "embed_tokens"], use_dora=True)),
    "saved whole": (*LLAMA, dict(target_modules=["up_proj"], modules_to_save=["embed_tokens", "lm_head", "norm"])),
    "embeddings": (*LLAMA, dict(target_modules=["embed_tokens", "lm_head", "up_proj"])),
    "gpt2": (*GPT2, dict(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "gpt2 dora": (*GPT2, dict(target_modules=["c_fc"], fan_in_fan_out=True, use_dora=True)),
    "gpt2 biases": (*GPT2, dict(target_modules=["c_fc"], fan_in_fan_out=True, bias="all")),
    "gpt2 adapted biases": (*GPT2, dict(target_modules=["c_fc"], fan_in_fan_out=True, bias="lora_only")),
    "gpt2 lora bias": (*GPT2, dict(target_modules=["c_fc"], fan_in_fan_out=True, lora_bias=True)),
    "neox": (*NEOX, dict(target_modules=["query_key_value", "dense_4h_to_h"])),
    "phi": (*PHI, dict(target_modules=["fc1", "fc2", "q_proj"])),
}  # fmt: skip


def base(folder: Path, model_type: str, fields: dict, dtype: torch.dtype = torch.float32) -> Path:
    config = native.draw(model_type, 0)
    config = type(config)(**{**native.plain(config), **fields})
    return native.save(native.build(config, dtype=dtype), folder)


def train(folder: Path, out: Path, dtype: torch.dtype = torch.float32, seed: int = 0, **options) -> Path:
    """An adapter with every one of its own weights random, as PEFT saves it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **options})
    model = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_((0.3 * noise).to(parameter.dtype))
    model.save_pretrained(out)
    return out


def merged(folder: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model.save_pretrained(adapter / "merged")
    return native.read_all(adapter / "merged")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_equals_pefts_own_merge(tmp_path, form):
    model_type, fields, options = FORMS[form]
    folder = base(tmp_path / "base", model_type, fields)
    adapter = train(folder, tmp_path / "adapter", **options)
    adapted = AdaptedCheckpoint(folder, adapter)
    theirs = merged(folder, adapter)
    before = native.read_all(folder)
    native.same_tensors({name: adapted.read(name) for name in adapted.tensors}, theirs)
    assert set(adapted.changed) == {name for name in theirs if not torch.equal(theirs[name], before[name])}


GROWN = {
    "saved with the adapter": (*LLAMA, dict(target_modules=["down_proj"]), True),
    "saved whole": (*LLAMA, dict(target_modules=["down_proj"], modules_to_save=["embed_tokens", "lm_head"]), True),
    "biased head": (*PHI, dict(target_modules=["fc1"], modules_to_save=["embed_tokens", "lm_head"]), True),
    "one of two": (*LLAMA, dict(target_modules=["down_proj"], modules_to_save=["embed_tokens"]), False),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", GROWN)
def test_an_adapter_that_was_trained_with_tokens_of_its_own(tmp_path, form):
    model_type, fields, options, complete = GROWN[form]
    folder = base(tmp_path / "base", model_type, fields)
    rows = AutoModelForCausalLM.from_pretrained(folder).config.vocab_size + 3
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(rows)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, task_type="CAUSAL_LM", **options))
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape) * parameter.requires_grad)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=complete)
    if not complete:
        with pytest.raises(
            ValueError, match="another number of tokens.*lm_head.weight absent.*modules_to_save"
        ):
            AdaptedCheckpoint(folder, tmp_path / "adapter")
        return
    adapted = Source(folder, checkpoint=AdaptedCheckpoint(folder, tmp_path / "adapter"))
    assert adapted.config.vocab_size == rows
    whole = model.merge_and_unload()
    native.save(whole, tmp_path / "whole")
    theirs = Source(tmp_path / "whole").tensors
    for name, info in theirs.tensors.items():
        assert torch.equal(adapted.tensors.read(name), theirs.read(name)), name
        assert adapted.tensors.tensors[name].shape == info.shape
    recipe = {"base_model": str(folder), "gate_mode": "random", "vocab": "pad",
              "experts": [{"source_model": str(folder)}, {"adapter": str(tmp_path / "adapter")}]}  # fmt: skip
    merge(recipe, tmp_path / "moe", certificate=False)
    table = native.read_all(tmp_path / "moe")["model.embed_tokens.weight"]
    assert torch.equal(table[-3:], theirs.read("model.embed_tokens.weight")[-3:])
    assert torch.equal(table[:-3], Source(folder).tensors.read("model.embed_tokens.weight"))


@pytest.mark.parametrize("form", ["plain", "dora", "saved whole", "gpt2"])
@pytest.mark.filterwarnings("ignore")
def test_half_precision(tmp_path, form):
    model_type, fields, options = FORMS[form]
    folder = base(tmp_path / "base", model_type, fields, torch.bfloat16)
    adapter = train(folder, tmp_path / "adapter", torch.bfloat16, **options)
    adapted = AdaptedCheckpoint(folder, adapter)
    native.same_tensors(
        {name: adapted.read(name) for name in adapted.tensors}, merged(folder, adapter, torch.bfloat16)
    )


def test_a_moeba_base(tmp_path):
    """An adapter that was trained on the converted model, in its names."""
    convert(base(tmp_path / "native", *LLAMA), tmp_path / "base", certificate=False)
    adapter = train(tmp_path / "base", tmp_path / "adapter", target_modules=["down_proj", "k_proj"])
    adapted = Source(tmp_path / "base", checkpoint=AdaptedCheckpoint(tmp_path / "base", adapter))
    ours = {name: adapted.tensors.read(name) for name in adapted.tensors.tensors}
    native.same_tensors(ours, merged(tmp_path / "base", adapter))


def test_an_older_adapter_in_a_pickle(tmp_path):
    folder = base(tmp_path / "base", *LLAMA)
    adapter = train(folder, tmp_path / "adapter", target_modules=["up_proj"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    expected = merged(folder, adapter)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(tensors, adapter / "adapter_model.bin")
    adapted = AdaptedCheckpoint(folder, adapter)
    native.same_tensors({name: adapted.read(name) for name in adapted.tensors}, expected)


def test_what_cannot_be_merged_is_named(tmp_path):
    folder = base(tmp_path / "base", *LLAMA)
    good = train(folder, tmp_path / "adapter", target_modules=["up_proj"])
    weights, stated = good / "adapter_model.safetensors", good / "adapter_config.json"
    tensors, config = load_file(weights), json.loads(stated.read_text())
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    cases = [
        ({}, {**tensors, "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": tensors[key].clone()},
         r"layers\.9\.mlp\.up_proj\.lora_A\.weight has no place"),
        ({}, {name: value for name, value in tensors.items() if name != key}, "missing model.layers.0.mlp.up_proj"),
        ({"r": 5}, tensors, r"lora_A.weight has shape \[4, 32\], the base model needs \[5, 32\]"),
        ({"target_modules": ["c_attn"]}, tensors, "c_attn"),
        ({"peft_type": "IA3"}, tensors, "is a 'IA3' adapter: only LORA"),
        ({"init_lora_weights": "pissa"}, tensors, "init_lora_weights='pissa' changed the base weights"),
        ({"layer_replication": [[0, 2], [1, 3]]}, tensors, "layer_replication"),
        ({}, {**tensors, key: tensors[key] * float("nan")}, "holds 128 NaN or Inf values"),
    ]  # fmt: skip
    for changes, given, message in cases:
        stated.write_text(json.dumps({**config, **changes}))
        save_file(given, weights)
        with pytest.raises(ValueError, match=message):
            adapted = AdaptedCheckpoint(folder, good)
            adapted.read("model.layers.0.mlp.up_proj.weight")
    stated.write_text(json.dumps(config))
    save_file(tensors, weights)
    wide = base(tmp_path / "wide", "llama", {**PLAIN, "intermediate_size": 24})
    with pytest.raises(ValueError, match=r"shape \[20, 4\], the base model needs \[24, 4\]"):
        AdaptedCheckpoint(wide, good)
    tied = base(tmp_path / "tied", "llama", {**PLAIN, "tie_word_embeddings": True})
    whole = train(tied, tmp_path / "whole", target_modules=["up_proj"], modules_to_save=["lm_head"])
    with pytest.raises(ValueError, match="lm_head.weight, which is tied"):
        AdaptedCheckpoint(tied, whole)
    fine = train(tied, tmp_path / "fine", target_modules=["up_proj"])
    native.same_tensors(
        {
            name: (found := AdaptedCheckpoint(tied, fine)).read(name)
            for name in ["model.layers.0.mlp.up_proj.weight"]
        },
        {name: merged(tied, fine)[name] for name in ["model.layers.0.mlp.up_proj.weight"]},
    )
    assert found.fingerprint() != AdaptedCheckpoint(folder, good).fingerprint()


def test_merging_adapters(tmp_path):
    """Experts from adapters are what PEFT would have made of the base; attention is averaged, or noted as lost."""
    folder = base(tmp_path / "base", *LLAMA)
    for seed, name in enumerate(("one", "two")):
        train(folder, tmp_path / name, seed=seed, target_modules=["down_proj", "q_proj"])
    train(folder, tmp_path / "attention", target_modules=["q_proj"])
    wholes = [merged(folder, tmp_path / name) for name in ("one", "two")]
    experts = [
        {"adapter": tmp_path / "one"},
        {"source_model": f"{folder}+{tmp_path / 'two'}", "name": "second"},
    ]
    recipe = {"base_model": folder, "experts": experts, "gate_mode": "random", "dtype": None}
    result = merge(recipe, tmp_path / "moe")
    assert [item["name"] for item in result.gap["per_source"]] == ["one", "second"]
    assert any("changes of 3 tensors outside of the experts" in note for note in result.plan.notes)
    made = native.read_all(tmp_path / "moe")
    for layer in range(3):
        stack = made[f"model.layers.{layer}.mlp.experts.down_proj"]
        native.same_tensors(
            dict(enumerate(stack)),
            dict(enumerate(whole[f"model.layers.{layer}.mlp.down_proj.weight"] for whole in wholes)),
        )
    merge({**recipe, "others": "average"}, tmp_path / "mean", certificate=False)
    name = "model.layers.1.self_attn.q_proj.weight"
    mean = (wholes[0][name].double() + wholes[1][name].double()) / 2
    assert (native.read_all(tmp_path / "mean")[name] - mean).abs().max() < 1e-6
    with pytest.raises(ValueError, match="attention: its adapter changes nothing in the feed-forwards"):
        merge({**recipe, "experts": [experts[0], {"adapter": tmp_path / "attention"}]}, tmp_path / "out")
    with pytest.raises(ValueError, match="is the source itself"):
        merge(recipe, tmp_path / "one", overwrite=True)


@pytest.mark.filterwarnings("ignore")
def test_added_tokens_on_a_tied_head_are_refused_as_tied(tmp_path):
    folder = base(tmp_path / "base", *GPT2)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(model.config.vocab_size + 3)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["c_fc"], fan_in_fan_out=True))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    with pytest.raises(ValueError, match="it changes .*which is tied to another tensor"):
        AdaptedCheckpoint(folder, tmp_path / "adapter")
