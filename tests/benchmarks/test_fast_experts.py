"""The benchmark of experts implementations: its floors, its ratios, what it refuses, and all of it on tiny models."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

FOLDER = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(scope="module", autouse=True)
def parts():
    """The benchmark's modules, by name."""
    sys.path.insert(0, FOLDER)
    names = (
        "adapters",
        "cells",
        "contenders",
        "floors",
        "layer",
        "litgpt_peer",
        "memory",
        "models",
        "report",
        "scaling",
    )
    found = {
        name: importlib.import_module(f"experts_speed.{name}")
        for name in (*names, "targets", "timing", "whole")
    }
    found["fast_experts"] = importlib.import_module("fast_experts")
    yield found
    ALL_EXPERTS_FUNCTIONS._global_mapping.pop(found["cells"].REST)
    sys.path.remove(FOLDER)
    for name in [name for name in sys.modules if name.split(".")[0] in ("experts_speed", "fast_experts")]:
        del sys.modules[name]


@pytest.fixture
def ours(monkeypatch):
    """The benchmark's own logic is tested with a stand-in for moeba's implementation."""
    monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS, "moeba", grouped_mm_experts_forward)


def nothing():
    """No cache is emptied."""


def tiny(parts, model_type):
    return parts["models"].build_model(model_type, parts["models"].SHAPES["tiny"][model_type], "cpu")


# Floors


def test_cost_of_an_experts_layer(parts):
    # 3 * 4 * 5 weights an expert; 7 selections; 2 experts of 4 bytes a weight.
    sizes = dict(hidden=4, width=5, selections=7, distinct=2, itemsize=4)
    cost = parts["floors"].experts_cost(gated=True, training=False, **sizes)
    assert (cost.flops, cost.nbytes) == (2 * 7 * 60, 2 * 60 * 4)
    cost = parts["floors"].experts_cost(gated=True, training=True, **sizes)
    assert (cost.flops, cost.nbytes) == (3 * 2 * 7 * 60, 2 * 2 * 60 * 4)
    cost = parts["floors"].experts_cost(gated=False, training=False, **sizes)
    assert (cost.flops, cost.nbytes) == (2 * 7 * 40, 2 * 40 * 4)


def test_floor_is_the_slower_of_products_and_reading(parts):
    rates = parts["floors"].Rates({"float32": 100.0, "bfloat16": 20.0}, bandwidth=10.0)
    cost = parts["floors"].Cost
    assert rates.seconds(cost(1000, 20), "float32") == 10
    assert rates.seconds(cost(1000, 200), "float32") == 20
    # bf16 may be multiplied as float32, where that is faster; not the other way round.
    assert rates.seconds(cost(1000, 20), "bfloat16") == 10
    card = parts["floors"].Rates({"float32": 100.0, "bfloat16": 1000.0}, bandwidth=10.0)
    assert (card.seconds(cost(1000, 5), "float32"), card.seconds(cost(1000, 5), "bfloat16")) == (10, 1)
    assert rates.best(card).products == {"float32": 100.0, "bfloat16": 1000.0}


def test_cost_of_a_whole_model(parts):
    model = tiny(parts, "qwen3_moe")
    call, cost, steps = parts["whole"].decode(model, batch=3)
    context, layers = parts["whole"].CONTEXT, 2
    # Queries and outputs of 4 heads of 8; keys and values of 1; the router of 8 experts; the head of 64 words.
    matrices = layers * (2 * 32 * 32 + 2 * 32 * 8 + 8 * 32) + 64 * 32
    pairs = 3 * sum(range(context + 1, context + steps + 1))
    assert cost.flops == steps * 2 * 3 * matrices + 2 * pairs * layers * 4 * (8 + 8)
    assert cost.nbytes == steps * 4 * (matrices + layers * 3 * context * 2 * 8)
    routes = parts["whole"].recorded(model, call)
    experts = parts["models"].experts_of(model)
    routed = parts["layer"].routed_cost(experts, routes, training=False)
    assert routed.flops == 2 * steps * layers * 3 * 2 * (3 * 32 * 16)
    distinct = sum(one.index.unique().numel() for calls in routes for one in calls)
    assert routed.nbytes == distinct * 3 * 32 * 16 * 4 and distinct < steps * layers * 3 * 2


