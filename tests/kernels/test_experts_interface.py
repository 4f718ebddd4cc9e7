"""`experts_implementation="moeba"` on whole models: native ones of many families, and Moeba's own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from expert_layers import assert_same, difference
from native import build, draw, save
from support import random_ids, tiny_model
from transformers import AutoModelForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

import moeba
from moeba.kernels import NAME, implementation
from moeba.library.upstream import CACHE, cache_of

FAMILIES = (
    "cohere2_moe",
    "deepseek_v3",
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "flex_olmo",
    "glm4_moe",
    "gpt_oss",
    "granitemoe",
    "granitemoeshared",
    "hunyuan_v1_moe",
    "hy_v3",
    "laguna",
    "mimo_v2_flash",
    "minimax_m2",
    "mistral4",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
    "solar_open",
)
OWN = {
    "gated": {},
    "gated_biased": dict(expert_bias=True),
    "clamped": dict(feed_forward_type="clamped_gated", swiglu_limit=1.0),
    "clamped_biased": dict(feed_forward_type="clamped_gated", expert_bias=True, swiglu_limit=None),
    "plain": dict(feed_forward_type="mlp", hidden_act="gelu_new"),
    "plain_biased": dict(feed_forward_type="mlp", expert_bias=True, hidden_act="relu2"),
}


def own_model(kind: str):
    return tiny_model("moe", **OWN[kind])


def sparse_layers(model) -> int:
    return sum(hasattr(module, "has_gate") for module in model.modules())


def step(model, ids: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """Logits and every gradient of one training step."""
    model.set_experts_implementation(name)
    model.train()
    model.zero_grad()
    torch.manual_seed(0)  # of jitter and dropout
    output = model(ids, labels=ids, use_cache=False)
    output.loss.backward()
    # Some parameters have no gradient in stock either: an expert's bias of selection, a layer that routes nothing.
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    return {"logits": output.logits.detach()} | gradients


def decode(model, ids: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """Logits of a prefill, and of the next token after it."""
    model.set_experts_implementation(name)
    model.eval()
    with torch.no_grad():
        first = model(ids[:, :-1], use_cache=True)
        second = model(ids[:, -1:], **{CACHE: cache_of(first)}, use_cache=True)
    return {"prefill": first.logits, "decode": second.logits}


def check(model, spy) -> None:
    layers, vocab = sparse_layers(model), model.config.vocab_size
    assert layers
    ids = random_ids(2, 12, vocab)
    found, wanted = step(model, ids, NAME), step(model, ids, "eager")
    assert spy.runs == layers
    # Rounding grows through the layers of a random model, and a little more than in one layer alone.
    # (Where a token has one expert of normalised weight, the router's gradient is zero but for rounding: the floor.)
    assert_same(found, wanted, tolerance=2e-5, floor=1e-4)
    for batch in (1, 2):
        spy.runs = 0
        assert_same(decode(model, ids[:batch], NAME), decode(model, ids[:batch], "eager"), tolerance=2e-5)
        assert spy.runs == 2 * layers


def native_model(family: str):
    """The family's first draw that has experts, and several of them for each token."""
    for seed in range(50):
        model = build(draw(family, seed))
        chosen = model.config.num_experts_per_tok  # some families: by layer
        if sparse_layers(model) and min(chosen if isinstance(chosen, list) else [chosen]) > 1:
            return model
    raise LookupError(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_native_models(family, path):
    check(native_model(family), path)


@pytest.mark.parametrize("kind", OWN)
def test_own_models(kind, path):
    check(own_model(kind), path)


def test_own_kinds_are_all_here():
    from moeba.modeling.experts import EXPERTS

    assert {type(own_model(kind).model.layers[1].mlp.experts) for kind in OWN} == set(EXPERTS.values())


def test_the_name_is_registered_by_the_import():
    assert ALL_EXPERTS_FUNCTIONS[NAME] is implementation.moeba_experts_forward
    moeba.registration.register()
    assert ALL_EXPERTS_FUNCTIONS[NAME] is implementation.moeba_experts_forward


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_from_pretrained_and_generate(family, path, tmp_path):
    folder = save(native_model(family), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation=NAME)
    assert model.config._experts_implementation == NAME
    eager = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")
    ids = random_ids(2, 7, model.config.vocab_size)
    wanted = eager.generate(ids, max_new_tokens=8, do_sample=False)
    assert not path.runs
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), wanted)
    # One prefill and the steps after it, in every layer.
    assert path.runs >= 2 * sparse_layers(model)
    eager.set_experts_implementation(NAME)
    assert torch.equal(eager.generate(ids, max_new_tokens=8, do_sample=False), wanted)


