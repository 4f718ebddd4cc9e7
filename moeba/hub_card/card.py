"""Writes README.md, the model card: metadata for the Hub and text for people, from `Facts` alone.

What Moeba writes stands between two HTML comments and is replaced each time; what a person wrote, text and
metadata, stays. The metadata written last time is remembered in the card, so that a person's change of it is
told from ours.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..conversion.selection import what_it_is
from .pictures.figures import FILES as FIGURE_FILES
from .pictures.figures import Figure, draw
from .pictures.svg import DRAWN_BY
from .reading.facts import Facts, gather_facts
from .reading.records import SourceFacts, StepFacts, as_json
from .text.escapes import safe_link
from .text.glance import title
from .text.licences import inherited
from .text.sections import sections
from .text.usage import task_of

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.jinja")

_START = re.compile(r"^<!-- moeba:start -->[ \t]*\r?$", re.MULTILINE)
_END = re.compile(r"^<!-- moeba:end -->[ \t]*(?=\r?$)", re.MULTILINE)
_REMEMBERED = re.compile(r"^<!-- moeba:metadata (.*) -->\r?$", re.MULTILINE)


def _standing(path: Path) -> ModelCard:
    """The card that is there.

    Raises:
        ValueError: its metadata is broken; nothing that a person wrote is overwritten then.
    """
    try:
        return ModelCard.load(path)
    except ValueError:
        raise
    except Exception as error:  # of the YAML library
        raise ValueError(f"{path} has metadata that is no YAML: {' '.join(str(error).split())}") from error


def write_card(folder: str | Path) -> Path:
    """Write or renew the model card in `folder` and return its path; the same files give the same bytes.

    Raises:
        ValueError: the folder or a file in it is damaged, or the card has one of the two markers without the
            other.
    """
    folder = Path(folder)
    path = folder / CARD_FILE
    if os.path.lexists(path) and (reason := what_it_is(path, folder)):
        raise ValueError(f"{path} is {reason}: put the file itself there, or take it away")
    facts = gather_facts(folder)
    figures = draw(facts.training)
    metadata = _metadata(facts)
    card = ModelCard.from_template(
        ModelCardData(**metadata),
        template_path=str(TEMPLATE),
        # In JSON, this escape is the same text, and no comment can end in it.
        remembered=as_json(metadata).replace(">", "\\u003e"),
        **sections(facts, figures),
    )
    text = _merge(card, _standing(path), metadata, path) if path.exists() else f"{card}\n"
    _check_figures(folder, figures)
    _write_figures(folder, figures)
    _replace_text(path, text)
    return path


def _check_figures(folder: Path, figures: list[Figure]) -> None:
    """Refuse to write over a picture that a person put there."""
    for path in (folder / figure.file for figure in figures):
        if path.is_file() and not _is_ours(path):
            raise ValueError(f"{path} was not drawn by Moeba, and the card needs that name: rename it")


def _write_figures(folder: Path, figures: list[Figure]) -> None:
    """The figures there are, and none that an earlier card had and this one has not."""
    new = {figure.file: figure.svg for figure in figures}
    for file in FIGURE_FILES:
        path = folder / file
        if file in new:
            path.parent.mkdir(exist_ok=True)
            _replace_text(path, new[file])
        elif path.is_file() and _is_ours(path):
            path.unlink()


def _is_ours(path: Path) -> bool:
    return DRAWN_BY.encode() in path.read_bytes()


def _replace_text(path: Path, text: str) -> None:
    """Replaced and not overwritten: a file of a model folder may be a link into a cache."""
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8", newline="")
    os.replace(unfinished, path)


def _merge(card: ModelCard, standing: ModelCard, metadata: Mapping[str, Any], path: Path) -> str:
    """The new card with what a person wrote in the standing one."""
    starts, ends = list(_START.finditer(standing.text)), list(_END.finditer(standing.text))
    if (len(starts), len(ends)) not in ((0, 0), (1, 1)) or (starts and starts[0].start() > ends[0].start()):
        raise ValueError(
            f"{path} must have the lines <!-- moeba:start --> and <!-- moeba:end --> once each and in this "
            f"order, or neither: found {len(starts)} and {len(ends)}. Restore them, or remove them all"
        )
    generated = card.text.strip("\n")
    before: dict[str, Any] = {}
    if starts:
        start, end = starts[0].start(), ends[0].end()
        if remembered := _REMEMBERED.search(standing.text, start, end):
            before = json.loads(remembered[1])
        text = standing.text[:start] + generated + standing.text[end:]
    else:
        own = standing.text.strip("\r\n")
        text = f"{generated}\n\n{own}\n" if own else f"{generated}\n"
    merged = _merge_metadata(standing.data.to_dict(), before, metadata)
    return f"---\n{ModelCardData(**merged).to_yaml()}\n---\n{text}"


def _merge_metadata(
    standing: Mapping[str, Any], before: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, Any]:
    """Renew what was written `before` and still stands; what a person added, changed or removed stays so."""
    merged = dict(standing)
    for key in [*now, *(key for key in before if key not in now)]:
        if key == "tags":
            merged[key] = _merge_tags(standing.get(key) or [], before.get(key, []), now.get(key, []))
        elif standing.get(key) == before.get(key):
            merged[key] = now.get(key)
    return {key: value for key, value in merged.items() if value not in (None, [])}


def _merge_tags(standing: list[str], before: list[str], now: list[str]) -> list[str]:
    removed = set(before) - set(standing)
    kept = [tag for tag in standing if tag in now or tag not in before]
    return kept + [tag for tag in now if tag not in kept and tag not in removed]


def _metadata(facts: Facts) -> dict[str, Any]:
    """The YAML of the card, without absent facts."""
    task = task_of(facts.model)
    parents = _parents(facts.steps)
    operations = {step.operation for step in facts.steps}
    tags = {
        "moeba": bool(facts.steps) or bool(facts.model and facts.model.is_moeba),
        "moe": bool(facts.model and facts.model.is_sparse),
        "upcycled": "upcycle" in operations,
        "merge": "merge" in operations,
    }
    bases = list(
        dict.fromkeys(base for parent in parents for base in parent.base_models if _is_repo_id(base))
    )
    relation = "merge" if len(bases) > 1 or "merge" in operations else "finetune"
    licence = inherited(facts.steps).licence
    values = {
        "library_name": "transformers" if facts.model else None,
        "pipeline_tag": task[1] if task else None,
        "tags": [tag for tag, holds in tags.items() if holds],
        "language": _union(source.languages for source in parents),
        "datasets": _union(source.datasets for source in parents),
        "metrics": list(facts.evaluation.metrics) if facts.evaluation else [],
        "base_model": bases[0] if len(bases) == 1 else bases,
        "base_model_relation": relation if bases else None,
        "license": licence and licence.id,
        "license_name": licence and licence.name,
        "license_link": licence and safe_link(licence.link),
        "model-index": facts.evaluation.model_index(title(facts)) if facts.evaluation else None,
    }
    return {key: value for key, value in values.items() if value not in (None, [])}


def _parents(steps: tuple[StepFacts, ...]) -> tuple[SourceFacts, ...]:
    """The sources of the newest step that names a Hub id or a declared base."""
    for step in reversed(steps):
        if any(source.base_models for source in step.sources):
            return step.sources
    return ()


def _union(lists: Iterable[tuple[str, ...]]) -> list[str]:
    return list(dict.fromkeys(text for texts in lists for text in texts))


def _is_repo_id(text: str) -> bool:
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True
