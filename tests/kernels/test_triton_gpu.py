"""What only a CUDA device shows about Triton's kernels; `test_triton_experts` runs there too, if there is one."""

from __future__ import annotations

import itertools

import pytest
import torch
from expert_layers import assert_same, difference, exact, run
from triton_case import inputs_on_device, layer_on_device, triton_path  # noqa: F401

from moeba.kernels import gpu
from moeba.kernels.layer import layer_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.usefixtures("triton_path"),
]
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
SIZES = dict(experts=6, hidden=256, width=192)


@pytest.mark.parametrize(
    "dtype, interleaved, transposed, bias",
    list(itertools.product(TOLERANCE, (False, True), (False, True), (False, True))),
)
@pytest.mark.parametrize("tokens", [3, 60, 200, 800])  # tiles of 16, 32, 64 and 128 rows
def test_each_tile(tokens, dtype, interleaved, transposed, bias):
    options = dict(interleaved=interleaved, transposed=transposed, bias=bias)
    layer = layer_on_device("clamped", **SIZES, **options, dtype=dtype)
    inputs = inputs_on_device(tokens, 2, experts=6, hidden=256, dtype=dtype)
    assert_same(run(layer, inputs), exact(layer, inputs), TOLERANCE[dtype])


@pytest.mark.parametrize("tokens", [3, 200, 3000])
def test_every_tile_shape_agrees_and_the_choice_is_kept(tokens, monkeypatch):
    """With autotuning: the first call times, the second launches what it found; both answer the same."""
    monkeypatch.setattr(gpu.settings, "autotune", True)
    layer = layer_on_device(**SIZES, dtype=torch.bfloat16)
    inputs = inputs_on_device(tokens, 2, experts=6, hidden=256, dtype=torch.bfloat16)
    first = {name: tensor.clone() for name, tensor in run(layer, inputs).items()}
    assert_same(first, exact(layer, inputs), TOLERANCE[torch.bfloat16])
    second = run(layer, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_tf32_follows_pytorch(monkeypatch):
    layer, inputs = layer_on_device(**SIZES), inputs_on_device(300, 2, experts=6, hidden=256)
    wanted = exact(layer, inputs)["output"]
    assert difference(run(layer, inputs)["output"], wanted) < 5e-6
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    assert 1e-5 < difference(run(layer, inputs)["output"], wanted) < 5e-3


@pytest.mark.parametrize("tokens", [1, 8, 5000])
def test_captured_in_a_graph(tokens):
    """Replayed with another routing than it was captured with, which a wait for the device would forbid."""
    layer = layer_on_device(**SIZES, dtype=torch.bfloat16)
    static = inputs_on_device(tokens, 2, experts=6, hidden=256, dtype=torch.bfloat16)
    other = inputs_on_device(tokens, 2, experts=6, hidden=256, dtype=torch.bfloat16, seed=9)
    with torch.no_grad():
        layer(*static[:3])
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = layer(*static[:3])
        for place, value in zip(static[:3], other[:3], strict=True):
            place.copy_(value)
        graph.replay()
        assert torch.equal(output, layer(*other[:3]))


@pytest.mark.parametrize("tokens", [1, 8, 5000])
def test_the_host_never_waits(tokens):
    layer = layer_on_device(**SIZES, dtype=torch.bfloat16)
    inputs = inputs_on_device(tokens, 2, experts=6, hidden=256, dtype=torch.bfloat16)
    run(layer, inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(layer, inputs)
        with torch.no_grad():
            layer(*inputs[:3])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_with_graphs():
    layer = layer_on_device(**SIZES, dtype=torch.bfloat16)
    inputs = inputs_on_device(8, 2, experts=6, hidden=256, dtype=torch.bfloat16)
    parts = layer_of(layer)
    with torch.no_grad():
        wanted = layer(*inputs[:3])
        compiled = torch.compile(
            lambda *given: gpu.run(parts, *given), mode="reduce-overhead", fullgraph=True
        )
        for _ in range(4):
            torch.compiler.cudagraph_mark_step_begin()
            assert torch.equal(compiled(*inputs[:3]), wanted)


def test_peak_memory_of_training():
    """Beside parameters and their gradients: what the forward keeps, and at the worst moment three more of its size."""
    layer = layer_on_device(experts=8, hidden=1024, width=512, dtype=torch.bfloat16)
    inputs = inputs_on_device(4096, 2, experts=8, hidden=1024, dtype=torch.bfloat16)
    run(layer, inputs)
    layer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(layer, inputs)
    weights = sum(parameter.numel() * 2 for parameter in layer.parameters())
    selections = 4096 * 2
    most = selections * (3 * 1024 + 512 + 1024) * 2 + 4 * 4096 * 1024 * 2
    assert torch.cuda.max_memory_allocated() - before - weights <= 1.1 * most
