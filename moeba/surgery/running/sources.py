"""The models an operation reads, native or Moeba, in Moeba's terms."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from ...configuration import MoebaConfig
from ...conversion.checkpoint import Checkpoint, TensorSource, resolve
from ...conversion.convert import moeba_config
from ...conversion.job import Origin
from ...conversion.plan import Plan, PlannedTensors, check_fit, moeba_shapes, plan_import
from ...conversion.stock_loading import load_tokenizer
from ...modeling import MoebaForCausalLM
from .streaming import streamed_model


class Source:
    """One checkpoint folder or Hub model. Opening it reads config and headers only.

    Args:
        given: a folder, or a Hub id.
        checkpoint: the folder already opened, if something is laid over it (an adapter).

    Raises:
        ValueError: it is not a complete checkpoint of a supported family.
    """

    config: MoebaConfig
    tensors: TensorSource  # by Moeba's names

    def __init__(
        self, given: str | Path, revision: str | None = None, checkpoint: Checkpoint | None = None
    ) -> None:
        self.checkpoint = checkpoint or Checkpoint(resolve(given, revision))
        self.origin = Origin(self.checkpoint, str(given), revision)
        self._plan: Plan | None = None
        if self.checkpoint.config.get("model_type") == MoebaConfig.model_type:
            self.config, self.tensors = moeba_config(self.checkpoint), self.checkpoint
            check_fit(self.tensors, moeba_shapes(self.config))
        else:
            self._plan, self.config = plan_import(self.checkpoint)
            self.tensors = PlannedTensors(self._plan)

    def check_equal(self) -> None:
        """Refuse a head that is declared as tied and differs from the embedding; reads both, the first time."""
        if self._plan is not None:
            self._plan.check_equal()
            self._plan = None

    @property
    def model_type(self) -> str:
        return str(self.checkpoint.config.get("model_type"))

    @cached_property
    def tokenizer(self) -> Any:
        """
        Raises:
            ValueError: the folder holds none that loads.
        """
        try:
            return load_tokenizer(self.checkpoint.folder, local_files_only=True)
        except ValueError as error:
            raise ValueError(f"text needs the tokenizer of the model: {error}") from error

    def model(self) -> MoebaForCausalLM:
        """The model in float32; each layer's weights are read when it runs, and dropped again."""
        return streamed_model(self.config, self.tensors)
