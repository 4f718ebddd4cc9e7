"""The certificate compares the models' own `.loss`: a balance loss that stock lacks, or weighs otherwise, shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import native
import pytest

from moeba import convert, upcycle
from moeba.conversion import FAMILIES, CertificateError
from moeba.conversion.config_rows import Fixed, Pair

LOSSES = ("loss in evaluation", "loss in training", "loss with router logits")
COEFFICIENT = "router_aux_loss_coef"


def losses(certificate) -> set[tuple[str, str]]:
    return {(check.name, check.status) for check in certificate.checks if check.name in LOSSES}


def with_row(monkeypatch, model_type: str, row: Any) -> None:
    family = FAMILIES[model_type]
    kept = [other for other in family.config_rows if getattr(other, "our_name", None) != row.our_name]
    monkeypatch.setitem(FAMILIES, model_type, replace(family, config_rows=(*kept, row)))


@pytest.mark.parametrize("shown", [False, True])
def test_losses_of_a_mixture_agree(tmp_path, shown):
    """With router logits stock adds its balance loss, in evaluation too."""
    source = native.make(
        tmp_path / "native", "qwen3_moe", output_router_logits=shown, router_aux_loss_coef=0.25
    )
    certificate = convert(source, tmp_path / "moeba").certificate
    assert losses(certificate) == {(name, "verified") for name in LOSSES}
    planted = {control.fault: control.caught for control in certificate.negative_controls}
    assert planted["coefficient of the balance loss raised"]


FAULTS = {
    "weighed otherwise, both ways": Pair(
        COEFFICIENT, COEFFICIENT, ours_from=lambda factor: factor / 2, theirs_from=lambda factor: factor * 2
    ),
    "added in training only": Fixed("router_loss", "training"),
    "never added": Fixed("router_loss", "none"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_another_balance_loss_is_caught(tmp_path, monkeypatch, name):
    monkeypatch.setattr("moeba.conversion.certificate.proof.plant", lambda *_: ())
    with_row(monkeypatch, "qwen3_moe", FAULTS[name])
    source = native.make(
        tmp_path / "native", "qwen3_moe", output_router_logits=True, router_aux_loss_coef=0.25
    )
    with pytest.raises(CertificateError) as caught:
        convert(source, tmp_path / "moeba")
    failed = {check.name for check in caught.value.certificate.checks if check.status == "failed"}
    assert failed and failed <= set(LOSSES)


def test_a_balance_loss_that_stock_does_not_add_is_caught(tmp_path, monkeypatch):
    """The router logits are not asked for, so stock trains on the cross-entropy alone."""
    monkeypatch.setattr("moeba.conversion.certificate.proof.plant", lambda *_: ())
    with_row(monkeypatch, "qwen3_moe", Fixed("router_loss", "training"))
    source = native.make(
        tmp_path / "native", "qwen3_moe", output_router_logits=False, router_aux_loss_coef=0.25
    )
    with pytest.raises(CertificateError, match="loss in training"):
        convert(source, tmp_path / "moeba")


def test_a_mixture_made_here_has_losses_of_its_own(tmp_path):
    """It balances its experts in training, and its evaluation loss is still the cross-entropy."""
    square = dict(
        intermediate_size=24, hidden_size=24, num_attention_heads=3, num_key_value_heads=3, head_dim=8
    )
    source = native.make(tmp_path / "native", "llama", **square)
    made = upcycle(source, tmp_path / "moe", experts=4, top_k=2).certificate
    assert made.verdict == "verified" and "failed" not in {status for _, status in losses(made)}
    assert ("loss in evaluation", "verified") in losses(made)
