"""Exports of surgery whose family derives numbers from sizes: the proof's small models have them derived anew."""

from __future__ import annotations

from native import make

from moeba import densify, upcycle


def test_gemmas_root_of_the_width_is_that_of_the_twin(tmp_path):
    source = make(tmp_path / "native", "gemma")
    upcycle(source, tmp_path / "moe", experts=4, top_k=2, certificate=False)
    result = densify(tmp_path / "moe", tmp_path / "dense", to="gemma", export=True)
    assert result.certificate.verdict == "verified"
