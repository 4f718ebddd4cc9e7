"""What transformers expects of a first-class model."""

from __future__ import annotations

import re
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open
from support import HEADS, SPARSE, VARIANTS, gradients, random_ids, randomise, tiny_config, tiny_model
from transformers import AutoModel, AutoModelForCausalLM, StaticCache
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moeba import (
    MoebaConfig,
    MoebaForCausalLM,
    MoebaForSequenceClassification,
    MoebaForTokenClassification,
    MoebaModel,
)
from moeba.conversion.alignment import align
from moeba.library.upstream import CACHE
from moeba.modeling.experts import EXPERTS, build_experts

variants = pytest.mark.parametrize("variant", VARIANTS)


def disk_tensors(folder) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


# ---------------------------------------------------------------------------------------------
# implementations


@pytest.mark.parametrize("variant", ["dense", "moe", "shared_sigmoid", "learned_mlp"])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_implementations_agree(variant, padded):
    ids = random_ids(3, 13)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :5] = 0
    model = tiny_model(variant, attn_implementation="eager")
    results = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        logits = model(ids, attention_mask=mask).logits
        logits[mask.bool()].square().mean().backward()
        results.append(
            (logits[mask.bool()], {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        )
    (logits, expected), (again, actual) = results
    torch.testing.assert_close(again, logits, atol=1e-5, rtol=1e-4)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["moe", "capped"])
def test_flex_attention_agrees(variant):
    """With its softcap too. Compiled code on a CPU wants heads of 16 dimensions and more."""
    fields = dict(head_dim=16, max_position_embeddings=256)
    model = tiny_model(variant, attn_implementation="eager", **fields)
    ids = random_ids(2, 130)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits[mask.bool()]
        model.set_attn_implementation("flex_attention")
        actual = model(ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_sdpa_never_drops_the_softcap():
    ids = random_ids(2, 12)
    capped = tiny_model("capped", attn_implementation="sdpa")
    assert capped.config._attn_implementation == "sdpa"
    assert tiny_model("capped").config._attn_implementation == "sdpa"
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with torch.no_grad():
        expected, padded = capped(ids).logits, capped(ids, attention_mask=mask).logits
        capped.set_attn_implementation("eager")
        assert torch.equal(capped(ids).logits, expected)
        assert torch.equal(capped(ids, attention_mask=mask).logits[mask.bool()], padded[mask.bool()])


def external_experts(self, hidden_states, top_k_index, top_k_weights):
    """A kernel from outside, as dense sums over all experts, through the interface's attributes only."""
    output = torch.zeros_like(hidden_states)
    for index in range(self.num_experts):
        weight = (top_k_weights * (top_k_index == index)).sum(-1, keepdim=True)
        up = self.gate_up_proj if self.has_gate else self.up_proj
        inner = hidden_states @ up[index].T
        if self.has_bias:
            inner = inner + (self.gate_up_proj_bias if self.has_gate else self.up_proj_bias)[index]
        inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
        answer = inner @ self.down_proj[index].T
        output = output + weight * (answer + self.down_proj_bias[index] if self.has_bias else answer)
    external_experts.calls += 1
    return output


external_experts.calls = 0


@pytest.fixture
def external():
    ALL_EXPERTS_FUNCTIONS.register("external_experts", external_experts)
    yield "external_experts"
    del ALL_EXPERTS_FUNCTIONS._global_mapping["external_experts"]


@pytest.mark.parametrize("kind", EXPERTS, ids=lambda kind: f"{kind[0]}-{'bias' if kind[1] else 'plain'}")
def test_experts_implementations_agree(kind, external):
    """In outputs and gradients; also with an expert that gets no token and one that gets all."""
    config = tiny_config(
        "moe", feed_forward_type=kind[0], expert_bias=kind[1], experts_implementation="eager"
    )
    experts = randomise(build_experts(config, 12, 24))
    hidden = torch.randn(31, 32, requires_grad=True)
    indices = torch.stack([torch.randperm(10)[:3] for _ in range(31)])  # 10 and 11 get none
    indices[:, 0] = 10
    weights = torch.rand(31, 3, requires_grad=True)
    results = {}
    external_experts.calls = 0
    for implementation in ("eager", "batched_mm", "grouped_mm", external):
        config._experts_implementation = implementation
        experts.zero_grad()
        hidden.grad = weights.grad = None
        output = experts(hidden, indices, weights)
        output.square().sum().backward()
        results[implementation] = {
            "output": output,
            "hidden": hidden.grad,
            "weights": weights.grad,
            **gradients(experts),
        }
    assert external_experts.calls == 1
    for implementation, tensors in results.items():
        for name, expected in results["eager"].items():
            scale = expected.abs().max()
            assert (tensors[name] - expected).abs().max() <= 1e-5 * scale, f"{implementation}: {name}"
    assert results["eager"]["down_proj"][11].count_nonzero() == 0
    assert results["eager"]["down_proj"][10].count_nonzero() > 0


def test_set_experts_implementation_reaches_every_layer(external):
    """Also where layers have configs of their own."""
    for fields in ({}, dict(per_layer_config={1: {"num_experts": 5}})):
        model = tiny_model("moe", mlp_layer_types=["sparse", "sparse"], **fields)
        with torch.no_grad():
            expected = model(random_ids()).logits
            external_experts.calls = 0
            model.set_experts_implementation(external)
            torch.testing.assert_close(model(random_ids()).logits, expected, atol=1e-5, rtol=1e-4)
        assert external_experts.calls == 2
    with pytest.raises(ValueError, match="no_such"):
        model.set_experts_implementation("no_such_implementation")


def test_the_sentinel_of_expert_parallelism_is_skipped():
    config = tiny_config("moe", experts_implementation="eager")
    experts = randomise(build_experts(config, 12, 24))
    hidden, weights = torch.randn(4, 32), torch.rand(4, 3)
    indices = torch.tensor([[0, 12, 12], [12, 12, 12], [3, 4, 12], [1, 2, 3]])
    expected = experts(hidden, indices.clamp(max=11), weights.masked_fill(indices == 12, 0.0))
    torch.testing.assert_close(experts(hidden, indices, weights.masked_fill(indices == 12, 0.0)), expected)


# ---------------------------------------------------------------------------------------------- uneven layers


def test_layers_may_differ_in_their_experts(tmp_path):
    uneven = {
        0: {"num_experts": 5, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
        1: {"shared_expert_intermediate_size": 8},
    }
    model = tiny_model("moe", mlp_layer_types=["sparse", "sparse"], per_layer_config=uneven)
    first, second = (layer.mlp for layer in model.model.layers)
    assert (
        first.experts.down_proj.shape == (5, 32, 16) and first.gate.top_k == 2 and first.shared_expert is None
    )
    assert second.experts.down_proj.shape == (12, 32, 24) and second.gate.top_k == 3
    assert second.shared_expert.up_proj.weight.shape == (8, 32)
    ids = random_ids()
    output = model(ids, labels=ids, output_router_logits=True)
    assert [logits.shape[-1] for logits in output.router_logits] == [5, 12]
    output.loss.backward()
    model.save_pretrained(tmp_path)
    again = align(AutoModelForCausalLM.from_pretrained(tmp_path))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, output.logits)
        assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (2, 15)


# -------------------------------------------------------------------------------------------- captured
# outputs


@variants
def test_captured_outputs(variant):
    model = tiny_model(variant, attn_implementation="eager")
    ids = random_ids(2, 12)
    with torch.no_grad():
        output = model(ids, output_hidden_states=True, output_attentions=True, output_router_logits=True)
    config = model.config
    assert [h.shape for h in output.hidden_states] == [(2, 12, 32)] * (config.num_hidden_layers + 1)
    assert [a.shape for a in output.attentions] == [(2, 4, 12, 12)] * config.num_hidden_layers
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, 4, 12))
    assert [r.shape for r in output.router_logits or ()] == [(24, 12)] * len(config.sparse_layers)
    torch.testing.assert_close(model.compute_logits(output.hidden_states[-1]), output.logits)
    embedded = model.model._embed(model.model.embed_tokens(ids), torch.arange(12)[None])
    assert torch.equal(output.hidden_states[0], embedded)


