"""The KV cache under the library's name and under the one that older scripts and tools use."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from support import HEADS, SIZES, random_ids, tiny_config, tiny_model
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from moeba import (
    MoebaForCausalLM,
    MoebaModel,
)
from moeba.library.upstream import CACHE, PAST_KEY_VALUES, cache_of, takes_cache
from moeba.modeling.attention import MoebaGroupedQueryAttention
from moeba.modeling.blocks import BLOCKS
from moeba.modeling.latent_attention import MoebaLatentAttention

renamed = pytest.mark.skipif(CACHE == PAST_KEY_VALUES, reason="this transformers has only the old name")


@pytest.fixture
def stock() -> LlamaForCausalLM:
    fields = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "intermediate_size")}
    return LlamaForCausalLM(LlamaConfig(**fields, num_hidden_layers=2, num_attention_heads=4)).eval()


def test_every_function_that_the_library_calls_shows_the_name_of_stock_models(stock):
    shown = set(inspect.signature(stock.forward).parameters)
    assert CACHE in shown
    functions = [head.forward for head in HEADS]
    functions += [MoebaForCausalLM.prepare_inputs_for_generation]
    functions += [
        part.forward for part in (*BLOCKS.values(), MoebaGroupedQueryAttention, MoebaLatentAttention)
    ]
    for function in functions:
        names = set(inspect.signature(function).parameters)
        assert names & {"cache", PAST_KEY_VALUES} == {CACHE}, function.__qualname__


@pytest.mark.filterwarnings("ignore:.*past_key_values.*is deprecated:FutureWarning")
@pytest.mark.parametrize("variant", ["dense", "moe", "learned_mlp"])
def test_both_names_continue_the_same_text(variant):
    model, ids = tiny_model(variant), random_ids(2, 9)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        for name in {CACHE, PAST_KEY_VALUES}:
            cache = DynamicCache(config=model.config)
            pieces = [model(piece, **{name: cache}).logits for piece in ids.split([5, 3, 1], dim=1)]
            torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-4)
            assert cache.get_seq_length() == 9


@pytest.mark.filterwarnings("ignore:.*past_key_values.*is deprecated:FutureWarning")
def test_generate_takes_the_names_that_stock_models_take(stock):
    model, ids = tiny_model(), random_ids(1, 6)
    expected = model.generate(ids, max_new_tokens=4, do_sample=False)
    for name in {CACHE, PAST_KEY_VALUES}:
        for tried in (stock, model):
            cache = DynamicCache(config=tried.config)
            found = tried.generate(ids, max_new_tokens=4, do_sample=False, **{name: cache})
            assert cache.get_seq_length() == 9
        assert torch.equal(found, expected)


@renamed
def test_the_old_name_warns_as_in_stock_models(stock):
    for model in (stock, tiny_model()):
        with pytest.warns(FutureWarning, match="`past_key_values` is deprecated"):
            model(random_ids(), past_key_values=DynamicCache(config=model.config))


@renamed
@pytest.mark.parametrize("model_class", [MoebaModel, MoebaForCausalLM])
def test_both_names_at_once_are_an_error(model_class):
    model = tiny_model(model_class=model_class)
    caches = {name: DynamicCache(config=model.config) for name in (CACHE, PAST_KEY_VALUES)}
    with pytest.raises(ValueError, match="cache and past_key_values are one argument"):
        model(random_ids(), **caches)


@pytest.mark.filterwarnings("ignore:.*past_key_values.*is deprecated:FutureWarning")  # of PEFT's call
@pytest.mark.parametrize("variant", ["dense", "moe"])
def test_prefix_tuning_which_passes_the_old_name(variant):
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model, ids = peft.get_peft_model(tiny_model(variant), config).eval(), random_ids(2, 6)
    words = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
    plain = model(**words).logits
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.normal_()
    model(**words, labels=ids).loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.prompt_encoder.parameters())
    assert (model(**words).logits - plain).abs().max() > 1e-3
    if CACHE == PAST_KEY_VALUES:
        assert model.generate(**words, max_new_tokens=2).shape == (2, 8)
    else:  # PEFT 0.21 adds its prefix beside the cache of generate(): stock models lose it there
        with pytest.raises(ValueError, match="are one argument"):
            model.generate(**words, max_new_tokens=2)


def test_outputs_have_what_stock_outputs_have(stock):
    model, ids = tiny_model(), random_ids()
    ours, theirs = model(ids, use_cache=True), stock(ids, use_cache=True)
    assert list(ours.keys()) == list(theirs.keys())
    assert cache_of(ours).get_seq_length() == ids.shape[1]
    assert ours.past_key_values is cache_of(ours)  # what older scripts read
    assert [type(part) for part in model(ids, return_dict=False)] == [
        type(part) for part in stock(ids, return_dict=False)
    ]


@pytest.mark.parametrize("variant", ["dense", "moe", "learned_mlp", "capped"])
def test_our_own_calls_use_no_name_that_goes_away(variant):
    """transformers warns once a process of most of them: errors here show them all."""
    model, ids = tiny_model(variant), random_ids()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(ids, max_new_tokens=3)
        model.generate(ids, max_new_tokens=3, cache_implementation="static")
        model.train()
        model.activation_checkpointing_enable()
        model(ids, labels=ids).loss.backward()


def test_a_function_is_left_alone_where_the_names_agree(monkeypatch):
    def forward(past_key_values=None):
        return past_key_values

    monkeypatch.setattr("moeba.library.upstream.CACHE", PAST_KEY_VALUES)
    assert takes_cache(forward) is forward


@pytest.mark.parametrize("positions", ["alibi", "relative"])
def test_static_masks_take_the_name_of_the_library(positions):
    """And where nothing is padded, sdpa gets no mask from the library: the bias then spans the whole static cache."""
    model, ids = tiny_model("learned_mlp", position_embedding_type=positions), random_ids(2, 7)
    plain = model.generate(ids, max_new_tokens=4, do_sample=False)
    static = model.generate(ids, max_new_tokens=4, do_sample=False, cache_implementation="static")
    assert torch.equal(plain, static)
    assert tiny_config().keys_to_ignore_at_inference[0] == CACHE
