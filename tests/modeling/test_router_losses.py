from __future__ import annotations

import inspect

import pytest
import torch
from support import ALL_SPARSE, SPARSE, gradients, random_ids, tiny_config, tiny_model
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.utils import find_labels

from moeba import (
    MoebaForCausalLM,
    MoebaForQuestionAnswering,
    MoebaForSequenceClassification,
    MoebaForTokenClassification,
)
from moeba.library.upstream import CACHE, cache_of
from moeba.modeling.balancing import RouterLosses, router_losses


def moe(seed: int = 0, **fields):
    return tiny_model("moe", seed=seed, **{**ALL_SPARSE, **fields})


def losses_of(model, ids, **kwargs) -> torch.Tensor:
    losses = RouterLosses(model.router_loss)
    with torch.no_grad():
        model.model(ids, router_losses=losses, **kwargs)
    return torch.stack(losses.layers)


def test_balance_and_z_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
    indices = torch.tensor([[0, 1], [1, 0]])
    scores = logits.softmax(-1)
    expected = 3 * (1.0 * scores[:, 0].mean() + 1.0 * scores[:, 1].mean())
    balance, z = router_losses(logits, scores, indices, None)
    torch.testing.assert_close(balance, expected)
    torch.testing.assert_close(z, logits.logsumexp(-1).square().mean())


def test_even_routing_scores_top_k_and_collapse_scores_experts():
    experts, top_k = 6, 2
    indices = torch.tensor([[i % experts, (i + 1) % experts] for i in range(60)])
    logits = torch.zeros(60, experts)
    assert router_losses(logits, logits.softmax(-1), indices, None)[0].item() == pytest.approx(top_k)
    collapsed = torch.tensor([[50.0, 0, 0, 0, 0, 0]]).expand(60, -1)
    indices = torch.zeros(60, 1, dtype=torch.long)
    assert router_losses(collapsed, collapsed.softmax(-1), indices, None)[0].item() == pytest.approx(experts)


@pytest.mark.parametrize("masked", [False, True])
def test_one_layer_is_transformers_own_loss(masked):
    model = tiny_model("moe")  # one sparse layer
    ids = random_ids(3, 11)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    mask = mask if masked else None
    output = model(ids, attention_mask=mask, labels=ids, output_router_logits=True)
    expected = load_balancing_loss_func(output.router_logits, 12, 3, mask)
    torch.testing.assert_close(output.aux_loss, expected, rtol=1e-6, atol=0)


@torch.no_grad()
def collapse(layer, expert: int) -> None:
    layer.mlp.gate.bias.zero_()
    layer.mlp.gate.bias[[expert, (expert + 1) % 12, (expert + 2) % 12]] = 60.0


def test_a_collapse_in_each_of_two_layers_is_seen():
    """Pooled over layers, two layers that collapsed on different experts look balanced."""
    model = moe(router_bias=True)
    collapse(model.model.layers[0], 0)
    collapse(model.model.layers[1], 6)
    ids = random_ids(4, 16)
    output = model(ids, labels=ids, output_router_logits=True)
    pooled = load_balancing_loss_func(output.router_logits, 12, 3, None)
    losses = losses_of(model, ids)
    assert losses.shape == (2, 2)
    assert losses[:, 0].min() > 11.9  # experts = 12: the worst value
    assert output.aux_loss > 11.9
    assert pooled < 7


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_padding_changes_nothing(side, scoring):
    model = moe(router_z_loss_coef=0.1, router_aux_loss_coef=0.3, scoring_func=scoring).train()
    ids = random_ids(2, 10)
    padding = torch.zeros(2, 7, dtype=torch.long)
    parts = [padding, ids] if side == "left" else [ids, padding]
    padded = torch.cat(parts, dim=1)
    mask = (padded != 0).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    # Nothing comes before the first token, so no place may predict it.
    labels = padded.masked_fill((mask == 0) | (positions == 0), -100)
    expected = model(ids, labels=ids)
    actual = model(padded, attention_mask=mask, position_ids=positions, labels=labels)
    torch.testing.assert_close(actual.aux_loss, expected.aux_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-5, atol=0)
    unmasked = losses_of(model, padded)
    assert (unmasked.mean(0)[0] - expected.aux_loss).abs() > 1e-3


