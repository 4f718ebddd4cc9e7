"""The sections of the card, as the template wants them; a section that no file speaks for is empty."""

from __future__ import annotations

import re
from typing import Any

from .facts import CACHE_TOKENS, Facts, ModelFacts
from .records import ROUTER_MAKERS, CertificateFacts, SourceFacts, StepFacts, TrainingFacts, as_json
from .words import byte_size, cell, code, describe, figure, figures, number, short_number

# Ending of an architecture's name -> (Auto class, task on the Hub).
_TASKS = {
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "LMHeadModel": ("AutoModelForCausalLM", "text-generation"),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", "question-answering"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
    "Model": ("AutoModel", "feature-extraction"),
}
_STATUSES = ("verified", "failed", "unverified", "unsupported", "not applicable")
_ROUTER_WARNINGS = {
    "untrained": (
        "**Untrained router.** The experts of this model were made by `{operation}`, and nothing in this "
        "folder records any training since: its router has not learned which expert suits which token."
    ),
    "unknown": (
        "**Router of unknown training.** The experts of this model were made by `{operation}`, and no file "
        "in this folder says whether its router was trained since."
    ),
}
_VERDICTS = {
    "verified": "**verified**: by the checks below, this model computes the same function as its source.",
    "gap": "{operation} does not keep the function of its source. What was measured:",
    "failed": "**unverified**: the certificate's verdict is {verdict}. What was measured:",
    "void": (
        "**unverified**: the certificate is void. Its checks have to notice faults that are planted on "
        "purpose, and did not, so its figures prove nothing."
    ),
    "other weights": (
        "**unverified**: the certificate in this folder names other weights than those that lie here now, so "
        "its figures are not shown."
    ),
}


def sections(facts: Facts) -> dict[str, Any]:
    """What the template shows; an empty value leaves its section out."""
    return {
        "title": _title(facts),
        "warnings": [_router_warning(facts)] if facts.router in _ROUTER_WARNINGS else [],
        "architecture": _architecture(facts.model),
        "sizes": _sizes(facts),
        "usage": _usage(facts),
        "steps": [_step(step) for step in facts.steps],
        "comparison": _comparison(facts),
        "training": _training(facts.training),
        "limits": _limits(facts),
    }


def _title(facts: Facts) -> str:
    """Never the folder's name: a card is often written in a temporary folder."""
    if facts.model is None:
        return "Model"
    model_type = facts.model.model_type
    if facts.model.config is None:
        kind = f"{model_type} model" if model_type else "Model"
    else:
        kind = "Mixture-of-experts" if facts.model.is_sparse else "Dense"
        kind += " decoder" if facts.model.config.is_causal else " encoder"
        kind += "" if facts.model.is_moeba else f" ({model_type})"
    if facts.size is None:
        return cell(kind)
    active = facts.size.active if facts.size.active != facts.size.total else None
    return cell(
        f"{kind}, {short_number(facts.size.total)} parameters"
        + (f", {short_number(active)} active" if active is not None else "")
    )


def _router_warning(facts: Facts) -> str:
    operation = next(step.operation for step in reversed(facts.steps) if step.operation in ROUTER_MAKERS)
    return _ROUTER_WARNINGS[facts.router or ""].format(operation=operation)


def _architecture(model: ModelFacts | None) -> dict[str, str]:
    if model is None:
        return {}
    if model.config is not None:
        layout = {} if model.is_moeba else {"Layout": f"native, model type {code(model.model_type)}"}
        return layout | describe(model.config)
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
        for dtype, nbytes in facts.size.memory.items():
            rows[f"memory of the weights in {dtype}"] = byte_size(nbytes)
        for dtype, cached in (facts.size.cache or {}).items():
            rows[f"KV cache of {CACHE_TOKENS:,} tokens in {dtype}"] = byte_size(cached)
    if facts.weights:
        count = len(facts.weights.files)
        rows["weights on disk"] = (
            f"{byte_size(facts.weights.nbytes)} in {count} file{'s' if count > 1 else ''}"
        )
        rows["stored as"] = ", ".join(facts.weights.dtypes)
    if facts.tokenizer:
        rows |= _tokenizer_rows(facts)
    return rows


