"""The same numbers, bit for bit, however often, by however many threads, and beside whatever else runs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from expert_layers import Inputs, assert_same, exact, make_inputs, make_layer, run

LAYERS = {
    "plain": {},
    "biased": dict(bias=True),
    "interleaved": dict(kind="clamped", interleaved=True, transposed=True, bias=True),
    "bfloat16": dict(dtype=torch.bfloat16),
}


def cases(name: str):
    layer = make_layer(**LAYERS[name], experts=9, hidden=70, width=40)
    dtype = layer.down_proj.dtype
    return layer, [make_inputs(tokens, 3, experts=9, hidden=70, dtype=dtype) for tokens in (1, 6, 130)]


def everything(layer, inputs: Inputs) -> list[torch.Tensor]:
    with torch.no_grad():
        answer = layer(*inputs[:3])
    return [answer, *run(layer, inputs).values()]


def same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_calls_repeat_bit_for_bit(name, path, threads):
    layer, inputs = cases(name)
    for some in inputs:
        wanted = [tensor.clone() for tensor in everything(layer, some)]
        for _ in range(3):
            assert same(everything(layer, some), wanted)
        if path.__name__.endswith("cpu"):
            for number in (1, 2, 3, 5):
                threads(number)
                assert same(everything(layer, some), wanted), f"{number} threads"


def test_a_token_is_answered_alike_among_others(only):
    """Few tokens and many take different roads, whose sums differ in order: to within rounding and no further."""
    only("cpu")
    layer, inputs = make_layer(experts=3), make_inputs(64, 2, experts=3)
    with torch.no_grad():
        together = layer(*inputs[:3])
        alone = torch.cat([layer(*(tensor[i : i + 1] for tensor in inputs[:3])) for i in range(64)])
    assert_same({"": alone}, {"": together.double()}, 2e-6)


@pytest.mark.parametrize("number", [1, 2])
def test_several_threads_at_once(number, path, threads):
    """Each Python thread has layers and gradients of its own; scratch memory and the library are shared."""
    threads(number)
    jobs = [cases(name) for name in LAYERS for _ in range(2)]
    wanted = [[[t.clone() for t in everything(layer, some)] for some in inputs] for layer, inputs in jobs]
    start = threading.Barrier(len(jobs))

    def work(job: int) -> bool:
        torch.set_num_threads(number)
        start.wait()
        layer, inputs = jobs[job]
        return all(
            same(everything(layer, some), answers)
            for _ in range(5)
            for some, answers in zip(inputs, wanted[job], strict=True)
        )

    with ThreadPoolExecutor(len(jobs)) as pool:
        assert all(pool.map(work, range(len(jobs))))


def test_one_layer_answers_several_threads(path):
    layer, inputs = make_layer(), [make_inputs(tokens, 2, seed=tokens) for tokens in (1, 3, 50, 90)]
    with torch.no_grad():
        wanted = [layer(*some[:3]) for some in inputs]

    def work(i: int) -> bool:
        with torch.no_grad():
            return all(torch.equal(layer(*inputs[i][:3]), wanted[i]) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_several_backwards_into_one_gradient(path):
    """Threads that share parameters, as asynchronous trainers do: nothing added is lost."""
    layer, inputs = make_layer(), make_inputs(50, 2)
    wanted, times = exact(layer, inputs), 24
    (layer(*inputs[:3]) * inputs.change).sum().backward()
    losses = [(layer(*inputs[:3]) * inputs.change).sum() for _ in range(times)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(torch.Tensor.backward, losses))
    for name, parameter in layer.named_parameters():
        assert_same({name: parameter.grad}, {name: (times + 1) * wanted[name]}, 2e-5)
