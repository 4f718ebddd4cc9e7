# Copyright 2026 The Moeba Authors. Licensed under the Apache License, Version 2.0.
"""`generate` on every main shape of the model.

transformers' own generation tests are not part of its sdist, so these are written from scratch. Wherever
possible the expectation is computed here from plain forward passes without cache, padding or batching, and
`generate` in all its modes has to agree with it. (Contrastive search, DoLa, group and constrained beam search
left transformers for remote repositories in v5 and are not covered.)
"""

import copy
import sys
import threading
from pathlib import Path

import pytest
import torch
from transformers import (
    CompileConfig,
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    QuantizedCache,
    StaticCache,
    TextIteratorStreamer,
    pipeline,
    set_seed,
)
from transformers.generation.streamers import BaseStreamer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "upstream"))
import moeba_variants  # noqa: E402

from moeba.library.upstream import CACHE, cache_of

PAD, BOS, EOS = 0, 1, 2
VOCAB = moeba_variants.SIZES["vocab_size"]
NEW = 8
TIGHT = {"atol": 1e-5, "rtol": 1e-4}

ALL_SHAPES = list(moeba_variants.SHAPES)
shapes = pytest.mark.parametrize("shape", ALL_SHAPES)
# For what depends on generate's side more than on the model's: one dense and one sparse shape
two_shapes = pytest.mark.parametrize("shape", moeba_variants.DEFAULT_SHAPES)


