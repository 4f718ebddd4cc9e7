"""Router statistics: exact counts, no padding, no recomputation, and into the logs of the stock Trainer."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import Trainer, TrainerCallback, TrainingArguments

from moeba import MoebaConfig, MoebaForCausalLM
from moeba.modeling.router import MoebaRouter
from moeba.training import LayerStatistics, RouterStatistics, RouterStatisticsCallback

EXPERTS, TOP_K = 12, 3


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build()


def build(**changes):
    settings = dict(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2
    )
    settings |= dict(
        num_experts=EXPERTS, num_experts_per_tok=TOP_K, mlp_layer_types=["sparse", "dense", "sparse"]
    )
    return MoebaForCausalLM(MoebaConfig(**(settings | changes)))


def batch(rows=2, length=9):
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(1))


def chosen_experts(model, **inputs):
    """The indices each router returned, recorded apart from the class under test."""
    seen = []
    routers = [module for module in model.modules() if isinstance(module, MoebaRouter)]
    hooks = [r.register_forward_hook(lambda module, args, output: seen.append(output[2])) for r in routers]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return seen


def test_counts_are_those_of_the_routers(model):
    with RouterStatistics(model) as statistics, torch.no_grad():
        model(input_ids=batch())
        model(input_ids=batch())
    layers = statistics.layers()
    assert [layer.layer for layer in layers] == [0, 2]
    for layer, indices in zip(layers, chosen_experts(model, input_ids=batch()), strict=True):
        assert layer.counts == tuple((2 * torch.bincount(indices.flatten(), minlength=EXPERTS)).tolist())
        assert layer.tokens == 2 * 18
        assert sum(layer.shares) == pytest.approx(1)


def test_nothing_is_collected_outside_the_context(model):
    with RouterStatistics(model) as statistics:
        pass
    model(input_ids=batch())
    assert [layer.tokens for layer in statistics.layers()] == [0, 0]
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out(model, side, positional):
    ids, mask = batch(), torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    if side == "right":
        mask = mask.flip(-1)
    with RouterStatistics(model) as statistics, torch.no_grad():
        model.model(ids, mask) if positional else model(input_ids=ids, attention_mask=mask)
    first = chosen_experts(model, input_ids=ids, attention_mask=mask)[0]
    expected = torch.bincount(first[mask.flatten().bool()].flatten(), minlength=EXPERTS)
    assert statistics.layers()[0].counts == tuple(expected.tolist())
    assert statistics.layers()[0].tokens == 14


def test_generation_counts_each_token_once(model):
    with RouterStatistics(model) as statistics:
        mask = torch.tensor([[0, 1, 1]])
        model.generate(torch.tensor([[0, 4, 5]]), attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert statistics.layers()[0].tokens == 2 + 3  # the last new token is never fed back


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_is_not_counted_twice(model, reentrant):
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    runs = []
    hook = model.model.layers[0].mlp.gate.register_forward_hook(lambda *args: runs.append(1))
    with RouterStatistics(model) as statistics:
        model(input_ids=batch(), labels=batch(), use_cache=False).loss.backward()
    hook.remove()
    assert len(runs) == 2, "the layer was not recomputed, so this test shows nothing"
    assert [layer.tokens for layer in statistics.layers()] == [18, 18]


@pytest.mark.parametrize("experts", [1, 2, 3, 12])
def test_entropy_is_divided_by_its_maximum(experts):
    """That of all scores alike is 1 for any number of experts but one, which has none to lose."""
    model = build(num_experts=experts, num_experts_per_tok=1)
    with torch.no_grad():
        for router in [module for module in model.modules() if isinstance(module, MoebaRouter)]:
            router.weight.zero_()
        with RouterStatistics(model) as statistics:
            model(input_ids=batch())
    assert [layer.entropy for layer in statistics.layers()] == pytest.approx([float(experts > 1)] * 2)


def test_entropy_is_the_mean_over_tokens_of_each_one_s_own(model):
    logits = []
    routers = [module for module in model.modules() if isinstance(module, MoebaRouter)]
    hooks = [
        router.register_forward_hook(lambda module, args, output: logits.append(output[0]))
        for router in routers
    ]
    with RouterStatistics(model) as statistics, torch.no_grad():
        model(input_ids=batch())
    for layer, scores in zip(statistics.layers(), logits, strict=True):
        shares = scores.double().softmax(-1)
        expected = -(shares * shares.log()).sum(-1).mean() / math.log(EXPERTS)
        assert layer.entropy == pytest.approx(expected.item(), rel=1e-4)
    assert len(hooks) == 2


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_entropy_is_one_for_an_undecided_router_and_zero_for_a_sure_one(scoring):
    torch.manual_seed(0)
    model = build(scoring_func=scoring, router_bias=True)
    gate = model.model.layers[0].mlp.gate
    torch.nn.init.zeros_(gate.weight)
    with RouterStatistics(model) as undecided, torch.no_grad():
        model(input_ids=batch())
    assert undecided.layers()[0].entropy == pytest.approx(1)
    torch.nn.init.constant_(gate.bias, -60.0)
    gate.bias.data[5] = 60.0
    with RouterStatistics(model) as sure, torch.no_grad():
        model(input_ids=batch())
    assert sure.layers()[0].entropy == pytest.approx(0, abs=1e-6)
    assert sure.layers()[0].counts[5] == 18


def test_figures_of_a_collapsed_and_a_balanced_layer():
    collapsed = LayerStatistics(layer=0, tokens=10, counts=(10, 10, 0, 0), entropy=0.0)
    assert (collapsed.max_load, collapsed.dead_fraction) == (2.0, 0.5)
    balanced = LayerStatistics(layer=0, tokens=10, counts=(5, 5, 5, 5), entropy=1.0)
    assert (balanced.max_load, balanced.dead_fraction) == (1.0, 0.0)
    unused = LayerStatistics(layer=0, tokens=0, counts=(0, 0), entropy=0.0)
    assert (unused.max_load, unused.dead_fraction) == (0.0, 0.0)


class Reporter(TrainerCallback):
    """Stands in for TensorBoard and the like: sees what a callback is handed."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def train(model, folder, **kwargs):
    data = [{"input_ids": row, "labels": row} for row in batch(rows=16)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_steps=4,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **kwargs.pop("arguments", {}),
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data[:4], **kwargs)
    return trainer


