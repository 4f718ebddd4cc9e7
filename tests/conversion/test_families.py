"""What is special to single families: old files, odd configs, refusals. What holds for all is in test_family_*.py."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import native
import pytest
import torch
from draws.common import LENGTH
from family_case import Case
from native import build, draw, load, read_all, same_tensors, save
from parity import assert_close, assert_same_logits
from safetensors.torch import load_file, save_file
from support import random_ids, randomise
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig

from moeba import MoebaConfig, MoebaForCausalLM, convert, export
from moeba.conversion import family_of


def ids_for(config, length: int = LENGTH) -> torch.Tensor:
    return random_ids(2, length, config.vocab_size)


SIZES = dict(
    vocab_size=67, hidden_size=24, intermediate_size=20, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
PLAIN_ROPE = ["llama", "qwen2", "qwen3", "mixtral", "qwen3_moe"]
MIXED = ["full_attention", "sliding_attention", "full_attention"]
# What a family can hold, said in Moeba's own words.
OURS = {
    "gpt2": dict(
        num_key_value_heads=4, position_embedding_type="learned", norm_type="layernorm", feed_forward_type="mlp",
        hidden_act="gelu_new", attention_bias=True, mlp_bias=True, max_position_embeddings=48, attention_multiplier=1.0,
    ),
    "llama": dict(
        attention_bias=True, head_dim=8, rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 5e3},
    ),
    "mixtral": dict(
        num_experts=13, num_experts_per_tok=3, moe_intermediate_size=18, router_weight_dtype="float32",
        sliding_window=7, norm_eps=1e-4, tie_word_embeddings=True,
    ),
    "qwen2": dict(attention_bias=True, attention_output_bias=False, sliding_window=5, layer_types=MIXED),
    "qwen3": dict(qk_norm="head", head_dim=10, attention_bias=True, sliding_window=5, layer_types=MIXED),
    "qwen3_moe": dict(
        qk_norm="head", head_dim=10, num_experts=12, num_experts_per_tok=2, moe_intermediate_size=22,
        mlp_layer_types=["sparse", "dense", "sparse"], norm_topk_prob=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("model_type", OURS)
def test_out_from_our_own_config(tmp_path, model_type):
    config = MoebaConfig(**{**SIZES, **OURS[model_type]})
    ours = randomise(MoebaForCausalLM(config)).eval()
    ours.tie_weights()
    ours.save_pretrained(tmp_path / "moeba")
    export(tmp_path / "moeba", tmp_path / "native", to=model_type, certificate=False)
    ours, theirs = load(MoebaForCausalLM, tmp_path / "moeba"), load(AutoModelForCausalLM, tmp_path / "native")
    assert theirs.config.model_type == model_type
    assert_same_logits(Case(theirs.config, tmp_path / "case"), ours, theirs)


def test_all_unsupported_fields_are_named_at_once():
    config = draw("gpt2", 0)
    config.is_encoder_decoder = config.add_cross_attention = True
    with pytest.raises(ValueError, match="is_encoder_decoder=True.*add_cross_attention=True"):
        family_of("gpt2").to_moeba(config)


def rewrite_config(folder: Path, change) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("model_type", PLAIN_ROPE)
def test_old_spelling_of_rope_and_dtype(tmp_path, model_type):
    """Before version 5: rope_theta and rope_scaling beside each other, and torch_dtype."""
    factors = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    source = native.make(tmp_path / "native", model_type, rope_parameters=factors)
    expected = load(AutoModelForCausalLM, source)

    def back_in_time(values):
        del values["rope_parameters"], values["dtype"]
        values |= {
            "rope_theta": 500.0,
            "rope_scaling": {"type": "linear", "factor": 4.0},
            "torch_dtype": "float32",
        }

    rewrite_config(source, back_in_time)
    convert(source, tmp_path / "moeba", certificate=False)
    ours = load(MoebaForCausalLM, tmp_path / "moeba")
    ids = ids_for(expected.config)
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, expected(ids).logits)
    assert json.loads((tmp_path / "moeba" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("head_saved", [False, True])
def test_gpt2_as_it_lies_on_the_hub(tmp_path, head_saved):
    """Without `transformer.`, with the causal masks, and of the tied head none or a copy."""
    config = CONFIG_MAPPING["gpt2"](**{**native.plain(draw("gpt2", 0)), "tie_word_embeddings": True})
    source = save(build(config), tmp_path / "native")
    expected = load(AutoModelForCausalLM, source)
    tensors = load_file(source / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    kept = set(bare)
    for layer in range(config.n_layer):
        bare[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
        bare[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    if head_saved:
        bare["lm_head.weight"] = bare["wte.weight"].clone()
    save_file(bare, source / "model.safetensors", {"format": "pt"})
    rewrite_config(
        source, lambda values: values.update(n_ctx=64, task_specific_params={"text-generation": {}})
    )
    plan = convert(source, tmp_path / "moeba").plan
    assert plan.bare_names and len(plan.dropped) == 2 * config.n_layer + head_saved
    ours = load(MoebaForCausalLM, tmp_path / "moeba")
    ids = ids_for(config)
    with torch.no_grad():
        assert_close(ours(ids).logits, expected(ids).logits, False, "logits")
    export(tmp_path / "moeba", tmp_path / "back", to="gpt2")
    same_tensors({name: bare[name] for name in kept}, read_all(tmp_path / "back"))


def test_qwen2_with_heads_of_their_own_width(tmp_path):
    source = native.make(tmp_path / "native", "qwen2", head_dim=12, rope_parameters={"rope_theta": 500.0})
    assert convert(source, tmp_path / "moeba").certificate.verdict == "verified"
    export(tmp_path / "moeba", tmp_path / "back", to="qwen2")
    same_tensors(read_all(source), read_all(tmp_path / "back"))


@pytest.mark.parametrize(
    "dense",
    [dict(num_experts=0, num_local_experts=0), dict(mlp_only_layers=[0, 1, 2]), dict(decoder_sparse_step=9)],
)
def test_qwen3_moe_without_experts(tmp_path, dense):
    source = native.make(tmp_path / "native", "qwen3_moe", **dense)
    convert(source, tmp_path / "moeba")
    assert MoebaConfig.from_pretrained(tmp_path / "moeba").num_experts == 0
    export(tmp_path / "moeba", tmp_path / "back", to="qwen3_moe")
    same_tensors(read_all(source), read_all(tmp_path / "back"))


@pytest.mark.parametrize(
    "model_type, names",
    [
        ("llama", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]),
        ("qwen2", ["model.rotary_emb.inv_freq"]),
        ("gpt_neox", ["gpt_neox.layers.1.attention.rotary_emb.inv_freq", "gpt_neox.rotary_emb.inv_freq"]),
        ("gemma3_text", ["model.rotary_emb_local.inv_freq", "model.rotary_emb.full_attention_inv_freq"]),
        ("qwen3_moe", ["model.rotary_emb.original_inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq"]),
    ],
)
def test_stored_rope_frequencies_are_dropped(tmp_path, model_type, names):
    """Some releases saved them once for the model, older ones for each layer; no stock model reads them."""
    source = native.make(tmp_path / "native", model_type)
    tensors = load_file(source / "model.safetensors")
    stored = {**tensors, **{name: torch.ones(4) for name in names}}
    save_file(stored, source / "model.safetensors", {"format": "pt"})
    dropped = convert(source, tmp_path / "moeba", dry_run=True).plan.dropped
    assert dropped == dict.fromkeys(names, "rope frequencies, computed from the config")


def test_rope_frequencies_of_a_model_without_rope_are_unexpected(tmp_path):
    source = native.make(tmp_path / "native", "gpt2")
    tensors = load_file(source / "model.safetensors")
    save_file({**tensors, "transformer.rotary_emb.inv_freq": torch.ones(4)}, source / "model.safetensors")
    with pytest.raises(ValueError, match="unexpected transformer.rotary_emb.inv_freq"):
        convert(source, tmp_path / "moeba", dry_run=True)


@pytest.mark.parametrize("model_type", PLAIN_ROPE)
@pytest.mark.parametrize("kind", ["default", "yarn"])
def test_partial_rotation_that_stock_does_not_do_is_refused(model_type, kind):
    raw = {**draw(model_type, 0).to_dict(), "partial_rotary_factor": 0.5}
    raw["rope_parameters"] = {
        "rope_type": kind,
        "rope_theta": 1e4,
        "factor": 2.0,
        "original_max_position_embeddings": 16,
    }
    family = family_of(model_type)
    with pytest.raises(ValueError, match="partial_rotary_factor"):
        family.to_moeba(family.read_config(raw))


def test_what_a_family_cannot_hold_is_named():
    rope = {"rope_theta": 1e4, "partial_rotary_factor": 0.5}
    config = MoebaConfig(**SIZES, head_dim=8, qk_norm="full", rope_parameters=rope)
    with pytest.raises(ValueError, match="'llama' cannot hold.*partial_rotary_factor"):
        family_of("llama").to_native(config)
    config = MoebaConfig(**SIZES, qk_norm="full", logit_scale=0.5)
    with pytest.raises(ValueError, match="'llama' cannot hold.*logit_scale=0.5 .*qk_norm='full'"):
        family_of("llama").to_native(config)


def test_numbers_that_have_no_counterpart_are_no_fault_of_ours():
    """Gemma 2 says the multiplier's inverse square as a whole number: of this one there is none but 0."""
    config = MoebaConfig(**SIZES, attention_multiplier=2.0)
    with pytest.raises(ValueError, match="'gemma2' cannot hold this model: .*query_pre_attn_scalar"):
        family_of("gemma2").to_native(config)
    with pytest.raises(ValueError, match="gemma2 config: query_pre_attn_scalar=0 gives no number"):
        family_of("gemma2").to_moeba(
            family_of("gemma2").read_config({"model_type": "gemma2", "query_pre_attn_scalar": 0})
        )


