"""What a certificate says, in memory, as `parity.json` and in a few lines for a person."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["verified", "failed", "unverified", "unsupported", "not applicable"]


@dataclass(frozen=True)
class Check:
    """One thing that was compared. `on` says on which weights: the checkpoint's own, or a randomised small twin's."""

    name: str
    status: Status
    figures: dict[str, Any] = field(default_factory=dict)
    detail: str = ""
    on: str = ""


@dataclass(frozen=True)
class Control:
    """A fault planted on one side: a comparison that does not catch it proves nothing."""

    fault: str
    caught: bool
    max_abs_diff: float


@dataclass
class Certificate:
    """The outcome of comparing two model folders."""

    operation: str
    source: dict[str, Any]
    target: dict[str, Any]
    versions: dict[str, str]
    config_differences: list[dict[str, Any]] = field(default_factory=list)
    keys: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    negative_controls: list[Control] = field(default_factory=list)
    first_divergence: str | None = None

    @property
    def verdict(self) -> Literal["verified", "failed", "void"]:
        """`failed` if any check failed; `void` if nothing was verified or a planted fault went unnoticed."""
        if any(check.status == "failed" for check in self.checks):
            return "failed"
        fired = bool(self.negative_controls) and all(control.caught for control in self.negative_controls)
        return "verified" if fired and any(check.status == "verified" for check in self.checks) else "void"

    def to_dict(self) -> dict[str, Any]:
        return {"format_version": 1, "verdict": self.verdict, **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, default=str) + "\n", encoding="utf-8")

    def lines(self) -> list[str]:
        """A summary: the verdict, one line a check, and how many planted faults were caught."""
        lines = [f"{self.verdict}: {self.operation}"]
        for check in self.checks:
            figures = ", ".join(f"{name}={_short(value)}" for name, value in check.figures.items())
            where = f" [{check.on}]" if check.on else ""
            lines.append(
                f"  {check.status:<15} {check.name}{where}: {figures}{' ' if figures else ''}{check.detail}"
            )
        caught = sum(control.caught for control in self.negative_controls)
        lines.append(f"  planted faults caught: {caught} of {len(self.negative_controls)}")
        lines += [
            f"  NOT CAUGHT: {control.fault}" for control in self.negative_controls if not control.caught
        ]
        if self.first_divergence:
            lines.append(f"  first divergence: {self.first_divergence}")
        return lines


class CertificateError(ValueError):
    """A proof failed or is void. `certificate` holds all figures."""

    def __init__(self, certificate: Certificate) -> None:
        self.certificate = certificate
        failed = [check for check in certificate.checks if check.status == "failed"]
        missed = [control.fault for control in certificate.negative_controls if not control.caught]
        reasons = [_reason(check) for check in failed]
        reasons += [f"the planted fault '{fault}' went unnoticed" for fault in missed]
        where = f"; first divergence: {certificate.first_divergence}" if certificate.first_divergence else ""
        super().__init__(
            f"the certificate is {certificate.verdict}: {'; '.join(reasons) or 'nothing was compared'}{where}"
        )


def _reason(check: Check) -> str:
    """What failed, on one line: its figures that are single numbers, and what it says."""
    told = [f"{name}={_short(value)}" for name, value in check.figures.items() if not isinstance(value, list)]
    return f"{check.name} ({', '.join([*told, *([check.detail] if check.detail else [])])})"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