def test_as_tuple():
    model = tiny_model("moe")
    ids = random_ids()
    output, values = model(ids, labels=ids), model(ids, labels=ids, return_dict=False)
    assert torch.equal(values[0], output.loss) and torch.equal(values[1], output.logits)
    asked = dict(labels=ids, output_router_logits=True)
    output, values = model(ids, **asked), model(ids, **asked, return_dict=False)
    assert torch.equal(values[1], output.aux_loss) and torch.equal(values[2], output.logits)


@variants
def test_logits_to_keep(variant):
    model = tiny_model(variant)
    ids = random_ids()
    with torch.no_grad():
        expected = model(ids).logits
        torch.testing.assert_close(model(ids, logits_to_keep=3).logits, expected[:, -3:])
        places = torch.tensor([0, 5])
        torch.testing.assert_close(model(ids, logits_to_keep=places).logits, expected[:, places])


@variants
def test_left_padding(variant):
    model = tiny_model(variant)
    ids = random_ids(2, 9)
    padded = torch.cat((torch.zeros(2, 4, dtype=torch.long), ids), dim=1)
    mask = (padded != 0).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        actual = model(padded, attention_mask=mask, position_ids=positions).logits[:, 4:]
        torch.testing.assert_close(actual, model(ids).logits, atol=1e-5, rtol=1e-4)


