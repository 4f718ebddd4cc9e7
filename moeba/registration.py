"""Tells transformers' Auto classes about Moeba, and gives the model the two services that live above it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoTokenizer

from .configuration import MoebaConfig
from .modeling import modeling_moeba
from .modeling.code_files import AUTO_MAP
from .tokenization import MoebaTokenizer


def register() -> None:
    """Register config, every head and the tokenizer; registering twice changes nothing."""
    AutoConfig.register(MoebaConfig.model_type, MoebaConfig, exist_ok=True)
    for auto_class, reference in AUTO_MAP.items():
        if auto_class != "AutoConfig":
            model = getattr(modeling_moeba, reference.split(".")[-1])
            getattr(transformers, auto_class).register(MoebaConfig, model, exist_ok=True)
    AutoTokenizer.register(MoebaConfig, tokenizer_class=MoebaTokenizer, exist_ok=True)
    modeling_moeba.MoebaPreTrainedModel.foreign_reader = staticmethod(_read_foreign)
    modeling_moeba.MoebaPreTrainedModel.card_writer = staticmethod(_write_card)


def _read_foreign(path: Any, revision: str | None) -> tuple[MoebaConfig, dict[str, Any]]:
    from .conversion import read_native

    return read_native(path, revision)


def _write_card(folder: Any) -> None:
    from .hub_card import write_card

    write_card(Path(folder))