KEYS = {f"router/{what}" for what in ("max_load", "entropy", "dead_fraction")}
LAYER_KEYS = {key.replace("/", f"/layer_{layer}/") for key in KEYS for layer in (0, 2)}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_stock_trainer_logs_the_figures_of_training_steps_only(model, tmp_path, checkpointing):
    callback = RouterStatisticsCallback()
    arguments = {"gradient_checkpointing": checkpointing, "gradient_accumulation_steps": 2}
    trainer = train(model, tmp_path, callbacks=[callback], arguments=arguments)
    trainer.train()
    training = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(training) == 2
    for entry in training:
        assert {key for key in entry if key.startswith("router/")} == KEYS | LAYER_KEYS
        figures = [value for key, value in entry.items() if key.startswith("router/")]
        assert all(isinstance(figure, float) and math.isfinite(figure) for figure in figures)
    assert not any("router/entropy" in entry for entry in trainer.state.log_history if "eval_loss" in entry)
    # Two steps a log, two micro-batches a step, two rows of nine tokens; none of the evaluation's.
    assert [layer.tokens for layer in callback.last] == [2 * 2 * 2 * 9] * 2
    assert not any(module._forward_hooks for module in model.modules() if isinstance(module, MoebaRouter))


def test_added_first_it_reaches_the_reporters(model, tmp_path):
    reporter = Reporter()
    trainer = train(model, tmp_path, callbacks=[reporter])
    RouterStatisticsCallback(per_layer=False).add_to(trainer)
    trainer.train()
    seen = [{key for key in logs if key.startswith("router/")} for logs in reporter.logs if "loss" in logs]
    assert seen == [KEYS, KEYS]


def test_a_dense_model_logs_nothing(tmp_path):
    callback = RouterStatisticsCallback()
    dense = build(num_experts=0, num_experts_per_tok=2, mlp_layer_types=None)
    trainer = train(dense, tmp_path, callbacks=[callback])
    trainer.train()
    assert callback.last == []
    assert not any(key.startswith("router/") for entry in trainer.state.log_history for key in entry)


def _gather_in_process(rank: int, port_file: str, results: mp.SimpleQueue) -> None:
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = build()
    with RouterStatistics(model) as statistics, torch.no_grad():
        model(input_ids=batch(length=5 + rank))
    results.put((rank, statistics.layers(), statistics.gather()))
    dist.destroy_process_group()


def test_processes_add_up(tmp_path):
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_gather_in_process, args=(str(tmp_path / "rendezvous"), results), nprocs=2)
    ranks = {rank: (own, gathered) for rank, own, gathered in (results.get(), results.get())}
    (own_0, gathered_0), (own_1, gathered_1) = ranks[0], ranks[1]
    assert gathered_0 == gathered_1
    for total, first, second in zip(gathered_0, own_0, own_1, strict=True):
        assert total.tokens == first.tokens + second.tokens == 10 + 12
        assert total.counts == tuple(a + b for a, b in zip(first.counts, second.counts, strict=True))
        weighed = (first.entropy * first.tokens + second.entropy * second.tokens) / total.tokens
        assert total.entropy == pytest.approx(weighed, rel=1e-5)
