"""Merging: several models of one base, or LoRA adapters of it, become the experts of one model.

Their feed-forwards become experts; all other tensors are the base model's, an expert's, or the mean of all (Branch-
Train-MiX, Sukhbaatar et al. 2024). The recipe is mergekit-moe's, with a few words of our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Unpack

from ..conversion.checkpoint import resolve
from ..conversion.destination import check_apart
from ..conversion.job import Result, Run, RunOptions
from ..conversion.plan import PlannedTensors
from ..modeling import MoebaForCausalLM
from .experts.expert_rows import FEED_FORWARD
from .experts.experts_from_dense import Copies
from .experts.upcycling import dtypes
from .experts.whole_numbers import refuse_whole_numbers
from .merging_parts.adapters import AdaptedCheckpoint, resolve_adapter
from .merging_parts.agreement import check_agreement
from .merging_parts.merge_recipe import (
    AVERAGE,
    BASE,
    UNPROMPTED,
    VOCABULARIES,
    ExpertRecipe,
    MergeRecipe,
    ModelReference,
    read_recipe,
)
from .merging_parts.merge_router import notes_on, own_text, route
from .merging_parts.merging import Branches, Merging
from .merging_parts.model_tokens import ModelTokens, not_compared, other_ends
from .merging_parts.vocabulary import Vocabulary, fitted_config, write_companions
from .merging_parts.vocabulary_modes import agree
from .routers.shaping import require_home
from .running.gap import measure_gap
from .running.operation import Measure, Surgery, before_reading
from .running.sources import Source

_FIGURES = ("source_nll", "target_nll", "kl", "top1")


def merge(
    recipe: str | Path | Mapping[str, Any],
    destination: str | Path,
    *,
    to: str | None = None,
    vocab: str | None = None,
    export: bool = False,
    **run: Unpack[RunOptions],
) -> Result:
    """Turn several models of one architecture into a mixture of experts.

    Args:
        recipe: a YAML file, or what it holds. As in mergekit-moe: `base_model`, `experts` (each with `source_model`,
            `positive_prompts`, `negative_prompts`, `noise_scale`, `residual_scale`), `gate_mode`, `dtype`,
            `experts_per_token`, `shared_experts`, `architecture`. Further:

            - of an expert `adapter`, a LoRA folder on the base model; `calibration`, text files; `name`;
            - `others`: whose tensors outside of the experts are kept: `base` (default), `average`, or an expert's name;
            - `layers`: which get experts, as in `upcycle`, default `all`; `seed`;
            - `vocab`: where the models' tokens or the rows of their embeddings differ, `strict` (default) refuses,
              `trim` keeps the first rows that all share, `pad` as many as the largest has, `union` all tokens by their
              text; `pad_to_multiple_of`: rows are filled up to a multiple of it.
              `merging_parts/vocabulary.py` says whose each row is;
            - `gate_mode: calibration`: routers from the calibration files, the default where there are any.
        to: the native family that must be able to hold the result, or `auto`; default the recipe's `architecture`.
        vocab: default the recipe's.
        export: write the native checkpoint itself, in place of a Moeba one.
        run: see `Run`.

    The merge of equal models computes what they compute, and is proven; of any others it is measured, for each
    source on its own text and the tokens that both know, how far the merge is from it.

    Raises:
        ValueError: the recipe does not fit, or the models differ in tokens, architecture or shapes.
        CertificateError: the proof failed; nothing is published.
    """
    asked = read_recipe(recipe)
    if to and asked.architecture and to != asked.architecture:
        raise ValueError(f"to={to!r}, but the recipe says architecture: {asked.architecture}.")
    to = to or asked.architecture or "auto"
    if vocab and asked.vocab and vocab != asked.vocab:
        raise ValueError(f"vocab={vocab!r}, but the recipe says vocab: {asked.vocab}.")
    vocab = vocab or asked.vocab or VOCABULARIES[0]
    if vocab not in VOCABULARIES:
        raise ValueError(f"vocab={vocab!r}: choose one of {', '.join(VOCABULARIES)}.")
    options = Run(**run)
    members = [*asked.experts, *([asked.shared] if asked.shared else [])]
    texts = {expert.name: own_text(expert) for expert in members}
    models, branches = _open(asked, members)
    _spare_what_is_read(recipe, members, models, Path(destination))
    dtype = getattr(torch, asked.dtype) if asked.dtype else None
    base = models[BASE]
    called = {branch: _called(branch, asked) for branch in models}
    check_agreement({called[branch]: model for branch, model in models.items()}, dtype)
    tokens = {branch: ModelTokens.of(called[branch], model) for branch, model in models.items()}
    vocabulary = agree(tokens, vocab, asked.multiple)
    donors = _donors(asked, branches)
    for expert in members:
        edited = expert.noise_scale or expert.residual_scale != 1.0 or expert is asked.shared
        if edited:
            refuse_whole_numbers(models[branches[expert.name]].tensors, f"{expert.name}: noise or a scale")
    if len(donors) > 1:
        for name in donors:
            refuse_whole_numbers(
                models[name].tensors, f"{called[name]}: others={asked.others!r}", everywhere=True
            )
    notes = (
        _not_read(asked.unread)
        + not_compared(tokens)
        + other_ends(tokens)
        + ([vocabulary.describe(donors)] if vocabulary else [])
    )
    merging = Merging(
        fitted_config(base.config, vocabulary, {branch: model.config for branch, model in models.items()}),
        Copies(len(asked.experts), asked.seed),
        asked.experts_per_token,
        asked.shared is not None,
        asked.seed,
        experts=asked.experts,
        shared=_without_unread_prompts(asked),
        branches=branches,
        donors=donors,
        dtype=dtype,
        vocabulary=vocabulary,
    )
    family, found = merging.settle(asked.layers, to, dtypes(base.tensors))
    require_home(family, export)
    notes += found + _lost_of_adapters(models, merging)
    source = Branches({branch: model.tensors for branch, model in models.items()})
    if not options.dry_run:
        before_reading(list(models.values()), destination, options)
        route(
            merging, source, asked.gate_mode, lambda: (vocabulary and vocabulary.tokenizer) or base.tokenizer
        )
    plan = merging.plan(source)
    same = _keeps_function(models, merging, options.dry_run)
    plan.notes += [*notes, *notes_on(asked.gate_mode, merging.reports)]
    if same:
        plan.notes.append("all models are the same, so the merge computes what they compute")
    return Surgery(
        sources=list(models.values()),
        plan=plan,
        config=merging.config,
        recipe={
            **asked.given,
            "experts_per_token": asked.experts_per_token,
            "gate_mode": asked.gate_mode,
            "others": asked.others,
            "seed": asked.seed,
            "to": to,
            "vocab": vocab,
            **({"vocabulary": vocabulary.record()} if vocabulary else {}),
            "export": export,
            "names": [expert.name for expert in members],
            "texts": {name: text.digests() for name, text in texts.items() if text},
            "sparse_layers": merging.config.sparse_layers,
        },
        family=family,
        twins=merging.twins if same else None,
        measure=OwnTexts(models, [(expert, branches[expert.name]) for expert in asked.experts], vocabulary),
        companions=partial(write_companions, vocabulary) if vocabulary else None,
        reports={"router": merging.reports} if merging.reports else {},
        recipe_text=asked.text,
    ).run(destination, export, options)


@dataclass
class OwnTexts:
    """What the gap of a merge is measured on: each source on the text that it is for."""

    models: Mapping[str, Source]
    experts: list[tuple[ExpertRecipe, str]]
    vocabulary: Vocabulary | None = None

    def gap(self, target: MoebaForCausalLM) -> dict[str, Any]:
        """`per_source`: `measure_gap` of each; and the means over all tokens."""
        per_source = []
        for expert, branch in self.experts:
            source, shared, reader = self.models[BASE], None, None
            if self.vocabulary is not None:
                source, shared = self.models[branch], self.vocabulary.shared(branch)
                reader = self.vocabulary.read(branch)
            ids, text = Measure(source, own_text(expert), reader).ids()
            if ids.shape[1] < 2:  # a single token predicts nothing
                ids, text = Measure(source, tokenizer=reader).ids()
            if shared is not None and reader is None:  # random tokens, of those that both have
                ids = shared[0][ids % len(shared[0])]
            figures = measure_gap(self.models[branch].model(), target, ids, shared)
            per_source.append({"name": expert.name, "text": text, **figures})
        tokens = sum(item["tokens"] for item in per_source)
        means = {name: sum(item[name] * item["tokens"] for item in per_source) / tokens for name in _FIGURES}
        return {"text": "each source's own text", "tokens": tokens, **means, "per_source": per_source}


def _not_read(keys: tuple[str, ...]) -> list[str]:
    return [f"not read in a recipe for a mixture: {', '.join(keys)}"] if keys else []


def _without_unread_prompts(asked: MergeRecipe) -> ExpertRecipe | None:
    """The shared expert, with prompts only where the router's mode makes a gate of them."""
    if asked.shared is None or asked.gate_mode not in UNPROMPTED:
        return asked.shared
    return replace(asked.shared, positive_prompts=(), negative_prompts=())


