"""The first screen of a card: what the model is, how large, where it comes from and what is proven of it."""

from __future__ import annotations

from ..reading.facts import CACHE_TOKENS, Facts
from ..reading.records import ROUTER_MAKERS
from .licences import inherited
from .proof import certificate_summary
from .usage import task_of
from .words import byte_size, cell, code, figure, link, listing, short_number

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
_PROVEN = {
    "verified": "**verified** to compute the same function as its source",
    "gap": "changed on purpose; the difference was measured",
    "failed": "**unverified**: the certificate's checks did not all pass",
    "void": "**unverified**: the certificate is void",
    "other weights": "**unverified**: the certificate is of other weights than these",
    "changed": "**unverified**: files that decide the function have changed since it was proven",
    "unreadable": "**unverified**: the certificate cannot be read",
}


def title(facts: Facts) -> str:
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


def warnings(facts: Facts) -> list[str]:
    """What a reader must know before all else."""
    if facts.router not in _ROUTER_WARNINGS:
        return []
    operation = next(step.operation for step in reversed(facts.steps) if step.operation in ROUTER_MAKERS)
    return [_ROUTER_WARNINGS[facts.router].format(operation=operation)]


def was_trained(facts: Facts) -> bool:
    """Whether a Trainer took steps after the last operation."""
    return bool(facts.training and facts.training.steps and not facts.training.is_of_source)


def glance(facts: Facts) -> dict[str, str]:
    """One row a question; a row that no file answers is left out."""
    rows = {
        "Task": _task(facts),
        "Architecture": _architecture(facts),
        "Memory": _memory(facts),
        "Made by": _origin(facts),
        "Function": _function(facts),
        "Training": _training(facts),
        "Evaluation": facts.evaluation.headline if facts.evaluation else "",
        "Licence": _licence(facts),
    }
    return {name: words for name, words in rows.items() if words}


def _task(facts: Facts) -> str:
    """`text generation, with a chat template`."""
    task = task_of(facts.model)
    if task is None:
        return ""
    chat = facts.tokenizer is not None and facts.tokenizer.has_chat_template
    return task[1].replace("-", " ") + (", with a chat template" if chat else "")


def _architecture(facts: Facts) -> str:
    model = facts.model
    if model is None or model.config is None:
        return ""
    words = f"{model.layers} layers, {model.hidden_size:,} wide"
    if model.is_sparse:
        where = (
            "each"
            if len(model.config.sparse_layers) == model.layers
            else f"{len(model.config.sparse_layers)} of them"
        )
        words += f", {where} with {model.experts} experts, of which a token visits {model.experts_per_token}"
    reach = "at most" if model.config.position_embedding_type == "learned" else "set up for"
    return f"{words}; {reach} {model.max_positions:,} tokens"


def _memory(facts: Facts) -> str:
    if facts.size is None:
        return ""
    kind = "bfloat16 or float16"
    words = f"{byte_size(facts.size.memory[kind])} of weights in {kind}"
    if facts.size.cache:
        words += f", and {byte_size(facts.size.cache[kind])} of cache for {CACHE_TOKENS:,} tokens"
    return words


def _origin(facts: Facts) -> str:
    """`convert` of `user/base`, then `upcycle`: each step, and what the first one read."""
    if not facts.steps:
        return ""
    names = list(dict.fromkeys(source.name for source in facts.steps[0].sources if source.name))
    if len(facts.steps[-1].sources) > 1:
        names = list(dict.fromkeys(source.name for source in facts.steps[-1].sources if source.name))
    words = ", then ".join(code(step.operation) for step in facts.steps)
    return f"{words}, from {listing(code(name) for name in names)}" if names else words


def _function(facts: Facts) -> str:
    if facts.certificate is not None:
        outcome = facts.certificate.outcome
        summary = certificate_summary(facts.certificate) if outcome == "verified" else ""
        return _PROVEN[outcome] + (f": {summary}" if summary else "")
    surgery = facts.surgery
    if surgery and surgery.gaps and surgery.is_of_these_weights is not False:
        gaps = [gap for gap in surgery.gaps if gap.kl is not None]
        if gaps:
            largest = max(gaps, key=lambda gap: gap.kl or 0.0)
            return (
                f"changed on purpose: KL divergence from its source at most {figure(largest.kl)} nats a token"
            )
        return _PROVEN["gap"]
    if not facts.steps:
        return ""
    if was_trained(facts):
        return f"changed by training since {code(facts.steps[-1].operation)}"
    return "unverified: there is no certificate"


def _training(facts: Facts) -> str:
    training = facts.training
    if training is None or not was_trained(facts):
        return ""
    words = f"{training.steps:,} steps"
    if len(training.losses) > 1:
        words += f", loss {figure(training.losses[0][1])} → {figure(training.losses[-1][1])}"
    return f"{words}; the router was trained with it" if facts.router == "trained" else words


def _licence(facts: Facts) -> str:
    found = inherited(facts.steps)
    words = cell(found.licence.shown) if found.licence else "not decided" if found.conflict else ""
    if found.licence and found.licence.link:
        words += f", {link(found.licence.link)}"
    return words + (": its sources differ, see the limits" if found.conflict else "")