def test_from_pretrained_keeps_the_stored_dtype_unless_told(tmp_path):
    source = save(build(draw("llama", 0), dtype=torch.bfloat16), tmp_path / "native")
    assert MoebaForCausalLM.from_pretrained(source).dtype == torch.bfloat16
    told = MoebaForCausalLM.from_pretrained(source, dtype=torch.float16, attn_implementation="eager")
    assert (told.dtype, told.config._attn_implementation) == (torch.float16, "eager")


def test_from_pretrained_of_an_unsupported_type(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="model_type='bert' is not supported: it is an encoder"):
        MoebaForCausalLM.from_pretrained(tmp_path)


def test_config_of_an_old_full_dump_is_read():
    """Old versions wrote every field of their base class, and training tools left their own."""
    raw = LlamaConfig(**SIZES).to_dict()
    raw |= {"is_decoder": False, "pruned_heads": {}, "tie_encoder_decoder": False, "finetuning_task": None}
    raw |= {
        "cross_attention_hidden_size": None,
        "tokenizer_class": None,
        "rope_interleaved": False,
        "is_llama_config": True,
    }
    family = family_of("llama")
    family.take(copy.deepcopy(raw))
    for name, value in {"pruned_heads": {"0": [1]}, "rope_interleaved": True}.items():
        with pytest.raises(ValueError, match=f"{name}="):
            family.take({**raw, name: value})


def test_model_type_that_is_another_name(tmp_path):
    """transformers reads GPT-SW3 with GPT-2's classes; what goes out says so."""
    source = native.make(tmp_path / "native", "gpt2")
    path = source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "gpt-sw3"}))
    convert(source, tmp_path / "moeba")
    export(tmp_path / "moeba", tmp_path / "out", certificate=False)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "gpt2"
    same_tensors(read_all(source), read_all(tmp_path / "out"))


def test_rope_of_dbrx_that_stock_code_does_not_read(tmp_path):
    """The published configs say theta where transformers no longer looks."""
    source = native.make(tmp_path / "native", "dbrx")
    path = source / "config.json"
    raw = json.loads(path.read_text())
    raw["attn_config"]["rope_theta"] = 500000
    path.write_text(json.dumps(raw))
    with pytest.raises(
        ValueError, match="attn_config.rope_theta=500000 is not read .* write rope_theta=500000"
    ):
        convert(source, tmp_path / "moeba")
