"""Moeba: one Hugging Face model, with an optional mixture of experts, that takes the shape of any transformer family.

Importing this package registers config, models and tokenizer with the Auto classes, except for the
`moeba` command while it is only asked for help. Conversion, surgery, training and
the Hub card load when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .library.window import require_transformers

require_transformers()  # before anything that an older transformers lacks

from .asked import nothing_to_load  # noqa: E402
from .version import __version__  # noqa: E402

if TYPE_CHECKING:
    from .configuration import MoebaConfig
    from .conversion import certify, convert, export
    from .evaluation import evaluate
    from .modeling import (
        MoebaForCausalLM,
        MoebaForQuestionAnswering,
        MoebaForSequenceClassification,
        MoebaForTokenClassification,
        MoebaModel,
        MoebaPreTrainedModel,
    )
    from .surgery import densify, grow, merge, prune, split, upcycle
    from .tokenization import MoebaTokenizer

_HOMES = {
    "MoebaConfig": "configuration",
    "MoebaForCausalLM": "modeling",
    "MoebaForQuestionAnswering": "modeling",
    "MoebaForSequenceClassification": "modeling",
    "MoebaForTokenClassification": "modeling",
    "MoebaModel": "modeling",
    "MoebaPreTrainedModel": "modeling",
    "MoebaTokenizer": "tokenization",
    "certify": "conversion",
    "convert": "conversion",
    "densify": "surgery",
    "evaluate": "evaluation",
    "export": "conversion",
    "grow": "surgery",
    "merge": "surgery",
    "prune": "surgery",
    "split": "surgery",
    "upcycle": "surgery",
}

__all__ = [
    "MoebaConfig",
    "MoebaForCausalLM",
    "MoebaForQuestionAnswering",
    "MoebaForSequenceClassification",
    "MoebaForTokenClassification",
    "MoebaModel",
    "MoebaPreTrainedModel",
    "MoebaTokenizer",
    "__version__",
    "certify",
    "convert",
    "densify",
    "evaluate",
    "export",
    "grow",
    "merge",
    "prune",
    "split",
    "upcycle",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moeba' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if not nothing_to_load():
    from .registration import register

    register()
