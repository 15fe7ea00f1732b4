"""Work in a thread: its result, its error, or neither in time."""

import sys
import threading

import pytest

from dtl.base.deadline import within


def test_result_and_error_come_through():
    assert within(30, lambda: 17) == 17
    with pytest.raises(ZeroDivisionError):
        within(30, lambda: 17 / 0)
    with pytest.raises(SystemExit):
        within(30, lambda: sys.exit(3))


def test_a_late_result_is_handed_over():
    released, handed, results = threading.Event(), threading.Event(), []
    with pytest.raises(TimeoutError):
        within(0.01, lambda: released.wait(60), lambda result: (results.append(result), handed.set()))
    assert not results
    released.set()
    assert handed.wait(30) and results == [True]


def test_a_result_in_time_and_an_error_are_not_late():
    late = []
    within(30, lambda: 17, late.append)
    with pytest.raises(KeyError):
        within(30, lambda: {}["x"], late.append)
    assert late == []
