"""The stock Trainer and PEFT, which know nothing of Moeba."""

from __future__ import annotations

import pytest
import torch
from support import random_ids, tiny_model
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from moeba import MoebaForCausalLM

SPARSE_LAYERS = dict(
    mlp_layer_types=["sparse", "sparse"], router_aux_loss_coef=0.01, router_z_loss_coef=0.001
)


class Rows(Dataset):
    def __init__(self, rows: int = 32):
        self.rows = rows

    def __len__(self):
        return self.rows

    def __getitem__(self, i):
        ids = random_ids(1, 12, seed=100 + i)[0]
        labels = ids.clone()
        labels[: 1 + i % 8] = -100  # ragged numbers of tokens
        return {"input_ids": ids, "labels": labels}


def trainer_for(model, folder, callbacks=(), **settings) -> Trainer:
    defaults = dict(
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        max_steps=4,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
    )
    arguments = TrainingArguments(folder, **{**defaults, **settings})
    return Trainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows(8), callbacks=list(callbacks))


def assert_same_weights(model, other) -> None:
    expected = other.state_dict()
    assert set(model.state_dict()) == set(expected)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def fresh(variant: str = "moe", **fields):
    return tiny_model(variant, **{**SPARSE_LAYERS, **fields}).train()


def test_training_lowers_the_loss(tmp_path):
    model = fresh()
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer = trainer_for(model, tmp_path, max_steps=12)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_accumulation_is_the_same_step_as_one_batch(tmp_path):
    """Without router losses, whose measure of balance depends on the batch, the steps agree to rounding."""
    after = []
    for accumulation in (1, 4):
        model = fresh(router_aux_loss_coef=0.0, router_z_loss_coef=0.0)
        settings = dict(
            per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation
        )
        trainer_for(model, tmp_path / str(accumulation), max_steps=2, optim="sgd", **settings).train()
        after.append(model.state_dict())
    for name, tensor in after[0].items():
        torch.testing.assert_close(after[1][name], tensor, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("variant", ["moe", "shared_sigmoid"])
def test_resume_is_bit_exact(variant, tmp_path):
    dropout = dict(hidden_dropout=0.1, router_jitter_noise=0.1)
    whole = fresh(variant, **dropout)
    trainer_for(whole, tmp_path / "whole", max_steps=6).train()

    class StopAfterThree(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3
            control.should_save = state.global_step == 3

    first = fresh(variant, **dropout)
    trainer_for(first, tmp_path / "parts", [StopAfterThree()], max_steps=6).train()
    assert not torch.equal(first.lm_head.weight, whole.lm_head.weight)
    resumed = fresh(variant, **dropout, seed=9)  # other weights, to be replaced entirely
    trainer_for(resumed, tmp_path / "parts", max_steps=6).train(str(tmp_path / "parts" / "checkpoint-3"))
    assert_same_weights(resumed, whole)


def test_the_best_model_is_restored_with_its_experts(tmp_path):
    model = fresh()
    trainer = trainer_for(
        model,
        tmp_path,
        max_steps=4,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # so that the best one is an early one
        save_total_limit=4,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert not best.endswith("checkpoint-4")
    assert_same_weights(model, MoebaForCausalLM.from_pretrained(best))
    last = MoebaForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    name = "model.layers.1.mlp.experts.down_proj"
    assert not torch.equal(model.state_dict()[name], last.state_dict()[name])


def test_training_with_activation_checkpointing_is_the_same(tmp_path):
    after = []
    for checkpointing in (False, True):
        model = fresh()
        trainer_for(
            model, tmp_path / str(checkpointing), max_steps=2, gradient_checkpointing=checkpointing
        ).train()
        after.append(model)
    for name, tensor in after[0].state_dict().items():
        torch.testing.assert_close(after[1].state_dict()[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


TARGETS = {
    "attention": dict(target_modules=["q_proj", "v_proj"]),
    "experts": dict(target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    "both": dict(target_modules=["q_proj", "o_proj"], target_parameters=["mlp.experts.down_proj"]),
}


@pytest.mark.parametrize("target", TARGETS)
def test_lora_trains_saves_reloads_and_merges(target, tmp_path):
    peft = pytest.importorskip("peft")
    base = fresh()
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **TARGETS[target])
    model = peft.get_peft_model(base, config)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable and all("lora" in name for name in trainable)
    if target != "attention":
        assert any("experts" in name for name in trainable)
    trainer_for(model, tmp_path / "run", max_steps=4).train()
    model.eval()
    ids = random_ids()
    with torch.no_grad():
        trained = model(ids).logits
        with model.disable_adapter():
            untouched = model(ids).logits
    original = MoebaForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        torch.testing.assert_close(original(ids).logits, untouched, atol=1e-5, rtol=1e-4)
    assert (trained - untouched).abs().max() > 1e-2

    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(original, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, trained, atol=1e-5, rtol=1e-4)
    merged = again.merge_and_unload()
    assert type(merged) is MoebaForCausalLM
    merged.save_pretrained(tmp_path / "merged")
    reloaded = MoebaForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(reloaded(ids).logits, trained, atol=1e-4, rtol=1e-3)


def test_lora_targets_the_shared_expert_and_the_router_by_name():
    peft = pytest.importorskip("peft")
    model = fresh("shared_sigmoid")
    config = peft.LoraConfig(target_modules=["shared_expert.up_proj"], target_parameters=["mlp.gate.weight"])
    wrapped = peft.get_peft_model(model, config)
    ids = random_ids()
    wrapped(ids, labels=ids).loss.backward()
    with_gradient = {n for n, p in wrapped.named_parameters() if p.grad is not None}
    assert any("shared_expert" in n for n in with_gradient) and any("gate.lora" in n for n in with_gradient)
