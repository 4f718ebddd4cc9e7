"""Padding and batches change nothing, and what cannot be scored is said."""

import pytest
import torch
from support import VARIANTS, random_ids, tiny_model
from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel

from moeba.evaluation import Window
from moeba.evaluation.scoring import check_causal, score


def ragged(count=23):
    """Windows of 2 to 12 tokens of which some number is scored."""
    windows = []
    for i in range(count):
        tokens = random_ids(1, 2 + (5 * i) % 11, seed=i)[0].tolist()
        windows.append(Window(tokens, 1 + (3 * i) % (len(tokens) - 1), i))
    return windows


def alone(model, window):
    """Log-likelihood and hits by stock means: the whole window, without mask or padding."""
    with torch.no_grad():
        logits = model(torch.tensor([window.tokens])).logits[0].double().log_softmax(-1)
    places = range(len(window.tokens) - window.scored, len(window.tokens))
    found = sum(logits[place - 1, window.tokens[place]].item() for place in places)
    return found, sum(logits[place - 1].argmax().item() == window.tokens[place] for place in places)


@pytest.mark.parametrize("variant", VARIANTS)
def test_batches_and_padding_do_not_matter(variant):
    model = tiny_model(variant)
    expected = {window.origin: alone(model, window) for window in ragged()}
    for batch_size in (1, 3, 8, 100):
        found = {s.window.origin: (s.log_likelihood, s.correct) for s in score(model, ragged(), batch_size)}
        assert found.keys() == expected.keys()
        for origin, (likelihood, correct) in expected.items():
            assert found[origin][0] == pytest.approx(likelihood, rel=1e-4)
            assert found[origin][1] == correct


def test_a_model_that_cannot_leave_logits_out_gives_the_same():
    class Whole(GPT2LMHeadModel):
        def forward(self, input_ids=None, attention_mask=None, use_cache=None):
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=67, n_embd=32, n_layer=1, n_head=2, n_positions=16)).eval()
    whole = Whole(model.config)
    whole.load_state_dict(model.state_dict())
    for one, other in zip(score(model, ragged(), 4), score(whole, ragged(), 4), strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-5)


def test_windows_are_drawn_as_they_are_needed():
    drawn = []

    def windows():
        for window in ragged(200):
            drawn.append(window)
            yield window

    next(score(tiny_model(), windows(), 1))
    assert 0 < len(drawn) < 200


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_left_as_it_was(training):
    model = tiny_model().train(training)
    list(score(model, ragged(3), 2))
    assert model.training is training


def test_numbers_that_are_none_are_an_error():
    model = tiny_model()
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    with pytest.raises(ValueError, match="computes NaN.*Try another dtype"):
        list(score(model, ragged(3), 2))


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="batch_size=0"):
        list(score(tiny_model(), ragged(3), 0))


def test_a_model_that_sees_the_future_is_refused():
    check_causal(tiny_model("moe"), 67)
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=67, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = BertLMHeadModel(BertConfig(**sizes, initializer_range=0.3, is_decoder=False))
    with pytest.raises(ValueError, match="no causal language model"):
        check_causal(model, 67)
    model = BertLMHeadModel(BertConfig(**sizes, initializer_range=0.3, is_decoder=True))
    check_causal(model, 67)
