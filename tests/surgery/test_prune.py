"""Pruning: which experts stay, what is lost, and that REAP finds the ones that do nothing."""

from __future__ import annotations

import json

import pytest
import torch
from mixtures import TEXT, forbid_reading, generates, mixture, native_mixture, tokenizer
from native import load, read_all, snapshot
from support import random_ids, tiny_model
from transformers import AutoModelForCausalLM

from moeba import MoebaConfig, MoebaForCausalLM, export
from moeba.cli.app import run
from moeba.conversion.plan import PlannedTensors
from moeba.surgery.experts.expert_rows import plan_rows
from moeba.surgery.experts.expert_usage import observe_experts
from moeba.surgery.prune import _config, choose, prune
from moeba.surgery.running import gap
from moeba.surgery.running.gap import measure_gap
from moeba.surgery.running.sources import Source
from moeba.surgery.running.streaming import streamed_model
from moeba.surgery.running.texts import Texts

QUIET = [1, 2, 5, 8, 10, 11]  # experts that the tests silence
# A divergence is at most an eighth of the squared range of the logits' differences (Hoeffding's lemma): float32 logits
# would have to differ by a thousandth to reach this.
ROUNDING = torch.finfo(torch.float32).eps
BUSY = [0, 3, 4, 9]  # experts that the tests send all tokens to


def experts_of(model):
    return [model.model.layers[layer].mlp for layer in model.config.sparse_layers]


def close(model):
    """Experts that no token visits."""
    for block in experts_of(model):
        block.gate.bias[QUIET] = -100.0


def text(tmp_path):
    return dict(calibration=[tmp_path / "text"])