def test_packed_sequences_do_not_see_each_other():
    model = tiny_model("moe")
    first, second = random_ids(1, 5), random_ids(1, 7, seed=2)
    positions = torch.cat((torch.arange(5), torch.arange(7)))[None]
    with torch.no_grad():
        packed = model(torch.cat((first, second), dim=1), position_ids=positions, use_cache=False).logits
        torch.testing.assert_close(packed[:, :5], model(first).logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(packed[:, 5:], model(second).logits, atol=1e-5, rtol=1e-4)


def test_bidirectional_models_see_the_whole_sequence():
    model = tiny_model("moe", MoebaForTokenClassification, is_causal=False)
    ids = random_ids(2, 8)
    other = ids.clone()
    other[:, -1] = ids[:, -1] % 66 + 1
    padded = torch.cat((ids, torch.zeros(2, 3, dtype=torch.long)), dim=1)
    with torch.no_grad():
        logits = model(ids).logits
        assert (model(other).logits[:, 0] - logits[:, 0]).abs().max() > 1e-4
        actual = model(padded, attention_mask=(padded != 0).long()).logits[:, :8]
        torch.testing.assert_close(actual, logits, atol=1e-5, rtol=1e-4)


def test_one_of_ids_and_embeddings():
    model = tiny_model("dense")
    ids = random_ids()
    with torch.no_grad():
        embedded = model(inputs_embeds=model.get_input_embeddings()(ids)).logits
        assert torch.equal(embedded, model(ids).logits)
    for kwargs in ({}, dict(input_ids=ids, inputs_embeds=torch.zeros(2, 12, 32))):
        with pytest.raises(ValueError, match="exactly one"):
            model(**kwargs)


def test_num_items_in_batch_divides_the_loss():
    model = tiny_model("dense")
    ids = random_ids()
    mean = model(ids, labels=ids).loss
    torch.testing.assert_close(model(ids, labels=ids, num_items_in_batch=44).loss, mean * 22 / 44)


# ----------------------------------------------------------------------------------------------- save and
# load


@variants
def test_disk_layout_is_memory_layout(variant, tmp_path):
    model = tiny_model(variant)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    on_disk, in_memory = disk_tensors(tmp_path), model.state_dict()
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert set(on_disk) == set(in_memory) - tied
    assert all(torch.equal(tensor, in_memory[name]) for name, tensor in on_disk.items())
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in in_memory.items())
    buffers = dict(again.named_buffers())  # those not saved are computed anew
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    with torch.no_grad():
        assert torch.equal(align(again)(random_ids()).logits, model(random_ids()).logits)


