"""Several jobs at once, each on a thread of its own, while the caller's thread does for them what
only one may do at a time: ask for volumes, move cartridges, wait for an operator.

That thread is mostly the main one, and what it waits for can be cut short by a signal (deadlines,
Ctrl-C), as no other thread's waiting can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")


class Ask(Protocol):
    """Has something done on the caller's thread; gives what it gives, raises what it raises."""

    def __call__(self, act: Callable[[], T]) -> T: ...


Job = Callable[[Ask], None]


def together(jobs: Sequence[Job], stop: Callable[[BaseException], None]) -> None:
    """Run all jobs to their end. One alone is run on the caller's thread.

    When one fails, or the caller's thread is interrupted, `stop` is called with the error, on the
    caller's thread and perhaps more than once: the others must come to their end soon. All have
    ended when this returns, or raises the first error.
    """
    if len(jobs) == 1:
        jobs[0](_at_once)
        return
    with ThreadPoolExecutor(max(len(jobs), 1), thread_name_prefix="stream") as threads:
        desk = _Desk(stop)
        for job in jobs:
            threads.submit(job, desk.ask).add_done_callback(desk.events.put)
        desk.serve(len(jobs))
    if desk.first is not None:
        raise desk.first


def _at_once(act: Callable[[], T]) -> T:
    return act()


class _Order(NamedTuple):
    act: Callable[[], Any]
    answer: Future[Any]


class _Desk:
    """Where the caller's thread takes what is asked of it, and hears which jobs have ended."""

    def __init__(self, stop: Callable[[BaseException], None]) -> None:
        self.events = SimpleQueue[_Order | Future[None]]()
        self.first: BaseException | None = None  # what went wrong first
        self._stop = stop
        self._asked: list[Future[Any]] = []

    def ask(self, act: Callable[[], T]) -> T:
        answer = Future[T]()
        self._asked.append(answer)
        self.events.put(_Order(act, answer))
        return answer.result()

    def serve(self, jobs: int) -> None:
        """Until so many jobs have ended. Raises nothing: an interruption stops them too."""
        while jobs:
            try:
                if self.first is not None:
                    self._break_off(self.first)
                event = self.events.get()
                if isinstance(event, _Order):
                    if self.first is None:  # else it is broken off too
                        self._do(event)
                else:
                    jobs -= 1
                    self.first = self.first or event.exception()
            except BaseException as error:
                self.first = self.first or error

    def _break_off(self, error: BaseException) -> None:
        self._stop(error)
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(error)

    def _do(self, order: _Order) -> None:
        """Raises only what is not the job's affair: an interruption."""
        try:
            order.answer.set_result(order.act())
        except Exception as error:
            order.answer.set_exception(error)