def test_training_writes_what_it_reads_and_multiplies_three_times(parts):
    model = tiny(parts, "mixtral")
    whole = parts["whole"]
    once, thrice = (whole.rest_cost(model, 10, 10, 55, training) for training in (False, True))
    assert (thrice.flops, thrice.nbytes) == (3 * once.flops, 2 * once.nbytes)


def test_latent_attention_has_its_own_sizes(parts):
    sizes = parts["whole"].attention_sizes(tiny(parts, "deepseek_v3"))
    assert sizes == {"heads": 2 * 4, "key_size": 12, "value_size": 8}


# Timing and comparing


def counted(parts, log, name, result, **more):
    def run():
        log.append(name)
        return torch.tensor(result)

    return parts["timing"].Call(lambda: None, run, lambda tensor: [tensor], **more)


def test_rounds_turn_and_the_first_is_dropped(parts):
    log = []
    calls = {name: counted(parts, log, name, 1.0) for name in "abc"}
    plan = parts["timing"].Plan(rounds=3, patience=60.0)
    seconds = parts["timing"].interleave(calls, plan)
    assert "".join(log) == "abcbcacababc"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_long_check_has_warmed_up(parts):
    log = []
    plan = parts["timing"].Plan(rounds=2, patience=60.0)
    seconds = parts["timing"].interleave({"a": counted(parts, log, "a", 1.0)}, plan, warm=True)
    assert len(log) == 2 == len(seconds["a"])


def test_impatience_leaves_the_least_rounds(parts):
    log = []
    plan = parts["timing"].Plan(rounds=9, patience=0.0, least=2)
    parts["timing"].interleave({"a": counted(parts, log, "a", 1.0)}, plan)
    assert len(log) == 3


def test_wrong_results_and_refusals_are_not_timed(parts):
    def refuse():
        raise NotImplementedError("not here\nand more")

    log = []
    calls = {
        "eager": counted(parts, log, "eager", [3.0, 4.0]),
        "close": counted(parts, log, "close", [3.0, 4.0004]),
        "wrong": counted(parts, log, "wrong", [3.0, 4.01]),
        "own limit": counted(parts, log, "own limit", [3.0, 4.01], tolerance=0.01),
        "nan": counted(parts, log, "nan", [3.0, math.nan]),
        "refusing": parts["timing"].Call(lambda: None, refuse, list),
    }
    outcome = parts["timing"].measure(calls, parts["timing"].Plan(2, 60.0), tolerance=1e-4)
    assert list(outcome.timings) == ["eager", "close", "own limit"]
    assert outcome.refused["wrong"] == "wrong: differs from eager by 2.0e-03 (allowed 1e-04)"
    assert outcome.refused["refusing"] == "NotImplementedError: not here"
    assert log.count("wrong") == log.count("nan") == 1 and log.count("close") == 4


def test_a_hopeless_call_runs_once(parts, monkeypatch):
    timing = parts["timing"]
    # What compiles at first use is not judged by its first run.
    checks = {"eager": 4.1, "batched_mm": 3.9, "moeba": 60.0, "grouped_mm": 1.0}
    monkeypatch.setattr(timing, "check", lambda *_: (checks, {}))
    monkeypatch.setattr(timing, "interleave", lambda calls, *_: {name: [2.0, 4.0, 6.0] for name in calls})
    timings = timing.measure(dict.fromkeys(checks), timing.Plan(3, patience=0.5), 1e-4, per=2).timings
    assert timings["eager"].seconds == (2.05,) and timings["eager"].spread is None
    for name in ("batched_mm", "moeba", "grouped_mm"):
        assert timings[name].seconds == (1.0, 2.0, 3.0)
    assert timings["moeba"].median == 2.0 and timings["moeba"].spread == 0.5


# Ratios and verdicts


def cell(parts, where, work, dtype="float32", model="mixtral", cost=None, experts_cost=None, **seconds):
    timing = parts["timing"]
    timings = {name.replace("_", " "): timing.Timing((value,)) for name, value in seconds.items()}
    return parts["cells"].Cell(where, model, dtype, work, timing.Outcome(timings), cost, experts_cost)


def test_ratio_is_to_the_best_of_stock(parts):
    one = cell(parts, "layer", "decode 1", eager=9.0, batched=6.0, moeba=2.0, litgpt=1.0)
    assert one.ratio == 3.0 and one.best(ours=False) == ("batched", 6.0)
    compiled = cell(
        parts, "compiled", "decode 1", eager=9.0, grouped_compiled=6.0, moeba=5.0, moeba_compiled=4.0
    )
    assert compiled.ratio == 1.5 and compiled.best(ours=True) == ("moeba compiled", 4.0)
    assert cell(parts, "layer", "decode 1", eager=9.0).ratio is None


