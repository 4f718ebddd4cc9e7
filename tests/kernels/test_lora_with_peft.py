"""Grouped adapters in PEFT's life cycle: saved, loaded, switched, merged, trained, and left where they cannot run."""

from __future__ import annotations

import copy
import hashlib
import pickle
import subprocess
import sys

import pytest
import torch
from adapted_layers import SIZES, adapt, experts_of, lora_config
from expert_layers import make_inputs, make_layer
from support import random_ids, randomise, tiny_model
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, Trainer, TrainingArguments

peft = pytest.importorskip("peft")

from peft.tuners.lora.layer import ParamWrapper  # noqa: E402

from moeba.kernels.adapters import grouping  # noqa: E402
from moeba.training import group_adapters, ungroup_adapters  # noqa: E402

TINY = dict(
    vocab_size=67,
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
NATIVE = {
    "qwen3_moe": dict(num_experts=12, num_experts_per_tok=3, moe_intermediate_size=24),
    "mixtral": dict(num_local_experts=5, num_experts_per_tok=2),
    "gpt_oss": dict(num_local_experts=6, num_experts_per_tok=2, layer_types=["full_attention"] * 2),
}
MATRICES = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def base_model(name: str) -> nn.Module:
    if name == "moeba":
        return tiny_model("moe", mlp_layer_types=["sparse", "sparse"])
    torch.manual_seed(2)
    config = CONFIG_MAPPING[name](**{**TINY, **NATIVE[name]})
    return randomise(AutoModelForCausalLM.from_config(config)).eval()


def adapted(name: str = "qwen3_moe", **options):
    base = base_model(name)
    torch.manual_seed(3)
    config = peft.LoraConfig(
        **{
            "r": 4,
            "target_parameters": MATRICES,
            "target_modules": ["q_proj"],
            "init_lora_weights": False,
            **options,
        }
    )
    return peft.get_peft_model(base, config)


@pytest.fixture
def said(monkeypatch):
    """What the log says: nothing, where grouped adapters run."""
    messages: list[str] = []
    monkeypatch.setattr(grouping.logger, "warning_once", messages.append)
    return messages


@pytest.fixture
def grouped_runs(monkeypatch):
    """How often grouped adapters ran."""
    runs: list[int] = []
    run = grouping._run
    monkeypatch.setattr(grouping, "_run", lambda *given: runs.append(1) or run(*given))
    return runs


def step(model):
    """Logits, and every gradient by name."""
    model.zero_grad(set_to_none=True)
    ids = random_ids()
    found = model(input_ids=ids, labels=ids)
    found.loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found.logits.detach(), gradients


@torch.no_grad()
def logits(model):
    return model(input_ids=random_ids()).logits


def assert_close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def assert_steps_agree(ours, theirs):
    assert_close(ours[0], theirs[0])
    assert list(ours[1]) == list(theirs[1]) and ours[1]
    for name, gradient in theirs[1].items():
        scale = gradient.abs().max().item()
        assert (ours[1][name] - gradient).abs().max().item() <= 1e-5 * scale, name


@pytest.mark.parametrize("name", ["moeba", *NATIVE])
def test_models(name, said, grouped_runs):
    model = adapted(name)
    theirs = step(model)
    assert len(group_adapters(model)) == 2
    ours = step(model)
    assert len(grouped_runs) == 2 and not said
    assert_steps_agree(ours, theirs)
    assert any("experts" in name for name in ours[1]) and all("lora" in name for name in ours[1])


def test_gradient_checkpointing(said, grouped_runs):
    model = adapted().train()
    theirs = step(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    group_adapters(model)
    assert_steps_agree(step(model), theirs)
    assert len(grouped_runs) == 4 and not said


def snapshot(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_files_are_pefts_own(tmp_path, said, grouped_runs):
    model = adapted("gpt_oss")
    wanted = logits(model)
    model.save_pretrained(tmp_path / "theirs")
    group_adapters(model)
    model.save_pretrained(tmp_path / "ours")
    assert snapshot(tmp_path / "ours") == snapshot(tmp_path / "theirs")
    again = peft.PeftModel.from_pretrained(base_model("gpt_oss"), tmp_path / "ours")
    group_adapters(again)
    assert_close(logits(again), wanted)
    assert sorted(again.state_dict()) == sorted(model.state_dict())
    assert len(grouped_runs) == 2 and not said
    again.save_pretrained(tmp_path / "again")
    name = "adapter_model.safetensors"
    assert snapshot(tmp_path / "again")[name] == snapshot(tmp_path / "ours")[name]


def test_merging_and_disabling(said, grouped_runs):
    model = adapted()
    group_adapters(model)
    wanted = logits(model)
    with model.disable_adapter():
        plain = logits(model)
    assert len(grouped_runs) == 2
    assert_close(plain, logits(base_model("qwen3_moe")))
    model.merge_adapter()
    assert_close(logits(model), wanted)
    assert len(grouped_runs) == 2
    model.unmerge_adapter()
    assert_close(logits(model), wanted)
    assert len(grouped_runs) == 4
    merged = model.merge_and_unload()
    assert not any(isinstance(module, ParamWrapper) for module in merged.modules())
    assert_close(logits(merged), wanted)
    assert (plain - wanted).abs().max() > 0.1 and not said


def test_adapters_that_come_later(said, grouped_runs):
    model = adapted()
    group_adapters(model)
    torch.manual_seed(4)
    config = copy.deepcopy(model.peft_config["default"])
    model.add_adapter("other", config)
    with pytest.raises(ValueError, match="does not support targeting nn.Parameter"):
        model.add_weighted_adapter(["default", "other"], [0.3, 0.7], "mixture")  # as without grouping
    for name in ("other", "default"):
        model.set_adapter(name)
        ours, count = step(model), len(grouped_runs)
        ungroup_adapters(model)
        assert_steps_agree(ours, step(model))
        assert len(grouped_runs) == count
        group_adapters(model)
    model.delete_adapter("other")
    assert len(grouped_runs) == 4 and not said
    logits(model)
    assert len(grouped_runs) == 6


def test_undoing_leaves_nothing(grouped_runs):
    model = adapted()
    before = [type(module) for module in model.modules()]
    group_adapters(model)
    assert [type(module) for module in model.modules()] != before
    ungroup_adapters(model)
    assert [type(module) for module in model.modules()] == before
    logits(model)
    assert not grouped_runs


def test_copies_and_pickles_stay_grouped(said, grouped_runs):
    model = adapted()
    group_adapters(model)
    wanted = logits(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(logits(again), wanted)
    assert len(grouped_runs) == 6 and not said


def test_trainer(tmp_path, grouped_runs, said):
    losses = []
    for name in ("theirs", "ours"):
        model = adapted(target_modules=[])
        if name == "ours":
            group_adapters(model)
        data = [{"input_ids": row, "labels": row} for row in random_ids(batch=8)]
        arguments = TrainingArguments(
            tmp_path / name,
            max_steps=3,
            learning_rate=1e-2,
            report_to=[],
            use_cpu=True,
            logging_steps=1,
            seed=5,
        )
        trainer = Trainer(model, arguments, train_dataset=data)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4) and losses[0][0] != pytest.approx(
        losses[0][-1], abs=1e-2
    )
    assert grouped_runs and not said


# ---- what cannot be grouped ----


def quantised(tensor):
    class Other(torch.Tensor):
        pass

    return nn.Parameter(tensor.detach().as_subclass(Other), requires_grad=False)


def give_hook(layer, wrapper):
    layer.register_forward_hook(lambda *_: None)


def give_forward(layer, wrapper):
    layer.forward = layer.forward


def give_inner_hook(layer, wrapper):
    wrapper.base_layer.register_forward_pre_hook(lambda *_: None)


def parametrise(layer, wrapper):
    nn.utils.parametrize.register_parametrization(layer, "down_proj", nn.Identity())


def subclass(layer, wrapper):
    layer.down_proj = quantised(layer.down_proj)


def disable_one(layer, wrapper):
    wrapper.base_layer._disable_adapters = True


REFUSED = {
    give_hook: "has hooks",
    give_inner_hook: "has hooks",
    give_forward: "forward of its own",
    parametrise: "are parametrised",
    subclass: "of type Other",
    disable_one: "only some",
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_cannot_be_grouped_runs_as_ever_and_says_so(change, said, grouped_runs):
    given = make_inputs(hidden=SIZES["hidden"], experts=SIZES["experts"])[:3]
    answers = []
    for grouped in (False, True):
        layer = make_layer(**SIZES)
        model = adapt(layer)
        change(layer, experts_of(model))
        if grouped:
            group_adapters(model)
        answers.append(experts_of(model)(*given).as_subclass(torch.Tensor))
    assert torch.equal(*answers)
    assert not grouped_runs and len(said) == 1 and REFUSED[change] in said[0] and "PEFT's own path" in said[0]


def test_an_adapted_bias_is_not_grouped(said, grouped_runs):
    layer = make_layer(**SIZES, bias=True)
    config = lora_config(layer)
    config.target_parameters = ["experts.down_proj", "experts.down_proj_bias"]
    layer.config._experts_implementation = "batched_mm"
    model = peft.get_peft_model(nn.ModuleDict({"experts": layer}), config)
    given = make_inputs(hidden=SIZES["hidden"], experts=SIZES["experts"])[:3]
    wanted = experts_of(model)(*given)
    group_adapters(model)
    assert torch.equal(experts_of(model)(*given), wanted)
    assert not grouped_runs and "down_proj_bias is adapted" in said[0]


def test_mixed_batches_are_refused_as_peft_refuses_them():
    model = adapted().eval()
    group_adapters(model)
    with pytest.raises(ValueError, match="mixed adapter batches"):
        model(input_ids=random_ids(), adapter_names=["default", "__base__"])


def test_a_model_without_adapted_experts():
    model = adapted(target_parameters=None)
    with pytest.raises(ValueError, match="target_parameters"):
        group_adapters(model)


def test_peft_is_not_needed_to_import():
    code = (
        "import sys; sys.modules['peft'] = None; import moeba, moeba.training, moeba.kernels.adapters\n"
        "try: moeba.training.group_adapters\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "peft" in done.stdout, done.stderr