def _tokenizer_rows(facts: Facts) -> dict[str, str]:
    tokenizer = facts.tokenizer
    assert tokenizer is not None
    rows = {
        "tokenizer": cell(tokenizer.tokenizer_class) if tokenizer.tokenizer_class else "",
        "tokens in the tokenizer": f"{tokenizer.tokens:,}" if tokenizer.tokens else "",
        "longest input of the tokenizer": f"{tokenizer.model_max_length:,} tokens"
        if tokenizer.model_max_length
        else "",
        "special tokens": ", ".join(
            f"{role.removesuffix('_token')} {code(token)}" for role, token in tokenizer.special_tokens.items()
        ),
        "chat template": "yes" if tokenizer.has_chat_template else "no",
    }
    return {name: words for name, words in rows.items() if words}


def _usage(facts: Facts) -> list[tuple[str, str]]:
    """Pairs of a sentence and a snippet, for what this folder can do."""
    task = task_of(facts.model)
    if facts.model is None or task is None or facts.weights is None:
        return []
    load = [f"from transformers import {task[0]}" + (", AutoTokenizer" if facts.tokenizer else ""), ""]
    load += ['model_id = "user/name"  # this repository, or a local copy of it']
    model_line = f"model = {task[0]}.from_pretrained(model_id)"
    tokenizer_line = ["tokenizer = AutoTokenizer.from_pretrained(model_id)"] if facts.tokenizer else []
    train = (
        "To train it, use the stock `Trainer`:",
        "from transformers import Trainer, TrainingArguments\n\n"
        'trainer = Trainer(model=model, args=TrainingArguments("output"), train_dataset=dataset)\n'
        "trainer.train()",
    )
    if not facts.model.is_moeba:
        return [("With transformers:", "\n".join([*load, model_line, *tokenizer_line])), train]
    usage = [("With `pip install moeba`:", "\n".join(["import moeba", *load, model_line, *tokenizer_line]))]
    if facts.model.carries_code:
        remote = model_line.replace("(model_id)", "(model_id, trust_remote_code=True)")
        usage.append(
            ("Without it, the code in this folder is run:", "\n".join([*load, remote, *tokenizer_line]))
        )
    if task[0] != "AutoModelForCausalLM":
        return [*usage, train]
    export = 'import moeba\n\nmoeba.export("path/to/this/folder", "path/to/the/export")'
    serve = "Serving engines read native layouts. To serve it, export it to one:"
    return [*usage, train, (serve, export)]


def _step(step: StepFacts) -> dict[str, Any]:
    versions = ", ".join(f"{cell(name)} {cell(version)}" for name, version in step.versions.items())
    recipe = as_json(step.recipe, indent=2) if step.recipe else ""
    longest = max((len(run) for run in re.findall("`+", recipe)), default=0)
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
        "fence": "`" * max(3, longest + 1),
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


def _comparison(facts: Facts) -> dict[str, Any] | None:
    """The certificate; with figures where they are of these weights and its checks were able to fail."""
    if facts.certificate is None:
        return None
    certificate, outcome = facts.certificate, facts.certificate.outcome
    operation = certificate.operation or (facts.steps[-1].operation if facts.steps else "the operation")
    shows_figures = outcome in ("verified", "gap", "failed")
    return {
        "title": "Certificate" if outcome == "verified" else "Difference to the source",
        "verdict": _VERDICTS[outcome].format(operation=code(operation), verdict=cell(certificate.verdict)),
        "checks": _check_rows(certificate) if shows_figures else [],
        "differences": [
            [cell(field.get("field", "")), *(code(as_json(field.get(side))) for side in ("source", "target"))]
            + [cell(field.get("verdict", ""))]
            for field in certificate.config_differences
            if shows_figures and field.get("verdict") != "same"
        ],
        "controls": [
            [
                cell(c.fault),
                "yes" if c.caught else "**no**",
                "" if c.max_abs_diff is None else figure(c.max_abs_diff),
            ]
            for c in certificate.controls
            if outcome != "other weights"
        ],
        "footnotes": _footnotes(certificate) if shows_figures else [],
    }


