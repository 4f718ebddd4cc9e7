"""Each part against the class of transformers that has it: same weights, same logits, bit for bit where the
order of operations is the same."""

from __future__ import annotations

import pytest
import torch
from support import SIZES, random_ids, randomise
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from moeba import MoebaConfig, MoebaForCausalLM
from moeba.modeling.attention import MoebaGroupedQueryAttention

THETA = {"rope_type": "default", "rope_theta": 10000.0}
WINDOW = dict(sliding_window=5)
KINDS = ["sliding_attention", "full_attention"]
EXPERTS = dict(num_experts_per_tok=3, moe_intermediate_size=24)

# Shape: (stock model, stock config, Moeba's fields), both over SIZES.
SHAPES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, rms_norm_eps=1e-5), dict(norm_eps=1e-5)),
    "llama_biased": (
        LlamaForCausalLM,
        LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    ),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config(**SIZES, use_sliding_window=True, layer_types=KINDS, **WINDOW),
        dict(attention_bias=True, attention_output_bias=False, layer_types=KINDS, **WINDOW),
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES), dict(qk_norm="head")),
    "mixtral": (
        MixtralForCausalLM,
        MixtralConfig(**SIZES, num_local_experts=12, num_experts_per_tok=3, **WINDOW),
        dict(
            num_experts=12,
            num_experts_per_tok=3,
            norm_eps=1e-5,
            rope_theta=1e6,
            router_weight_dtype="float32",
            **WINDOW,
        ),
    ),
    "mixtral_one_expert": (
        MixtralForCausalLM,
        MixtralConfig(**SIZES, num_local_experts=1, num_experts_per_tok=1, sliding_window=None),
        dict(
            num_experts=1, num_experts_per_tok=1, norm_eps=1e-5, rope_theta=1e6, router_weight_dtype="float32"
        ),
    ),
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**SIZES, num_experts=12, mlp_only_layers=[0], norm_topk_prob=False, **EXPERTS),
        dict(
            num_experts=12,
            mlp_layer_types=["dense", "sparse"],
            norm_topk_prob=False,
            qk_norm="head",
            **EXPERTS,
        ),
    ),
    "qwen2_moe": (
        Qwen2MoeForCausalLM,
        Qwen2MoeConfig(**SIZES, num_experts=12, shared_expert_intermediate_size=16, **EXPERTS),
        dict(
            num_experts=12,
            norm_topk_prob=False,
            attention_bias=True,
            attention_output_bias=False,
            shared_expert_intermediate_size=16,
            shared_expert_gate=True,
            **EXPERTS,
        ),
    ),
    "olmo2": (
        Olmo2ForCausalLM,
        Olmo2Config(**SIZES, rms_norm_eps=1e-5),
        dict(block_order="output_norm", norm_type="rmsnorm_float32", qk_norm="full", norm_eps=1e-5),
    ),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config(
            **SIZES,
            **WINDOW,
            layer_types=KINDS,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=3.0,
            query_pre_attn_scalar=20,
            hidden_activation="gelu_pytorch_tanh",
        ),
        dict(
            **WINDOW,
            block_order="sandwich_norm",
            norm_type="rmsnorm_unit_offset",
            layer_types=KINDS,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=3.0,
            attention_multiplier=20**-0.5,
            embedding_multiplier=SIZES["hidden_size"] ** 0.5,
            hidden_act="gelu_pytorch_tanh",
            tie_word_embeddings=True,
        ),
    ),
}


