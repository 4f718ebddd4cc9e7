"""What a head's loss is made of in evaluation and in training, what stands beside it, and what the Trainer sees."""

from __future__ import annotations

import logging
from dataclasses import fields

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from support import ALL_SPARSE, random_ids, tiny_config, tiny_model
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, Trainer, TrainingArguments
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from moeba import MoebaConfig, MoebaForSequenceClassification, MoebaForTokenClassification
from moeba.library.upstream import CACHE
from moeba.modeling.balancing import ROUTER_LOSSES

CHOICES = list(ROUTER_LOSSES)


def moe(**fields):
    return tiny_model("moe", **{**ALL_SPARSE, "router_aux_loss_coef": 0.5, **fields})


def cross_entropy(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def arguments(folder, **settings) -> TrainingArguments:
    return TrainingArguments(
        folder,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=3,
        max_steps=1,
        logging_steps=1,
        learning_rate=0.0,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )


def rows(count: int = 8, tokens: int = 10) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": row, "labels": row} for row in random_ids(count, tokens)]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("shown", [False, True])
def test_evaluation_is_cross_entropy_unless_router_logits_bring_the_stock_loss(choice, shown):
    model, ids = moe(router_loss=choice), random_ids()
    output = model(ids, labels=ids, output_router_logits=shown)
    joined = choice == "with_router_logits" and shown
    expected = cross_entropy(output.logits, ids)
    if joined:
        expected = expected + 0.5 * load_balancing_loss_func(output.router_logits, 12, 3, None)
    torch.testing.assert_close(output.loss, expected)
    assert (output.aux_loss is not None) == (choice == "training" or joined)
    trained = model.train()(ids, labels=ids, output_router_logits=shown)
    assert torch.equal(trained.loss, output.loss) == (choice != "training")


def test_a_dense_model_and_the_mixture_made_from_it_compare():
    """Experts that are copies compute the dense function, and their evaluation loss says so."""
    from moeba.modeling import MoebaForCausalLM

    dense = tiny_model("dense")
    sparse = MoebaForCausalLM(tiny_config("dense", num_experts=4, moe_intermediate_size=48)).eval()
    tensors = dense.state_dict()
    for layer in range(2):
        name = f"model.layers.{layer}.mlp."
        gate, up, down = (tensors.pop(f"{name}{part}_proj.weight") for part in ("gate", "up", "down"))
        tensors[f"{name}experts.gate_up_proj"] = torch.cat((gate, up)).expand(4, -1, -1)
        tensors[f"{name}experts.down_proj"] = down.expand(4, -1, -1)
        tensors[f"{name}gate.weight"] = torch.randn(4, 32)
    sparse.load_state_dict(tensors)
    ids = random_ids()
    torch.testing.assert_close(sparse(ids, labels=ids).loss, dense(ids, labels=ids).loss)


@pytest.mark.parametrize("masked", [False, True])
def test_pooled_balance_is_transformers_own_over_several_layers(masked):
    model = moe(router_loss="with_router_logits", scoring_func="sigmoid")
    ids = random_ids(3, 11)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    mask = mask if masked else None
    output = model(ids, attention_mask=mask, output_router_logits=True)
    expected = load_balancing_loss_func(output.router_logits, 12, 3, mask)
    torch.testing.assert_close(output.aux_loss, expected, rtol=1e-6, atol=0)


def test_pooled_balance_of_layers_that_differ_in_their_experts():
    """Experts that a layer lacks get nothing there."""
    uneven = {0: {"num_experts": 5}}
    model = moe(router_loss="with_router_logits", per_layer_config=uneven, output_router_logits=True).train()
    ids = random_ids()
    output = model(ids, labels=ids)
    wide = [
        torch.nn.functional.pad(logits, (0, 12 - logits.shape[-1]), value=-1e9)
        for logits in output.router_logits
    ]
    expected = load_balancing_loss_func(tuple(wide), 12, 3, None)
    torch.testing.assert_close(output.aux_loss, expected)
    output.loss.backward()
    assert model.model.layers[0].mlp.gate.weight.grad.abs().max() > 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_pooled_balance_keeps_its_gradient_under_checkpointing(reentrant):
    ids, found = random_ids(), []
    for checkpointing in (False, True):
        model = moe(
            router_loss="with_router_logits", output_router_logits=True, router_aux_loss_coef=5.0
        ).train()
        if checkpointing:
            model.gradient_checkpointing_enable(dict(use_reentrant=reentrant))
        model(ids, labels=ids).loss.backward()
        found.append(model.model.layers[0].mlp.gate.weight.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("choice", CHOICES)
def test_the_choice_and_the_coefficients_can_be_changed_on_a_model(choice):
    """As `model.config.output_router_logits = True` can on a stock model."""
    ids = random_ids()
    changed, made = moe().train(), moe(router_loss=choice, router_aux_loss_coef=0.9).train()
    changed.config.router_loss, changed.config.router_aux_loss_coef = choice, 0.9
    for shown in (False, True):
        pair = [model(ids, labels=ids, output_router_logits=shown).loss for model in (changed, made)]
        assert torch.equal(*pair)


def test_a_folder_from_before_the_field_trains_as_it_did(tmp_path):
    model, ids = moe(router_z_loss_coef=0.1).train(), random_ids()
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('  "router_loss": "training",\n', ""))
    assert "router_loss" not in (tmp_path / "config.json").read_text()
    old = AutoModelForCausalLM.from_pretrained(tmp_path).train()
    torch.testing.assert_close(old(ids, labels=ids).loss, model(ids, labels=ids).loss)


@pytest.mark.parametrize("choice", ["with_router_logits", "none"])
def test_a_z_loss_that_would_not_act_is_refused(choice):
    with pytest.raises(
        StrictDataclassError, match="router_z_loss_coef=0.1 has no effect without router_loss='training'"
    ):
        tiny_config("moe", router_loss=choice, router_z_loss_coef=0.1)


# ------------------------------------------------------------------------------------------------- outputs


def stock_model() -> MixtralForCausalLM:
    config = MixtralConfig(
        vocab_size=67,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=12,
        num_experts_per_tok=3,
    )
    return MixtralForCausalLM(config).eval()


@pytest.mark.parametrize("choice", ["training", "with_router_logits"])
@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_tuples_are_those_of_the_stock_model(choice, shown, labelled, cached):
    ids = random_ids()
    asked = dict(labels=ids if labelled else None, use_cache=cached, output_router_logits=shown)
    theirs = stock_model()(ids, **asked)
    model = moe(router_loss=choice, router_z_loss_coef=0.1 if choice == "training" else 0.0)
    values, ours = model(ids, **asked, return_dict=False), model(ids, **asked)
    kinds = [type(value) for value in theirs.to_tuple()]
    assert [type(value) for value in values] == [type(value) for value in ours.to_tuple()] == kinds
    shapes = [value.shape for value in theirs.to_tuple() if isinstance(value, torch.Tensor)]
    assert [value.shape for value in values if isinstance(value, torch.Tensor)] == shapes
    if choice == "with_router_logits":
        assert list(ours) == list(theirs)
    if labelled:
        assert torch.equal(ours[0], ours.loss) and ours[1 + shown] is ours.logits


def test_what_predictions_leave_out_are_names_of_outputs():
    names = {field.name for field in fields(MoeCausalLMOutputWithPast)} | {"z_loss"}
    ignored = MoebaConfig.keys_to_ignore_at_inference
    assert set(ignored) <= names and CACHE in ignored and not {"loss", "logits"} & set(ignored)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("shown", [False, True])
def test_predictions_are_logits(choice, shown, tmp_path):
    model = moe(router_loss=choice, output_router_logits=shown, use_cache=True)
    data, seen = rows(), []

    def preprocess(logits, labels):
        seen.append(logits.shape)
        return logits

    def metrics(found):
        return {"shape": str(found.predictions.shape)}

    trainer = Trainer(
        model,
        arguments(tmp_path),
        eval_dataset=data,
        compute_metrics=metrics,
        preprocess_logits_for_metrics=preprocess,
    )
    found = trainer.predict(data)
    ids = torch.stack([row["input_ids"] for row in data])
    with torch.no_grad():
        np.testing.assert_allclose(found.predictions, model(ids).logits.numpy(), atol=1e-5)
    evaluated = trainer.evaluate()
    assert evaluated["eval_shape"] == "(8, 10, 67)" and set(seen) == {(3, 10, 67), (2, 10, 67)}
    if choice != "with_router_logits":
        with torch.no_grad():
            assert evaluated["eval_loss"] == pytest.approx(
                cross_entropy(model(ids).logits, ids).item(), rel=1e-4
            )


# ------------------------------------------------------------------------------------------- without labels


def said(caplog) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if "trains without labels" in record.getMessage()
    ]