def test_most_is_the_ratio_of_experts_at_their_floor(parts):
    rates = parts["floors"].Rates({"float32": 100.0}, bandwidth=10.0)
    half = parts["floors"].Cost(flops=1.0, nbytes=5.0)  # half a second
    works = dict(eager=4.0, moeba=3.0, experts_cost=half)
    assert cell(parts, "layer", "decode 1", **works).most(rates) == 8.0
    whole = cell(parts, "whole", "decode 1", rest=2.0, **works)
    assert whole.most(rates) == 4.0 / 2.5 and whole.ratio == 4.0 / 3.0
    compiled = cell(parts, "compiled", "decode 1", rest_compiled=1.0, **works)
    assert compiled.most(rates) == 4.0 / 1.5 and compiled.best(ours=False) == ("eager", 4.0)
    assert cell(parts, "whole", "generate 32", eager=4.0, moeba=3.0, rest=2.0).most(rates) is None


def test_verdicts(parts):
    Reached = parts["targets"].Reached
    rates = parts["floors"].Rates({"float32": 100.0, "bfloat16": 100.0}, bandwidth=10.0)
    cost = parts["floors"].Cost(flops=110.0, nbytes=1.0)  # 1.1 seconds
    cells = [
        cell(parts, "layer", "decode 1", cost=cost, eager=4.0, moeba=2.0),
        cell(parts, "layer", "decode 1", model="gpt_oss", cost=cost, eager=3.0, moeba=1.6),
        cell(parts, "layer", "decode 1", "bfloat16", eager=2.4, moeba=1.0),
        cell(parts, "whole", "decode 1", experts_cost=cost, eager=1.39, moeba=1.0, rest=0.29),
        cell(parts, "layer", "prefill 2048", eager=1.0, moeba=9.0),  # no target
    ]
    verdicts = parts["targets"].judge("cpu", cells, [], rates, ["mixtral", "gpt_oss"])
    found = {verdict.what: (verdict.target, verdict.reached) for verdict in verdicts}
    assert found["decode 1, layer, float32"] == (
        "≥ 2",
        {"mixtral": Reached(2.0, True), "gpt_oss": Reached(1.875, False)},
    )
    assert found["decode 1, layer, bfloat16"] == ("≥ 2.5", {"mixtral": Reached(2.4, False), "gpt_oss": None})
    assert found["decode 1, whole, float32"][1]["mixtral"] == Reached(1.39, False, pytest.approx(1.0))
    floor = found["decode 1, layer, float32, of the floor"][1]
    assert floor == {
        "mixtral": Reached(pytest.approx(0.55), False),
        "gpt_oss": Reached(pytest.approx(0.6875), True),
    }
    assert len(found) == 4


def test_verdict_on_memory(parts):
    usage = parts["memory"].Usage
    usages = [
        usage("mixtral", "bfloat16", "eager", peak=30, gradients=10),
        usage("mixtral", "bfloat16", "grouped_mm", peak=20, gradients=10),
        usage("mixtral", "bfloat16", "moeba", peak=17, gradients=10),
    ]
    rates = parts["floors"].Rates({"float32": 1.0, "bfloat16": 1.0}, 1.0)
    (verdict,) = parts["targets"].judge("cuda", [], usages, rates, ["mixtral"])
    assert verdict.reached == {"mixtral": parts["targets"].Reached(0.7, False)} and verdict.target == "≤ 0.6"
    assert parts["targets"].judge("cpu", [], usages, rates, ["mixtral"]) == []


def test_a_section_takes_its_own_place(parts, tmp_path):
    file, write = tmp_path / "RESULTS.md", parts["report"].write_section
    file.write_text("# Results\n\nOld words.\n")
    write(file, "cpu", "first\n")
    write(file, "cuda", "card\n")
    write(file, "cpu", "second\n")
    assert file.read_text() == (
        "# Results\n\nOld words.\n\n<!-- cpu: begin -->\nsecond\n<!-- cpu: end -->\n\n"
        "<!-- cuda: begin -->\ncard\n<!-- cuda: end -->\n"
    )