def pair(stock_class, stock_config, fields, attention="eager"):
    """A stock model with every weight randomised, and Moeba with the same weights."""
    stock_config._attn_implementation = attention
    stock_config._experts_implementation = "eager"
    stock = randomise(stock_class(stock_config)).eval()
    config = MoebaConfig(**{**SIZES, **fields}, attn_implementation=attention, experts_implementation="eager")
    model = MoebaForCausalLM(config).eval()
    assert set(model.state_dict()) == set(stock.state_dict())
    model.load_state_dict(stock.state_dict())
    return stock, model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients(shape, attention):
    stock_class, stock_config, fields = SHAPES[shape]
    if attention == "sdpa" and fields.get("attn_logit_softcapping"):
        pytest.skip("sdpa has no softcap")
    stock, model = pair(stock_class, stock_config, fields, attention)
    ids = random_ids(3, 14)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # left padding
    for attention_mask in (None, mask):
        expected = stock(ids, attention_mask=attention_mask)
        actual = model(ids, attention_mask=attention_mask)
        real = slice(None) if attention_mask is None else mask.bool()
        assert torch.equal(actual.logits[real], expected.logits[real])
    expected.logits[real].square().mean().backward()
    actual.logits[real].square().mean().backward()
    parameters = dict(model.named_parameters())
    # Where a stream forks, its gradients may be added in another order: some roundings of the tensor's largest number,
    # or one of the model's where all cancels (a bias of keys).
    eps = torch.finfo(torch.float32).eps
    largest = max(theirs.grad.abs().max() for theirs in stock.parameters())
    for name, theirs in stock.named_parameters():
        difference = (parameters[name].grad - theirs.grad).abs().max()
        assert difference <= eps * (16 * theirs.grad.abs().max() + largest), name


@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_with_a_cache(shape):
    stock, model = pair(*SHAPES[shape])
    ids = random_ids(2, 11)
    with torch.no_grad():
        ours, theirs = (
            m.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0) for m in (model, stock)
        )
    assert torch.equal(ours, theirs)


# What each field changes must be visible to the comparison above, or the comparison proves nothing about it.
FAULTS = {
    "llama": dict(norm_eps=1e-1),
    "llama_biased": dict(rope_theta=20000.0),
    "qwen2": dict(sliding_window=6),
    "mixtral": dict(norm_topk_prob=False),
    "qwen3_moe": dict(norm_topk_prob=True),
    "olmo2": dict(block_order="post_norm"),
    "gemma2": dict(attn_logit_softcapping=6.0),
}


@pytest.mark.parametrize("shape", FAULTS)
def test_a_wrong_field_is_seen(shape):
    stock, _ = pair(*SHAPES[shape])
    wrong = MoebaForCausalLM(MoebaConfig(**{**SIZES, **SHAPES[shape][2], **FAULTS[shape]})).eval()
    wrong.load_state_dict(stock.state_dict())
    ids = random_ids(2, 14)
    with torch.no_grad():
        assert (wrong(ids).logits - stock(ids).logits).abs().max() > 1e-2


ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 2.2, 2.4, 2.6],
        "original_max_position_embeddings": 16,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("kind", ROPES)
def test_rope_types(kind):
    """Also past the original context, where `dynamic` and `longrope` change, and back."""
    sizes = dict(SIZES, max_position_embeddings=16 if kind == "dynamic" else 64)
    rope = {**ROPES[kind], "rope_theta": 10000.0}
    stock, model = pair(
        LlamaForCausalLM, LlamaConfig(**sizes, rope_parameters=dict(rope)), dict(sizes, rope_parameters=rope)
    )
    plain = MoebaForCausalLM(MoebaConfig(**sizes)).eval()
    plain.load_state_dict(stock.state_dict())
    with torch.no_grad():
        for length in (9, 40, 9):
            ids = random_ids(2, length)
            assert torch.equal(model(ids).logits, stock(ids).logits), length
        longer = random_ids(2, 40)
        assert (model(longer).logits - plain(longer).logits).abs().max() > 1e-3


