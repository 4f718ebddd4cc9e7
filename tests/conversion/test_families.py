"""Each family against stock transformers: random configs, every tensor random, both ways."""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from pathlib import Path

import native
import pytest
import torch
from native import LENGTH, build, draw, load, read_all, same_tensors, save
from safetensors.torch import load_file, save_file
from support import random_ids, randomise
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig

from moeba import MoebaConfig, MoebaForCausalLM, convert, export
from moeba.conversion import FAMILIES, family_of
from moeba.conversion.checkpoint import Checkpoint
from moeba.conversion.config_rows import COMMON, Inert, Only, differences
from moeba.conversion.plan import PlannedTensors, plan_import

# Fused projections are one product there and three here, and weights lie transposed: sums in another order.
REORDERED = {"gpt2"}
SLOW = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 20)]


def ids_for(config, length: int = LENGTH) -> torch.Tensor:
    return random_ids(2, length, config.vocab_size)


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor, exact: bool, what: str) -> None:
    if exact:
        assert torch.equal(ours, theirs), f"{what}: {(ours - theirs).abs().max()}"
    else:
        scale = theirs.abs().max().clamp(min=1e-6)
        assert (ours - theirs).abs().max() <= 2e-6 * scale, (
            f"{what}: {(ours - theirs).abs().max()} of {scale}"
        )


def assert_same_function(ours, theirs, model_type: str) -> None:
    """Logits under both attention implementations, and tokens generated with the cache."""
    exact = model_type not in REORDERED
    ids = ids_for(theirs.config)
    for implementation in ("eager", "sdpa"):
        for model in (ours, theirs):
            model.set_attn_implementation(implementation)
        with torch.no_grad():
            assert_equal(ours(ids).logits, theirs(ids).logits, exact, f"logits, {implementation}")
    prompt = ids[:1, :20]
    settings = dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    tokens = [m.generate(prompt, attention_mask=torch.ones_like(prompt), **settings) for m in (ours, theirs)]
    assert tokens[0].shape[1] == 28
    assert torch.equal(*tokens)


def assert_same_gradients(ours, theirs, model_type: str, folder: Path) -> None:
    """The stock model's gradients, saved as if they were weights and converted, against Moeba's own."""
    ids = ids_for(theirs.config)
    for model in (ours, theirs):
        model.set_attn_implementation("eager")
        logits = model(
            ids, use_cache=False
        ).logits  # of the cross-entropy alone: router losses are another matter
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            # An expert that no token visits has none.
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    theirs.save_pretrained(folder)
    plan, _ = plan_import(Checkpoint(folder))
    expected = PlannedTensors(plan)
    found = dict(ours.named_parameters())
    largest = max(expected.read(name).norm() for name in expected.tensors)
    for name in expected.tensors:
        value, gradient = expected.read(name), found[name].grad
        gradient = torch.zeros_like(value) if gradient is None else gradient
        # A key's bias moves all scores alike: its gradient is nothing but rounding.
        assert (gradient - value).norm() <= 2e-6 * value.norm() + 1e-7 * largest, name


@pytest.mark.parametrize("seed", [0, 1, 2, *SLOW])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_in_and_out_again(tmp_path, model_type, seed):
    stock = build(draw(model_type, seed), seed)
    source = save(stock, tmp_path / "native", shards=seed % 2 == 0)
    limit = "4KB" if seed % 3 == 1 else "5GB"
    convert(source, tmp_path / "moeba", certificate=False, max_shard_size=limit)
    ours = load(MoebaForCausalLM, tmp_path / "moeba")
    theirs = load(AutoModelForCausalLM, source)
    assert_same_function(ours, theirs, model_type)
    assert_same_gradients(ours, theirs, model_type, tmp_path / "gradients")

    export(tmp_path / "moeba", tmp_path / "back", to=model_type, certificate=False)
    same_tensors(read_all(source), read_all(tmp_path / "back"))
    family = family_of(model_type)
    before, after = (family.read_config(Checkpoint(folder).config) for folder in (source, tmp_path / "back"))
    assert differences(family.to_moeba(before), family.to_moeba(after)) == []
    again = load(AutoModelForCausalLM, tmp_path / "back")
    stock.set_attn_implementation("eager")
    again.set_attn_implementation("eager")
    if getattr(stock.config, "num_experts", 0):
        stock.set_experts_implementation("eager")
    ids = ids_for(stock.config)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, stock(ids).logits)