# On tiny models


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_layer_of_each_model(parts, ours, model_type):
    model = tiny(parts, model_type)
    plan = parts["timing"].Plan(1, 0.0, 1)
    for name in ("decode 8", "train 1024"):
        found = parts["layer"].measure_layer(model, model_type, parts["layer"].WORKS[name], plan, nothing)
        assert {"eager", "batched_mm", "grouped_mm", "moeba"} <= set(found.timings)
        assert found.ratio > 0 and found.cost.flops > 0 and "deepgemm" in found.outcome.refused
    assert all(parameter.grad is None for parameter in model.parameters())


def test_decoding_takes_several_steps_through_all_layers(parts):
    model, log = tiny(parts, "mixtral"), []
    layer, experts = parts["layer"], parts["models"].experts_of(model)
    routes = layer.routes_of(model, 8, steps=3)
    assert [[one.index.shape for one in calls] for calls in routes] == [[(8, 2)] * 3] * 2
    whole = layer.routes_of(model, 24)
    for calls, (one,) in zip(routes, whole, strict=True):
        assert torch.equal(torch.cat([call.index for call in calls]), one.index)
    for place, module in enumerate(experts):
        module.register_forward_pre_hook(lambda _, args, place=place: log.append((place, args[0])))
    layer.layer_call(model, "eager", experts, routes, training=False).run()
    assert [place for place, _ in log] == [0, 1] * 3
    assert all(torch.equal(hidden, routes[i % 2][i // 2].hidden) for i, (_, hidden) in enumerate(log))
    single = [layer.layer_cost(experts, [calls[i : i + 1] for calls in routes], False) for i in range(3)]
    assert layer.layer_cost(experts, routes, False).nbytes == sum(cost.nbytes for cost in single) / 3


@pytest.mark.parametrize("model_type", ["gpt_oss", "deepseek_v3"])
def test_whole_model_decodes_and_trains(parts, ours, model_type):
    model = tiny(parts, model_type)
    plan = parts["timing"].Plan(1, 0.0, 1)
    for work in ("decode 8", "train 1024", "generate 32"):
        found = parts["whole"].measure_whole(model, model_type, work, plan, nothing)
        assert {"eager", "batched_mm", "grouped_mm", "moeba"} <= set(found.timings), found.outcome.refused
        assert (found.cost is None) == work.startswith("generate") == (found.experts_cost is None)
        assert "rest" in found.timings and found.best(ours=False)[0] != "rest"


@pytest.mark.parametrize("fault", ["weights", "order"])
def test_a_wrong_implementation_is_no_result(parts, monkeypatch, fault):
    def wrong(module, hidden, index, weights):
        if fault == "weights":
            weights = weights * 1.001
        else:
            index = index.flip(-1)
        return grouped_mm_experts_forward(module, hidden, index, weights)

    monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS, "moeba", wrong)
    model, plan = tiny(parts, "qwen3_moe"), parts["timing"].Plan(1, 0.0, 1)
    work = parts["layer"].WORKS["decode 8"]
    found = parts["layer"].measure_layer(model, "qwen3_moe", work, plan, nothing)
    assert "moeba" not in found.timings and found.outcome.refused["moeba"].startswith(
        "wrong: differs from eager"
    )
    found = parts["whole"].measure_whole(model, "qwen3_moe", "decode 8", plan, nothing)
    assert "moeba" not in found.timings and found.ratio is None


def test_a_wrong_gradient_is_no_result(parts, monkeypatch):
    def wrong(module, hidden, index, weights):
        return grouped_mm_experts_forward(module, hidden, index, weights.detach())

    monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS, "moeba", wrong)
    model, plan = tiny(parts, "mixtral"), parts["timing"].Plan(1, 0.0, 1)
    found = parts["layer"].measure_layer(model, "mixtral", parts["layer"].WORKS["train 1024"], plan, nothing)
    assert found.outcome.refused["moeba"].startswith("wrong") and "grouped_mm" in found.timings


def test_what_would_drown_is_not_tried(parts, monkeypatch):
    monkeypatch.setattr(parts["contenders"], "GATHER_LIMIT", 8 * 2 * 3 * 32 * 16 * 4 - 1)
    model, plan = tiny(parts, "qwen3_moe"), parts["timing"].Plan(1, 0.0, 1)
    works = parts["layer"].WORKS
    found = parts["layer"].measure_layer(model, "qwen3_moe", works["decode 8"], plan, nothing)
    assert found.outcome.refused["batched_mm"].startswith("not tried: would copy")
    found = parts["layer"].measure_layer(
        model, "qwen3_moe", works["train 1024"], plan, nothing, zeros_limit=1.0
    )
    assert (
        found.outcome.refused["eager"].startswith("not tried: would write") and "grouped_mm" in found.timings
    )


def test_replayed_routing_is_followed_and_learns(parts):
    models = parts["models"]
    model = tiny(parts, "mixtral")
    ids = torch.arange(12)[None]
    with models.recording(model) as routes, torch.no_grad():
        model(ids)
    for calls in routes:
        calls[0].index[0] = torch.tensor([3, 3])  # what the first token did not choose
    with models.recording(model) as found, models.replaying(model, routes):
        model(ids, labels=ids).loss.backward()
    assert all(len(calls) == 1 for calls in found)
    assert model.model.layers[0].mlp.gate.weight.grad.abs().sum() > 0
    seen = []
    hook = model.model.layers[0].mlp.experts.act_fn.register_forward_hook(lambda *_: seen.append(1))
    with models.replaying(model, routes), models.recording(model) as after, torch.no_grad():
        model(ids)
    hook.remove()
    assert after[0][0].index[0].tolist() == [3, 3] and seen


def test_routers_prefer_some_experts(parts):
    model = tiny(parts, "qwen3_moe")
    assert parts["models"].busiest_share(parts["layer"].routes_of(model, 1024), experts=8) > 1.3


def test_experts_grow_and_active_parameters_do_not(parts, ours):
    shape = parts["models"].SHAPES["tiny"]["qwen3_moe"]
    plan = parts["timing"].Plan(1, 0.0, 1)
    small, large = (
        parts["scaling"].measure_growth(shape, experts, "float32", "cpu", plan, nothing)
        for experts in (4, 16)
    )
    assert large.weights == 4 * small.weights == 16 * 3 * 32 * 16 * 4 and large.optimizer == 2 * large.weights
    assert large.step.cost.flops == small.step.cost.flops
    assert "moeba" in large.step.timings and "moeba" in large.with_optimizer.timings


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="it asks the kernel")
def test_peak_of_this_process(parts):
    memory = parts["memory"]
    before = memory.start("cpu")
    block = torch.ones(50_000_000, dtype=torch.uint8)
    del block
    assert 45e6 <= memory.peak_bytes("cpu") - before < 70e6
    assert memory.Usage("m", "d", "n", peak=5, gradients=7).activations == 0


