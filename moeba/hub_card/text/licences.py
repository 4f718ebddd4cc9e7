"""Which licence a model made from others inherits: the strictest of theirs, where one can be named.

The order is a help and no legal advice, and the card says so where it decided between different licences. It is a list
of our own: libraries of licence expressions (`packaging.licenses`, `license-expression`) know SPDX's names but not the
Hub's (`llama3.1`, `gemma`, `openrail`), and rank none.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..reading.records import SourceFacts, StepFacts
from .words import listing

# Ids of the Hub by what they ask for, from the most permissive on; within a row the later is the stricter. A name that
# ends in a star stands for all that begin so.
_PERMISSIVE = ("unlicense", "wtfpl", "cc0-1.0", "pddl", "0bsd", "zlib", "isc", "mit", "ncsa", "bsd*", "postgresql",
               "artistic-2.0", "bsl-1.0", "ms-pl", "ecl-2.0", "afl-3.0", "apache-2.0", "odc-by", "cdla-permissive*",
               "cc-by-2*", "cc-by-3*", "cc-by-4*")  # fmt: skip
_SHARED_ALIKE = ("lgpl*", "mpl-2.0", "epl*", "eupl*", "osl-3.0", "cdla-sharing-1.0", "odbl", "cc-by-sa*", "gfdl",
                 "gpl*", "agpl*")  # fmt: skip
_RESTRICTED = ("openrail*", "creativeml-openrail-m", "bigscience*", "bigcode-openrail-m", "deepfloyd-if-license",
               "llama*", "gemma", "open-mdw", "lfm1.0")  # fmt: skip
_NOT_COMMERCIAL = ("cc-by-nc-2*", "cc-by-nc-3*", "cc-by-nc-4*", "cc-by-nc-sa*", "c-uda", "intel-research",
                   "apple-amlr", "apple-ascl", "fair-noncommercial-research-license", "h-research")  # fmt: skip
_NO_DERIVATIVES = ("cc-by-nd*", "cc-by-nc-nd*")
_CLASSES = (_PERMISSIVE, _SHARED_ALIKE, _RESTRICTED, _NOT_COMMERCIAL, _NO_DERIVATIVES)
_UNKNOWN = len(_CLASSES)


@dataclass(frozen=True)
class Licence:
    """As a card states it; `name` and `link` go with the id `other`."""

    id: str
    name: str | None = None
    link: str | None = None

    @property
    def shown(self) -> str:
        return self.name or self.id


@dataclass(frozen=True)
class Inheritance:
    """`licence` is what the model inherits, None where no single one can be named; `conflict` says what to look at."""

    licence: Licence | None = None
    conflict: str = ""


def inherited(steps: tuple[StepFacts, ...]) -> Inheritance:
    """From the sources of the newest step that names a licence at all."""
    for step in reversed(steps):
        if any(source.license for source in step.sources):
            return _strictest([_licence_of(source) for source in step.sources])
    return Inheritance()


def _strictest(found: list[Licence | None]) -> Inheritance:
    licences = [licence for licence in dict.fromkeys(found) if licence is not None]
    names = listing(licence.shown for licence in licences)
    if None in found:
        return Inheritance(
            None,
            f"one of its sources records no licence, another {names}. None is inherited until that is cleared up",
        )
    if len(licences) == 1:
        return Inheritance(licences[0])
    ranks = {licence: _rank(licence) for licence in licences}
    best = max(licences, key=lambda licence: ranks[licence])
    said = f"its sources have different licences: {names}"
    if sum(rank[0] == _UNKNOWN for rank in ranks.values()) > 1:
        return Inheritance(
            None, f"{said}. Which is the strictest cannot be told from their names, so all of them bind"
        )
    others = [licence for licence in licences if licence != best and ranks[licence][0] > 0]
    said = f"{said}. The strictest, {best.shown}, is inherited"
    if others:
        said += (
            f"; it may conflict with {listing(licence.shown for licence in others)}, which also sets conditions "
            "on derived works"
        )
    return Inheritance(best, said)


def _rank(licence: Licence) -> tuple[int, int]:
    """Class and place in it. Of a licence that is not listed nothing may be presumed: it counts as the strictest."""
    for kind, patterns in enumerate(_CLASSES):
        for place, pattern in enumerate(patterns):
            if licence.id == pattern or (pattern.endswith("*") and licence.id.startswith(pattern[:-1])):
                return kind, place
    return _UNKNOWN, 0


def _licence_of(source: SourceFacts) -> Licence | None:
    return Licence(source.license, source.license_name, source.license_link) if source.license else None