SIZES = dict(
    vocab_size=67, hidden_size=24, intermediate_size=20, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
MIXED = ["full_attention", "sliding_attention", "full_attention"]
# What each family can hold, said in Moeba's own words.
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


@pytest.mark.parametrize("model_type", FAMILIES)
def test_out_from_our_own_config(tmp_path, model_type):
    config = MoebaConfig(**{**SIZES, **OURS[model_type]})
    ours = randomise(MoebaForCausalLM(config)).eval()
    ours.tie_weights()
    ours.save_pretrained(tmp_path / "moeba")
    export(tmp_path / "moeba", tmp_path / "native", to=model_type, certificate=False)
    theirs = load(AutoModelForCausalLM, tmp_path / "native")
    assert theirs.config.model_type == model_type
    if config.num_experts:
        ours.set_experts_implementation("eager")
    assert_same_function(ours, theirs, model_type)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_stored_dtype_is_kept(tmp_path, model_type):
    source = save(build(draw(model_type, 0), dtype=torch.bfloat16), tmp_path / "native", shards=True)
    convert(source, tmp_path / "moeba", certificate=False)
    assert {info.dtype for info in Checkpoint(tmp_path / "moeba").tensors.values()} == {torch.bfloat16}
    ours = load(MoebaForCausalLM, tmp_path / "moeba")
    theirs = load(AutoModelForCausalLM, source)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    ids = ids_for(theirs.config)
    for model in (ours, theirs):
        model.set_attn_implementation("eager")
    with torch.no_grad():
        a, b = ours(ids).logits, theirs(ids).logits
    if model_type in REORDERED:
        assert (a - b).abs().max() <= 0.02 * b.abs().max()
    else:
        assert torch.equal(a, b)
    export(tmp_path / "moeba", tmp_path / "back", to=model_type, certificate=False)
    same_tensors(read_all(source), read_all(tmp_path / "back"))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_field_of_the_stock_config_is_in_one_row(model_type):
    rows = (*COMMON, *family_of(model_type).config_rows)
    mentioned = [name for row in rows for name in row.theirs]
    assert len(mentioned) == len(set(mentioned))
    stock = {field.name for field in fields(CONFIG_MAPPING[model_type])}
    assert stock <= set(mentioned)
    assert all(row.reason for row in rows if isinstance(row, (Inert, Only)))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_tensor_of_the_stock_model_is_in_one_row(model_type):
    names = [name for row in family_of(model_type).rows for name in row.theirs]
    assert len(names) == len(set(names))


REFUSED = [
    (model_type, row.their_name, row)
    for model_type, family in FAMILIES.items()
    for row in (*COMMON, *family.config_rows)
    if isinstance(row, Only)
]


@pytest.mark.parametrize(
    "model_type, name, row", REFUSED, ids=[f"{family}-{name}" for family, name, _ in REFUSED]
)
def test_value_that_is_supported_at_one_value_only(model_type, name, row):
    config = draw(model_type, 0)
    setattr(config, name, not row.value)
    with pytest.raises(ValueError, match=f"{name}={not row.value} is supported at {row.value} only: .+"):
        family_of(model_type).to_moeba(config)


def test_all_unsupported_fields_are_named_at_once():
    config = draw("gpt2", 0)
    config.scale_attn_by_inverse_layer_idx = config.add_cross_attention = True
    with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx=True.*add_cross_attention=True"):
        family_of("gpt2").to_moeba(config)


def rewrite_config(folder: Path, change) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name != "gpt2"])
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
        assert_equal(ours(ids).logits, expected(ids).logits, False, "logits")
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


def test_llama_with_stored_rope_frequencies(tmp_path):
    source = native.make(tmp_path / "native", "llama")
    tensors = load_file(source / "model.safetensors")
    save_file(
        {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
        source / "model.safetensors",
    )
    result = convert(source, tmp_path / "moeba", certificate=False)
    assert list(result.plan.dropped) == ["model.layers.0.self_attn.rotary_emb.inv_freq"]


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mixtral", "qwen3_moe"])
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


@pytest.mark.parametrize("model_type", FAMILIES)
def test_from_pretrained_reads_a_native_folder(tmp_path, model_type):
    source = save(build(draw(model_type, 1)), tmp_path / "native", shards=True)
    theirs = load(AutoModelForCausalLM, source)
    ours, info = MoebaForCausalLM.from_pretrained(source, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    if theirs.config.to_dict().get("num_experts_per_tok"):
        ours.set_experts_implementation("eager")
    ids = ids_for(theirs.config)
    for model in (ours, theirs):
        model.set_attn_implementation("eager")
    with torch.no_grad():
        assert_equal(ours.eval()(ids).logits, theirs(ids).logits, model_type not in REORDERED, "logits")
    assert ours.config._name_or_path == str(source)
    half = MoebaForCausalLM.from_pretrained(source, dtype=torch.bfloat16, attn_implementation="eager")
    assert half.dtype == torch.bfloat16
    assert half.config._attn_implementation == "eager"


def test_from_pretrained_keeps_the_stored_dtype(tmp_path):
    source = save(build(draw("llama", 0), dtype=torch.bfloat16), tmp_path / "native")
    assert MoebaForCausalLM.from_pretrained(source).dtype == torch.bfloat16


def test_from_pretrained_of_an_unsupported_type(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="model_type='bert' is not supported. Supported: gpt2; .*qwen3_moe"):
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
    family.read_config(copy.deepcopy(raw))
    for name, value in {"pruned_heads": {"0": [1]}, "rope_interleaved": True, "is_decoder": "yes"}.items():
        with pytest.raises(ValueError, match=f"{name}="):
            family.read_config({**raw, name: value})
