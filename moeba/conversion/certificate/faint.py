"""Parts on inputs that no text brings them, so faint that an epsilon decides what they make of them.

An epsilon of 1e-12 is lost beside the variance of any hidden state, and one of 1e-20 beside the scores of a token's
experts: no logit tells it from another that is a million times larger. A norm is given rows that shrink to nothing, and
a sparse feed-forward tokens that every one of its experts scores next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ...modeling import MoebaForCausalLM
from ...modeling.router import MoebaRouter
from .measures import share
from .report import Check
from .run import Run, submodule

# Which epsilon it is decides whole orders of size: nothing here is a question of rounding.
FAINT = 1e-3
_SIZES = tuple(10.0**-k for k in range(13))  # of a norm's input; their squares stand beside its epsilon
_LOGITS = (-10.0, -20.0, -34.0, -45.0, -60.0)  # their sigmoids: 5e-5 to 9e-27


def epsilons(run: Run) -> Iterator[Check]:
    """Norms and routers where their epsilons act."""
    found = faint_differences(run, routers=not run.rebuilt or run.both_have_experts)
    if not found:
        yield run.not_applicable("epsilons", "no part that has one can be called alone")
        return
    worst = max(found, key=lambda name: found[name])
    failed = not found[worst] <= FAINT
    figures = {"parts": len(found), "worst": found[worst]}
    yield Check("epsilons", "failed" if failed else "verified", figures, worst if failed else "", run.on)


def faint_differences(run: Run, routers: bool = True) -> dict[str, float]:
    """Module of the target -> the largest difference of an answer to one input, as a share of its spread.

    Args:
        routers: whether the sparse feed-forwards of both are meant to be the same.
    """
    found = {}
    for names in run.modules:
        modules = [submodule(model, name) for model, name in zip(run.models, names, strict=True)]
        if any(module is None for module in modules):
            continue
        inputs = _faint_rows(modules) if all(map(_is_norm, modules)) else None
        if inputs is None and routers:
            inputs = _faint_tokens(modules)
        if inputs is None:
            continue
        answers = [_answers(module, inputs) for module in modules]
        if answers[0] is not None and answers[1] is not None:
            found[names[1]] = max(share(a.double(), b.double()) for a, b in zip(*answers, strict=True))
    return found


def _is_norm(module: Any) -> bool:
    return "norm" in type(module).__name__.lower() and isinstance(
        getattr(module, "weight", None), torch.Tensor
    )


def _faint_rows(norms: Sequence[Any]) -> torch.Tensor | None:
    """One row, smaller and smaller, `[sizes, *shape of the weight]`; channels in another order are no same function."""
    if not torch.equal(norms[0].weight, norms[1].weight):
        return None
    row = torch.randn(norms[0].weight.shape, generator=torch.Generator().manual_seed(0))
    return torch.stack([size * row for size in _SIZES])


def _faint_tokens(modules: Sequence[Any]) -> torch.Tensor | None:
    """Tokens that a router of ours scores lower and lower, `[logits, 1, tokens, hidden]`."""
    gate = next((m.gate for m in modules if isinstance(getattr(m, "gate", None), MoebaRouter)), None)
    if gate is None or gate.scoring_func != "sigmoid" or not getattr(gate, "norm_topk_prob", False):
        return None
    noise = torch.randn(4, gate.num_experts, generator=torch.Generator().manual_seed(0))
    wanted = torch.stack([logit + noise for logit in _LOGITS])
    if gate.bias is not None:
        wanted = wanted - gate.bias.detach()
    weight, wanted = gate.weight.detach().double(), wanted.double()
    solved: torch.Tensor = wanted @ torch.linalg.pinv(weight).T
    if not torch.allclose(solved @ weight.T, wanted, rtol=1e-3):  # such as a router that starts from zeros
        return None
    return solved.float().unsqueeze(1)


def _answers(module: Any, inputs: torch.Tensor) -> list[torch.Tensor] | None:
    """One a size; None where a stock module wants more than its input."""
    answers = []
    for given in inputs:
        try:
            with torch.no_grad():
                answer = module(given.clone())
        except Exception:  # stock code raises anything
            return None
        answers.append(answer[0] if isinstance(answer, tuple) else answer)
    return answers


def has_faint_tokens(model: MoebaForCausalLM) -> bool:
    """Whether every expert of the first sparse layer can be made to score next to nothing."""
    first = model.config.sparse_layers[0]
    return _faint_tokens([model.model.layers[first].mlp]) is not None