def test_a_ready_mask_masks_the_losses_too():
    model = moe()
    ids = random_ids(2, 10)
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    expected = losses_of(model, ids, attention_mask=mask)
    visible = (
        torch.ones(10, 10, dtype=torch.bool).tril()
        & mask[:, None, None, :].bool()
        & mask[:, None, :, None].bool()
    )
    additive = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    for ready in (visible, additive, {"full_attention": additive}):
        torch.testing.assert_close(losses_of(model, ids, attention_mask=ready), expected, rtol=1e-5, atol=0)
    assert not torch.allclose(losses_of(model, ids), expected, rtol=1e-3)


def test_only_the_new_tokens_count_after_a_cache():
    model = moe()
    ids = random_ids(1, 12)
    with torch.no_grad():
        cache = cache_of(model(ids[:, :8], use_cache=True))
    mask = torch.ones(1, 12, dtype=torch.long)
    assert losses_of(model, ids[:, 8:], **{CACHE: cache}, attention_mask=mask).isfinite().all()


@pytest.mark.parametrize(("aux", "z"), [(0.5, 0.0), (0.0, 0.5), (0.25, 0.5), (0.0, 0.0)])
def test_coefficients_apply_without_being_asked_to(aux, z):
    model = moe(router_aux_loss_coef=aux, router_z_loss_coef=z)
    ids = random_ids()
    plain = moe(router_aux_loss_coef=0.0)(ids, labels=ids)
    assert plain.aux_loss is None
    balance, zs = losses_of(model, ids).mean(0)
    evaluated, trained = model(ids, labels=ids), model.train()(ids, labels=ids)
    torch.testing.assert_close(trained.loss, plain.loss + aux * balance + z * zs)
    assert torch.equal(evaluated.loss, plain.loss)
    for output in (evaluated, trained):
        assert output.router_logits is None
        assert ("aux_loss" in output) == bool(aux or z) and ("z_loss" in output) == bool(z)
        if aux or z:
            torch.testing.assert_close(output.aux_loss, balance)
        if z:
            torch.testing.assert_close(output.z_loss, zs)
    assert model.eval()(ids).aux_loss is None  # no labels, no loss


def test_router_logits_bring_aux_loss_without_labels():
    output = moe()(random_ids(), output_router_logits=True)
    assert output.aux_loss is not None and output.loss is None and len(output.router_logits) == 2
    config_wants = moe(output_router_logits=True)(random_ids())
    torch.testing.assert_close(config_wants.aux_loss, output.aux_loss)


def test_shift_labels_weigh_the_same():
    model = moe(router_aux_loss_coef=0.5).train()
    ids = random_ids(2, 9)
    labels = ids.clone()
    labels[0, :4] = -100
    shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[..., 1:].contiguous()
    for items in (None, 40):
        kwargs = {} if items is None else {"num_items_in_batch": torch.tensor(items)}
        expected = model(ids, labels=labels, **kwargs).loss
        torch.testing.assert_close(model(ids, labels=None, shift_labels=shifted, **kwargs).loss, expected)
        torch.testing.assert_close(model(ids, labels=labels, shift_labels=shifted, **kwargs).loss, expected)


