"""A keyword argument that nothing reads is an error: a renamed one must not vanish in `**kwargs`."""

from __future__ import annotations

import pytest
import torch
from support import HEADS, SIZES, random_ids, tiny_model
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from moeba.modeling.attention import eager_attention_forward


@pytest.mark.parametrize("model_class", HEADS)
@pytest.mark.parametrize(
    "name", ["kv_cache", "past_key_value", "attention_masks", "position_id", "use_caches"]
)
def test_a_name_that_nothing_reads_is_refused(model_class, name):
    model = tiny_model(model_class=model_class)
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        model(random_ids(), **{name: None})


def test_all_of_them_are_named():
    with pytest.raises(TypeError, match="'one', 'two'"):
        tiny_model()(random_ids(), two=1, one=2)


def test_what_the_library_and_its_trainers_pass_is_taken():
    model, ids = tiny_model("moe"), random_ids()
    fields = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "intermediate_size")}
    stock = LlamaForCausalLM(LlamaConfig(**fields, num_hidden_layers=1, num_attention_heads=4))
    words = dict(
        labels=ids,
        num_items_in_batch=torch.tensor(ids.numel()),
        output_hidden_states=True,
        output_attentions=False,
        return_dict=True,
        token_type_ids=torch.zeros_like(ids),
        is_causal=True,
        cu_seq_lens_q=None,
        max_length_q=None,
    )
    assert stock(ids, **words).loss.isfinite()
    assert model(ids, **words).loss.isfinite()


def test_what_continuous_batching_passes_is_refused_elsewhere():
    with pytest.raises(TypeError, match="'block_table', 'read_index'"):
        tiny_model(attn_implementation="sdpa")(random_ids(), read_index=None, block_table=None)


def test_an_attention_function_of_ones_own_may_read_any_name():
    seen = []

    def attend(module, query, key, value, attention_mask, my_bias=None, **kwargs):
        seen.append(my_bias)
        return eager_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("with_my_bias", attend)
    model = tiny_model()
    model.set_attn_implementation("with_my_bias")
    model(random_ids(), my_bias=3)
    assert seen == [3] * model.config.num_hidden_layers


def test_a_compiled_model_refuses_them_too():
    model = torch.compile(tiny_model(), backend="eager")
    with pytest.raises(Exception, match="unexpected keyword argument 'kv_cache'"):
        model(random_ids(), kv_cache=None)
