"""Which native mixtures hold which upcycled models, proven by stock transformers alone."""

from __future__ import annotations

import json
from pathlib import Path

import native
import pytest
import torch
from native import draw, load, read_all
from support import random_ids
from transformers import AutoModelForCausalLM

from moeba import MoebaForCausalLM, upcycle
from moeba.conversion.targets import obstacles

SMALL = dict(
    hidden_size=32, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_hidden_layers=3,
    tie_word_embeddings=False,
)  # fmt: skip
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}
LLAMA3 = {"rope_parameters": {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}}  # fmt: skip
NO_BIAS = dict(attention_bias=False, mlp_bias=False)
NO_WINDOW = dict(use_sliding_window=False, sliding_window=None, layer_types=None)
FINE = dict(method="fine-grained", granularity=4, experts=8, top_k=4)
# Dense source, its fields, native target, the operation's arguments.
PAIRS = [
    ("llama", {**ROPE, **NO_BIAS}, "mixtral", {}),
    ("llama", {**LLAMA3, **NO_BIAS}, "mixtral", {}),
    ("mistral", {**ROPE, "sliding_window": 7}, "mixtral", {}),
    ("phi3", {**ROPE, "partial_rotary_factor": 1.0, "sliding_window": None}, "mixtral", {}),
    ("smollm3", {**ROPE, **NO_BIAS, **NO_WINDOW, "no_rope_layers": [1, 1, 1]}, "mixtral", {}),
    ("qwen2", {**ROPE, **NO_WINDOW}, "qwen2_moe", {}),
    ("llama", {**ROPE, **NO_BIAS}, "qwen2_moe", {}),
    ("qwen3", {**ROPE, **NO_WINDOW, "attention_bias": False}, "qwen3_moe", {}),
    ("qwen3", {**ROPE, **NO_WINDOW, "attention_bias": False}, "glm4_moe", {}),
    ("qwen3", {**ROPE, **NO_WINDOW, "attention_bias": False}, "dots1", {}),
    ("llama", {**ROPE, **NO_BIAS}, "glm4_moe", {}),
    ("qwen2", {**ROPE, **NO_WINDOW}, "glm4_moe", {}),
    ("seed_oss", {**ROPE, "attention_bias": True, "attention_out_bias": False, "mlp_bias": False}, "glm4_moe", {}),
    ("olmo2", {**ROPE, "attention_bias": False}, "flex_olmo", {}),
    ("granite", {**ROPE, **NO_BIAS}, "granitemoe", {}),
    ("llama", {**ROPE, **NO_BIAS}, "granitemoe", {}),
    ("ernie4_5", {**ROPE, "use_bias": False}, "ernie4_5_moe", {}),
    ("hunyuan_v1_dense", {**ROPE, "attention_bias": False}, "hunyuan_v1_moe", {}),
    ("cohere2", {**ROPE, "attention_bias": False}, "cohere2_moe", {}),
    ("llama", {**ROPE, **NO_BIAS}, "mixtral", FINE),
    ("qwen3", {**ROPE, **NO_WINDOW, "attention_bias": False}, "qwen3_moe", FINE),
    ("llama", {**ROPE, **NO_BIAS}, "glm4_moe", FINE),
]  # fmt: skip


def dense(folder: Path, model_type: str, dtype=torch.float32, **fields) -> Path:
    config = draw(model_type, 0)
    values = {**native.plain(config), **SMALL, **fields}
    known = {name: value for name, value in values.items() if name in native.plain(config) or name in fields}
    return native.save(native.build(type(config)(**known), dtype=dtype), folder)


def stock_logits(folder: Path) -> torch.Tensor:
    model = load(AutoModelForCausalLM, folder)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(random_ids(2, 40, model.config.vocab_size)).logits


@pytest.mark.parametrize(
    "model_type, fields, to, options", PAIRS, ids=[f"{p[0]}-{p[2]}-{i}" for i, p in enumerate(PAIRS)]
)
def test_stock_models_agree(tmp_path, model_type, fields, to, options):
    """The dense model before and the native mixture after, both as stock transformers loads and computes them."""
    source = dense(tmp_path / "dense", model_type, **fields)
    result = upcycle(
        source,
        tmp_path / "moe",
        **{"experts": 5, "top_k": 2, "to": to, "export": True, "certificate": False, **options},
    )
    assert json.loads((tmp_path / "moe" / "config.json").read_text())["model_type"] == to
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "moe", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert any("experts" in name for name, _ in model.named_parameters())
    before, after = stock_logits(source), stock_logits(tmp_path / "moe")
    assert (before - after).abs().max() <= 2e-5 * before.std()
    assert result.report is not None


