"""Keeps Moeba's card in what the stock Trainer pushes.

The Trainer writes a card of its own over README.md, and while it trains it pushes a folder that has weights but not
the code they need.
"""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard
from transformers import TrainerCallback
from transformers.utils import logging

from ...conversion.selection import scrub_records
from ...conversion.weight_files import WEIGHT_SUFFIXES
from ...modeling import MoebaPreTrainedModel
from ..bundle import prepare
from ..card import CARD_FILE
from .card_on_hub import adopt_card
from .remote import Remote

logger = logging.get_logger(__name__)

STATE_FILE = "trainer_state.json"
# What one may say to `Trainer.push_to_hub` of the model, and what the card's metadata calls it.
_METADATA = {
    "language": "language",
    "license": "license",
    "finetuned_from": "base_model",
    "tasks": "pipeline_tag",
    "dataset_tags": "datasets",
}


def keep_card(trainer: Any) -> None:
    """Let a Trainer push its Moeba model with Moeba's card, the training's figures in it, and the code.

    ```python
    trainer = Trainer(model, TrainingArguments(..., push_to_hub=True), ...)
    keep_card(trainer)
    ```

    Without it the model is pushed as any other: with the draft of a card that the Trainer writes. It also keeps the
    token that is pushed with (`hub_token`) out of the arguments that are pushed.

    Args:
        trainer: a `transformers.Trainer` or a subclass of it, before it trains or pushes.

    Raises:
        ValueError: it trains no Moeba model. An adapter's card is peft's.
    """
    model = _model(trainer)
    if not isinstance(model, MoebaPreTrainedModel):
        raise ValueError(f"keep_card: the trainer has a {type(model).__name__}, and no Moeba model")
    stock = trainer.create_model_card
    if getattr(stock, "keeps_moebas", False):
        return
    signature = inspect.signature(stock)

    def create_model_card(*args: Any, **kwargs: Any) -> None:
        said = signature.bind(*args, **kwargs).arguments
        if trainer.is_world_process_zero():
            folder = Path(trainer.args.output_dir)
            _write_card(trainer, folder, said)
            scrub_records(folder, (STATE_FILE,))

    create_model_card.keeps_moebas = True  # type: ignore[attr-defined]
    trainer.create_model_card = create_model_card
    trainer.add_callback(_BringsCode(trainer))
    if trainer.args.hub_token:
        trainer.args.hub_token = _UnsavedToken(trainer.args.hub_token)


class _BringsCode(TrainerCallback):
    """Before a checkpoint is pushed, puts what it needs beside its weights into the folder that is uploaded."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_push_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir)
        checkpoint = folder / f"checkpoint-{state.global_step}"
        if self.trainer.is_in_train and state.is_world_process_zero:
            try:
                _bring_side_files(self.trainer, checkpoint, folder)
            except Exception as error:  # training goes on, as it does when the upload itself fails
                logger.warning(f"This checkpoint is pushed without a new card or code: {error}")


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


def _model(trainer: Any) -> Any:
    return trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)


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
