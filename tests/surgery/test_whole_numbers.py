"""Feed-forwards that are stored as integers, or in 8 bits: copied as they are, never computed with, and told."""

from __future__ import annotations

import native
import pytest
import torch
from native import load, read_all
from safetensors.torch import load_file, save_file

from moeba import MoebaForCausalLM, convert, densify, grow, merge, split, upcycle

PLAIN = dict(
    hidden_size=32, intermediate_size=16, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
    attention_bias=False, mlp_bias=False, hidden_act="silu", tie_word_embeddings=False, head_dim=8,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0}, max_position_embeddings=64,
)  # fmt: skip


def store(folder, dtype, part=".mlp.", of="llama", **fields):
    """A model whose feed-forwards are stored in another dtype."""
    native.make(folder, of, **fields)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if part in name and not name.endswith("gate.weight"):
            tensors[name] = (tensor * 40).round().clamp(-127, 127).to(dtype)
    save_file(tensors, path, {"format": "pt"})
    return folder


@pytest.fixture
def whole(tmp_path):
    return store(tmp_path / "whole", torch.int8, **PLAIN)


def test_copies_are_the_same_numbers_and_the_router_is_no_integer(whole, tmp_path):
    upcycle(whole, tmp_path / "moe", experts=4, top_k=2, layers="all", certificate=False)
    source, made = read_all(whole), read_all(tmp_path / "moe")
    down = "model.layers.1.mlp."
    assert made[f"{down}experts.down_proj"].dtype == torch.int8
    assert torch.equal(made[f"{down}experts.down_proj"][3], source[f"{down}down_proj.weight"])
    router = made[f"{down}gate.weight"]
    assert router.dtype == source["model.embed_tokens.weight"].dtype and router.std() > 0
    load(MoebaForCausalLM, tmp_path / "moe")
    grow(tmp_path / "moe", tmp_path / "grown", times=2, certificate=False)
    assert read_all(tmp_path / "grown")[f"{down}experts.down_proj"].dtype == torch.int8


def test_nothing_is_computed_with_them(whole, tmp_path):
    other = store(tmp_path / "other", torch.int8, part="self_attn.q_proj", **PLAIN)
    upcycle(whole, tmp_path / "moe", experts=4, top_k=2, layers="all", certificate=False)
    experts = [{"source_model": str(whole)}, {"source_model": str(whole), "noise_scale": 0.1}]
    recipe = {"base_model": str(whole), "gate_mode": "random", "experts": experts}
    scaled = [experts[0], {"source_model": str(whole), "residual_scale": 0.5}]
    averaged = [{"source_model": str(other)}, {"source_model": str(other), "name": "twice"}]
    native.make(tmp_path / "plain", "llama", **PLAIN)
    mean = [{"source_model": str(other)}, {"source_model": str(tmp_path / "plain")}]
    calls = [
        (lambda to: upcycle(whole, to, experts=4, top_k=2, method="noise"), "method='noise' computes"),
        (lambda to: upcycle(whole, to, experts=4, top_k=2, method="drop"), "method='drop' computes"),
        (lambda to: upcycle(whole, to, experts=4, top_k=2, method="fine-grained", granularity=2), "fine-grained"),
        (lambda to: upcycle(whole, to, experts=4, top_k=2, shared_expert=True), "with a shared expert computes"),
        (lambda to: split(whole, to, experts=4, top_k=2), "split computes"),
        (lambda to: grow(tmp_path / "moe", to, times=2, noise=0.1), "noise=0.1 computes"),
        (lambda to: densify(tmp_path / "moe", to), "densify with method='average' computes"),
        (lambda to: merge(recipe, to), "whole-2: noise or a scale computes"),
        (lambda to: merge({**recipe, "experts": scaled}, to), "whole-2: noise or a scale computes"),
        (lambda to: merge({**recipe, "experts": mean, "base_model": str(other), "others": "average",
                           "dtype": "float32"}, to), "other: others='average' computes.*self_attn.q_proj"),
    ]  # fmt: skip
    for call, message in calls:
        with pytest.raises(ValueError, match=message) as caught:
            call(tmp_path / "out")
        assert "stored as int8" in str(caught.value) and not (tmp_path / "out").exists()
    # One model's tensors alone are no mean.
    merge({**recipe, "experts": averaged, "base_model": str(other), "others": "average"}, tmp_path / "out",
          dry_run=True)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_convert_says_that_scales_may_be_missing(tmp_path, dtype):
    store(tmp_path / "small", dtype, **PLAIN)
    native.make(tmp_path / "plain", "llama", **PLAIN)
    notes = convert(tmp_path / "small", tmp_path / "out", dry_run=True).plan.notes
    told = [note for note in notes if "scales are missing" in note]
    assert len(told) == 1 and f"6 weights are stored as {str(dtype).removeprefix('torch.')}" in told[0]
    assert not any(
        "scales" in note for note in convert(tmp_path / "plain", tmp_path / "out", dry_run=True).plan.notes
    )
