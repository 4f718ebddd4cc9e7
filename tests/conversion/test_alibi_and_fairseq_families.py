"""GPT, CTRL, OPT, BLOOM, Falcon, MPT and their like: published config files, refusals, and alibi's fine points."""

from __future__ import annotations

import native
import pytest
import torch
from family_case import Case, padded
from native import load
from transformers import AutoModelForCausalLM

from moeba import MoebaConfig
from moeba.conversion import family_of

GPT_SIZES = dict(vocab_size=67, n_embd=32, n_layer=2, n_head=4, n_positions=48, n_ctx=48)
SUMMARY = dict(
    summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True, summary_type="cls_index",
    summary_use_proj=True,
)  # fmt: skip
ATTN_CONFIG = dict(
    alibi=True, alibi_bias_max=8, attn_impl="torch", attn_pdrop=0, attn_type="multihead_attention",
    attn_uses_sequence_id=False, clip_qkv=6.0, prefix_lm=False, qk_ln=False, softmax_scale=None,
)  # fmt: skip

# By model type: what its config.json holds, and what that means in Moeba's words.
PUBLISHED = {
    "openai-gpt": (
        dict(**GPT_SIZES, **SUMMARY, afn="gelu", n_special=0, predict_special_tokens=True, layer_norm_epsilon=1e-5),
        dict(hidden_act="gelu_new", block_order="post_norm", final_norm=False, intermediate_size=128),
    ),
    "ctrl": (
        dict(**GPT_SIZES, **SUMMARY, attn_pdrop=0.1, dff=24, from_tf=False, layer_norm_epsilon=1e-6, output_past=True),
        dict(embedding_multiplier=32**0.5, lm_head_bias=True, position_embedding_type="sinusoidal"),
    ),
    "gpt_bigcode": (
        dict(**GPT_SIZES, **SUMMARY, inference_runner=0, max_batch_size=None, max_sequence_length=None,
             multi_query=True, pad_key_length=True, pre_allocate_kv_cache=False, validate_runner_input=True),
        dict(num_key_value_heads=1, hidden_act="gelu_pytorch_tanh"),
    ),
    "opt": (
        dict(vocab_size=67, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=24, prefix="</s>",
             activation_dropout=0.0, do_layer_norm_before=False, word_embed_proj_dim=16, layerdrop=0.0),
        dict(block_order="post_norm", final_norm=False, embedding_size=16, position_offset=2),
    ),
    "bloom": (
        dict(vocab_size=67, n_embed=32, n_layer=2, num_attention_heads=4, attention_softmax_in_fp32=True, n_inner=None,
             bias_dropout_fusion=True, masked_softmax_fusion=True, offset_alibi=100, skip_bias_add=True, seq_length=48,
             skip_bias_add_qkv=False, unk_token_id=0, pretraining_tp=4, slow_but_exact=False),
        dict(hidden_size=32, intermediate_size=128, embedding_norm=True, hidden_act="gelu_fast"),
    ),
    "falcon": (
        dict(vocab_size=67, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, multi_query=True,
             apply_residual_connection_post_layernorm=False, alibi=True, parallel_attn=True, bias=True),
        dict(num_key_value_heads=1, block_order="parallel", alibi_multiplier=8**-0.5, alibi_dtype="bfloat16"),
    ),
    "mpt": (
        dict(vocab_size=67, d_model=32, n_layers=2, n_heads=4, attn_config=ATTN_CONFIG, init_config={"name": "kaiming"},
             tokenizer_name="EleutherAI/gpt-neox-20b", verbose=0, no_bias=True),
        dict(clip_qkv=6, norm_bias=False, alibi_dtype="float32"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_published_config_is_read(model_type):
    published, expected = PUBLISHED[model_type]
    family = family_of(model_type)
    ours = family.to_moeba(family.read_config({"model_type": model_type, **published}))
    assert {name: getattr(ours, name) for name in expected} == expected


@pytest.mark.parametrize(
    "model_type, fields, told",
    [
        ("openai-gpt", dict(afn="gelu_new"), "afn='gelu_new' is none of the stock model's activations"),
        ("xglm", dict(pad_token_id=5), "pad_token_id=5 is supported below 2 only"),
        ("bloom", dict(pretraining_tp=2, slow_but_exact=True), "pretraining_tp=2 with slow_but_exact=True"),
        ("falcon", dict(new_decoder_architecture=True, parallel_attn=False), "the new decoder is parallel"),
        ("falcon", dict(new_decoder_architecture=True, num_ln_in_parallel_attn=3), "with one norm or two"),
        ("falcon", dict(num_ln_in_parallel_attn=2), "branches share one norm"),
        ("falcon", dict(multi_query=False, num_kv_heads=2), "one key/value head, or all"),
        ("mpt", dict(norm_type="rmsnorm"), "norm_type='rmsnorm' is none of low_precision_layernorm"),
        ("mpt", dict(attn_config=dict(qk_ln=True)), "attn_config.qk_ln=True is supported at False only"),
    ],
)  # fmt: skip
def test_refused_by_name(model_type, fields, told):
    family = family_of(model_type)
    with pytest.raises(ValueError, match=told):
        family.to_moeba(family.read_config({"model_type": model_type, **fields}))


@pytest.mark.parametrize(
    "target, fields, told",
    [
        ("openai-gpt", dict(hidden_act="gelu"), "hidden_act='gelu'"),
        ("mpt", dict(alibi_bias_max=4), "alibi_bias_max=4"),
        ("falcon", dict(alibi_dtype="model"), "alibi_dtype='model'"),
        ("bloom", dict(intermediate_size=40), "intermediate_size=40"),
        ("ctrl", dict(norm_eps=1e-5), "norm_eps=1e-05"),
    ],
)
def test_what_a_family_cannot_hold_is_named(target, fields, told):
    config = native.draw(target, 2)  # Falcon's draw with alibi
    ours = MoebaConfig.from_dict({**family_of(target).to_moeba(config).to_dict(), **fields})
    with pytest.raises(ValueError, match=f"'{target}' cannot hold this model: .*{told}"):
        family_of(target).to_native(ours)


def falcon(folder, alibi: bool) -> Case:
    config = native.draw("falcon", 2)
    config.alibi = alibi
    return Case(config, folder)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_rotating_falcon_in_each_attention_of_its_own(tmp_path, implementation):
    """The stock class cannot change its attention once it is loaded."""
    case = falcon(tmp_path, alibi=False)
    theirs = load(AutoModelForCausalLM, case.source, attn_implementation=implementation)
    case.ours.set_attn_implementation(implementation)
    with torch.no_grad():
        torch.testing.assert_close(
            case.ours(case.ids()).logits, theirs(case.ids()).logits, atol=1e-5, rtol=1e-5
        )


def test_stock_eager_falcon_adds_alibi_twice(tmp_path):
    """Ours, eager or not, is its sdpa attention; one that doubles the bias is its eager attention."""
    case = falcon(tmp_path, alibi=True)
    eager, sdpa = (
        load(AutoModelForCausalLM, case.source, attn_implementation=name) for name in ("eager", "sdpa")
    )
    ids, ours = case.ids(), case.ours
    ours.set_attn_implementation("eager")
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, sdpa(ids).logits, atol=1e-5, rtol=1e-5)
        assert (ours(ids).logits - eager(ids).logits).abs().max() > 0.1
        ours.model.position_bias.multiplier *= 2
        torch.testing.assert_close(ours(ids).logits, eager(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["bloom", "falcon", "mpt"])
def test_alibi_counts_real_tokens_in_a_static_cache(tmp_path, model_type):
    """Left padding and a cache of fixed length: the tokens are those of a growing cache, in bfloat16 too."""
    config = native.draw(model_type, 2)
    case = Case(config, tmp_path)
    ids, mask = (tensor[:2, :20] for tensor in padded(case))
    settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    for model in (case.ours, case.ours.to(torch.bfloat16)):
        growing = model.generate(ids, attention_mask=mask, **settings)
        static = model.generate(
            ids, attention_mask=mask, cache_implementation="static", disable_compile=True, **settings
        )
        assert torch.equal(growing, static)
