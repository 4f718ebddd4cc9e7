"""The sections of the card, as the template wants them; a section that no file speaks for is empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..pictures.figures import Figure
from ..reading.facts import CACHE_TOKENS, Facts, ModelFacts
from ..reading.records import SourceFacts, StepFacts, as_json
from . import glance
from .escapes import fenced
from .licences import inherited
from .proof import comparison, surgery_section
from .training import TrainingFacts
from .usage import serving, usage
from .words import byte_size, cell, code, describe, figure, figures, number

_LONGEST_RECIPE = 16  # lines; a longer one is folded


def sections(facts: Facts, pictures: Sequence[Figure]) -> dict[str, Any]:
    """What the template shows; an empty value leaves its section out."""
    return {
        "title": glance.title(facts),
        "warnings": glance.warnings(facts),
        "glance": glance.glance(facts),
        "usage": usage(facts),
        "serving": serving(facts),
        "evaluation": facts.evaluation,
        "training": _training(facts.training),
        "arguments": _arguments(facts.training),
        "pictures": [_picture(picture) for picture in pictures],
        "comparison": comparison(facts),
        "surgery": surgery_section(facts.surgery),
        "architecture": _architecture(facts.model),
        "sizes": _sizes(facts),
        "memory": _memory(facts),
        "tokenizer": _tokenizer_rows(facts) if facts.tokenizer else {},
        "steps": [_step(step, facts, is_last=step is facts.steps[-1]) for step in facts.steps],
        "limits": _limits(facts),
    }


def _picture(picture: Figure) -> dict[str, Any]:
    return {
        "file": picture.file,
        "caption": picture.caption,
        "alt": cell(picture.alt),
        "header": picture.header,
        "table": picture.table,
    }


def _architecture(model: ModelFacts | None) -> dict[str, str]:
    if model is None:
        return {}
    if model.config is not None:
        layout = {} if model.is_moeba else {"Layout": f"native, model type {code(model.model_type)}"}
        return layout | {name: cell(words) for name, words in describe(model.config).items()}
    named = {
        "Model type": model.model_type,
        "Class": model.architecture,
        "Layers": model.layers,
        "Width": model.hidden_size,
        "Vocabulary": model.vocab_size,
        "Positions": model.max_positions,
        "Experts": model.experts,
        "Experts a token visits": model.experts_per_token if model.experts else None,
    }
    return {name: cell(f"{v:,}" if isinstance(v, int) else v) for name, v in named.items() if v is not None}


def _sizes(facts: Facts) -> dict[str, str]:
    rows: dict[str, str] = {}
    if facts.size:
        counted = "" if facts.size.counted_in == "config" else ", counted in the weight files"
        rows["parameters, total"] = number(facts.size.total) + counted
        if facts.size.active is not None:
            rows["parameters, active for one token"] = number(facts.size.active)
    if facts.weights:
        count = len(facts.weights.files)
        rows["weights on disk"] = (
            f"{byte_size(facts.weights.nbytes)} in {count} file{'s' if count > 1 else ''}"
        )
        rows["stored as"] = ", ".join(facts.weights.dtypes)
    return rows


def _memory(facts: Facts) -> list[list[str]]:
    """A row a dtype: weights, and where tokens are cached, the cache. The header comes first."""
    if facts.size is None:
        return []
    header = ["memory", "weights"] + ([f"KV cache of {CACHE_TOKENS:,} tokens"] if facts.size.cache else [])
    rows = [header]
    for dtype, nbytes in facts.size.memory.items():
        row = [dtype, byte_size(nbytes)]
        if facts.size.cache:
            row.append(byte_size(facts.size.cache[dtype]) if dtype in facts.size.cache else "")
        rows.append(row)
    return rows


def _tokenizer_rows(facts: Facts) -> dict[str, str]:
    tokenizer = facts.tokenizer
    assert tokenizer is not None
    rows = {
        "class": cell(tokenizer.tokenizer_class) if tokenizer.tokenizer_class else "",
        "tokens": f"{tokenizer.tokens:,}" if tokenizer.tokens else "",
        "longest input": f"{tokenizer.model_max_length:,} tokens" if tokenizer.model_max_length else "",
        "special tokens": ", ".join(
            f"{role.removesuffix('_token')} {code(token)}" for role, token in tokenizer.special_tokens.items()
        ),
        "chat template": "yes" if tokenizer.has_chat_template else "no",
    }
    return {name: words for name, words in rows.items() if words}


def _step(step: StepFacts, facts: Facts, is_last: bool) -> dict[str, Any]:
    """With the recipe as the user wrote it, if surgery kept that, or else as it was recorded."""
    versions = ", ".join(f"{cell(name)} {cell(version)}" for name, version in step.versions.items())
    recipe, language = as_json(step.recipe, indent=2) if step.recipe else "", "json"
    surgery = facts.surgery if is_last else None
    if surgery and surgery.operation == step.operation and surgery.recipe_text:
        recipe, language = surgery.recipe_text.rstrip("\n"), "yaml"
    recipe, fence = fenced(recipe)
    return {
        "title": cell(step.operation) + (f" ({versions})" if versions else ""),
        "sources": [
            {
                "words": _source(source),
                "files": [(code(name), code(sha)) for name, sha in source.files.items()],
            }
            for source in step.sources
        ],
        "recipe": recipe,
        "language": language,
        "is_folded": recipe.count("\n") > _LONGEST_RECIPE,
        "fence": fence,
        "notes": [cell(note) for note in step.notes],
    }


def _source(source: SourceFacts) -> str:
    words = code(source.name) if source.name else "a source without a name"
    if source.revision:
        words += f" at revision {code(source.revision)}"
    details = [f"model type {code(source.model_type)}" if source.model_type else ""]
    details += [f"licence {cell(source.license_name or source.license)}" if source.license else ""]
    details = [detail for detail in details if detail]
    return words + (f" ({', '.join(details)})" if details else "")


def _training(training: TrainingFacts | None) -> dict[str, str]:
    """Empty where the files are of the source's training, not of this model's."""
    if training is None or training.is_of_source:
        return {}
    rows = {
        "Optimiser steps": f"{training.steps:,}" if training.steps is not None else "",
        "Epochs": figure(training.epochs) if training.epochs is not None else "",
        "Tokens": number(training.tokens) if training.tokens else "",
        "Last training loss": figure(training.train_loss) if training.train_loss is not None else "",
        "Last evaluation": cell(figures(training.evaluation)) if training.evaluation else "",
    }
    return {name: words for name, words in rows.items() if words}


def _arguments(training: TrainingFacts | None) -> dict[str, str]:
    """The arguments of the Trainer, under the names that they have there."""
    if training is None or training.is_of_source:
        return {}
    return {code(name): code(figure(value)) for name, value in (training.arguments or {}).items()}


def _limits(facts: Facts) -> list[str]:
    limits = []
    if facts.model is None:
        limits.append("This folder has no `config.json`: nothing is known of the model.")
    else:
        limits += [*_limits_of_proof(facts), *_limits_of_model(facts, facts.model)]
    if conflict := inherited(facts.steps).conflict:
        limits.append(f"Licence: {cell(conflict)}.")
    if facts.model and facts.evaluation is None and "Last evaluation" not in _training(facts.training):
        limits.append("No file beside this card records an evaluation.")
    return limits


def _limits_of_proof(facts: Facts) -> list[str]:
    limits = ["Its router is untrained, see the top of this card."] if facts.router == "untrained" else []
    if not facts.steps or facts.certificate is not None:
        return limits
    if glance.was_trained(facts):
        limits.append(
            f"It was trained after {code(facts.steps[-1].operation)}: what was proven of its weights before does not "
            "hold of these."
        )
    elif not (facts.surgery and facts.surgery.gaps):
        limits.append(
            "Whether it computes the same function as its source is unverified: there is no certificate."
        )
    return limits


def _limits_of_model(facts: Facts, model: ModelFacts) -> list[str]:
    limits = []
    if model.config is not None and model.config.position_embedding_type == "learned":
        limits.append(
            f"Inputs longer than {model.max_positions:,} tokens fail: it has no positions for them."
        )
    if facts.weights is None:
        limits.append("There are no weights in this folder.")
    tokenizer = facts.tokenizer
    if tokenizer is None:
        limits.append("There is no tokenizer in this folder.")
    elif tokenizer.tokens and model.vocab_size and tokenizer.tokens > model.vocab_size:
        limits.append(
            f"Its tokenizer has {tokenizer.tokens:,} tokens, but the model embeds only {model.vocab_size:,}: "
            "text with the others fails."
        )
    return limits