HEADS = {
    MoebaForSequenceClassification: lambda ids: dict(labels=torch.tensor([0, 1])),
    MoebaForTokenClassification: lambda ids: dict(labels=ids % 2),
    MoebaForQuestionAnswering: lambda ids: dict(
        start_positions=torch.tensor([0, 1]), end_positions=torch.tensor([2, 3])
    ),
}


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_every_head_adds_them(head):
    ids = random_ids()
    targets = HEADS[head](ids)
    fields = dict(ALL_SPARSE, router_aux_loss_coef=0.5, router_z_loss_coef=0.1)
    model = tiny_model("moe", head, **fields)
    plain = tiny_model("moe", head, **{**fields, "router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0})
    balance, z = losses_of(model, ids).mean(0)
    expected = plain(ids, **targets).loss + 0.5 * balance + 0.1 * z
    assert torch.equal(model(ids, **targets).loss, plain(ids, **targets).loss)
    model.train()
    torch.testing.assert_close(model(ids, **targets).loss, expected)
    torch.testing.assert_close(model(ids, **targets, return_dict=False)[0], expected)
    assert not model.model._forward_hooks
    assert model(ids).get("loss") is None


CHECKPOINTS = [dict(use_reentrant=True), dict(use_reentrant=False)]


@pytest.mark.parametrize("settings", CHECKPOINTS, ids=["reentrant", "non_reentrant"])
@pytest.mark.parametrize("block_order", ["pre_norm", "parallel"])
def test_checkpointing_keeps_every_gradient(settings, block_order):
    """Recomputing a layer must not cut the router losses off, which travel beside the hidden states."""
    ids = random_ids(2, 10)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    fields = dict(router_aux_loss_coef=5.0, router_z_loss_coef=1.0, block_order=block_order)
    results = []
    for checkpointing in (False, True):
        model = moe(**fields).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
        loss = model(ids, attention_mask=mask, labels=ids).loss
        loss.backward()
        results.append((loss, gradients(model)))
    (loss, expected), (again, actual) = results
    torch.testing.assert_close(again, loss, rtol=1e-6, atol=0)
    for name, gradient in expected.items():
        scale = gradient.norm()
        assert (actual[name] - gradient).norm() <= 1e-6 * scale, name
    without = moe(**{**fields, "router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0}).train()
    without(ids, attention_mask=mask, labels=ids).loss.backward()
    gate = "model.layers.0.mlp.gate.weight"
    assert (gradients(without)[gate] - expected[gate]).norm() > 0.1 * expected[gate].norm()


def test_no_tensor_of_layers_by_tokens_by_experts():
    layers, experts, batch, tokens = 6, 64, 2, 32
    fields = dict(
        SPARSE,
        num_experts=experts,
        num_hidden_layers=layers,
        vocab_size=67,
        hidden_size=16,
        moe_intermediate_size=8,
    )
    model = tiny_model("dense", **fields, router_aux_loss_coef=0.1, router_z_loss_coef=0.1).train()
    ids = random_ids(batch, tokens)
    largest = [0]

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if (
                    isinstance(tensor, torch.Tensor)
                    and tensor.requires_grad is False
                    and experts in tensor.shape
                ):
                    largest[0] = max(largest[0], tensor.numel())
            return out

    per_layer = batch * tokens * experts
    kept: dict[int, int] = {}

    def pack(tensor):
        if tensor.dim() >= 2 and tensor.shape[-1] == experts:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    saved = {}
    for coefficient in (0.0, 0.1):
        kept.clear()
        model.config.router_aux_loss_coef = model.config.router_z_loss_coef = coefficient
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output = model(ids, labels=ids)
            saved[coefficient] = (max(kept.values()), sum(kept.values()))
            output.loss.backward()
    assert saved[0.1][0] <= per_layer  # each is of one layer, [tokens, experts]
    # Of each layer: the softmax, its normalised scores and the logits, and nothing of top_k times that.
    assert saved[0.1][1] <= saved[0.0][1] + 5 * layers * per_layer
    with Sizes():
        model(ids, labels=ids)
    assert largest[0] < layers * per_layer
    losses = RouterLosses(model.router_loss)
    assert model.model(ids, router_losses=losses).router_logits is None
    assert torch.stack(losses.layers).shape == (layers, 2)


class Ragged(Dataset):
    """Rows of different lengths, so that micro-batches hold different numbers of tokens."""

    def __init__(self, rows: int):
        self.lengths = [3 + (7 * i) % 12 for i in range(rows)]

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        ids = random_ids(1, 16, seed=i)[0]
        mask = (torch.arange(16) < self.lengths[i]).long()
        ids = ids * mask
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def logged_loss(tmp_path, accumulation: int, model, dataset, rows: int = 8) -> float:
    arguments = TrainingArguments(
        tmp_path / f"ga{accumulation}",
        per_device_train_batch_size=rows // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        logging_steps=1,
        learning_rate=0.0,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=dataset)
    trainer.train()
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


class OneBatch(Ragged):
    """The same row each time: every micro-batch is routed as the whole batch is."""

    def __getitem__(self, i):
        return super().__getitem__(0)


@pytest.mark.parametrize("dataset", [OneBatch, Ragged])
def test_share_of_the_logged_loss_does_not_grow_with_accumulation(tmp_path, dataset):
    shares = {}
    for accumulation in (1, 4, 8):
        with_, without = (
            logged_loss(tmp_path, accumulation, moe(router_aux_loss_coef=coef).train(), dataset(8))
            for coef in (1.0, 0.0)
        )
        shares[accumulation] = with_ - without
    if dataset is OneBatch:
        assert shares[4] == pytest.approx(shares[1], rel=1e-4) and shares[8] == pytest.approx(
            shares[1], rel=1e-4
        )
    # A smaller micro-batch is measured as less balanced, but its share is not multiplied by their number.
    assert shares[1] > 1
    assert shares[4] < 1.6 * shares[1] and shares[8] < 2 * shares[1]


def test_accumulated_gradients_are_those_of_one_batch():
    """Of micro-batches that are routed alike, with ragged token counts."""
    model = moe(router_aux_loss_coef=2.0, router_z_loss_coef=0.5).train()
    ids = random_ids(1, 12)
    labels = [ids.clone() for _ in range(3)]
    labels[1][:, :6] = -100
    labels[2][:, :9] = -100
    counts = [int((x[:, 1:] != -100).sum()) for x in labels]
    total = torch.tensor(sum(counts))
    losses = [model(ids, labels=x, num_items_in_batch=total).loss for x in labels]
    sum(losses).backward()
    accumulated = gradients(model)
    model.zero_grad()
    together = model(ids.expand(3, -1), labels=torch.cat(labels), num_items_in_batch=total).loss
    together.backward()
    torch.testing.assert_close(sum(losses), together, rtol=1e-6, atol=0)
    for name, gradient in gradients(model).items():
        assert (gradient - accumulated[name]).norm() <= 1e-5 * gradient.norm() + 1e-9, name


@pytest.mark.parametrize("head", [MoebaForSequenceClassification, MoebaForTokenClassification])
def test_classification_heads_under_accumulation(tmp_path, head):
    class Labelled(Ragged):
        def __getitem__(self, i):
            row = super().__getitem__(0)
            row["labels"] = (
                torch.tensor(1) if head is MoebaForSequenceClassification else row["input_ids"] % 2
            )
            return row

    losses = {}
    for accumulation in (1, 4):
        model = tiny_model("moe", head, **ALL_SPARSE, router_aux_loss_coef=1.0).train()
        losses[accumulation] = logged_loss(tmp_path, accumulation, model, Labelled(8))
    assert losses[4] == pytest.approx(losses[1], rel=1e-4)


def test_jitter_acts_in_training_only():
    model = moe(router_jitter_noise=0.5)
    ids = random_ids()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("selection_bias", [False, True])
def test_selection_bias_chooses_and_does_not_weigh(selection_bias):
    model = MoebaForCausalLM(
        tiny_config("shared_sigmoid", n_group=1, topk_group=1, router_selection_bias=selection_bias)
    )
    gate = model.model.layers[0].mlp.gate
    hidden = torch.randn(9, 32)
    logits, weights, indices = gate(hidden)
    if not selection_bias:
        assert gate.e_score_correction_bias is None
        return
    gate.e_score_correction_bias[7] = 10.0
    biased_logits, biased_weights, biased_indices = gate(hidden)
    assert torch.equal(logits, biased_logits)
    assert (biased_indices == 7).any(dim=1).all()
    scores = logits.sigmoid().gather(1, biased_indices)
    torch.testing.assert_close(biased_weights, 2.5 * scores / scores.sum(-1, keepdim=True))


def test_groups_limit_the_choice():
    gate = MoebaForCausalLM(tiny_config("shared_sigmoid")).model.layers[0].mlp.gate
    torch.nn.init.normal_(gate.weight)
    logits, _, indices = gate(torch.randn(40, 32))
    for row, chosen in zip(logits.sigmoid(), indices, strict=True):
        best = row.view(4, 3).topk(2).values.sum(-1).topk(2).indices.tolist()
        allowed = [e for e in range(12) if e // 3 in best]
        expected = sorted(allowed, key=lambda e: -row[e])[:3]
        assert sorted(chosen.tolist()) == sorted(expected)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_trainer_finds_the_heads_inputs(head):
    """It drops the columns, and looks for the labels, that the signature of `forward` does not name."""
    parameters = inspect.signature(head.forward).parameters
    assert {"input_ids", "attention_mask"} < set(parameters)
    assert find_labels(head) == list(HEADS[head](random_ids()))