def test_heads_share_the_base_models_weights(tmp_path):
    model = tiny_model("moe")
    model.save_pretrained(tmp_path / "lm")
    base = AutoModel.from_pretrained(tmp_path / "lm")
    assert type(base) is MoebaModel
    assert all(torch.equal(p, model.model.state_dict()[n]) for n, p in base.state_dict().items())
    base.save_pretrained(tmp_path / "base")
    head = MoebaForSequenceClassification.from_pretrained(tmp_path / "base")
    assert all(torch.equal(p, head.model.state_dict()[n]) for n, p in base.state_dict().items())


def test_tied_weights(tmp_path):
    model = tiny_model("learned_mlp")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    again = MoebaForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    untied = tiny_model("dense")
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


@pytest.mark.parametrize("fields", [dict(tie_word_embeddings=True), {}, dict(lm_head_bias=True)])
def test_resizing_the_vocabulary(fields, tmp_path):
    model = tiny_model("moe", **fields)
    ids = random_ids()
    with torch.no_grad():
        expected = model(ids).logits
        model.resize_token_embeddings(80)
        torch.testing.assert_close(model(ids).logits[..., :67], expected)
    assert model.config.vocab_size == model.vocab_size == 80
    assert model.config.num_params() == sum(p.numel() for p in model.parameters())
    model(ids, labels=ids).loss.backward()
    model.save_pretrained(tmp_path)
    assert MoebaForCausalLM.from_pretrained(tmp_path).lm_head.weight.shape == (80, 32)


def test_bfloat16_keeps_the_selection_bias_exact(tmp_path):
    model = tiny_model("shared_sigmoid")
    bias = model.model.layers[0].mlp.gate.e_score_correction_bias
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    gate = loaded.model.layers[0].mlp.gate
    assert gate.e_score_correction_bias.dtype == torch.float32 and torch.equal(
        gate.e_score_correction_bias, bias
    )
    assert gate.weight.dtype == loaded.dtype == torch.bfloat16
    assert loaded(random_ids()).logits.isfinite().all()
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(
        disk_tensors(tmp_path / "again")["model.layers.0.mlp.gate.e_score_correction_bias"], bias
    )


@variants
def test_half_precision_stays_close(variant):
    model = tiny_model(variant)
    ids = random_ids()
    with torch.no_grad():
        expected = model(ids).logits
        actual = model.to(torch.bfloat16)(ids).logits
    assert actual.dtype == torch.bfloat16
    cosine = torch.nn.functional.cosine_similarity(actual.float().flatten(), expected.flatten(), dim=0)
    assert cosine > (0.99 if model.config.num_experts == 0 else 0.9)  # another expert may win in bf16


def test_disk_offload(tmp_path):
    model = tiny_model("moe")
    model.save_pretrained(tmp_path / "model")
    device_map = {
        "model.embed_tokens": "cpu",
        "model.rotary_emb": "cpu",
        "model.norm": "cpu",
        "lm_head": "cpu",
    }
    device_map |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    offloaded = MoebaForCausalLM.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert offloaded.model.layers[1].mlp.experts.down_proj.device.type == "meta"
    with torch.no_grad():
        torch.testing.assert_close(offloaded(random_ids()).logits, model(random_ids()).logits)


def test_an_adapters_folder_is_left_to_the_library(tmp_path):
    peft = pytest.importorskip("peft")
    base = tiny_model("moe")
    base.save_pretrained(tmp_path / "base")
    wrapped = peft.get_peft_model(
        MoebaForCausalLM.from_pretrained(tmp_path / "base"), peft.LoraConfig(target_modules=["q_proj"])
    )
    wrapped.save_pretrained(tmp_path / "adapter")
    loaded = MoebaForCausalLM.from_pretrained(tmp_path / "adapter")
    assert any("lora_A" in name for name, _ in loaded.named_parameters())


