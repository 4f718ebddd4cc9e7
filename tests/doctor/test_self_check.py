"""The self-check goes on after a fault, leaves out what has lost its ground, and finds what it is there to find."""

from __future__ import annotations

import logging

import pytest
import torch

from moeba.doctor import trials
from moeba.doctor.self_check import self_check
from moeba.library import window


class Broken(trials.Trial):
    """Its second and fourth step fail."""

    def steps(self, folder):
        def fails():
            raise ValueError("so\nand so")

        good = lambda: "fine"  # noqa: E731
        return [
            trials.Step("make", None, good),
            trials.Step("convert", "make", fails),
            trials.Step("certify", "convert", good),
            trials.Step("generate", "make", fails),
            trials.Step("export", "make", good),
        ]


def test_a_failed_step_is_told_in_one_line_and_the_rest_goes_on(monkeypatch):
    one = trials.TRIALS[0]
    monkeypatch.setattr(trials, "TRIALS", [Broken("llama", {}, one.reshape, {}, None)] * 2)
    threads = torch.get_num_threads()
    found = list(self_check())
    assert [item.outcome for item in found] == ["ok", "failed", "left out", "failed", "ok"] * 2
    assert found[1].detail == "ValueError: so and so"
    assert found[2].detail == "it needs convert"
    assert torch.get_num_threads() == threads


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A native and a converted model, and one that computes something else."""
    folder = tmp_path_factory.mktemp("trial")
    make, convert = trials.TRIALS[0].steps(folder)[:2]
    make.run()
    convert.run()
    model = trials._load(folder / "moeba")
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.flip(0))
    model.save_pretrained(folder / "other")
    return folder


def test_other_logits_are_noticed(folders):
    assert trials._same(folders / "native", folders / "moeba").startswith("logits ")
    with pytest.raises(ValueError, match="the logits differ by"):
        trials._same(folders / "native", folders / "other")


def test_other_tokens_are_noticed(folders):
    with pytest.raises(ValueError, match="other tokens than the stock model's"):
        trials._generates(folders / "native", folders / "other")


def test_a_void_certificate_is_noticed(folders):
    with pytest.raises(ValueError, match="the certificate is failed"):
        trials._certified(folders / "native", folders / "other")


def test_a_cache_that_is_not_read_is_noticed(folders, monkeypatch):
    true = trials._continued
    monkeypatch.setattr(
        trials,
        "_continued",
        lambda model, prompt, **words: true(model, prompt, **words)[: -len(words) or None],
    )
    with pytest.raises(ValueError, match="with a cache than without"):
        trials._generates(folders / "native", folders / "moeba")


def test_it_does_not_send_to_itself(monkeypatch, caplog):
    monkeypatch.setitem(window.TESTED, "transformers", window.Tested("5.0.0", "5.0.0"))
    monkeypatch.setattr(trials, "TRIALS", trials.TRIALS[:1])
    monkeypatch.setattr(trials, "_certified", lambda source, target: "left out here")
    logging.Logger.warning_once.cache_clear()
    assert {item.outcome for item in self_check()} == {"ok"}
    logging.Logger.warning_once.cache_clear()
    assert "moeba doctor" not in caplog.text
