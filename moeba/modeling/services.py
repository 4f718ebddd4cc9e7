"""What the installed package does for a model's folders; a model whose code came from the Hub goes without."""

from __future__ import annotations

from os import PathLike
from typing import Any, Protocol

from ..configuration.configuration_moeba import MoebaConfig


class Services(Protocol):
    """What stands above the models, and is reached from below."""

    def read_native(self, folder: str | PathLike, revision: str | None) -> tuple[MoebaConfig, dict[str, Any]]:
        """Config and state dict of a checkpoint of another model type."""

    def write_card(self, folder: str | PathLike) -> Any:
        """Write or refresh a model card."""

    def push(self, folder: str | PathLike, repo_id: str, **words: Any) -> Any:
        """Upload a folder with its card; the commit."""


_provided: list[Services] = []


def provide(services: Services | None) -> None:
    """Let models use these; None takes them away."""
    _provided[:] = [] if services is None else [services]


def provided() -> Services | None:
    """What was provided last."""
    return _provided[0] if _provided else None


__all__ = ["Services", "provide", "provided"]