def test_other_model_types_need_the_installed_package(tmp_path, monkeypatch):
    from moeba.modeling import services

    (tmp_path / "config.json").write_text('{"model_type": "some_other"}')
    monkeypatch.setattr(services, "_provided", [])
    with pytest.raises(ValueError, match="some_other.*pip install moeba"):
        MoebaForCausalLM.from_pretrained(tmp_path)
    config = tiny_config()
    state = MoebaForCausalLM(config).state_dict()
    monkeypatch.setattr(services, "_provided", [Mock(read_native=lambda path, revision: (config, state))])
    loaded, info = MoebaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and loaded.config._name_or_path == str(tmp_path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_layers_of_another_pipeline_stage_pass_a_tensor_on():
    """As vLLM's and SGLang's Transformers backends replace them."""

    class Missing(torch.nn.Module):
        def forward(self, hidden_states, **kwargs):
            return hidden_states

    model, ids = tiny_model("moe"), random_ids(1, 7)
    last = MoebaForCausalLM(tiny_config("moe"))
    last.load_state_dict(model.state_dict())
    model.model.layers[0] = Missing()
    last.model.layers[0].register_forward_hook(lambda layer, args, output: (args[0], None))
    assert torch.equal(model(ids).logits, last.eval()(ids).logits)


# ----------------------------------------------------------------------------------------------
# initialisation


@variants
def test_initialisation(variant):
    torch.manual_seed(0)
    model = MoebaForCausalLM(tiny_config(variant, hidden_size=64, initializer_range=0.05))
    for name, parameter in model.state_dict().items():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            expected = 0.0 if model.config.norm_type == "rmsnorm_unit_offset" else 1.0
            assert (parameter == expected).all(), name
        else:
            assert parameter.std() == pytest.approx(0.05, rel=0.2), name
            assert abs(parameter.mean()) < 0.2 / parameter.numel() ** 0.5, name  # 4 sigma
    assert not model.model.embed_tokens.weight[0].any()  # padding


@variants
def test_what_a_checkpoint_lacks_is_initialised_and_nothing_else(variant, tmp_path):
    model = tiny_model(variant)
    state = model.state_dict()
    missing = [n for n in state if "layers.1." in n and "input_layernorm" not in n]
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    model.save_pretrained(tmp_path, state_dict={n: t for n, t in state.items() if n not in {*missing, *tied}})
    loaded, info = MoebaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == set(missing)
    for name, tensor in loaded.state_dict().items():
        if name not in missing:
            assert torch.equal(tensor, state[name]), name
        elif tensor.dim() > 1 and not name.endswith("bias"):
            assert tensor.std() == pytest.approx(0.02, rel=0.3), name
        else:
            assert ((tensor == 0) | (tensor == 1)).all(), name


def test_built_on_the_meta_device(tmp_path):
    with torch.device("meta"):
        model = MoebaForCausalLM(tiny_config("shared_sigmoid"))
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


# ------------------------------------------------------------------------------------------- parallel plans


def test_every_pattern_of_the_plans_names_something_real():
    names, models = set(), []
    fields = [*VARIANTS.values(), dict(SPARSE, feed_forward_type="mlp"), dict(SPARSE, expert_bias=True)]
    for extra in fields:
        with torch.device("meta"):
            model = MoebaForCausalLM(tiny_config(**extra))
        models.append(model)
        for prefix, root in (("base:", model.model), ("head:", model)):
            names |= {prefix + n for n, _ in [*root.named_modules(), *root.named_parameters()]}

    def exists(prefix: str, pattern: str) -> bool:
        regex = re.compile(re.escape(prefix) + re.escape(pattern).replace(r"\*", r"\d+") + "$")
        return any(regex.match(name) for name in names)

    for plan in ("base_model_tp_plan", "base_model_ep_plan", "base_model_pp_plan", "base_model_fsdp_plan"):
        for pattern in getattr(MoebaConfig, plan):
            assert exists("base:", pattern), f"{plan}: {pattern}"
    for plan in ("_tp_plan", "_pp_plan", "_fsdp_plan"):
        for pattern in getattr(MoebaForCausalLM, plan):
            assert exists("head:", pattern), f"{plan}: {pattern}"
    for model in models:
        assert set(model._no_split_modules) == {type(model.model.layers[0]).__name__}


@variants
def test_the_plan_follows_the_parts(variant):
    """Each pattern names a part of this very model, and each wide weight of it is in the plan."""
    model = tiny_model(variant)
    names = [n for n, _ in [*model.model.named_modules(), *model.model.named_parameters()]]
    regexes = [re.escape(pattern).replace(r"\*", r"\d+") for pattern in model.config.base_model_tp_plan]
    for regex in regexes:
        assert any(re.fullmatch(regex, name) for name in names), regex
    for name in names:
        if re.search(r"layers.*(_proj|experts)$", name) and not model.config.expert_bias:
            assert any(re.fullmatch(regex, name) for regex in regexes), name
    assert any("model.layers.*.self_attn.q_proj" in pattern for pattern in model.tp_plan)
    if model.config.qk_norm == "full":
        assert model.config.base_model_tp_plan["layers.*.self_attn.q_proj"] == "colwise_gather_output"
        assert model.config.base_model_tp_plan["layers.*.self_attn.o_proj"] == "rowwise_split_input"


# ------------------------------------------------------------------------------------- training and
# compilation


@variants
def test_every_parameter_gets_a_gradient(variant):
    model = tiny_model(variant).train()
    ids = random_ids(4, 16)
    model(ids, labels=ids).loss.backward()
    for name, gradient in gradients(model).items():
        assert gradient.isfinite().all(), name
        if "k_proj.bias" not in name:  # adds the same to all scores of a query, which softmax ignores
            assert gradient.any(), name


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dense", "moe", "shared_sigmoid"])
def test_compiles_as_one_graph(variant):
    model = tiny_model(variant).train()  # with its router losses
    implementations = ["batched_mm", "grouped_mm"] if model.config.num_experts else [None]
    for implementation in implementations:
        if implementation:
            model.set_experts_implementation(implementation)
        ids = random_ids()
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        expected = model(ids, labels=ids, use_cache=False)
        actual = compiled(ids, labels=ids, use_cache=False)
        torch.testing.assert_close(actual.logits, expected.logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(actual.loss, expected.loss)
        expected.loss.backward()
        reference = gradients(model)
        model.zero_grad()
        actual.loss.backward()
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, reference[name], atol=1e-5, rtol=1e-3, msg=name)
        model.zero_grad()


@pytest.mark.slow
def test_a_classification_head_compiles():
    """Its router losses reach the loss through a hook, which must survive compilation."""
    model = tiny_model("moe", MoebaForSequenceClassification, router_aux_loss_coef=1.0).train()
    ids, labels = random_ids(), torch.tensor([0, 1])
    expected = model(ids, labels=labels, use_cache=False).loss
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(ids, labels=labels, use_cache=False).loss, expected)


def test_static_and_dynamic_cache_agree():
    model = tiny_model("shared_sigmoid")
    ids = random_ids(2, 10)
    static = StaticCache(config=model.config, max_cache_len=16)
    with torch.no_grad():
        expected = model(ids).logits
        first = model(ids[:, :7], **{CACHE: static}).logits
        rest = model(ids[:, 7:], **{CACHE: static}, position_ids=torch.arange(7, 10)[None]).logits
    torch.testing.assert_close(torch.cat((first, rest), dim=1), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_auto_classes_know_every_head(head, tmp_path):
    import transformers

    from moeba.modeling.code_files import AUTO_MAP

    auto_class = next(auto for auto, ref in AUTO_MAP.items() if ref.endswith(f".{head.__name__}"))
    model = getattr(transformers, auto_class).from_config(tiny_config("moe"))
    assert type(model) is head