def test_the_name_does_not_travel_in_the_config(tmp_path):
    model = own_model("gated")
    model.set_experts_implementation(NAME)
    model.save_pretrained(tmp_path)
    assert NAME not in {
        AutoModelForCausalLM.from_pretrained(tmp_path).config.to_dict().get("_experts_implementation")
    }
    assert "experts_implementation" not in (tmp_path / "config.json").read_text()


def test_copies_after_a_run(path):
    """What is known of a module is not part of it: copies and pickles hold the model alone."""
    model, ids = own_model("clamped"), random_ids()
    model.set_experts_implementation(NAME)
    with torch.no_grad():
        wanted = model(ids).logits
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(ids).logits, wanted)
            twin.model.layers[1].mlp.experts.down_proj.mul_(2)
            assert difference(twin(ids).logits, wanted) > 1e-3
        assert torch.equal(model(ids).logits, wanted)
    assert b"moeba.kernels" not in pickle.dumps(model)


@pytest.mark.parametrize("reentrant", [False, True])
def test_models_with_gradient_checkpointing(reentrant, path):
    model, ids = own_model("gated_biased"), random_ids()
    wanted = step(model, ids, "eager")
    model.gradient_checkpointing_enable(dict(use_reentrant=reentrant))
    assert_same(step(model, ids, NAME), wanted, 2e-5)
    assert path.runs == 2 * sparse_layers(model)


def test_a_model_that_changes_its_implementation(path):
    model, ids = own_model("gated"), random_ids()
    with torch.no_grad():
        model.set_experts_implementation("grouped_mm")
        wanted = model(ids).logits
        assert not path.runs
        model.set_experts_implementation(NAME)
        assert difference(model(ids).logits, wanted) < 1e-5


@pytest.mark.parametrize("merged", [False, True])
def test_adapters_on_the_experts(merged, only):
    """PEFT computes each weight anew from its adapter, so that the kernels see tensors that are no parameters."""
    peft = pytest.importorskip("peft")
    (spy,) = only("cpu")
    model = own_model("gated")
    names = [f"layers.1.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")]
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=[], target_parameters=names)
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    if merged:  # into the weights, which are then trained again
        wrapped = wrapped.merge_and_unload().requires_grad_()
    ids = random_ids()
    found, wanted = step(wrapped, ids, NAME), step(wrapped, ids, "eager")
    assert spy.runs == 1 and not spy.reasons
    assert_same(found, wanted, 2e-5)
    assert merged or sum("lora" in name for name in found) == 4


def test_training_goes_the_same_way(path):
    """Some steps of an optimizer, with gradients accumulated over two batches each."""
    models = {name: own_model("gated") for name in (NAME, "eager")}
    losses = {}
    for name, model in models.items():
        model.set_experts_implementation(name)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses[name] = []
        for round_ in range(6):
            ids = random_ids(seed=round_)
            loss = model(ids, labels=ids, use_cache=False).loss
            loss.backward()
            losses[name].append(loss.item())
            if round_ % 2:
                optimizer.step()
                optimizer.zero_grad(set_to_none=round_ == 1)
    assert losses[NAME] == pytest.approx(losses["eager"], rel=1e-4)


class Quantised(torch.Tensor):
    """As torchao's: a matrix of it can be taken and multiplied with, and no groups of them."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        assert getattr(func, "__name__", "") not in ("transpose", "bmm", "_grouped_mm", "grouped_mm")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_quantised_experts_run_one_after_the_other():
    model, ids = tiny_model("moe"), random_ids()
    model.set_experts_implementation("eager")
    wanted = model(ids).logits
    model.set_experts_implementation(NAME)
    for module in model.modules():
        if hasattr(module, "gate_up_proj") and isinstance(module.gate_up_proj, torch.nn.Parameter):
            for name in ("gate_up_proj", "down_proj"):
                held = getattr(module, name).detach().as_subclass(Quantised)
                setattr(module, name, torch.nn.Parameter(held, requires_grad=False))
    assert torch.equal(model(ids).logits.as_subclass(torch.Tensor), wanted)


def test_under_a_transform_of_torch_func():
    model, ids = tiny_model("moe", attn_implementation="eager"), random_ids(3, 5)
    wanted = model(ids, use_cache=False).logits
    found = torch.func.vmap(lambda one: model(one[None], use_cache=False).logits[0])(ids)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
