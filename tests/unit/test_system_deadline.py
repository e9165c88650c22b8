"""Limits on what is waited for, and that nothing is undone by halves."""

from __future__ import annotations

import signal
import threading

import pytest

from splitmirror.errors import DeadlineExceeded
from splitmirror.system.deadline import deadline, uninterrupted

LONG_S = 20.0


def wait_out_the_alarm() -> None:
    """Return once the deadline's alarm has come, however long the machine takes."""
    while signal.getitimer(signal.ITIMER_REAL)[0]:
        threading.Event().wait(0.001)


def test_what_waits_beyond_its_limit_is_cut_short_by_name() -> None:
    with pytest.raises(DeadlineExceeded, match="it took longer"), deadline(0.02, "it"):
        threading.Event().wait(LONG_S)


def test_within_its_limit_nothing_happens_and_the_alarm_is_off_behind_it() -> None:
    with deadline(LONG_S, "it"):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_what_undoes_is_not_cut_short_and_the_deadline_is_told_behind_it() -> None:
    done: list[str] = []

    with pytest.raises(DeadlineExceeded), deadline(0.01, "it"):
        with uninterrupted():
            wait_out_the_alarm()
            done.append("the first half")
            with uninterrupted():
                done.append("the second half")
        done.append("what comes behind")

    assert done == ["the first half", "the second half"]


def test_an_error_of_the_undoing_itself_comes_before_the_deadline() -> None:
    with pytest.raises(ValueError), deadline(0.01, "it"), uninterrupted():
        wait_out_the_alarm()
        raise ValueError
    with deadline(LONG_S, "the next"), uninterrupted():
        pass  # what was late is forgotten


def test_the_error_that_made_it_undo_is_not_replaced() -> None:
    with pytest.raises(KeyError), deadline(0.01, "it"):
        try:
            raise KeyError
        finally:
            with uninterrupted():
                wait_out_the_alarm()


def test_without_a_deadline_undoing_goes_on_as_ever() -> None:
    with uninterrupted():
        pass


def test_another_thread_has_no_limit() -> None:
    done = threading.Event()

    def work() -> None:
        with deadline(0.001, "it"), uninterrupted():
            done.set()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done.is_set()
