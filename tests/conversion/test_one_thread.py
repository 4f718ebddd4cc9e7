"""How many threads torch computes with is known inside of a block, and as before after it, whatever others do."""

from __future__ import annotations

import re
import threading

import pytest
import torch

from moeba.conversion.threads import one_thread


@pytest.fixture(autouse=True)
def three():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def numbers() -> set[int]:
    """Of torch's own loops and of MKL's, where that is there."""
    mkl = re.search(r"mkl_get_max_threads\(\) : (\d+)", torch.__config__.parallel_info())
    return {torch.get_num_threads(), *([int(mkl[1])] if mkl else [])}


def test_one_inside_and_as_before_afterwards():
    with one_thread():
        assert numbers() == {1}
        with one_thread():
            assert numbers() == {1}
        assert numbers() == {1}
    assert numbers() == {3}
    with pytest.raises(KeyboardInterrupt), one_thread():
        raise KeyboardInterrupt
    assert numbers() == {3}


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("first_to_leave", ["first", "second"])
def test_two_operations_at_once(is_new, first_to_leave):
    """The second begins within the first; what comes after both has all threads again."""
    ready, entered, may_enter, may_leave = (threading.Event() for _ in range(4))
    seen = {}

    def second():
        if not is_new:
            assert numbers() == {3}
        ready.set()
        may_enter.wait(60)
        with one_thread():
            entered.set()
            may_leave.wait(60)
            seen["second"] = numbers()
        seen["own after the second"] = torch.get_num_threads()

    thread = threading.Thread(target=second)
    if not is_new:
        thread.start()
        ready.wait(60)
    with one_thread():
        if is_new:
            thread.start()
        may_enter.set()
        entered.wait(60)
        if first_to_leave == "second":
            may_leave.set()
            thread.join()
        seen["first"] = numbers()
    seen["own after the first"] = torch.get_num_threads()
    may_leave.set()
    thread.join()
    assert seen == {"first": {1}, "second": {1}, "own after the first": 3, "own after the second": 3}
    assert numbers() == {3}
    seen.clear()
    thread = threading.Thread(target=lambda: seen.update(later=numbers()))
    thread.start()
    thread.join()
    assert seen == {"later": {3}}