def test_litgpt_computes_the_same(parts):
    pytest.importorskip("litgpt")
    plan = parts["timing"].Plan(1, 0.0, 1)
    for model_type in parts["litgpt_peer"].FAMILIES:
        model = tiny(parts, model_type)
        peer = parts["litgpt_peer"].LitgptPeer(model)
        for work in ("decode 8", "prefill 512", "train 1024"):
            found = parts["whole"].measure_whole(model, model_type, work, plan, nothing, peer=peer)
            assert "litgpt" in found.timings, found.outcome.refused


def test_adapters_beside_peft(parts, ours):
    pytest.importorskip("peft")
    pytest.importorskip("moeba.kernels.adapters")
    plan = parts["timing"].Plan(1, 0.0, 1)
    found = parts["adapters"].measure_adapters("tiny", "float32", "cpu", plan, nothing)
    assert list(found.timings) == ["peft eager", "peft grouped_mm", "moeba"], found.outcome.refused


@pytest.mark.slow
def test_whole_command(parts, ours, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(parts["fast_experts"], "EXPERTS", (4, 8))
    arguments = ["--size", "tiny", "--rounds", "1", "--patience", "0", "--no-compile", "--models", "mixtral"]
    arguments += ["--works", "decode 1", "prefill 512", "train 1024", "--write", str(tmp_path / "RESULTS.md")]
    parts["fast_experts"].main(arguments)
    printed, written = capsys.readouterr().out, (tmp_path / "RESULTS.md").read_text()
    for title in ("Targets", "Experts layer alone", "Whole model", "Peak memory", "Growing", "Not measured"):
        assert f"### {title}" in printed and f"### {title}" in written
    rows = [line.split(" | ")[1:3] for line in written.splitlines() if line.startswith("| mixtral | ")]
    for dtype in ("float32", "bfloat16"):
        assert all(rows.count([dtype, work]) == 2 for work in ("decode 1", "prefill 512", "train 1024"))
    assert "deepgemm" in written and (" met |" in written or "**missed** |" in written)
