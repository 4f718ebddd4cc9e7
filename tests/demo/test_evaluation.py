"""Perplexity: the right figure, over every token alike, whatever the batches."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from moeba.demo import evaluation
from moeba.demo.evaluation import perplexity


class Bigram(nn.Module):
    """Logits that depend on the current token alone."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=self.table[input_ids])


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large():
    assert perplexity(Bigram(torch.zeros(7, 7)), [[0, 1, 2, 3], [4, 5, 6, 0]]) == pytest.approx(7)


def test_a_model_that_knows_the_text_has_perplexity_one():
    assert perplexity(Bigram(100 * torch.eye(5).roll(1, dims=1)), [[0, 1, 2, 3, 4, 0]]) == pytest.approx(1)


def test_tokens_weigh_alike_and_batches_do_not_matter(monkeypatch):
    torch.manual_seed(0)
    model = Bigram(torch.randn(9, 9))
    windows = torch.randint(0, 9, (11, 5)).tolist()
    log_odds = model.table.log_softmax(-1)
    losses = [-log_odds[a, b] for window in windows for a, b in zip(window, window[1:], strict=False)]
    expected = torch.stack(losses).mean().exp().item()
    for batch in (1, 4, 100):
        monkeypatch.setattr(evaluation, "BATCH", batch)
        assert perplexity(model, windows) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_left_as_it_was(training):
    model = Bigram(torch.zeros(3, 3)).train(training)
    perplexity(model, [[0, 1]])
    assert model.training is training
