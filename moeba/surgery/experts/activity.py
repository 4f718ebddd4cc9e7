"""What the neurons of a dense feed-forward do on text, and what that says of how to divide them and to route."""

from __future__ import annotations

from typing import Any

import torch

from ...modeling.feed_forward import MoebaMLP
from ..routers.router_init import routing_report
from .partitions import Division

# Standard deviation of router logits: so little that the chosen experts count nearly alike, as they did in the whole.
SPREAD = 0.1
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # beside the inputs' mean square


class Activity:
    """
    Args:
        block: a dense feed-forward in float32.
        inputs: what it receives, `[tokens, hidden]`.

    Attributes:
        values: what each neuron hands to the down projection, `[tokens, neurons]`.
    """

    def __init__(self, block: MoebaMLP, inputs: torch.Tensor) -> None:
        self.inputs = inputs
        self.down = block.down_proj.weight.detach()
        found: list[torch.Tensor] = []
        handle = block.down_proj.register_forward_pre_hook(lambda module, args: found.append(args[0]))
        with torch.no_grad():
            block(inputs)
        handle.remove()
        self.values = found[0]

    def strength(self) -> torch.Tensor:
        """The length of what each neuron adds to the answer, `[tokens, neurons]`."""
        return self.values.abs() * self.down.norm(dim=0)

    def most_active(self, count: int) -> torch.Tensor:
        """The `count` neurons that add most on average, in ascending order."""
        return self.strength().mean(dim=0).argsort(descending=True, stable=True)[:count].sort().values

    def firing(self, neurons: torch.Tensor) -> torch.Tensor:
        """When each neuron adds more than usual, `[n, tokens]`; two that fire together point the same way."""
        strength = self.strength()[:, neurons]
        return (strength - strength.mean(dim=0)).T

    def answers(self, neurons: torch.Tensor) -> torch.Tensor:
        """What `neurons` answer together, without a bias, `[tokens, hidden]`."""
        return self.values[:, neurons] @ self.down[:, neurons].T

    def lengths(self, experts: torch.Tensor) -> torch.Tensor:
        """How long each expert's answer is, `[tokens, experts]`."""
        return torch.stack([self.answers(neurons).norm(dim=-1) for neurons in experts], dim=1)

    def router(self, experts: torch.Tensor, top_k: int) -> torch.Tensor:
        """Rows `[experts, hidden]` that find the experts with the longest answers, by least squares."""
        lengths = self.lengths(experts)
        wanted = lengths - lengths.mean(dim=1, keepdim=True)
        kept = max(1, len(wanted) * 4 // 5)
        ridge = max(
            RIDGES,
            key=lambda size: _captured(
                _least_squares(self.inputs[:kept], wanted[:kept], size),
                self.inputs[kept:],
                lengths[kept:],
                top_k,
            ),
        )
        rows = _least_squares(self.inputs, wanted, ridge)
        return rows * (SPREAD / (self.inputs @ rows.T).std().clamp(min=1e-12))

    def fit(self, division: Division, rows: torch.Tensor, top_k: int) -> tuple[float, dict[str, Any]]:
        """The factor on the experts' answers with which they come closest to the whole, and how close that is.

        Over all tokens, `|factor * routed - wanted|²` is least where `factor = <routed, wanted> / |routed|²`. The
        relative error is what remains, beside the length of the whole feed-forward's answers.

        Args:
            rows: the router's, `[experts, hidden]`.
        """
        best, indices = (self.inputs @ rows.T).topk(top_k, dim=-1)
        weights = torch.zeros(len(self.inputs), len(rows)).scatter_(1, indices, best.softmax(dim=-1))
        # Both `[tokens, hidden]`.
        routed = sum(
            weights[:, [expert]] * self.answers(neurons) for expert, neurons in enumerate(division.experts)
        )
        wanted = self.answers(division.experts.flatten())
        assert isinstance(routed, torch.Tensor)
        factor = ((routed * wanted).sum() / routed.square().sum().clamp(min=1e-30)).item()
        factor = factor if factor > 0 else float(len(rows))
        answer = self.answers(torch.arange(self.values.shape[1]))
        error = (factor * routed - wanted).norm() / answer.norm().clamp(min=1e-30)
        report = {"scale": factor, "relative_error": round(error.item(), 4)}
        return factor, report | routing_report(rows, self.inputs, top_k)


def _least_squares(inputs: torch.Tensor, wanted: torch.Tensor, ridge: float) -> torch.Tensor:
    """Rows `[experts, hidden]` with `inputs @ rows.T` close to `wanted`: `(X.T X + ridge * m I)^-1 X.T W`, by ridge
    regression, where m is the mean square of an input's entry, summed over the tokens.

    Args:
        inputs: `[tokens, hidden]`. wanted: `[tokens, experts]`.
    """
    products = inputs.T @ inputs
    products.diagonal().add_(ridge * products.diagonal().mean().clamp(min=1e-12))
    return torch.cholesky_solve(inputs.T @ wanted, torch.linalg.cholesky(products)).T


def _captured(rows: torch.Tensor, inputs: torch.Tensor, lengths: torch.Tensor, top_k: int) -> float:
    """The share of all experts' answers that the chosen ones give, by `lengths` `[tokens, experts]`."""
    chosen = (inputs @ rows.T).topk(top_k, dim=-1)[1]
    return (lengths.gather(1, chosen).sum() / lengths.sum().clamp(min=1e-30)).item()
