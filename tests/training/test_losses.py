"""Router losses where Trainer computes the loss itself: label smoothing and losses of one's own."""

from __future__ import annotations

import pytest
import torch
from support import random_ids, tiny_model
from transformers import Trainer, TrainingArguments

from moeba import MoebaForSequenceClassification, MoebaForTokenClassification, MoebaModel
from moeba.modeling.balancing import RouterLosses
from moeba.training import balanced_loss

FIELDS = dict(mlp_layer_types=["sparse", "sparse"], router_aux_loss_coef=0.5)


def rows(tokens: int = 10) -> list[dict[str, torch.Tensor]]:
    """Eight rows of ragged numbers of labels, alike in what routers see: micro-batches are balanced as the whole."""
    ids = random_ids(1, tokens)[0]
    labels = [ids.masked_fill(torch.arange(tokens) < i % 4, -100) for i in range(8)]
    return [{"input_ids": ids, "labels": row} for row in labels]


def one_step(
    model, folder, loss_func=None, accumulation: int = 1, data=None, **settings
) -> tuple[float, torch.Tensor]:
    """The logged loss of one step of the stock Trainer, and the gradient that reached the first router."""
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        logging_steps=1,
        learning_rate=0.1,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    gate = model.model.layers[0].mlp.gate.weight
    before = gate.detach().clone()
    trainer = Trainer(model, arguments, train_dataset=data or rows(), compute_loss_func=loss_func)
    trainer.train()
    return next(log["loss"] for log in trainer.state.log_history if "loss" in log), (before - gate) / 0.1


def moe(**fields):
    return tiny_model("moe", **{**FIELDS, **fields})


def plain_loss(outputs, labels, num_items_in_batch=None):
    """What a model's own cross-entropy is."""
    logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize(
    ("choice", "shown", "accumulation"),
    [
        ("training", False, 1),
        ("training", False, 4),
        ("with_router_logits", False, 1),
        ("with_router_logits", True, 4),
        ("none", True, 1),
    ],
)
def test_a_loss_of_ones_own_trains_as_the_models_own_does(choice, shown, accumulation, tmp_path):
    fields = dict(router_loss=choice, output_router_logits=shown)
    fields |= {"router_z_loss_coef": 0.2} if choice == "training" else {}
    own = one_step(moe(**fields), tmp_path / "own", accumulation=accumulation)
    model = moe(**fields)
    given = one_step(model, tmp_path / "given", balanced_loss(model, plain_loss), accumulation)
    assert given[0] == pytest.approx(own[0], rel=1e-5)
    torch.testing.assert_close(given[1], own[1], rtol=1e-4, atol=1e-6)


def test_smoothing_is_trainers_own_and_the_router_losses(tmp_path):
    model = moe()
    loss, gradient = one_step(model, tmp_path / "balanced", balanced_loss(model, label_smoothing=0.1))
    bare, bare_gradient = one_step(moe(), tmp_path / "trainer", label_smoothing_factor=0.1)
    ids = rows()[0]["input_ids"][None]
    aux = moe()(ids, labels=ids).aux_loss.item()
    assert loss == pytest.approx(bare + 0.5 * aux, rel=1e-5)
    assert (gradient - bare_gradient).norm() > 0.01 * gradient.norm()
    # Without router losses, both are the same.
    plain = moe(router_loss="none")
    same, _ = one_step(plain, tmp_path / "none", balanced_loss(plain, label_smoothing=0.1))
    assert same == pytest.approx(bare, rel=1e-5)


def test_evaluation_is_without_them(tmp_path):
    model, data = moe(), rows()
    arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True, disable_tqdm=True)
    found = [
        Trainer(model, arguments, eval_dataset=data, compute_loss_func=function).evaluate()["eval_loss"]
        for function in (None, balanced_loss(model, plain_loss))
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_an_adapted_model_is_looked_into(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(moe(), peft.LoraConfig(target_modules=["q_proj"]))
    ids = random_ids()
    outputs = model.train()(input_ids=ids)
    loss = balanced_loss(model, plain_loss)(outputs, ids, num_items_in_batch=ids[:, 1:].numel())
    expected = model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    "given", [{}, dict(loss_func=plain_loss, label_smoothing=0.1), dict(label_smoothing=1.0)]
)
def test_exactly_one_loss_is_given(given):
    with pytest.raises(ValueError, match="give exactly one of loss_func .* and label_smoothing"):
        balanced_loss(moe(), **given)


@pytest.mark.parametrize("head", [MoebaForSequenceClassification, MoebaForTokenClassification])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_other_heads_have_them_too(head, accumulation, tmp_path):
    """A smoothed loss is Trainer's own, and has the balance loss of the whole step beside it."""
    data = [
        {
            **row,
            "labels": row["input_ids"] % 2 if head is MoebaForTokenClassification else torch.tensor(i % 2),
        }
        for i, row in enumerate(rows())
    ]
    found = []
    for coefficient in (0.5, 0.0):
        model = tiny_model("moe", head, **{**FIELDS, "router_aux_loss_coef": coefficient})
        function = balanced_loss(model, label_smoothing=0.1)
        found.append(one_step(model, tmp_path / "own", function, accumulation, data))
    fresh = tiny_model("moe", head, **FIELDS)
    losses = RouterLosses(fresh.router_loss)
    with torch.no_grad():
        fresh.model(data[0]["input_ids"][None], router_losses=losses)
    aux = losses.of_model()[0].item()
    stock = one_step(fresh, tmp_path, data=data, label_smoothing_factor=0.1)
    assert found[1][0] == pytest.approx(stock[0], rel=1e-4)
    assert found[0][0] == pytest.approx(found[1][0] + 0.5 * aux, rel=1e-4)
    assert (found[0][1] - found[1][1]).norm() > 0.01 * found[0][1].norm()


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ValueError, match="MoebaModel holds no Moeba model with a head"):
        balanced_loss(tiny_model("moe", MoebaModel, **FIELDS), plain_loss)