def test_rope_per_layer_type_is_each_types_own():
    """A layer kind's rotation is that of a model in which all layers rotate so."""
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}
    nested = {"sliding_attention": THETA, "full_attention": linear}
    fields = dict(SIZES, num_hidden_layers=2, layer_types=KINDS, **WINDOW)
    model = MoebaForCausalLM(MoebaConfig(**fields, rope_parameters=nested))
    ids = torch.arange(20)[None]
    hidden = torch.zeros(1, 20, SIZES["hidden_size"])
    rotations = model.model.rotary_emb(hidden, ids)
    for kind, rope in nested.items():
        alone = MoebaForCausalLM(MoebaConfig(**fields, rope_parameters=dict(rope)))
        for ours, expected in zip(rotations[kind], alone.model.rotary_emb(hidden, ids), strict=True):
            assert torch.equal(ours, expected)


def test_layers_without_rotation():
    """A layer that does not rotate attends as one of a model without positions does."""
    unrotated = MoebaForCausalLM(MoebaConfig(**SIZES, rotary_layers=[False] * 2)).eval()
    none = MoebaForCausalLM(MoebaConfig(**SIZES, position_embedding_type="none")).eval()
    randomise(none)
    unrotated.load_state_dict(none.state_dict())
    ids = random_ids()
    with torch.no_grad():
        assert torch.equal(unrotated(ids).logits, none(ids).logits)


def test_partial_rotation_leaves_the_rest_of_the_head():
    config = MoebaConfig(**SIZES, partial_rotary_factor=0.5)
    model = MoebaForCausalLM(config)
    cos, sin = model.model.rotary_emb(torch.zeros(1, 3, 32), torch.arange(3)[None])
    assert cos.shape[-1] == 4
    from moeba.modeling.positions import apply_rotary

    x = torch.randn(1, 2, 3, 8)
    turned = apply_rotary(x, cos, sin)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.equal(turned[..., :4], apply_rotary(x[..., :4], cos, sin))
    assert not torch.equal(turned[:, :, 1:, :4], x[:, :, 1:, :4])


def test_learned_positions_and_their_offset():
    plain = dict(SIZES, position_embedding_type="learned", norm_type="layernorm", tie_word_embeddings=True)
    model = randomise(MoebaForCausalLM(MoebaConfig(**plain))).eval()
    shifted = MoebaForCausalLM(MoebaConfig(**plain, position_offset=2)).eval()
    state = model.state_dict()
    table = state["model.embed_positions.weight"]
    state["model.embed_positions.weight"] = torch.cat((torch.full((2, 32), float("nan")), table))
    shifted.load_state_dict(state)
    ids = random_ids()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, shifted(ids).logits)


@pytest.mark.parametrize(("kind", "slowest"), [("sinusoidal", 16), ("sinusoidal_fairseq", 15)])
def test_sinusoidal_positions_are_those_of_the_paper(kind, slowest):
    """The paper's waves stop one step short of 1/10000; those of tensor2tensor and fairseq end there."""
    model = MoebaForCausalLM(MoebaConfig(**SIZES, position_embedding_type=kind))
    waves = model.model.embed_positions(torch.zeros(1, 50, 32), torch.arange(50)[None])[0]
    position, half = 37, 16
    for i in range(half):
        angle = torch.tensor(position * 10000.0 ** (-i / slowest))
        torch.testing.assert_close(waves[position, i], angle.sin(), atol=1e-5, rtol=0)
        torch.testing.assert_close(waves[position, half + i], angle.cos(), atol=1e-5, rtol=0)


