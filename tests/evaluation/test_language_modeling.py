"""Perplexity: the right figure, over every token alike, whatever the windows and batches."""

import math
from types import SimpleNamespace

import pytest
import torch
from support import tiny_model
from torch import nn

from moeba.evaluation import Tally, perplexity
from moeba.evaluation.language_modeling import score_documents
from moeba.evaluation.tasks import cut


class Bigram(nn.Module):
    """Logits that depend on the current token alone."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, input_ids, attention_mask, use_cache):
        return SimpleNamespace(logits=self.table[input_ids])


def encode(text):
    """A token a byte; 0 is left for the start."""
    return [1 + byte % 66 for byte in text.encode()]


DOCUMENTS = [
    "a text longer than the windows that it is read in, café 😀",
    "short",
    "",
    "x",
    "another, of middle length",
]


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large():
    assert perplexity(Bigram(torch.zeros(7, 7)), [[0, 1, 2, 3], [4, 5, 6, 0]]) == pytest.approx(7)


def test_a_model_that_knows_the_text_has_perplexity_one():
    assert perplexity(Bigram(100 * torch.eye(5).roll(1, dims=1)), [[0, 1, 2, 3, 4, 0]]) == pytest.approx(1)


def test_tokens_weigh_alike_and_batches_do_not_matter():
    torch.manual_seed(0)
    model = Bigram(torch.randn(9, 9))
    windows = torch.randint(0, 9, (11, 5)).tolist()
    log_odds = model.table.log_softmax(-1)
    losses = [-log_odds[a, b] for window in windows for a, b in zip(window, window[1:], strict=False)]
    expected = torch.stack(losses).mean().exp().item()
    for batch in (1, 4, 100):
        assert perplexity(model, windows, batch) == pytest.approx(expected, rel=1e-5)


def token_by_token(model, start, window, stride):
    """Sum of log-likelihoods, hits and count: a forward pass for each token, on the context it was promised."""
    room = window - len(start)
    total, hits, count = 0.0, 0, 0
    for text in DOCUMENTS:
        tokens = encode(text)
        for place in range(0 if start else 1, len(tokens)):
            if place < room:
                begin = 0
            else:
                end = min(room + ((place - room) // stride + 1) * stride, len(tokens))
                begin = end - room
            with torch.no_grad():
                logits = model(torch.tensor([start + tokens[begin:place]])).logits[0, -1].double()
            total += logits.log_softmax(-1)[tokens[place]].item()
            hits += logits.argmax().item() == tokens[place]
            count += 1
    return total, hits, count


@pytest.mark.parametrize("variant", ["moe", "learned_mlp"])
@pytest.mark.parametrize(("window", "stride"), [(64, 32), (12, 6), (12, 1), (9, 8)])
@pytest.mark.parametrize("start", [[], [0]])
def test_sliding_windows_give_what_each_token_alone_does(variant, window, stride, start):
    model = tiny_model(variant, pad_token_id=None)
    total, hits, count = token_by_token(model, start, window, stride)
    for batch_size in (1, 4):
        done = []
        tally = score_documents(
            model,
            encode,
            DOCUMENTS,
            window=window,
            stride=stride,
            start=start,
            batch_size=batch_size,
            progress=done.append,
        )
        assert (tally.tokens, tally.correct) == (count, hits)
        assert tally.log_likelihood == pytest.approx(total, rel=1e-5)
        figures = tally.metrics()
        assert figures["perplexity"] == pytest.approx(math.exp(-total / count), rel=1e-5)
        nbytes = sum(len(text.encode()) for text in DOCUMENTS)
        if start:
            assert figures["bits_per_byte"] == pytest.approx(-total / math.log(2) / nbytes, rel=1e-5)
            assert done[-1] == tally.counts()["bytes"] == nbytes
        else:
            assert figures["bits_per_byte"] is None


def test_one_pass_over_a_text_that_fits_is_the_models_own_loss():
    model = tiny_model(pad_token_id=None)
    ids = torch.tensor([encode(DOCUMENTS[0])])
    loss = model(ids, labels=ids).loss.item()
    tally = score_documents(model, encode, DOCUMENTS[:1], window=64, stride=1, start=[])
    assert tally.metrics()["loss"] == pytest.approx(loss, rel=1e-5)


def test_windows_that_carry_less_context_give_other_figures():
    """So that the comparisons above can fail."""
    model = tiny_model("moe", pad_token_id=None)
    found = {
        score_documents(model, encode, DOCUMENTS, window=window, stride=stride, start=[0]).log_likelihood
        for window, stride in [(64, 32), (12, 6), (12, 1), (9, 8)]
    }
    assert min(abs(a - b) for a in found for b in found if a != b) > 0.01
    assert len(found) == 4


def test_nothing_to_predict_is_an_error():
    with pytest.raises(ValueError, match="no token was predicted"):
        Tally().metrics()


def test_a_loss_beyond_numbers():
    assert Tally(-1e6, 1, 0, 4).metrics()["perplexity"] == math.inf


@pytest.mark.parametrize(
    ("most", "kept"),
    [(4, ["abcd"]), (3, ["abc"]), (5, ["abcd", "e"]), (6, ["abcd", "ef"]), (8, ["abcd", "efgh"]), (99, None)],
)
def test_texts_are_cut_to_so_many_tokens(most, kept):
    texts = ["abcd", "efgh", "ij"]
    assert list(cut(texts, encode, most)) == (kept or texts)


def test_a_cut_falls_between_characters():
    assert list(cut(["a😀b"], encode, 3)) == ["a"]
    assert list(cut(["😀"], encode, 3)) == []
