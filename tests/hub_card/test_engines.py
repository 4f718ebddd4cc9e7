"""Whether engines may serve a Moeba folder as it is: one table for the card, `inspect` and `bundle`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from native import draw
from support import SPARSE, tiny_config, tiny_model

from moeba.cli.app import run
from moeba.conversion import family_of
from moeba.hub_card.card import write_card
from moeba.hub_card.text.engines import (
    ENGINES,
    OWN_TOKENIZER,
    OWN_TOKENIZER_COMMAND,
    PIECES_REFUSED,
    advice,
    left_out_as_it_is,
)
from moeba.modeling.norms import NORMS
from moeba.tokenization import MoebaTokenizer
from moeba.tokenization.tokenization_moeba import Form

CLAMPED = dict(**SPARSE, feed_forward_type="clamped_gated")
SINKS = dict(attention_sink_layer_types=["full_attention"])


@pytest.mark.parametrize(
    ("variant", "changes", "words"),
    [
        ("dense", {}, []),
        ("dense", dict(hidden_act="gelu"), []),
        ("moe", {}, []),
        ("moe", dict(hidden_act="gelu"), ["activation"]),
        ("dense", CLAMPED, ["activation"]),
        ("dense", {**CLAMPED, **SINKS}, ["activation", "sinks"]),
        ("biased_experts", {}, ["activation"]),
        ("capped", {}, ["cap on attention scores"]),
        ("learned_mlp", dict(position_embedding_type="alibi"), ["bias of positions"]),
        ("dense", dict(logits_scaling=4.0), ["divisor of the logits"]),
        ("dense", dict(logit_scale=4.0, final_logit_softcapping=30.0), []),
        ("dense", dict(lm_head_bias=True), ["head's bias"]),
        ("dense", dict(embedding_size=8), ["narrower"]),
    ],
)
def test_what_a_transformers_backend_leaves_out(variant, changes, words):
    config = tiny_config(variant, **changes)
    found = left_out_as_it_is(config)
    assert len(found) == len(words) and all(word in one for word, one in zip(words, found, strict=True))
    said = advice(config)
    assert ("may serve this folder as it is" in said) == (not words)
    assert all(one in said for one in found)


@pytest.mark.parametrize("name, norm_class", NORMS.items())
def test_engines_see_how_a_norm_counts_its_weight(name, norm_class):
    """As they look: they replace what is called an RMSNorm, and make one of width 1 for it."""
    if norm_class.__name__.endswith("RMSNorm"):
        norm, plain = norm_class(4, eps=0.5), norm_class(1).weight
        assert norm.variance_epsilon == 0.5
        assert "nonparametric" in name if plain is None else plain.item() == float("unit_offset" not in name)


def test_an_export_is_named_where_one_holds_the_model():
    gemma = draw("gemma2", 0)
    gemma.attn_logit_softcapping = 50.0
    assert "--to gemma2" in advice(family_of("gemma2").to_moeba(gemma))
    assert "moeba serve" in advice(tiny_config("biased_experts"))


def test_the_card_tells_the_converter_how_our_own_tokenizer_splits(tmp_path):
    source = (
        'raise NotImplementedError("BPE pre-tokenizer was not recognized - update get_vocab_base_pre()")\n'
    )
    converter = tmp_path / "llama.cpp" / "conversion" / "base.py"
    converter.parent.mkdir(parents=True)
    converter.write_text(f"if res is None:\n    {source}")
    tiny_model("dense").save_pretrained(tmp_path / "model")
    assert OWN_TOKENIZER not in write_card(tmp_path / "model").read_text(encoding="utf-8")
    train_tokenizer(tmp_path / "model", "byte_level")
    assert OWN_TOKENIZER in write_card(tmp_path / "model").read_text(encoding="utf-8")
    subprocess.run(OWN_TOKENIZER_COMMAND, shell=True, check=True, cwd=tmp_path)
    assert converter.read_text() == 'if res is None:\n    res = "qwen2"\n'


@pytest.mark.parametrize("to, refused", [("llama", False), ("qwen3", True)])
def test_the_card_says_where_the_converter_does_not_take_our_pieces(tmp_path, monkeypatch, to, refused):
    monkeypatch.setattr("moeba.hub_card.text.usage.export_targets", lambda config: {to: ENGINES})
    tiny_model("dense").save_pretrained(tmp_path)
    train_tokenizer(tmp_path, "sentencepiece")
    card = write_card(tmp_path).read_text(encoding="utf-8")
    assert (PIECES_REFUSED in card) == refused and OWN_TOKENIZER not in card


def train_tokenizer(folder: Path, form: Form) -> None:
    MoebaTokenizer.train(["a cat sat"] * 4, 300, form=form, show_progress=False).save_pretrained(folder)


def test_card_inspect_and_bundle_say_the_same(tmp_path, capsys):
    source = tmp_path / "moe"
    model = tiny_model("dense", **CLAMPED)
    model.save_pretrained(source)
    said = advice(model.config)
    assert said in write_card(source).read_text(encoding="utf-8")
    for words in (["inspect", str(source)], ["bundle", str(source), str(tmp_path / "hub")]):
        capsys.readouterr()
        assert run(words) == 0
        told = capsys.readouterr()
        assert said in " ".join((told.out + told.err).split())
    assert said in (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