@pytest.mark.parametrize(
    "model_type", ["llama", "gpt2", "gpt_neox", "phi", "gemma2", "cohere", "opt", "bloom"]
)
@pytest.mark.parametrize(
    "options", [{"experts": 6}, {**FINE, "experts": 16, "top_k": 8}], ids=["copy", "fine"]
)
def test_any_dense_family(tmp_path, model_type, options):
    """Not only llama-likes: norms, biases, activations and block orders stay what they were."""
    config = draw(model_type, 1)
    source = native.save(native.build(config), tmp_path / "dense")
    found = MoebaForCausalLM.from_pretrained(source).config
    if "granularity" in options and found.intermediate_size % options["granularity"]:
        with pytest.raises(ValueError, match="granularity=4 does not divide intermediate_size"):
            upcycle(source, tmp_path / "moe", layers="all", **options)
        return
    upcycle(source, tmp_path / "moe", **{"top_k": 2, "layers": "all", "certificate": False, **options})
    before = load(MoebaForCausalLM, source)
    after = load(MoebaForCausalLM, tmp_path / "moe")
    ids = random_ids(2, 30, config.vocab_size)
    with torch.no_grad():
        a, b = (model(ids).logits for model in (before, after))
    assert (a - b).abs().max() <= 2e-5 * a.std()


def test_what_stands_in_the_way_is_told(tmp_path):
    source = dense(tmp_path / "gpt2", "gpt2", n_embd=32, n_head=4, n_layer=3)
    with pytest.raises(ValueError, match="'mixtral' cannot hold this model: .*norm_type='layernorm'"):
        upcycle(source, tmp_path / "moe", experts=4, top_k=2, to="mixtral")
    with pytest.raises(ValueError, match="export: no native family can hold"):
        upcycle(source, tmp_path / "moe", experts=4, top_k=2, export=True)
    assert not (tmp_path / "moe").exists()
    found = obstacles(MoebaForCausalLM.from_pretrained(source).config)
    assert found["gpt2"] == "" and "norm_type" in found["mixtral"]
    with pytest.raises(ValueError, match="do not sum to 1"):
        upcycle(source, tmp_path / "moe", experts=4, top_k=2, to="phimoe")


@pytest.mark.parametrize("granularity, dtype", [(2, torch.bfloat16), (3, torch.bfloat16), (3, torch.float32)])
def test_factors_that_round_go_to_the_router(tmp_path, granularity, dtype):
    """A power of two scales half-precision weights exactly; another factor is the router's."""
    source = dense(tmp_path / "dense", "llama", dtype=dtype, **ROPE, **NO_BIAS)
    upcycle(
        source, tmp_path / "moe", experts=2 * granularity, top_k=granularity, method="fine-grained",
        granularity=granularity, certificate=True,
    )  # fmt: skip
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    scaled = dtype == torch.bfloat16 and granularity == 3
    assert config["routed_scaling_factor"] == (3.0 if scaled else 1.0)
    down = read_all(tmp_path / "moe")["model.layers.1.mlp.experts.down_proj"]
    dense_down = read_all(source)["model.layers.1.mlp.down_proj.weight"]
    width = dense_down.shape[1] // granularity
    factor = 1 if scaled else granularity
    for expert, tensor in enumerate(down):
        start = expert % granularity * width
        assert torch.equal(tensor, dense_down[:, start : start + width] * factor)


def test_every_token_visits_one_expert_of_each_part(tmp_path):
    source = dense(tmp_path / "dense", "llama", **ROPE, **NO_BIAS)
    result = upcycle(source, tmp_path / "moe", layers="all", **FINE)
    (check,) = [check for check in result.certificate.checks if check.name == "virtual groups"]
    assert check.status == "verified" and check.figures == {"granularity": 4, "float32": 1.0}
    gate = read_all(tmp_path / "moe")["model.layers.0.mlp.gate.weight"]
    assert torch.equal(gate[:4], gate[:1].expand(4, -1)) and not torch.equal(gate[3], gate[4])
    with pytest.raises(ValueError, match="zeros' lets ties choose"):
        upcycle(source, tmp_path / "out", router_init="zeros", **FINE)


