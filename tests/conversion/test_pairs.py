"""Every family that is said to hold another family's model holds it: stock transformers computes the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from draws.common import LENGTH
from native import build, draw, load, save
from parity import assert_close
from support import random_ids, randomise
from transformers import AutoModelForCausalLM

from moeba import MoebaConfig, MoebaForCausalLM, convert, export
from moeba.conversion import FAMILIES, family_of
from moeba.conversion.targets import obstacles

SLIDING, FULL = "sliding_attention", "full_attention"
# Of what differs between two families, one pair each: rope by kind, experts and their routers, norms, fused rows,
# rotation of neighbours, biases.
SAMPLE = [
    ("qwen3_moe", "mellum"), ("exaone_moe", "dots1"), ("deepseek_v3", "glm4_moe_lite"), ("youtu", "axk1"),
    ("olmo2", "olmo3"), ("phi3", "mistral"), ("ernie4_5", "ernie4_5_moe"), ("gpt_neox", "falcon"),
    ("cohere2", "cohere2_moe"),
]  # fmt: skip


def targets_of(model_type: str, seed: int) -> list[str]:
    config = family_of(model_type).to_moeba(draw(model_type, seed))
    return [target for target, obstacle in obstacles(config).items() if not obstacle and target != model_type]


def assert_held(folder: Path, model_type: str, targets: list[str], seed: int = 0) -> None:
    source = save(build(draw(model_type, seed), seed), folder / "native")
    convert(source, folder / "moeba", certificate=False)
    ours = load(MoebaForCausalLM, folder / "moeba")
    ids = random_ids(2, LENGTH, ours.config.vocab_size)
    with torch.no_grad():
        expected = ours(ids).logits
    for target in targets:
        export(folder / "moeba", folder / target, to=target, certificate=False)
        with torch.no_grad():
            found = load(AutoModelForCausalLM, folder / target)(ids).logits
        # Sums of many layers in other orders.
        assert_close(expected, found, False, f"{model_type} -> {target}", rounding=2e-5)


@pytest.mark.parametrize("model_type, target", SAMPLE)
def test_a_family_holds_another_one(tmp_path, model_type, target):
    assert_held(tmp_path, model_type, [target])


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_target_holds_it(tmp_path, model_type):
    assert_held(tmp_path, model_type, targets_of(model_type, 0))


def by_kind(**fields) -> MoebaConfig:
    ropes = {
        kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in ((FULL, 5e2), (SLIDING, 1e4))
    }
    return MoebaConfig(
        vocab_size=67, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, layer_types=[SLIDING, FULL], rope_parameters=ropes, **fields,
    )  # fmt: skip


@pytest.mark.parametrize(
    "target", [name for name in FAMILIES if name not in ("olmo3", "gemma3_text", "mellum", "laguna")]
)
def test_rope_by_kind_of_layer_is_refused_where_there_is_one(target):
    """Most have other obstacles too; here the one of rope must be the reason, or stand among them."""
    config = by_kind()
    with pytest.raises(ValueError, match=f"'{target}' cannot hold this model: ") as caught:
        family_of(target).to_native(config)
    if target not in ("granite_swa", "granitemoe_swa", "mimo_v2_flash"):
        assert re.search(r"rope|position_embedding_type|there: |tie_word_embeddings", str(caught.value))


@pytest.mark.parametrize("source, target", [("olmo3", "olmo2"), ("mellum", "qwen3_moe")])
def test_rope_by_kind_of_layer_is_refused_before_a_byte_is_written(tmp_path, source, target):
    ropes = {
        kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in ((FULL, 5e2), (SLIDING, 1e4))
    }
    drawn = (family_of(source).to_moeba(draw(source, seed)) for seed in range(20))
    config = next(config for config in drawn if config.num_hidden_layers > 1)
    values = config.to_dict() | {"rope_parameters": ropes}
    values["layer_types"] = [SLIDING, FULL] + [FULL] * (config.num_hidden_layers - 2)
    values["sliding_window"] = 8
    model = randomise(MoebaForCausalLM(MoebaConfig.from_dict(values)))
    model.save_pretrained(tmp_path / "moeba")
    with pytest.raises(
        ValueError, match=f"'{target}' cannot hold this model: rope_parameters=.*one rope for all layers"
    ):
        export(tmp_path / "moeba", tmp_path / "out", to=target, certificate=False)
    assert not [path for path in tmp_path.iterdir() if path.name != "moeba"]


@pytest.mark.parametrize("target", ["olmo2", "llama"])
def test_ropes_by_kind_that_are_one_are_written_as_one(target):
    config = family_of("olmo2" if target == "olmo2" else "llama").to_moeba(draw(target, 0))
    rope = {"rope_type": "default", "rope_theta": 777.0}
    config.rope_parameters = {FULL: dict(rope)}
    said = json.loads(family_of(target).to_native(config).to_json_string(use_diff=False))
    assert said["rope_parameters"] == rope