def build(shape: str, seed: int = 0, **overrides) -> torch.nn.Module:
    """A tiny random model with next-token distributions far from uniform, which never stops early."""
    config = moeba_variants.config(shape, **overrides)
    config._attn_implementation = "eager"
    set_seed(seed)
    model = moeba_variants.causal_lm_class(shape)(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.generation_config = GenerationConfig(
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=None, do_sample=False
    )
    return model


@pytest.fixture
def model(shape):
    return build(shape)


def prompt(length: int = 6, rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def ragged(lengths: tuple[int, ...]) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Single prompts, and the same as one left-padded batch with its mask."""
    singles = [prompt(length, seed=length) for length in lengths]
    ids = torch.full((len(lengths), max(lengths)), PAD)
    mask = torch.zeros_like(ids)
    for row, single in enumerate(singles):
        ids[row, -single.shape[1] :] = single[0]
        mask[row, -single.shape[1] :] = 1
    return singles, ids, mask


@torch.no_grad()
def logits_of(model, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits


def greedy_by_hand(model, ids: torch.Tensor, steps: int = NEW) -> torch.Tensor:
    for _ in range(steps):
        ids = torch.cat([ids, logits_of(model, ids)[:, -1].argmax(-1, keepdim=True)], dim=-1)
    return ids


def has_sliding_layers(model) -> bool:
    return "sliding_attention" in (getattr(model.config, "layer_types", None) or [])


# -------------------------------------------------------------------------------------------- decoding modes


@shapes
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy(model, use_cache):
    ids = prompt()
    torch.testing.assert_close(
        model.generate(ids, max_new_tokens=NEW, use_cache=use_cache), greedy_by_hand(model, ids)
    )


@shapes
def test_cached_steps_give_the_logits_of_one_uncached_pass(model):
    out = model.generate(prompt(), max_new_tokens=NEW, output_logits=True, return_dict_in_generate=True)
    expected = logits_of(model, out.sequences)[:, 5:-1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), expected, **TIGHT)


@two_shapes
def test_sampling_is_reproducible(model):
    def sample(seed: int, **kwargs) -> torch.Tensor:
        set_seed(seed)
        return model.generate(prompt(rows=2), do_sample=True, max_new_tokens=NEW, **kwargs)

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))
    assert torch.equal(sample(1), sample(1, use_cache=False))
    assert sample(1, num_return_sequences=3).shape == (6, 6 + NEW)
    assert torch.equal(sample(1, top_k=1), model.generate(prompt(rows=2), max_new_tokens=NEW))


@two_shapes
def test_sampling_draws_from_the_models_distribution(model):
    draws = 20_000
    set_seed(0)
    tokens = model.generate(prompt().expand(draws, -1), do_sample=True, top_k=0, max_new_tokens=1)[:, -1]
    observed = torch.bincount(tokens, minlength=VOCAB) / draws
    expected = logits_of(model, prompt())[0, -1].softmax(-1)
    assert (
        observed - expected
    ).abs().sum() < 0.1  # expected total deviation is about sqrt(2 V / (pi n)) = 0.06


@shapes
def test_beam_search_finds_the_best_sequence(model):
    """With as many beams as tokens, two steps of beam search are exhaustive."""
    ids = prompt()
    out = model.generate(
        ids,
        num_beams=VOCAB,
        max_new_tokens=2,
        output_scores=True,
        return_dict_in_generate=True,
        length_penalty=0.0,
    )
    first = logits_of(model, ids)[0, -1].log_softmax(-1)
    second = logits_of(model, torch.cat([ids.expand(VOCAB, -1), torch.arange(VOCAB)[:, None]], dim=1))
    joint = first[:, None] + second[:, -1].log_softmax(-1)
    best = joint.argmax()
    assert out.sequences[0, -2:].tolist() == [best // VOCAB, best % VOCAB]
    torch.testing.assert_close(out.sequences_scores[0], joint.max(), **TIGHT)


@shapes
@pytest.mark.parametrize("cache", ["dynamic", "static", None])
def test_beam_scores_are_those_of_the_returned_sequences(model, cache):
    """Reordering the cache between beams must not mix their histories, nor may rows of one batch mix."""
    kwargs = {"use_cache": False} if cache is None else {"cache_implementation": cache}
    ids = prompt(rows=2)
    out = model.generate(
        ids, num_beams=4, num_return_sequences=2, max_new_tokens=NEW, output_scores=True, length_penalty=1.0,
        return_dict_in_generate=True, **kwargs,
    )  # fmt: skip
    assert out.sequences.shape == (4, 6 + NEW)
    log_probs = logits_of(model, out.sequences)[:, 5:-1].log_softmax(-1)
    chosen = log_probs.gather(-1, out.sequences[:, 6:, None]).squeeze(-1)
    torch.testing.assert_close(out.sequences_scores, chosen.sum(-1) / NEW, **TIGHT)
    for row in range(2):
        alone = model.generate(ids[row : row + 1], num_beams=4, max_new_tokens=NEW)
        assert torch.equal(out.sequences[2 * row], alone[0])


@two_shapes
def test_beam_sampling_is_reproducible(model):
    def sample() -> torch.Tensor:
        set_seed(0)
        return model.generate(prompt(), num_beams=3, do_sample=True, max_new_tokens=NEW)

    assert torch.equal(sample(), sample())


@shapes
@pytest.mark.parametrize("assistant", ["itself", "smaller"])
def test_assisted_decoding_gives_the_greedy_tokens(shape, model, assistant):
    helper = (
        copy.deepcopy(model)
        if assistant == "itself"
        else build(shape, seed=1, **moeba_variants.one_layer(shape))
    )
    helper.generation_config.num_assistant_tokens = 3
    ids = prompt()
    expected = greedy_by_hand(model, ids, 2 * NEW)
    torch.testing.assert_close(model.generate(ids, assistant_model=helper, max_new_tokens=2 * NEW), expected)


@shapes
def test_early_exit_gives_the_greedy_tokens_and_leaves_the_config(shape, model):
    ids, config = prompt(), copy.deepcopy(model.config.to_dict())
    expected = greedy_by_hand(model, ids, 2 * NEW)
    passes = {layer: [] for layer in (0, 1)}
    for layer, depths in passes.items():
        hook = lambda *_, depths=depths: depths.append(model.config.num_hidden_layers)  # noqa: E731
        model.model.layers[layer].register_forward_pre_hook(hook)
    tokens = model.generate(ids, assistant_early_exit=1, max_new_tokens=2 * NEW)
    torch.testing.assert_close(tokens, expected)
    assert model.config.to_dict() == config
    assert set(passes[0]) == {1, 2} and set(passes[1]) == {2}, "drafts leave the last layer out"


@shapes
def test_prompt_lookup_gives_the_greedy_tokens(model):
    ids = prompt(4).repeat(1, 4)  # repeats itself, so that there are candidates to accept and to reject
    expected = greedy_by_hand(model, ids, 2 * NEW)
    torch.testing.assert_close(
        model.generate(ids, prompt_lookup_num_tokens=3, max_new_tokens=2 * NEW), expected
    )


@two_shapes
def test_classifier_free_guidance(model):
    """Needs a second, unconditional cache next to the first."""
    ids = prompt(rows=2)
    guided = model.generate(ids, guidance_scale=2.0, max_new_tokens=NEW)
    assert torch.equal(guided, model.generate(ids, guidance_scale=2.0, max_new_tokens=NEW, use_cache=False))
    assert not torch.equal(guided, model.generate(ids, max_new_tokens=NEW))


# --------------------------------------------------------------------------------------- batches and padding

LENGTHS = (3, 9, 1, 6)


@shapes
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_left_padding_changes_no_logit(model, shape, attention):
    if attention == "sdpa":
        model.set_attn_implementation("sdpa")
    singles, ids, mask = ragged(LENGTHS)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    for row, single in enumerate(singles):
        torch.testing.assert_close(padded[row, -single.shape[1] :], logits_of(model, single)[0], **TIGHT)


@shapes
def test_right_padding_changes_no_logit(model):
    singles, *_ = ragged(LENGTHS)
    ids = torch.full((len(LENGTHS), max(LENGTHS)), PAD)
    for row, single in enumerate(singles):
        ids[row, : single.shape[1]] = single[0]
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=(ids != PAD).long()).logits
    for row, single in enumerate(singles):
        torch.testing.assert_close(padded[row, : single.shape[1]], logits_of(model, single)[0], **TIGHT)


@shapes
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_ragged_batch_generates_what_its_rows_do(model, cache):
    singles, ids, mask = ragged(LENGTHS)
    batch = model.generate(
        ids, attention_mask=mask, max_new_tokens=NEW, cache_implementation=cache, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    for row, single in enumerate(singles):
        alone = model.generate(single, max_new_tokens=NEW, output_logits=True, return_dict_in_generate=True)
        assert torch.equal(batch.sequences[row, -NEW:], alone.sequences[0, -NEW:])
        for step in range(NEW):
            torch.testing.assert_close(batch.logits[step][row], alone.logits[step][0], **TIGHT)


@two_shapes
def test_finished_rows_are_padded(model):
    """One row stops at its third token, the others go on undisturbed."""
    singles, ids, mask = ragged(LENGTHS)
    free = model.generate(ids, attention_mask=mask, max_new_tokens=NEW)[:, -NEW:]
    stop = free[0, 2].item()
    stopped = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, eos_token_id=stop)[
        :, max(LENGTHS) :
    ]
    for free_row, stopped_row in zip(free.tolist(), stopped.tolist(), strict=True):
        end = free_row.index(stop) + 1 if stop in free_row else NEW
        end = min(end, len(stopped_row))
        assert stopped_row[:end] == free_row[:end]
        assert set(stopped_row[end:]) <= {PAD}


# ---------------------------------------------------------------------------------------------------- caches


@shapes
@pytest.mark.parametrize("cache", ["dynamic", "static", "offloaded", "offloaded_static"])
def test_every_cache_gives_the_same_tokens(model, cache):
    if "offloaded" in cache and not torch.accelerator.is_available():
        pytest.skip("offloading the cache needs an accelerator's streams")
    ids = prompt(rows=2)
    torch.testing.assert_close(
        model.generate(ids, cache_implementation=cache, max_new_tokens=NEW), greedy_by_hand(model, ids)
    )


@shapes
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_of_the_callers(model, kind):
    ids = prompt(rows=2)
    cache = (
        DynamicCache(config=model.config)
        if kind == "dynamic"
        else StaticCache(config=model.config, max_cache_len=ids.shape[1] + 2 * NEW)
    )
    torch.testing.assert_close(
        model.generate(ids, **{CACHE: cache}, max_new_tokens=NEW), greedy_by_hand(model, ids)
    )
    assert cache.get_seq_length() == ids.shape[1] + NEW - 1
    assert len(cache) == model.config.num_hidden_layers


@shapes
def test_fp8_quantized_cache_stays_close(model):
    """The one quantised cache without a further dependency. Coarse, so only logits can be compared."""
    if has_sliding_layers(model):
        pytest.skip("QuantizedCache holds full-attention layers only")
    ids = prompt(12)
    cache = QuantizedCache(backend="fp8", config=model.config)
    with torch.no_grad():
        model(input_ids=ids[:, :-1], **{CACHE: cache})
        step = model(input_ids=ids[:, -1:], **{CACHE: cache}).logits[:, -1]
    expected = logits_of(model, ids)[:, -1]
    alone = logits_of(model, ids[:, -1:])[:, -1]  # what a cache that holds nothing would give
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(step, expected).item() > max(0.95, similarity(alone, expected).item())
    out = model.generate(
        ids, max_new_tokens=NEW, cache_implementation="quantized", cache_config={"backend": "fp8"}
    )
    assert out.shape == (1, 12 + NEW)


@pytest.mark.parametrize("shape", moeba_variants.SLIDING_SHAPES)
@pytest.mark.parametrize("cache", ["dynamic", "static", None])
def test_sliding_window_beyond_its_length(model, cache):
    window = model.config.sliding_window
    ids = prompt(window + 3)
    kwargs = {"use_cache": False} if cache is None else {"cache_implementation": cache}
    out = model.generate(ids, max_new_tokens=window + NEW, return_dict_in_generate=True, **kwargs)
    torch.testing.assert_close(out.sequences, greedy_by_hand(model, ids, window + NEW))
    if cache is not None:
        held = {
            kind: layer.keys.shape[-2]
            for kind, layer in zip(model.config.layer_types, cache_of(out).layers, strict=True)
        }
        assert held["sliding_attention"] <= window < held["full_attention"]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("positions", ["alibi", "relative"])
def test_position_biases_know_which_keys_a_window_has_forgotten(positions, cache):
    model = build(moeba_variants.SLIDING_SHAPES[0], position_embedding_type=positions, rope_parameters=None)
    window = model.config.sliding_window
    ids = prompt(window + 3)
    padded = torch.nn.functional.pad(ids, (2, 0), value=PAD)
    real = torch.nn.functional.pad(torch.ones_like(ids), (2, 0))
    out = model.generate(padded, attention_mask=real, max_new_tokens=window + NEW, cache_implementation=cache)
    torch.testing.assert_close(out[:, 2:], greedy_by_hand(model, ids, window + NEW))


@shapes
def test_chunked_prefill(model):
    ids = prompt(11, rows=2)
    expected = greedy_by_hand(model, ids)
    torch.testing.assert_close(model.generate(ids, prefill_chunk_size=4, max_new_tokens=NEW), expected)


@shapes
def test_continue_from_a_cache(model):
    """First with the very next step, then as a second turn: several unseen tokens behind a filled cache."""
    ids = prompt(rows=2)
    first = model.generate(ids, max_new_tokens=NEW, return_dict_in_generate=True)
    turn = torch.cat([first.sequences, prompt(5, rows=2, seed=7)], dim=-1)
    cache = copy.deepcopy(cache_of(first))

    def resume(ids, cache):
        # With a mask: `generate` would take a generated token which happens to be PAD for padding
        return model.generate(ids, attention_mask=torch.ones_like(ids), **{CACHE: cache}, max_new_tokens=NEW)

    torch.testing.assert_close(resume(first.sequences, cache_of(first)), greedy_by_hand(model, ids, 2 * NEW))
    torch.testing.assert_close(resume(turn, cache), greedy_by_hand(model, turn))


@shapes
def test_continue_a_left_padded_batch(model):
    _, ids, mask = ragged(LENGTHS)
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=2 * NEW)
    first = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, return_dict_in_generate=True)
    mask = torch.cat([mask, torch.ones(len(LENGTHS), NEW, dtype=mask.dtype)], dim=-1)
    second = model.generate(
        first.sequences, attention_mask=mask, **{CACHE: cache_of(first)}, max_new_tokens=NEW
    )
    assert torch.equal(second, expected)


@shapes
def test_one_prefix_for_many_continuations(model):
    """The usual way to reuse a system prompt: copy its cache for each request."""
    prefix = prompt(5, seed=3)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=prefix, **{CACHE: cache})
    for seed in range(2):
        ids = torch.cat([prefix, prompt(4, seed=seed)], dim=-1)
        out = model.generate(ids, **{CACHE: copy.deepcopy(cache)}, max_new_tokens=NEW)
        torch.testing.assert_close(out, greedy_by_hand(model, ids))


@shapes
def test_the_cache_can_be_cropped(model):
    if has_sliding_layers(model):
        pytest.skip("a sliding layer has forgotten what cropping would need")
    ids = prompt(12)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids, **{CACHE: cache})
        cache.crop(-4)
        assert cache.get_seq_length() == 8
        step = model(input_ids=ids[:, 8:], **{CACHE: cache}).logits
    torch.testing.assert_close(step, logits_of(model, ids)[:, 8:], **TIGHT)


# ---------------------------------------------------------------------------------------- inputs and outputs


@shapes
def test_inputs_embeds(model):
    ids = prompt(rows=2)
    embeds = model.get_input_embeddings()(ids)
    expected = greedy_by_hand(model, ids)
    torch.testing.assert_close(model.generate(inputs_embeds=embeds, max_new_tokens=NEW), expected[:, 6:])
    torch.testing.assert_close(model.generate(ids, inputs_embeds=embeds, max_new_tokens=NEW), expected)
    torch.testing.assert_close(
        model.generate(inputs_embeds=embeds, max_new_tokens=NEW, cache_implementation="static"),
        expected[:, 6:],
    )


@shapes
def test_everything_generate_can_return(model):
    config, rows, length = model.config, 2, 6
    out = model.generate(
        prompt(length, rows), max_new_tokens=NEW, return_dict_in_generate=True, output_scores=True,
        output_logits=True, output_hidden_states=True, output_attentions=True,
    )  # fmt: skip
    assert out.sequences.shape == (rows, length + NEW)
    assert [tuple(step.shape) for step in out.scores] == [(rows, VOCAB)] * NEW
    assert [tuple(step.shape) for step in out.logits] == [(rows, VOCAB)] * NEW
    assert cache_of(out).get_seq_length() == length + NEW - 1

    assert len(out.hidden_states) == len(out.attentions) == NEW
    for step, (hidden_states, attentions) in enumerate(zip(out.hidden_states, out.attentions, strict=True)):
        queries, keys = (length, length) if step == 0 else (1, length + step)
        assert len(hidden_states) == config.num_hidden_layers + 1
        assert {tuple(state.shape) for state in hidden_states} == {(rows, queries, config.hidden_size)}
        assert len(attentions) == config.num_hidden_layers
        for layer, weights in enumerate(attentions):
            if has_sliding_layers(model) and config.layer_types[layer] == "sliding_attention":
                assert weights.shape[-1] <= max(keys, config.sliding_window)
            else:
                assert weights.shape[-1] == keys
            assert weights.shape[:-1] == (rows, config.num_attention_heads, queries)
            sums = weights.sum(-1)  # less than one where there are attention sinks
            assert (sums <= 1 + 1e-4).all() and (sums > 0).all()

    transitions = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    expected = logits_of(model, out.sequences)[:, length - 1 : -1].log_softmax(-1)
    expected = expected.gather(-1, out.sequences[:, length:, None]).squeeze(-1)
    torch.testing.assert_close(transitions, expected, **TIGHT)


@shapes
def test_logits_to_keep(model):
    ids = prompt(7, rows=2)
    full = logits_of(model, ids)
    with torch.no_grad():
        for keep, expected in (
            (0, full),
            (1, full[:, -1:]),
            (3, full[:, -3:]),
            (torch.tensor([0, 4]), full[:, [0, 4]]),
        ):
            torch.testing.assert_close(model(input_ids=ids, logits_to_keep=keep).logits, expected, **TIGHT)


@two_shapes
def test_prefill_computes_the_last_logits_only(model):
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[1])
    )
    model.generate(prompt(9), max_new_tokens=3)
    hook.remove()
    assert seen == [1, 1, 1]


@two_shapes
def test_unknown_arguments_are_refused(model):
    with pytest.raises(ValueError, match="model_kwargs"):
        model.generate(prompt(), max_new_tokens=1, atention_mask=torch.ones(1, 6))


@two_shapes
def test_logits_processors_see_the_models_scores(model):
    seen = []

    def ban_most_likely(ids, scores):
        seen.append(scores.clone())
        return scores.scatter(-1, scores.argmax(-1, keepdim=True), float("-inf"))

    out = model.generate(prompt(), max_new_tokens=2, logits_processor=LogitsProcessorList([ban_most_likely]))
    torch.testing.assert_close(torch.stack(seen, dim=1), logits_of(model, out)[:, 5:-1], **TIGHT)
    assert out[0, 6] == logits_of(model, prompt())[0, -1].topk(2).indices[1]


@shapes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, dtype):
    out = model.to(dtype).generate(
        prompt(rows=2), max_new_tokens=NEW, output_logits=True, return_dict_in_generate=True
    )
    logits = torch.stack(out.logits)
    assert out.sequences.shape == (2, 6 + NEW) and logits.isfinite().all()
    assert {layer.keys.dtype for layer in cache_of(out).layers} == {dtype}


@shapes
def test_generates_the_same_after_a_reload(model, tmp_path):
    model.generation_config.max_new_tokens = NEW
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path, attn_implementation="eager")
    assert reloaded.generation_config.max_new_tokens == NEW
    assert torch.equal(reloaded.generate(prompt()), model.generate(prompt()))


# ------------------------------------------------------------------------------------------------- compiling


@shapes
def test_static_forward_compiles_as_one_graph(model, shape):
    """What `generate` compiles on accelerators, traced here without the cost of a code generator."""
    model.set_attn_implementation("sdpa")
    if model._can_set_experts_implementation():
        model.set_experts_implementation("grouped_mm")
    ids = prompt(rows=2)
    compiling = CompileConfig(fullgraph=True, dynamic=None, backend="aot_eager", mode=None)
    compiling._compile_all_devices = True
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # of whatever was compiled before in this process
    with torch._dynamo.config.patch(error_on_recompile=False):
        out = model.generate(
            ids, max_new_tokens=NEW, cache_implementation="static", compile_config=compiling, use_cache=True
        )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert not torch._dynamo.utils.counters["graph_break"]
    torch.testing.assert_close(out, greedy_by_hand(model, ids))
    torch._dynamo.reset()


# ----------------------------------------------------------------------------------- streaming and pipelines


class Collector(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


@two_shapes
def test_streaming(model):
    collector = Collector()
    out = model.generate(prompt(), max_new_tokens=NEW, streamer=collector)
    assert collector.tokens == out[0].tolist() and collector.ended


@pytest.fixture
def tokenizer():
    """Token i is the word `t<i>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, **{f"t{i}": i for i in range(3, VOCAB - 1)}}
    vocab["abcdef"] = VOCAB - 1  # StopStringCriteria probes the tokenizer with this very word
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} t5 {% endfor %}"
    return tokenizer


@two_shapes
def test_streaming_text_from_a_thread(model, tokenizer):
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    arguments = {"inputs": prompt(), "max_new_tokens": NEW, "streamer": streamer}
    thread = threading.Thread(target=model.generate, kwargs=arguments)
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text.split() == tokenizer.convert_ids_to_tokens(greedy_by_hand(model, prompt())[0, 6:].tolist())


@two_shapes
def test_stop_strings(model, tokenizer):
    expected = greedy_by_hand(model, prompt())[0].tolist()
    stop = tokenizer.convert_ids_to_tokens(expected[8])
    out = model.generate(prompt(), max_new_tokens=NEW, stop_strings=f" {stop}", tokenizer=tokenizer)[
        0
    ].tolist()
    assert out == expected[: len(out)] and len(out) <= 9


@two_shapes
def test_text_generation_pipeline(model, tokenizer):
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    settings = {"max_new_tokens": 4, "do_sample": False, "return_full_text": False}

    def expected(text: str) -> str:
        ids = tokenizer(text, return_tensors="pt").input_ids
        return tokenizer.decode(greedy_by_hand(model, ids, 4)[0, ids.shape[1] :], skip_special_tokens=True)

    texts = ["t7 t8 t9", "t11", "t20 t21 t22 t23 t24"]
    for batch_size in (1, 3):
        outputs = generate(texts, batch_size=batch_size, **settings)
        assert [output[0]["generated_text"].split() for output in outputs] == [
            expected(text).split() for text in texts
        ]
    [output] = generate("t7 t8 t9", max_new_tokens=4, do_sample=False)
    # The pipeline decodes prompt and continuation separately and joins them without a space
    assert output["generated_text"] == "t7 t8 t9" + expected("t7 t8 t9")
    [output] = generate([{"role": "user", "content": "t7"}], max_new_tokens=4, do_sample=False)
    reply = output["generated_text"][-1]
    assert reply["role"] == "assistant" and reply["content"].split() == expected("t7 t5").split()
