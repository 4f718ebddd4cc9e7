"""What surgery makes trains with its router losses, whatever its sources trained with."""

from __future__ import annotations

import pytest
import torch
from native import make
from support import random_ids

from moeba import MoebaConfig, MoebaForCausalLM, densify, grow, upcycle

UNCHECKED = dict(certificate=False)


def loss_terms(folder) -> tuple[float, float]:
    """What training adds to the evaluation loss, and the weighed balance loss."""
    model = MoebaForCausalLM.from_pretrained(folder).eval()
    ids = random_ids(2, 12, model.config.vocab_size)
    evaluated, trained = model(ids, labels=ids), None
    model.training = True
    trained = model(ids, labels=ids)
    weighed = model.config.router_aux_loss_coef * trained.aux_loss
    return (trained.loss - evaluated.loss).item(), weighed.item()


@pytest.mark.parametrize("model_type", ["gpt_oss", "deepseek_v3"])
def test_a_grown_mixture_does(model_type, tmp_path):
    """The sources: a stock loss that is off, and none at all."""
    source = make(tmp_path / "native", model_type, 1, output_router_logits=False)
    result = grow(source, tmp_path / "grown", times=2, **UNCHECKED)
    assert MoebaConfig.from_pretrained(tmp_path / "grown").router_loss == "training"
    added, weighed = loss_terms(tmp_path / "grown")
    assert weighed > 0 and added == pytest.approx(weighed, rel=1e-3)
    assert [note for note in result.plan.notes if "router_loss='training'" in note]


def test_an_upcycled_one_does_and_compares_with_the_dense_model(tmp_path):
    source = make(tmp_path / "native", "llama", 0)
    upcycle(source, tmp_path / "moe", experts=4, top_k=2, **UNCHECKED)
    added, weighed = loss_terms(tmp_path / "moe")
    assert weighed > 0 and added == pytest.approx(weighed, rel=1e-3)
    dense, sparse = (MoebaForCausalLM.from_pretrained(folder).eval() for folder in (source, tmp_path / "moe"))
    ids = random_ids(2, 12, dense.config.vocab_size)
    torch.testing.assert_close(sparse(ids, labels=ids).loss, dense(ids, labels=ids).loss)


def test_a_dense_one_keeps_nothing_of_it(tmp_path):
    source = make(tmp_path / "native", "mixtral", 0, output_router_logits=True, router_aux_loss_coef=0.7)
    densify(source, tmp_path / "dense", **UNCHECKED)
    dense, default = MoebaConfig.from_pretrained(tmp_path / "dense"), MoebaConfig()
    for name in ("router_loss", "router_aux_loss_coef", "output_router_logits"):
        assert getattr(dense, name) == getattr(default, name), name