@pytest.fixture
def warnings_of_heads(caplog, monkeypatch):
    """Warnings that are said once a process are said anew."""
    from moeba.modeling import head_losses

    monkeypatch.setattr(head_losses.logger, "warning_once", head_losses.logger.warning)
    monkeypatch.setattr(head_losses.logger, "propagate", True)
    caplog.set_level(logging.WARNING, logger=head_losses.logger.name)
    return caplog


@pytest.mark.parametrize("how", ["label_smoothing_factor", "compute_loss_func"])
def test_a_trainer_that_takes_the_labels_away_is_told_of(how, tmp_path, warnings_of_heads):
    def own(outputs, labels, num_items_in_batch=None):
        return outputs.logits.square().mean()

    smoothing = {"label_smoothing_factor": 0.1} if how == "label_smoothing_factor" else {}
    function = own if how == "compute_loss_func" else None
    trainer = Trainer(
        moe(), arguments(tmp_path, **smoothing), train_dataset=rows(), compute_loss_func=function
    )
    trainer.train()
    [message] = said(warnings_of_heads)
    assert "router_aux_loss_coef=0.5" in message and "balanced_loss" in message
    trainer.evaluate(rows())
    assert len(said(warnings_of_heads)) == 1


@pytest.mark.parametrize("head", [MoebaForSequenceClassification, MoebaForTokenClassification])
def test_so_is_one_of_another_head(head, tmp_path, warnings_of_heads):
    model = tiny_model("moe", head, **ALL_SPARSE)
    labels = [torch.tensor(i % 2) if head is MoebaForSequenceClassification else row["input_ids"] % 2
              for i, row in enumerate(rows())]  # fmt: skip
    data = [{**row, "labels": label} for row, label in zip(rows(), labels, strict=True)]
    Trainer(model, arguments(tmp_path, label_smoothing_factor=0.1), train_dataset=data).train()
    assert len(said(warnings_of_heads)) == 1


QUIET = {
    "evaluation": lambda: moe().eval(),
    "no_choice": lambda: moe(router_loss="none").train(),
    "stock_without_router_logits": lambda: moe(router_loss="with_router_logits").train(),
    "no_coefficient": lambda: moe(router_aux_loss_coef=0.0).train(),
    "dense": lambda: tiny_model("dense").train(),
}


@pytest.mark.parametrize("case", QUIET)
def test_nothing_is_said_where_nothing_is_lost(case, warnings_of_heads):
    QUIET[case]()(random_ids())
    with torch.no_grad():
        moe().train()(random_ids())
    assert said(warnings_of_heads) == []


def test_label_smoothing_compares_with_the_next_token(tmp_path):
    """Trainer shifts labels for the causal language models that it knows by name, and no others."""
    model, data = moe(), rows(4)
    trainer = Trainer(model, arguments(tmp_path, label_smoothing_factor=0.1), eval_dataset=data)
    ids = torch.stack([row["input_ids"] for row in data])
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), label_smoothing=0.1)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-4)
