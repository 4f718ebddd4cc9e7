"""What all operations share: from a plan over Moeba's tensors to a published, proven or measured folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ...configuration import MoebaConfig
from ...conversion.certificate import Check, Kind, Status, certify_folders
from ...conversion.certificate.twin import StateDict, load_exactly, native_twin, plain, randomise, rederived
from ...conversion.checkpoint import TensorSource
from ...conversion.companions import check_companions
from ...conversion.config_differences import differences
from ...conversion.convert import save_moeba, save_native
from ...conversion.families import family_of
from ...conversion.family import Family
from ...conversion.job import Job, Outcome, Result, Run, check_start
from ...conversion.pieces import pieces, read_pieces, same_bytes
from ...conversion.plan import Plan, PlannedTensors, moeba_shapes, plan_export
from ...conversion.selection import names_only
from ...modeling import MoebaForCausalLM
from .gap import measure_gap
from .sources import Source
from .streaming import streamed_model
from .texts import Texts, random_windows

RECORD_FILE = "surgery.json"
Twins = Callable[[Path, str | None], tuple[PreTrainedModel, PreTrainedModel]]


def before_reading(sources: Sequence[Source], destination: str | Path, options: Run) -> None:
    """What must hold before models are run for minutes: a destination that may appear, tokenizers that fit, tied heads.

    Raises:
        ValueError: it does not hold.
    """
    check_start([source.origin for source in sources], destination, options)
    for source in sources:
        check_companions(source.checkpoint.folder, source.config.vocab_size)
        source.check_equal()


def arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """An operation's `locals()` as its record keeps them: what decides the result, and no path of this machine."""
    asked = {name: value for name, value in given.items() if name not in ("source", "destination", "run")}
    asked["calibration"] = [Path(file).name for file in asked["calibration"]]
    return dict(names_only(asked))


@dataclass
class Measure:
    """What a gap is measured on: the given texts, or else Python's docstrings, or else random tokens.

    Attributes:
        tokenizer: cuts them; default the source's.
    """

    source: Source
    texts: Texts | None = None
    tokenizer: Any = None

    def gap(self, target: MoebaForCausalLM) -> dict[str, Any]:
        """See `measure_gap`; `text` says what was read."""
        ids, text = self.ids()
        return {"text": text, **measure_gap(self.source.model(), target, ids)}

    def ids(self) -> tuple[torch.Tensor, str]:
        """Token ids `[windows, length]`, and what they are."""
        config = self.source.config
        texts = self.texts or Texts.built_in()
        try:
            tokenizer = self.tokenizer or self.source.tokenizer
        except ValueError:
            if self.texts is not None:
                raise
            return random_windows(
                config.vocab_size, config.max_position_embeddings
            ), "random tokens (there is no tokenizer)"
        ids, _ = texts.windows(tokenizer, config.max_position_embeddings)
        return ids, ", ".join(texts.names)


