"""A native checkpoint of a family's draw, what the family's rows make of it, and both loaded."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from draws.common import LENGTH
from hypothesis import HealthCheck, seed, settings
from native import build, draw, load, save
from support import random_ids
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from moeba import MoebaForCausalLM, convert
from moeba.conversion import FAMILIES, family_of
from moeba.conversion.certificate.battery import build_battery
from moeba.conversion.certificate.run import rounding_noise
from moeba.conversion.family import Family

SEEDS = (0, 1)
# All families at the first seed come first, so that a test of the first seed alone shares their cases.
CASES = [(model_type, seed) for seed in SEEDS for model_type in FAMILIES]
FIRST = CASES[: len(FAMILIES)]
# Of the wide proofs' draws: a number, so that a changed line of a test does not change what it draws.
WIDE_SEED = int(os.environ.get("MOEBA_TEST_SEED", "0"))


def wide(examples: int) -> Callable[[Callable], Callable]:
    """Settings of a proof over so many random configs."""
    unhurried = settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    return lambda prove: seed(WIDE_SEED)(unhurried(prove))


class Case:
    """One config of one family. Each part is made when it is first asked for, and kept.

    Args:
        config: of the stock class.
        folder: empty; the checkpoints are written below it.
        seed: of the weights; also says how the files are cut into shards.
    """

    def __init__(self, config: PreTrainedConfig, folder: Path, seed: int = 0) -> None:
        self.model_type: str = config.model_type
        self.config, self.folder, self.seed = config, folder, seed

    @classmethod
    def drawn(cls, model_type: str, seed: int, folder: Path) -> Case:
        return cls(draw(model_type, seed), folder, seed)

    @property
    def family(self) -> Family:
        return family_of(self.model_type)

    @property
    def exact(self) -> bool:
        """Whether logits are expected to be the same bits."""
        return not self.family.reordered

    @property
    def shard_size(self) -> str:
        """One file or many, the other way than the source's."""
        return "4KB" if self.seed % 2 else "5GB"

    @cached_property
    def source(self) -> Path:
        """The native checkpoint, in float32."""
        return save(build(self.config, self.seed), self.folder / "native", shards=self.seed % 2 == 0)

    @cached_property
    def moeba(self) -> Path:
        """The source, converted."""
        target = self.folder / "moeba"
        convert(self.source, target, certificate=False, max_shard_size=self.shard_size)
        return target

    @cached_property
    def theirs(self) -> PreTrainedModel:
        return load(AutoModelForCausalLM, self.source)

    @cached_property
    def ours(self) -> MoebaForCausalLM:
        return load(MoebaForCausalLM, self.moeba)

    @cached_property
    def half_source(self) -> Path:
        """What stock transformers saves after loading in bfloat16: tensors that it keeps in float32 stay so."""
        model = load(AutoModelForCausalLM, self.source, dtype=torch.bfloat16)
        return save(model, self.folder / "native-half", shards=self.seed % 2 == 1)

    @cached_property
    def half_moeba(self) -> Path:
        convert(self.half_source, self.folder / "moeba-half", certificate=False)
        return self.folder / "moeba-half"

    @cached_property
    def noise(self) -> float:
        """Four times what equally right orders of summation differ by in the stock model, of the logits' spread."""
        battery = build_battery(self.ours.config, LENGTH)
        with torch.no_grad():
            logits = self.theirs(battery.longest).logits
        to_spread = (logits.std() / (logits.max() - logits.min())).item()
        return 4 * to_spread * rounding_noise((self.theirs, self.ours), battery)

    def ids(self, batch: int = 2, length: int = LENGTH) -> torch.Tensor:
        """Token ids without the padding id 0, `[batch, length]`."""
        return random_ids(batch, length, self.config.vocab_size)

    def describe(self) -> str:
        """The config's own fields, to find a failing case again."""
        return json.dumps(self.config.to_diff_dict(), default=str)


def padded(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """A ragged batch padded on the left: ids and attention mask, `[3, LENGTH]`."""
    ids = case.ids(batch=3)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 11, LENGTH - 2)):
        mask[row, :padding] = 0
    return ids.masked_fill(mask == 0, 0), mask


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Position ids as `generate()` counts them: from the first real token on."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether `position_ids` can be given (a model with relative positions alone may have no such argument)."""
    return "position_ids" in inspect.signature(model.forward).parameters