def _check_rows(certificate: CertificateFacts) -> list[list[str]]:
    return [
        [
            cell(check.name),
            cell(check.on),
            check.status if check.status in _STATUSES else "unverified",
            cell(figures(check.figures)),
            cell(check.detail),
        ]
        for check in certificate.checks
    ]


def _footnotes(certificate: CertificateFacts) -> list[str]:
    keys = certificate.keys
    lines = []
    sides = {"source": "in the source", "target": "in this model"}
    counts = [f"{keys[side]} {words}" for side, words in sides.items() if isinstance(keys.get(side), int)]
    if counts:
        lines.append(f"Tensors: {', '.join(counts)}.")
    if (dropped := keys.get("dropped")) and isinstance(dropped, list | dict):
        lines.append(f"Dropped: {', '.join(code(name) for name in dropped)}.")
    if isinstance(keys.get("round_trip"), str):
        lines.append(f"Round trip of the tensors: {cell(keys['round_trip'])}.")
    if certificate.first_divergence:
        lines.append(f"First module whose output differs: {code(certificate.first_divergence)}.")
    if certificate.versions:
        lines.append(
            f"Measured with {', '.join(f'{cell(n)} {cell(v)}' for n, v in certificate.versions.items())}."
        )
    if certificate.is_of_these_weights is None:
        lines.append(
            "The certificate names no weight file by its hash: that it is of these weights is unverified."
        )
    return lines


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
        "Arguments": cell(figures(training.arguments)) if training.arguments else "",
    }
    return {name: words for name, words in rows.items() if words}


def _limits(facts: Facts) -> list[str]:
    model, tokenizer = facts.model, facts.tokenizer
    if model is None:
        return ["This folder has no `config.json`: nothing is known of the model."]
    limits = []
    if facts.router == "untrained":
        limits.append("Its router is untrained, see the top of this card.")
    if facts.steps and facts.certificate is None:
        limits.append(
            "Whether it computes the same function as its source is unverified: there is no certificate."
        )
    if model.config is not None and model.config.position_embedding_type == "learned":
        limits.append(
            f"Inputs longer than {model.max_positions:,} tokens fail: it has no positions for them."
        )
    if facts.weights is None:
        limits.append("There are no weights in this folder.")
    if tokenizer is None:
        limits.append("There is no tokenizer in this folder.")
    elif tokenizer.tokens and model.vocab_size and tokenizer.tokens > model.vocab_size:
        limits.append(
            f"Its tokenizer has {tokenizer.tokens:,} tokens, but the model embeds only {model.vocab_size:,}: "
            "text with the others fails."
        )
    licenses = licenses_of(facts.steps)
    if len(licenses) > 1:
        names = ", ".join(name or license or "none recorded" for license, name, _ in licenses)
        limits.append(f"Its sources have different licences ({cell(names)}): it inherits none of them here.")
    if "Last evaluation" not in _training(facts.training):
        limits.append("No file beside this card records an evaluation.")
    return limits


def task_of(model: ModelFacts | None) -> tuple[str, str] | None:
    name = (model and model.architecture) or ""
    return next((task for ending, task in _TASKS.items() if name.endswith(ending)), None)


def licenses_of(steps: tuple[StepFacts, ...]) -> list[tuple[str | None, ...]]:
    """The different licences (id, name, link) among the sources of the newest step that names any."""
    for step in reversed(steps):
        if any(source.license for source in step.sources):
            all_of_them = [
                (source.license, source.license_name, source.license_link) for source in step.sources
            ]
            return list(dict.fromkeys(all_of_them))
    return []