def _open(asked: MergeRecipe, members: list[ExpertRecipe]) -> tuple[dict[str, Source], dict[str, str]]:
    """Each model once, the base model first; and which one each expert is from."""
    models = {BASE: _source(asked.base_model)}
    known = {_identity(asked.base_model): BASE}
    branches = {}
    for expert in members:
        key = _identity(expert.source)
        if key not in known:
            known[key] = expert.name
            models[expert.name] = _source(expert.source)
        branches[expert.name] = known[key]
    return models, branches


def _spare_what_is_read(
    recipe: str | Path | Mapping[str, Any],
    members: list[ExpertRecipe],
    models: Mapping[str, Source],
    destination: Path,
) -> None:
    """Refuse a destination that would replace an adapter, the recipe or a text."""
    for model in models.values():
        if isinstance(model.checkpoint, AdaptedCheckpoint):
            check_apart(model.checkpoint.adapter, destination)
    files = [file for expert in members for file in expert.calibration]
    for file in files if isinstance(recipe, Mapping) else [Path(recipe), *files]:
        if destination.resolve() in file.resolve().parents:
            raise ValueError(f"{destination} holds {file.name}, which is read: choose another destination")


def _identity(reference: ModelReference) -> tuple[Any, ...]:
    """The same for the same model, however its folder is spelled."""
    paths = [path and (str(Path(path).resolve()) if Path(path).exists() else path)
             for path in (reference.model, reference.adapter)]  # fmt: skip
    return (*paths, reference.revision, reference.adapter_revision)


