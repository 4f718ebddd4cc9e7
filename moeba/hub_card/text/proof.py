"""What was proven of the model, or measured where its function was changed on purpose."""

from __future__ import annotations

from typing import Any

from ..reading.facts import Facts
from ..reading.records import CertificateFacts, as_json
from .surgery import SurgeryFacts, report_lines
from .words import cell, code, figure, figures

_STATUSES = ("verified", "failed", "unverified", "unsupported", "not applicable")
_VERDICTS = {
    "verified": "**verified**: by the checks below, this model computes the same function as its source{summary}.",
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
    "changed": (
        "**unverified**: files that decide what this model computes have changed since it was proven, so the "
        "certificate's figures are not shown. Changed: {changes}."
    ),
    "unreadable": (
        "**unverified**: the certificate in this folder cannot be read, so nothing is proven: {problem}."
    ),
}
_GAP_HEADER = (
    "measured on",
    "tokens",
    "loss of the source",
    "loss of this model",
    "KL divergence",
    "same top token",
)


def comparison(facts: Facts) -> dict[str, Any] | None:
    """The certificate; with figures where they are of these weights and its checks were able to fail."""
    if facts.certificate is None:
        return None
    certificate, outcome = facts.certificate, facts.certificate.outcome
    operation = certificate.operation or (facts.steps[-1].operation if facts.steps else "the operation")
    summary = certificate_summary(certificate)
    shows_figures = outcome in ("verified", "gap", "failed")
    return {
        "title": "Certificate" if outcome == "verified" else "Difference to the source",
        "verdict": _VERDICTS[outcome].format(
            operation=code(operation),
            verdict=cell(certificate.verdict),
            summary=f"; {summary}" if summary else "",
            changes="; ".join(cell(line) for line in certificate.changes),
            problem=cell(certificate.problem),
        ),
        "is_folded": outcome == "verified",
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
            if shows_figures or outcome == "void"
        ],
        "footnotes": _footnotes(certificate) if shows_figures else [],
    }


def certificate_summary(certificate: CertificateFacts) -> str:
    """`logits differ by at most 1.5e-06; 9 of 9 planted faults were noticed`, as far as it is recorded."""
    largest = [
        value
        for check in certificate.checks
        if check.name.startswith("logits") and check.on == "checkpoint" and check.status == "verified"
        if isinstance(value := check.figures.get("max_abs"), int | float)
    ]
    words = []
    if largest:
        words.append(
            f"logits differ by at most {figure(max(largest))}" if max(largest) else "logits are bit-identical"
        )
    if certificate.controls:
        caught = sum(control.caught for control in certificate.controls)
        words.append(f"{caught} of {len(certificate.controls)} planted faults were noticed")
    return "; ".join(words)


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
    if certificate.outcome == "verified" and not certificate.is_bound:
        lines.append(
            "The certificate was made by a release that bound the weights alone: that config, generation settings "
            "and tokenizer are those that were proven is unverified."
        )
    return lines


def surgery_section(surgery: SurgeryFacts | None) -> dict[str, Any] | None:
    """The measured gap and the reports; the recipe stands with the step of the model's history."""
    if surgery is None:
        return None
    rows = [
        [
            cell(gap.name or surgery.gap_text or "all text"),
            f"{gap.tokens:,}" if gap.tokens is not None else "",
            *(_digits(value) for value in (gap.source_nll, gap.target_nll)),
            figure(gap.kl) if gap.kl is not None else "",
            f"{gap.top1:.1%}" if gap.top1 is not None else "",
        ]
        for gap in surgery.gaps
    ]
    reports = [(cell(title), cell(words)) for title, words in report_lines(surgery.reports, figure)]
    if not rows and not reports:
        return None
    return {
        "title": f"What {code(surgery.operation)} measured" if surgery.operation else "What surgery measured",
        "lead": _gap_lead(surgery) if rows else "",
        "header": _GAP_HEADER,
        "rows": rows,
        "reports": reports,
    }


def _gap_lead(surgery: SurgeryFacts) -> str:
    lead = "This operation does not keep the function. " if surgery.is_exact is False else ""
    lead += (
        "Losses are mean negative log-likelihoods in nats a token, the divergence is that of this model's "
    )
    lead += "predictions from the source's."
    if surgery.is_of_these_weights is not True:
        lead += (
            " **The weights have changed since**: these figures are of those that the operation wrote."
            if surgery.is_of_these_weights is False
            else " No hashes tell whether these weights are still those that were measured."
        )
    return lead


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
