"""How much of a router loss a micro-batch adds: its share of the tokens that one optimiser step is averaged over."""

from __future__ import annotations

import pytest
import torch

from moeba.modeling.balancing import share_of_tokens

LABELS = torch.tensor([[3, 4, -100, 5], [-100, -100, 6, 7]])  # after the shift: 4, 5, 6 and 7 are predicted


@pytest.mark.parametrize("total", [16, torch.tensor(16)])
def test_labels_are_counted_after_the_shift(total):
    assert float(share_of_tokens(LABELS, None, total)) == 4 / 16


def test_shifted_labels_are_counted_as_they_are():
    assert float(share_of_tokens(None, LABELS, 16)) == 5 / 16
    assert float(share_of_tokens(LABELS[:, :1], LABELS, 16)) == 5 / 16


def test_shares_of_an_accumulated_step_add_up_to_one():
    parts = [LABELS[:1], LABELS[1:]]
    assert sum(float(share_of_tokens(part, None, 4)) for part in parts) == 1.0


def test_without_a_count_the_batch_is_the_whole_step():
    assert share_of_tokens(LABELS, None, None) == 1.0
