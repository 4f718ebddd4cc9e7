"""Which native families can hold a Moeba model exactly, and what is in the way of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..configuration import MoebaConfig
from .config_rows import CannotHold
from .families import FAMILIES, family_of

# Which native model `auto` prefers where several can hold a model: the one that most engines serve.
EXPORT_ORDER = (
    "llama", "qwen2", "qwen3", "gpt2", "mixtral", "qwen3_moe", "mistral", "phi3", "gemma", "gemma2", "gemma3_text",
    "olmo2", "granite", "qwen2_moe", "olmoe", "granitemoe", "gpt_oss", "deepseek_v3", "glm4_moe",
)  # fmt: skip
NEAREST = 5  # families whose obstacles are told in full
Found = TypeVar("Found")


def candidates(kind: str | None = None) -> list[str]:
    """All families, those that most engines serve first; or only the `dense` or `moe` ones."""
    names = [*EXPORT_ORDER, *(name for name in FAMILIES if name not in EXPORT_ORDER)]
    return [name for name in names if kind in (None, FAMILIES[name].kind)]


def first_that_holds(attempt: Callable[[str], Found], kind: str) -> Found:
    """What `attempt` returns for the first family that it does not refuse with a ValueError.

    Args:
        kind: `dense` or `moe`, the model's: obstacles of such families are told first.

    Raises:
        ValueError: it refuses all; what blocks the families with the fewest obstacles is named.
    """
    reasons: list[tuple[bool, int, str]] = []
    for model_type in candidates():
        try:
            return attempt(model_type)
        except ValueError as error:
            count = len(error.obstacles) if isinstance(error, CannotHold) else len(FAMILIES)
            reasons.append((FAMILIES[model_type].kind != kind, count, str(error)))
    nearest = [reason for *_, reason in sorted(reasons, key=lambda item: item[:2])[:NEAREST]]
    more = len(reasons) - len(nearest)
    raise ValueError(
        f"no native family can hold this model exactly. {'. '.join(nearest)}. {more} others have more in the way: "
        "export --to NAME says what"
    )


def obstacles(config: MoebaConfig) -> dict[str, str]:
    """For each family, in the order of preference, what keeps it from holding the model; empty if nothing does."""
    found = {}
    for model_type in candidates():
        try:
            family_of(model_type).to_native(config)
            found[model_type] = ""
        except ValueError as error:
            found[model_type] = str(error)
    return found
