"""The kernels are written for vectors of any width: what older processors run, built and compared here."""

from __future__ import annotations

import platform

import pytest
from expert_layers import assert_same, exact, make_inputs, make_layer, run

from moeba.kernels.cpu import build, calls


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["x86-64", "x86-64-v3", "x86-64-v4"])  # 4, 8 and 16 lanes
def test_narrower_vectors(processor, only, monkeypatch, tmp_path):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the names are those of x86 processors")
    (spy,) = only("cpu")
    if processor == "x86-64-v4" and "__AVX512F__ 1" not in build._run(
        [build.compiler(), "-march=native", "-dM", "-E", "-x", "c++", "/dev/null"]
    ):
        pytest.skip("this processor has no AVX-512")
    flags = [flag.replace("native", processor) for flag in build.FLAGS]
    monkeypatch.setattr(build, "FLAGS", tuple(flags))
    kernels = build._load(build._build(tmp_path))
    calls._function.cache_clear()
    monkeypatch.setattr(calls, "library", lambda: kernels)
    try:
        for tokens, top_k, experts, hidden, width in (
            (1, 2, 5, 33, 17),
            (40, 2, 3, 48, 20),
            (330, 2, 5, 33, 65),
        ):
            for layout in ({}, {"transposed": True, "interleaved": True, "bias": True}, {"gated": False}):
                layer = make_layer(experts=experts, hidden=hidden, width=width, **layout)
                inputs = make_inputs(tokens, top_k, experts=experts, hidden=hidden)
                assert_same(run(layer, inputs), exact(layer, inputs))
    finally:
        calls._function.cache_clear()
    assert spy.runs and not spy.reasons