def _source(reference: ModelReference) -> Source:
    if reference.adapter is None:
        return Source(reference.model, reference.revision)
    adapter = resolve_adapter(reference.adapter, reference.adapter_revision)
    checkpoint = AdaptedCheckpoint(resolve(reference.model, reference.revision), adapter)
    return Source(reference.model, reference.revision, checkpoint)


def _called(branch: str, asked: MergeRecipe) -> str:
    return f"base_model {asked.base_model.short}" if branch == BASE else branch


def _donors(asked: MergeRecipe, branches: Mapping[str, str]) -> tuple[str, ...]:
    """The models whose tensors outside of the experts are kept; each counts once in a mean."""
    if asked.others == BASE:
        return (BASE,)
    names = [expert.name for expert in asked.experts] if asked.others == AVERAGE else [asked.others]
    return tuple(dict.fromkeys(branches[name] for name in names))


def _lost_of_adapters(models: Mapping[str, Source], merging: Merging) -> list[str]:
    """Notes on adapters of which a part is not kept.

    Raises:
        ValueError: nothing of one is.
    """
    inside = tuple(FEED_FORWARD.format(layer=layer) for layer in merging.config.sparse_layers)
    notes = []
    for name, model in models.items():
        if not isinstance(model.checkpoint, AdaptedCheckpoint) or name in merging.donors:
            continue
        changed = _changed(model)
        outside = [tensor for tensor in changed if not tensor.startswith(inside)]
        if len(outside) == len(changed):
            raise ValueError(
                f"{name}: its adapter changes nothing in the feed-forwards that become experts, only {outside[0]} and "
                "others that are taken from elsewhere: say others: average."
            )
        if outside:
            notes.append(
                f"{name}: its adapter's changes of {len(outside)} tensors outside of the experts, such as "
                f"{outside[0]}, are not kept (others: average keeps its share of them)"
            )
    return notes


def _changed(model: Source) -> list[str]:
    """Moeba's names of the tensors that an adapter changes."""
    assert isinstance(model.checkpoint, AdaptedCheckpoint)
    if not isinstance(model.tensors, PlannedTensors):
        return list(model.checkpoint.changed)
    changed = model.checkpoint.changed.keys()
    recipes = model.tensors.plan.recipes
    return [info.name for recipe in recipes if changed & set(recipe.sources) for info in recipe.targets]


def _keeps_function(models: Mapping[str, Source], merging: Merging, dry_run: bool) -> bool:
    """Whether all models are the same file for file and nothing is changed in them. A dry run reads no file."""
    edited = any(expert.noise_scale or expert.residual_scale != 1.0 for expert in merging.experts)
    stored = {info.dtype for info in models[BASE].tensors.tensors.values() if info.dtype.is_floating_point}
    converted = merging.dtype is not None and stored != {merging.dtype}
    adapted = any(isinstance(model.checkpoint, AdaptedCheckpoint) for model in models.values())
    if edited or converted or adapted or merging.shared is not None or merging.vocabulary is not None:
        return False
    if len(models) == 1:
        return True
    return not dry_run and len({tuple(model.checkpoint.sha256().values()) for model in models.values()}) == 1
