"""Tells transformers' Auto classes about Moeba, and gives the model the services that live above it."""

from __future__ import annotations

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
from .modeling.services import provide
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
    provide(PackageServices())


class PackageServices:
    """`modeling.services.Services` by the rooms above the model, each loaded when it is first needed."""

    def read_native(self, folder: Any, revision: str | None) -> tuple[MoebaConfig, dict[str, Any]]:
        from .conversion import read_native

        return read_native(folder, revision)

    def write_card(self, folder: Any) -> None:
        from .hub_card import write_card

        write_card(Path(folder))

    def push(self, folder: Any, repo_id: str, **words: Any) -> Any:
        from .hub_card import push

        result = push(folder, repo_id, **words)
        for note in result.notes:
            logger.warning(note)
        return result.commit
