"""Routers that draw at random in training: from one random state, the stock logits and router gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from family_case import Case
from transformers import PreTrainedModel


def train_once(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a training pass, which leaves gradients behind."""
    model.set_attn_implementation("eager")
    model.train()
    torch.manual_seed(5)
    logits = model(ids, use_cache=False).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    return logits.detach()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("model_type", ["phimoe", "mixtral", "minimax_m2"])
def test_same_training_step(model_type, seed, tmp_path):
    case = Case.drawn(model_type, seed, tmp_path)
    ours, theirs = (train_once(model, case.ids()) for model in (case.ours, case.theirs))
    assert torch.equal(ours, theirs)
    routers = [
        {name.split(".")[2]: parameter.grad for name, parameter in model.named_parameters()
         if name.endswith(("mlp.gate.weight", "mlp.router.weight"))}
        for model in (case.ours, case.theirs)
    ]  # fmt: skip
    assert routers[0] and routers[0].keys() == routers[1].keys()
    for layer, gradient in routers[0].items():
        torch.testing.assert_close(gradient, routers[1][layer], rtol=1e-5, atol=1e-7)
