"""Jobs at once: who does what on which thread, and what a failure does to the others."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from splitmirror.stream.together import Ask, together


class Stop:
    """Lets jobs wait until they are told to stop."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self._told = threading.Event()

    def __call__(self, error: BaseException) -> None:
        self.errors.append(error)
        self._told.set()

    def wait(self, ask: Ask) -> None:
        assert self._told.wait(10)
        raise self.errors[0]


def never(error: BaseException) -> None:
    raise AssertionError(f"nothing failed, but {error!r}")


def test_one_job_alone_is_the_callers_own() -> None:
    seen: list[threading.Thread] = []
    together([lambda ask: seen.append(ask(threading.current_thread))], never)
    assert seen == [threading.current_thread()]


def test_several_run_at_once_and_what_they_ask_is_done_by_the_caller() -> None:
    met = threading.Barrier(3, timeout=10)
    asked: list[tuple[str, str]] = []

    def job(ask: Ask) -> None:
        met.wait()
        name = ask(lambda: threading.current_thread().name)
        asked.append((threading.current_thread().name, name))

    together([job] * 3, never)
    assert len({own for own, _ in asked}) == 3
    assert {done_by for _, done_by in asked} == {threading.current_thread().name}


def test_what_was_asked_raises_where_it_was_asked() -> None:
    caught: list[BaseException] = []

    def job(ask: Ask) -> None:
        try:
            ask(lambda: 1 // 0)
        except ZeroDivisionError as error:
            caught.append(error)

    together([job, job], never)
    assert len(caught) == 2


def test_the_first_failure_stops_the_others_and_is_raised() -> None:
    stop = Stop()

    def fails(ask: Ask) -> None:
        raise LookupError("the first")

    with pytest.raises(LookupError, match="the first"):
        together([stop.wait, fails, stop.wait], stop)
    assert stop.errors


def test_who_asks_after_a_failure_is_told_of_it() -> None:
    stop, told = Stop(), list[BaseException]()

    def asks(ask: Ask) -> None:
        assert stop._told.wait(10)
        try:
            ask(lambda: None)
        except LookupError as error:
            told.append(error)
            raise

    def fails(ask: Ask) -> None:
        raise LookupError("the first")

    with pytest.raises(LookupError):
        together([asks, fails], stop)
    assert [str(error) for error in told] == ["the first"]


@pytest.mark.parametrize("asking", [True, False])
def test_an_interruption_of_the_caller_stops_all(asking: bool) -> None:
    stop = Stop()

    def patient(ask: Ask) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        if asking:
            ask(lambda: time.sleep(10))
        stop.wait(ask)

    def interrupted(number: int, frame: object) -> None:
        raise TimeoutError("enough")

    before = signal.signal(signal.SIGALRM, interrupted)
    try:
        with pytest.raises(TimeoutError, match="enough"):
            together([patient, stop.wait], stop)
    finally:
        signal.signal(signal.SIGALRM, before)