def test_kept_rows_are_the_sources(tmp_path):
    source = mixture(tmp_path / "moe", router_bias=True, shared_expert_intermediate_size=8)
    prune(source, tmp_path / "out", keep=5, certificate=False, **text(tmp_path))
    kept = json.loads((tmp_path / "out" / "surgery.json").read_text())["recipe"]["kept"]
    before, after = read_all(source), read_all(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if ".experts." in name or ".mlp.gate." in name:
            rows = kept[name.split(".")[2]]
            assert len(rows) == 5 and rows == sorted(rows)
            assert torch.equal(after[name], tensor[rows]), name
        else:
            assert torch.equal(after[name], tensor), name


def test_saliency_is_what_the_paper_says(tmp_path):
    """Mean over the tokens that visit an expert of renormalised weight times length of its answer, in plain loops."""
    source = mixture(tmp_path / "moe", norm_topk_prob=False, num_hidden_layers=2)
    ids, _ = Texts(("text",), (TEXT[:3000],)).windows(tokenizer(), 64)
    usage = observe_experts(Source(source), ids, saliency=True)
    model = load(MoebaForCausalLM, source)
    seen = {}
    for layer in (0, 1):
        model.model.layers[layer].mlp.register_forward_pre_hook(
            lambda module, args, layer=layer: seen.__setitem__(layer, args[0].flatten(0, 1))
        )
    with torch.no_grad():
        model(ids)
        for layer, inputs in seen.items():
            block = model.model.layers[layer].mlp
            scores, chosen = block.gate(inputs)[0].softmax(-1).topk(3)
            found: list[list[float]] = [[] for _ in range(12)]
            for token, experts in enumerate(chosen.tolist()):
                for place, expert in enumerate(experts):
                    gate, up = (block.experts.gate_up_proj[expert] @ inputs[token]).chunk(2)
                    answer = block.experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)
                    weight = scores[token, place] / scores[token].sum()
                    found[expert].append((weight * answer.norm()).item())
            expected = torch.tensor([sum(values) / max(len(values), 1) for values in found])
            assert torch.allclose(usage[layer].saliency.float(), expected, rtol=1e-4)
            loads = torch.tensor([len(values) for values in found]) / chosen.numel()
            assert torch.allclose(usage[layer].loads.float(), loads)
            assert usage[layer].total_weight == pytest.approx(scores.sum(-1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("method", ["reap", "load"])
def test_experts_that_no_token_visits_cost_nothing(tmp_path, method):
    source = mixture(tmp_path / "moe", close, router_bias=True)
    result = prune(source, tmp_path / "out", ratio=0.5, method=method, **text(tmp_path))
    assert result.certificate is None
    # Another number of experts is another product of the router, which rounds otherwise.
    assert abs(result.gap["kl"]) < ROUNDING and result.gap["top1"] == 1.0
    report = json.loads((tmp_path / "out" / "surgery.json").read_text())
    assert report["exact"] is False and report["gap"]["tokens"] > 500
    for layer in report["reports"]["pruned_layers"].values():
        assert layer == {"kept": 6, "dropped": " ".join(map(str, QUIET)), "visits_lost": 0.0}
    generates(tmp_path / "out", MoebaForCausalLM)


def test_reap_beats_random_where_some_experts_do_all(tmp_path):
    """Four experts are always visited and do all the work; nothing else depends on who the others are."""

    def edit(model):
        for block in experts_of(model):
            block.experts.down_proj[[i for i in range(12) if i not in BUSY]] *= 1e-3
            block.gate.bias[BUSY] = 8.0

    router = dict(scoring_func="sigmoid", norm_topk_prob=False, router_bias=True, num_experts_per_tok=6)
    source = mixture(tmp_path / "moe", edit, **router)
    opened = Source(source)
    ids, _ = Texts.read([tmp_path / "text"]).windows(opened.tokenizer, 128)

    def lost(chosen):
        config = _config(opened.config, chosen)
        planned = PlannedTensors(plan_rows("prune", opened.tensors, config, chosen))
        return measure_gap(opened.model(), streamed_model(config, planned), ids)["kl"]

    gap = prune(source, tmp_path / "out", keep=6, **text(tmp_path)).gap["kl"]
    kept = json.loads((tmp_path / "out" / "surgery.json").read_text())["recipe"]["kept"]
    assert all(set(BUSY) < set(experts) for experts in kept.values())
    generator = torch.Generator().manual_seed(0)
    random = [
        lost({layer: torch.randperm(12, generator=generator)[:6].sort().values.tolist() for layer in (0, 1)})
        for _ in range(4)
    ]
    assert gap < 0.01 * min(random), (gap, random)
    assert gap == lost({int(layer): experts for layer, experts in kept.items()})


def test_uneven_layers(tmp_path):
    def edit(model):
        model.model.layers[0].mlp.experts.down_proj[QUIET] *= 1e-3

    source = mixture(tmp_path / "moe", edit)
    result = prune(source, tmp_path / "out", ratio=0.25, uneven=True, **text(tmp_path))
    config = MoebaConfig.from_pretrained(tmp_path / "out")
    counts = [layer.num_experts for layer in config.per_layer_config]
    assert counts == [6, 12]  # all that do nothing, and no other
    assert result.gap["kl"] > 0
    generates(tmp_path / "out", AutoModelForCausalLM)
    with pytest.raises(ValueError, match=r"no native family can hold this model.*num_experts=\[6, 12\]"):
        export(tmp_path / "out", tmp_path / "native")
    for to in ("auto", "mixtral"):
        with pytest.raises(ValueError, match=r"'mixtral' cannot hold this model: num_experts=\[6, 12\]"):
            prune(source, tmp_path / "x", ratio=0.25, uneven=True, to=to, export=True, **text(tmp_path))
    again = prune(tmp_path / "out", tmp_path / "twice", keep=3, **text(tmp_path))
    assert again.gap["tokens"] and not MoebaConfig.from_pretrained(tmp_path / "twice").is_heterogeneous


def test_choice():
    scores = {0: torch.tensor([5.0, 1, 1, 9, 0, 2]), 1: torch.tensor([50.0, 60, 70, 80, 90, 100])}
    even = {0: 3, 1: 3}
    assert choose(scores, even, {0: 1, 1: 1}) == {0: [0, 3, 5], 1: [3, 4, 5]}
    assert choose(scores, {0: 4, 1: 4}, {0: 1, 1: 1}, groups=2) == {0: [0, 1, 3, 5], 1: [1, 2, 4, 5]}
    # Beside their layer's average the second layer's experts are all alike, and beat most of the first's.
    assert choose(scores, even, {0: 1, 1: 1}, uneven=True) == {0: [0, 3], 1: [2, 3, 4, 5]}
    assert choose(scores, even, {0: 3, 1: 1}, uneven=True) == {0: [0, 3, 5], 1: [3, 4, 5]}


@pytest.mark.parametrize(
    "model_type, fields",
    [
        ("mixtral", dict(num_local_experts=8, num_experts_per_tok=2)),
        ("qwen2_moe", dict(num_experts=8, num_experts_per_tok=3)),
        ("deepseek_v3", dict(n_routed_experts=8, num_experts_per_tok=2, n_group=2, topk_group=1)),
    ],
)
def test_native_to_native(tmp_path, model_type, fields):
    source = native_mixture(tmp_path / "native", model_type, **fields)
    result = prune(source, tmp_path / "out", keep=6, to=model_type, export=True, **text(tmp_path))
    assert result.gap["tokens"] > 0
    generates(tmp_path / "out", AutoModelForCausalLM)
    assert load(AutoModelForCausalLM, tmp_path / "out").config.model_type == model_type
    assert Source(tmp_path / "out").config.num_experts == 6


def test_groups_stay_equal(tmp_path):
    source = mixture(
        tmp_path / "moe", n_group=3, topk_group=2, scoring_func="sigmoid", router_selection_bias=True
    )
    prune(source, tmp_path / "out", keep=6, certificate=False, **text(tmp_path))
    kept = json.loads((tmp_path / "out" / "surgery.json").read_text())["recipe"]["kept"]
    for experts in kept.values():
        assert [sum(expert // 4 == group for expert in experts) for group in range(3)] == [2, 2, 2]


def test_refusals(tmp_path):
    source = mixture(tmp_path / "moe")
    groups = mixture(tmp_path / "groups", n_group=4, topk_group=2)
    dense = mixture(tmp_path / "dense", num_experts=0)
    bare = mixture(tmp_path / "bare")
    for path in bare.glob("token*"):
        path.unlink()
    cases = [
        (source, {}, "say either keep"),
        (source, dict(keep=3, ratio=0.5), "say either keep"),
        (source, dict(ratio=1.0), "ratio=1.0 must be between 0 and 1"),
        (source, dict(ratio=0.01), "ratio=0.01 takes no expert out"),
        (source, dict(keep=12), "keep=12 takes no expert out"),
        (source, dict(keep=2), "keep=2 leaves layer 0 2 experts, but each token visits 3"),
        (source, dict(keep=6, method="random"), "method='random': choose one of reap, load"),
        (source, dict(keep=6, calibration=[]), "give calibration text files"),
        (source, dict(keep=6, calibration=[tmp_path / "none"]), "calibration file .*none"),
        (groups, dict(keep=6), "n_group=4 groups cannot share equally"),
        (groups, dict(keep=8, uneven=True), "n_group=4 groups, of equal size"),
        (groups, dict(keep=4), "(?s)n_group=4 leaves one expert a group|groups hold fewer"),
        (bare, dict(keep=6), "text needs the tokenizer of"),
        (dense, dict(keep=6), "no experts to prune: it is a dense model"),
    ]
    for folder, options, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            prune(folder, tmp_path / "out", **{**text(tmp_path), **options})
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_dry_run_and_command(tmp_path, monkeypatch, capsys):
    source = mixture(tmp_path / "moe")
    words = ["prune", str(source), "--keep", "6", "--calibration", str(tmp_path / "text")]
    for name in ("one", "two"):
        assert run([*words[:2], str(tmp_path / name), *words[2:]]) == 0
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")
    assert "not the same function: text: negative log-likelihood" in " ".join(capsys.readouterr().err.split())
    forbid_reading(monkeypatch)
    assert run([*words[:2], str(tmp_path / "out"), *words[2:], "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "mlp.gate.weight [6, 32]" in out and "decided by the calibration text" in out
    assert not (tmp_path / "out").exists()


def test_figures_that_hang_on_the_number_of_threads_tell_it(monkeypatch):
    model = tiny_model("moe")
    assert "threads" not in measure_gap(model, model, random_ids())
    monkeypatch.setattr(gap, "_SMALL", 0)
    assert measure_gap(model, model, random_ids())["threads"] == torch.get_num_threads()