@pytest.mark.parametrize(
    "options, where", [({"method": "drop", "drop_ratio": 0.25}, 6), ({"method": "noise", "noise": 0.1}, 24)]
)
def test_ways_that_change_the_function_are_measured(tmp_path, options, where):
    source = dense(tmp_path / "dense", "llama", **ROPE, **NO_BIAS)
    result = upcycle(source, tmp_path / "moe", experts=3, top_k=2, layers="all", seed=4, **options)
    assert result.certificate is None and not (tmp_path / "moe" / "parity.json").exists()
    assert result.gap["kl"] > 1e-4 and result.gap["source_nll"] != result.gap["target_nll"]
    record = json.loads((tmp_path / "moe" / "surgery.json").read_text())
    assert record["exact"] is False and record["gap"] == result.gap
    assert record["recipe"]["method"] == options["method"]
    assert json.loads((tmp_path / "moe" / "moeba_provenance.json").read_text())["lossy"] is True
    before, after = read_all(source), read_all(tmp_path / "moe")
    mlp = "model.layers.2.mlp."
    changed = []
    for expert in range(3):
        gate_up = after[f"{mlp}experts.gate_up_proj"][expert]
        rows = [
            (part != before[f"{mlp}{name}_proj.weight"]).any(dim=1)
            for name, part in zip(("gate", "up"), gate_up.chunk(2), strict=True)
        ]
        columns = (after[f"{mlp}experts.down_proj"][expert] != before[f"{mlp}down_proj.weight"]).any(dim=0)
        # One neuron is a row of both and the column that reads it.
        assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], columns)
        assert int(columns.sum()) == where
        changed.append(columns)
    if options["method"] == "drop":
        assert not torch.equal(changed[0], changed[1])
        fresh = after[f"{mlp}experts.down_proj"][0][:, changed[0]]
        old = before[f"{mlp}down_proj.weight"][:, changed[0]]
        assert abs(fresh.std() / old.std() - 1) < 0.35  # a few hundred draws


def test_shared_expert_keeps_the_function_with_half_each(tmp_path):
    source = dense(tmp_path / "dense", "llama", **ROPE, **NO_BIAS)
    result = upcycle(
        source, tmp_path / "moe", experts=4, top_k=2, shared_expert=True, layers="1,2", to="glm4_moe"
    )
    assert result.certificate.verdict == "verified"
    tensors, dense_tensors = read_all(tmp_path / "moe"), read_all(source)
    half = dense_tensors["model.layers.1.mlp.down_proj.weight"] / 2
    assert torch.equal(tensors["model.layers.1.mlp.shared_expert.down_proj.weight"], half)
    assert torch.equal(tensors["model.layers.1.mlp.experts.down_proj"][3], half)


def test_arguments_that_do_not_fit_are_refused(tmp_path):
    source = dense(tmp_path / "dense", "llama", **ROPE, **NO_BIAS)
    cases = [
        (dict(method="fine"), "method='fine': choose one of copy, fine-grained, drop, noise"),
        (dict(method="fine-grained"), "granularity=None: fine-grained experts need"),
        (dict(method="fine-grained", granularity=3), "experts=4 must be a multiple of granularity=3"),
        (dict(method="fine-grained", granularity=4), "top_k=2 must be a multiple of granularity=4"),
        (
            dict(experts=10, top_k=5, method="fine-grained", granularity=5),
            "granularity=5 does not divide intermediate",
        ),
        (dict(granularity=2), "granularity=2 is given, but method='copy' has none"),
        (dict(method="drop", noise=0.1), "noise=0.1 is given, but method='drop' has none"),
        (dict(method="drop", drop_ratio=1.5), "drop_ratio=1.5 must be above 0 and at most 1"),
        (dict(method="noise", noise=-1.0), "noise=-1.0 must be a positive number"),
        (dict(to="bert"), "model_type='bert' is not supported"),
        (dict(layers="from:9"), "no layer is chosen"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            upcycle(source, tmp_path / "moe", **{"experts": 4, "top_k": 2, **options})
    with pytest.raises(TypeError, match="certficate"):
        upcycle(source, tmp_path / "moe", experts=4, top_k=2, certficate=False)
    assert not (tmp_path / "moe").exists()


def test_first_block_stays_dense_and_says_why(tmp_path):
    source = dense(tmp_path / "dense", "llama", **ROPE, **NO_BIAS)
    result = upcycle(source, tmp_path / "moe", experts=4, top_k=2, dry_run=True)
    assert any("layer 0 stays dense" in note for note in result.plan.notes)
    assert result.plan.target_config["mlp_layer_types"] == ["dense", "sparse", "sparse"]
    result = upcycle(source, tmp_path / "moe", experts=4, top_k=2, to="mixtral", dry_run=True)
    assert any("'mixtral' has experts in every layer" in note for note in result.plan.notes)
