"""Everything that was found, for a person and for a bug report, and what to do about it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..kernels.cpu.build import cache_folder
from . import machine
from .experts import REPORT_IT, ExpertsReport, examine_experts
from .self_check import Finding, self_check
from .versions import Release, back_to_tested, releases, remedy


@dataclass
class Report:
    """
    Attributes:
        findings: of the self-check; None if it was left out.
    """

    releases: list[Release]
    machine: dict[str, Any]
    experts: ExpertsReport
    findings: list[Finding] | None = None

    @property
    def to_do(self) -> list[str]:
        """What to do, where something does not work."""
        if install := remedy(self.releases):
            return [install, "run `moeba doctor` again"]  # all else may follow from this
        steps = [self.experts.to_do] if self.experts.to_do else []
        if self.experts.failed:
            steps.append(f"experts fail ({self.experts.failed}): {self._after_a_fault()}")
        failed = [finding for finding in self.findings or () if finding.outcome == "failed"]
        if failed:
            first = f"{failed[0].family} {failed[0].step}: {failed[0].detail}"
            steps.append(
                f"{len(failed)} of {len(self.findings or ())} steps failed (first {first}): {self._after_a_fault()}"
            )
        return steps

    def _after_a_fault(self) -> str:
        back = back_to_tested(self.releases)
        return f"{back}, which is tested, and {REPORT_IT}" if back else REPORT_IT

    @property
    def well(self) -> bool:
        return not self.to_do

    def verdict(self) -> str:
        """The last line."""
        if not self.well:
            return f"To do: {'; '.join(self.to_do)}."
        words = ["All well"]
        if self.findings is None:
            words.append("as far as versions and kernels tell (no self-check was made)")
        newer = [f"{found.name} {found.installed}" for found in self.releases if found.place == "newer"]
        if newer:
            words.append(f"with {', '.join(newer)}, newer than tested")
        return f"{', '.join(words)}."

    def to_dict(self) -> dict[str, Any]:
        """All of it without paths of this machine's user."""
        return without_places(
            {
                "well": self.well,
                "verdict": self.verdict(),
                "versions": {found.name: _entry(found) for found in self.releases},
                "machine": self.machine,
                "experts": asdict(self.experts),
                "self_check": None if self.findings is None else [asdict(found) for found in self.findings],
            }
        )


def examine(check: bool = True, say: Callable[[str], None] = lambda line: None) -> Report:
    """Look at this machine, and try what Moeba does on it.

    Args:
        check: make the self-check.
        say: called with each line for a person as soon as it is known, the verdict last.
    """

    report = Report(releases(), machine.machine(), ExpertsReport())

    def tell(title: str, lines: Iterable[str]) -> None:
        for line in chain([title], (f"  {line}" for line in lines), [""]):
            say(without_places(line))

    def kernels() -> Iterator[str]:  # under their title already, because they may have to be compiled
        report.experts = examine_experts()
        yield from report.experts.lines()

    def steps() -> Iterator[str]:
        report.findings = []
        for finding in self_check():
            report.findings.append(finding)
            yield finding.line()

    tell("Versions", (release.line() for release in report.releases))
    tell("Machine", machine.lines(report.machine))
    tell("Experts", kernels())
    if check:
        tell("Self-check", steps())
    say(without_places(report.verdict()))
    return report


def without_places(value: Any) -> Any:
    """The same with the folders of this machine's user named by what they are."""
    match value:
        case str():
            for place, name in _places():
                value = value.replace(place, name)
            return value
        case dict():
            return {key: without_places(item) for key, item in value.items()}
        case list() | tuple():
            return [without_places(item) for item in value]
    return value


def _places() -> list[tuple[str, str]]:
    """Longest first, so that a folder inside another keeps its own name."""
    package = Path(__file__).parents[1]
    folders = {tempfile.gettempdir(): "<tmp>", str(package): "<moeba>", str(cache_folder()): "<cache>"}
    for home in (Path.home(), Path.home().resolve()):
        if home != home.parent:  # the root, in some containers
            folders[str(home)] = "~"
    return sorted(folders.items(), key=lambda item: -len(item[0]))


def _entry(found: Release) -> dict[str, Any]:
    return {"installed": found.installed, "place": found.place, "tested": found.tested}