def test_grouped_query_attention_with_one_group_is_multi_head_attention():
    """Against torch's own scaled dot product, one head at a time."""
    config = MoebaConfig(**SIZES, position_embedding_type="none", attn_implementation="eager")
    attention = randomise(MoebaGroupedQueryAttention(config, 0)).eval()
    x = torch.randn(1, 6, 32)
    output, _ = attention(x)
    query, key, value = (
        proj(x)[0].view(6, -1, 8) for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    heads = []
    for head in range(4):
        scores = query[:, head] @ key[:, head // 2].T / 8**0.5
        heads.append(scores.softmax(-1) @ value[:, head // 2])
    torch.testing.assert_close(output[0], attention.o_proj(torch.cat(heads, dim=-1)))


BLOCK_ORDERS = {
    "pre_norm": lambda x, a, f, n: (y := x + a(n[0](x))) + f(n[1](y)),
    "post_norm": lambda x, a, f, n: n[1]((y := n[0](x + a(x))) + f(y)),
    "sandwich_norm": lambda x, a, f, n: (y := x + n[1](a(n[0](x)))) + n[3](f(n[2](y))),
    "output_norm": lambda x, a, f, n: (y := x + n[0](a(x))) + n[1](f(y)),
    "parallel": lambda x, a, f, n: x + a(n[0](x)) + f(n[0](x)),
    "parallel_stream_first": lambda x, a, f, n: x + a(n[0](x)) + f(n[0](x)),
    "parallel_two_norms": lambda x, a, f, n: x + a(n[0](x)) + f(n[1](x)),
}


@pytest.mark.parametrize("multiplier", [1.0, 0.3])
@pytest.mark.parametrize("order", BLOCK_ORDERS)
def test_block_orders(order, multiplier):
    config = MoebaConfig(
        **SIZES, block_order=order, residual_multiplier=multiplier, attn_implementation="eager"
    )
    layer = randomise(MoebaForCausalLM(config)).model.layers[0].eval()
    norms = [module for name, module in layer.named_children() if "layernorm" in name]
    expected = BLOCK_ORDERS[order](
        x := torch.randn(2, 5, 32),
        lambda h: layer.self_attn(h)[0] * multiplier,
        lambda h: layer.mlp(h) * multiplier,
        norms,
    )
    torch.testing.assert_close(layer(x)[0], expected)


def test_stock_layer_norm_attention_agrees():
    """Biased, unrotated attention against GPT-2's fused one."""
    theirs = GPT2Attention(GPT2Config(n_embd=32, n_head=4, attn_implementation="eager"), layer_idx=0)
    randomise(theirs).eval()
    fields = dict(SIZES, num_key_value_heads=4, position_embedding_type="none", attention_bias=True)
    ours = MoebaGroupedQueryAttention(MoebaConfig(**fields, attn_implementation="eager"), 0).eval()
    weights, biases = theirs.c_attn.weight.T.chunk(3), theirs.c_attn.bias.chunk(3)
    with torch.no_grad():
        for proj, weight, bias in zip((ours.q_proj, ours.k_proj, ours.v_proj), weights, biases, strict=True):
            proj.weight.copy_(weight)
            proj.bias.copy_(bias)
        ours.o_proj.weight.copy_(theirs.c_proj.weight.T)
        ours.o_proj.bias.copy_(theirs.c_proj.bias)
        x = torch.randn(2, 6, 32)
        causal = torch.full((1, 1, 6, 6), float("-inf")).triu(1)
        torch.testing.assert_close(ours(x, attention_mask=causal)[0], theirs(x, attention_mask=causal)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("rmsnorm", "transformers.models.llama.modeling_llama.LlamaRMSNorm"),
        ("rmsnorm_float32", "transformers.models.olmo2.modeling_olmo2.Olmo2RMSNorm"),
        ("rmsnorm_unit_offset", "transformers.models.gemma2.modeling_gemma2.Gemma2RMSNorm"),
        ("layernorm", "torch.nn.LayerNorm"),
        ("layernorm_nonparametric", "transformers.models.olmo.modeling_olmo.OlmoLayerNorm"),
    ],
)
def test_norms_round_as_their_originals(ours, theirs, dtype):
    import importlib

    from moeba.modeling.norms import build_norm

    module, name = theirs.rsplit(".", 1)
    theirs_class = getattr(importlib.import_module(module), name)
    stock = theirs_class(32) if "onparametric" in ours else theirs_class(32, eps=1e-5)
    norm = build_norm(MoebaConfig(**SIZES, norm_type=ours, norm_eps=1e-5))
    randomise(stock)
    norm.load_state_dict(stock.state_dict())
    x = (torch.randn(64, 32) * 3).to(dtype)
    assert torch.equal(norm.to(dtype)(x), stock.to(dtype)(x))