@dataclass
class Surgery:
    """
    Attributes:
        sources: what is read; tokenizer and side files are the first one's.
        plan: every tensor of the new Moeba model.
        config: the new model's.
        recipe: the arguments, as they were given.
        family: a native family that can hold the result, if one was found.
        twins: a random small source, and what this operation makes of it; None where the function is not kept.
        equal_experts: the experts of a layer are copies of each other, on the side that has them.
        examine: further checks of the new tensors, and figures for the record.
        measure: the gap, where the function is not kept.
        reports: further figures for the record.
        recipe_text: the recipe file as it was written.
        companions: writes what takes the place of the first source's tokenizer and side files.
    """

    sources: Sequence[Source]
    plan: Plan
    config: MoebaConfig
    recipe: dict[str, Any]
    family: str | None = None
    twins: Twins | None = None
    equal_experts: bool = True
    examine: Callable[[MoebaConfig, TensorSource], tuple[list[Check], dict[str, Any]]] | None = None
    measure: Any = None
    reports: dict[str, Any] = field(default_factory=dict)
    recipe_text: str | None = None
    companions: Callable[[Path], None] | None = None

    def run(self, destination: str | Path, export: bool, options: Run) -> Result:
        """Write the folder, as a Moeba checkpoint or as the native one.

        Args:
            export: as the native one; `family` is given then.

        Raises:
            CertificateError: the proof failed.
        """
        plan, save = self.plan, partial(save_moeba, self.config)
        recipe = {**self.recipe, "family": self.family}
        if export:
            assert self.family is not None  # refused before anything was read
            family = family_of(self.family)
            notes = [*self.plan.notes, f"written as a native '{self.family}' checkpoint"]
            plan = plan_export(PlannedTensors(self.plan), self.config, family)
            plan.operation, plan.notes = self.plan.operation, notes
            save = partial(save_native, self.config, family)

        def save_all(folder: Path) -> None:
            if self.companions is not None:
                self.companions(folder)
            save(folder)
            self._record(folder, None)

        for source in self.sources:
            if not options.dry_run:
                source.check_equal()
        job = Job(
            plan,
            [source.origin for source in self.sources],
            Path(destination),
            recipe,
            save_all,
            self._conclude,
            lossy=self.twins is None,
            brings_tokenizer=self.companions is not None,
        )
        return job.run(options)

    def _record(self, folder: Path, gap: dict[str, Any] | None) -> None:
        """Write surgery.json: what was asked, of what, and what came of it."""
        record = {
            "format_version": 1,
            "operation": self.plan.operation,
            "recipe": names_only(self.recipe),
            **({"recipe_text": self.recipe_text} if self.recipe_text else {}),
            "sources": [_identity(source) for source in self.sources],
            "exact": self.twins is not None,
            "gap": names_only(gap),
            "reports": names_only(self.reports),
        }
        text = json.dumps(record, indent=2, default=str)
        (folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")

    def _conclude(self, folder: Path) -> Outcome:
        target = Source(folder)
        checks = [self._as_planned(target.tensors)]
        if self.examine is not None:
            more, figures = self.examine(target.config, target.tensors)
            checks += more
            self.reports |= figures
        twins = self.twins
        if twins is None:
            gap = self.measure.gap(streamed_model(target.config, target.tensors))
            gap["checks"] = [f"{check.name}: {check.status}" for check in checks]
            if any(check.status == "failed" for check in checks):
                raise RuntimeError(f"the written tensors are not the planned ones: {checks}")
            self._record(folder, gap)
            return Outcome(gap=gap)
        exported = target.model_type if target.model_type != MoebaConfig.model_type else None
        kind = Kind(self.plan.operation, True, self.equal_experts, lambda at: twins(at, exported))
        certificate = certify_folders(self.sources[0].checkpoint.folder, folder, kind)
        certificate.checks += checks
        self._record(folder, None)
        return Outcome(certificate)

    def _as_planned(self, target: TensorSource) -> Check:
        """Each new tensor as it stands in the folder against what its recipe computes, byte for byte."""
        wrong, count = [], 0
        for recipe in self.plan.recipes:
            if recipe.sources == tuple(info.name for info in recipe.targets) and recipe.compute is list:
                continue  # kept: compared with the source by the certificate
            outputs = recipe.run(self.plan.source)
            for info, output in zip(recipe.targets, outputs, strict=True):
                count += 1
                same = info == target.tensors[info.name] and same_bytes(
                    pieces(output), read_pieces(target, info.name)
                )
                if not same:
                    wrong.append(info.name)
        status: Status = "failed" if wrong else "verified"
        return Check("new tensors", status, {"tensors": count}, ", ".join(wrong[:5]), "checkpoint")


def _identity(source: Source) -> dict[str, Any]:
    described = source.origin.describe()
    return {key: described[key] for key in ("path", "repo_id", "revision", "model_type")}


def _as_the_family_derives(
    small: MoebaConfig, changed: MoebaConfig, family: Family
) -> tuple[MoebaConfig, MoebaConfig]:
    """Both with the numbers that follow from sizes as the family of `changed` has them."""
    derived = rederived(changed, family)
    if moeba_shapes(derived) != moeba_shapes(changed):
        return small, changed
    numbers = {item.name: getattr(derived, item.name) for item in differences(changed, derived)}
    return MoebaConfig.from_dict({**small.to_dict(), **numbers}), derived


def moeba_twin(
    small: MoebaConfig,
    changed: MoebaConfig,
    plan: Callable[[TensorSource], Plan],
    folder: Path,
    family: str | None,
    prepare: Callable[[MoebaForCausalLM], None] | None = None,
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A random model, and what `plan` makes of it: a Moeba model, or the native one that stock transformers loads.

    Args:
        prepare: gives the random model what the operation's proof rests on.
    """
    if family is not None:
        small, changed = _as_the_family_derives(small, changed, family_of(family))
    first = MoebaForCausalLM(small)
    randomise(first, embedding_multiplier=small.embedding_multiplier)
    if prepare is not None:
        with torch.no_grad():
            prepare(first)
    first.tie_weights()
    state = dict(first.state_dict().items())
    if small.tie_word_embeddings:
        state.pop("lm_head.weight")
    planned = PlannedTensors(plan(StateDict(state)))
    if family is not None:
        return plain(first), native_twin(planned, changed, family_of(family), folder)
    second = MoebaForCausalLM(changed)
    load_exactly(second, {name: planned.read(name) for name in planned.tensors})
    return plain(first), plain(second)
