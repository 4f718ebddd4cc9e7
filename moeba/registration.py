"""Tells transformers' Auto classes about Moeba, and gives the model the services that live above it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from .configuration import MoebaConfig
from .kernels import register_experts
from .library.serving import known_by_name
from .modeling import modeling_moeba
from .modeling.code_files import AUTO_MAP
from .tokenization import MoebaTokenizer

logger = logging.get_logger(__name__)


def register() -> None:
    """Register config, every head, the tokenizer and the experts kernels; registering twice changes nothing."""
    register_experts()
    AutoConfig.register(MoebaConfig.model_type, MoebaConfig, exist_ok=True)
    for auto_class, reference in AUTO_MAP.items():
        if auto_class != "AutoConfig":
            model = getattr(modeling_moeba, reference.split(".")[-1])
            getattr(transformers, auto_class).register(MoebaConfig, model, exist_ok=True)
            known_by_name(model)
    AutoTokenizer.register(MoebaConfig, tokenizer_class=MoebaTokenizer, exist_ok=True)
    base = modeling_moeba.MoebaPreTrainedModel
    base.foreign_reader = staticmethod(_read_foreign)
    base.card_writer = staticmethod(_write_card)
    base.folder_pusher = staticmethod(_push)
    base.after_saving = staticmethod(_keep_cards_of_trainers)


def _read_foreign(path: Any, revision: str | None) -> tuple[MoebaConfig, dict[str, Any]]:
    from .conversion import read_native

    return read_native(path, revision)


def _write_card(folder: Any) -> None:
    from .hub_card import write_card

    write_card(Path(folder))


def _push(folder: Any, repo_id: str, **words: Any) -> Any:
    from .hub_card import push

    result = push(folder, repo_id, **words)
    for note in result.notes:
        logger.warning(note)
    return result.commit


def _keep_cards_of_trainers() -> None:
    """A Trainer saves before it writes the card of a push, so this is early enough, and costs nothing without one."""
    if trainer := sys.modules.get("transformers.trainer"):
        from .hub_card.pushing.trainer_card import keep_cards

        keep_cards(trainer.Trainer)
