"""Keeps Moeba's card in what the stock Trainer pushes: the one place that reaches into transformers' Trainer.

The Trainer writes a card of its own over README.md, and while it trains it pushes a folder that has weights but not
the code they need. It offers no hook for either, so the two methods are wrapped, for Moeba models only. They also keep
the token that is pushed with out of the arguments that are pushed.
"""

from __future__ import annotations

import functools
import inspect
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCard
from transformers.utils import logging

from ...conversion.selection import scrub_records
from ...conversion.weight_files import WEIGHT_SUFFIXES
from ...modeling import MoebaPreTrainedModel
from ..bundle import prepare
from ..card import CARD_FILE
from ..reading.training_arguments import FILE as ARGUMENTS_FILE
from .card_on_hub import adopt_card
from .remote import Remote

logger = logging.get_logger(__name__)

STATE_FILE = "trainer_state.json"
_MARK = "_keeps_moeba_cards"
# What one may say to `Trainer.push_to_hub` of the model, and what the card's metadata calls it.
_METADATA = {
    "language": "language",
    "license": "license",
    "finetuned_from": "base_model",
    "tasks": "pipeline_tag",
    "dataset_tags": "datasets",
}


def keep_cards(trainer_class: Any) -> None:
    """Make `trainer_class` write Moeba's card for Moeba models; other models keep its own."""
    if hasattr(trainer_class, _MARK):
        return
    setattr(trainer_class, _MARK, True)
    trainer_class.create_model_card = _writing_card(trainer_class.create_model_card)
    if push := getattr(trainer_class, "_push_from_checkpoint", None):
        trainer_class._push_from_checkpoint = _bringing_code(push)


def _writing_card(stock: Any) -> Any:
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def create_model_card(self: Any, *args: Any, **kwargs: Any) -> None:
        if not _is_moeba(self):
            return stock(self, *args, **kwargs)
        said = signature.bind(self, *args, **kwargs).arguments
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            _write_card(self, folder, said)
            scrub_records(folder, (STATE_FILE,))
            _hide_token(self, folder)

    return create_model_card


def _bringing_code(stock: Any) -> Any:
    @functools.wraps(stock)
    def _push_from_checkpoint(self: Any, checkpoint_folder: str) -> None:
        if _is_moeba(self) and self.is_world_process_zero() and self.args.hub_strategy != "end":
            try:
                _hide_token(self, Path(checkpoint_folder))
                _bring_side_files(self, Path(checkpoint_folder), Path(self.args.output_dir))
            except Exception as error:  # training goes on, as it does when the upload itself fails
                logger.warning(f"This checkpoint is pushed without a new card or code: {error}")
        return stock(self, checkpoint_folder)

    return _push_from_checkpoint


def _bring_side_files(trainer: Any, checkpoint: Path, folder: Path) -> None:
    """Give `folder`, which is uploaded, what the stock method leaves in the checkpoint: all but config and weights."""
    if (folder / CARD_FILE).is_file():
        shutil.copyfile(folder / CARD_FILE, checkpoint / CARD_FILE)
    _write_card(trainer, checkpoint, {})
    for path in checkpoint.rglob("*"):
        if path.is_file() and path.suffix not in WEIGHT_SUFFIXES:
            target = folder / path.relative_to(checkpoint)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    scrub_records(folder, (STATE_FILE,))


class _UnsavedToken(str):
    """A token that is used as ever, and that a pickle of the arguments around it holds as an empty text."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (str, ())

    def __copy__(self) -> _UnsavedToken:
        return self

    def __deepcopy__(self, memo: Any) -> _UnsavedToken:
        return self


def _hide_token(trainer: Any, folder: Path) -> None:
    """Have the Trainer save its arguments without the token that they hold, also where it did so before in `folder`."""
    if not trainer.args.hub_token:
        return
    trainer.args.hub_token = _UnsavedToken(trainer.args.hub_token)
    if (folder / ARGUMENTS_FILE).is_file():
        torch.save(trainer.args, folder / ARGUMENTS_FILE)


def _model(trainer: Any) -> Any:
    return trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)


def _is_moeba(trainer: Any) -> bool:
    return isinstance(_model(trainer), MoebaPreTrainedModel)


def _write_card(trainer: Any, folder: Path, said: dict[str, Any]) -> None:
    """The card of `folder`, from its files and from what a person said to the Trainer or wrote on the Hub."""
    path, token = folder / CARD_FILE, trainer.args.hub_token
    if trainer.hub_model_id is not None:
        remote = Remote(HfApi(token=token), trainer.hub_model_id, trainer.args.hub_revision)
        remote.find(None)
        for note in adopt_card(path, remote.read(CARD_FILE)):
            logger.warning(note)
        _model(trainer).fetch_provenance(folder, token)
    trainer.state.save_to_json(str(folder / STATE_FILE))
    prepare(folder)
    words = {_METADATA[key]: value for key, value in said.items() if key in _METADATA and value is not None}
    tags = said.get("tags") or []
    card = ModelCard.load(path)
    tags = [*(card.data.tags or []), *([tags] if isinstance(tags, str) else tags), "generated_from_trainer"]
    for key, value in {**words, "tags": list(dict.fromkeys(tags))}.items():
        card.data[key] = value
    card.save(path)
