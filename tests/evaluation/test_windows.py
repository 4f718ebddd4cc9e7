"""Windows hold what they promise: each token predicted once, from as much context as was said."""

import pytest

from moeba.evaluation import sliding_windows


@pytest.mark.parametrize("start", [[], [90], [90, 91]])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 7, 8, 13, 40])
@pytest.mark.parametrize(("window", "stride"), [(7, 1), (7, 3), (7, 4), (8, 6), (50, 25)])
def test_each_token_is_predicted_once_from_the_promised_context(start, count, window, stride):
    tokens = list(range(count))
    predicted = []
    for cut in sliding_windows(tokens, window, stride, start):
        inputs, targets = cut.tokens[: -cut.scored], cut.tokens[-cut.scored :]
        assert len(cut.tokens) <= window
        assert cut.tokens[: len(start)] == start
        assert inputs, "the first predicted token has nothing before it"
        context = inputs[len(start) :]
        assert context + targets == tokens[targets[-1] + 1 - len(context + targets) : targets[-1] + 1]
        # Enough context, or all there is.
        assert len(context) >= window - stride - len(start) or context == tokens[: targets[0]]
        predicted += targets
    assert predicted == (tokens if start else tokens[1:])


def test_a_text_that_fits_is_one_window():
    (only,) = sliding_windows([1, 2, 3], 4, 2, [9], origin="here")
    assert (list(only.tokens), only.scored, only.origin) == ([9, 1, 2, 3], 3, "here")


def test_further_windows_move_by_the_stride_and_the_last_one_is_full():
    cuts = [(list(cut.tokens), cut.scored) for cut in sliding_windows(range(8), 5, 2, [9])]
    assert cuts == [
        ([9, 0, 1, 2, 3], 4),
        ([9, 2, 3, 4, 5], 2),
        ([9, 4, 5, 6, 7], 2),
    ]
    assert [(list(cut.tokens), cut.scored) for cut in sliding_windows(range(6), 4, 3)] == [
        ([0, 1, 2, 3], 3),
        ([2, 3, 4, 5], 2),
    ]


@pytest.mark.parametrize(("window", "stride", "start"), [(4, 0, []), (4, 4, []), (4, 4, [9]), (1, 1, [9])])
def test_a_stride_that_leaves_no_context_is_refused(window, stride, start):
    with pytest.raises(ValueError, match=rf"stride={stride} must be between 1 and {window - 1}"):
        list(sliding_windows(range(9), window, stride, start))
