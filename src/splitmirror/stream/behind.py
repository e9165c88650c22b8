"""Writing behind: the medium has a thread of its own and a queue of blocks, so that it need not
wait while the next ones are read, packed and hashed.

An error of the medium is raised by the next call, whichever it is, and by every one after it:
nothing is written behind a failure. `WriteBehind` is for media that take data as they come; for
drives that must be kept streaming there is `reservoir`.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from splitmirror.media import Block

QUEUED: Final = 32 << 20  # bytes that may wait for the medium; those that are being written too

Sink = Callable[[Sequence[Block]], bool]
"""Writes each block as one record. The blocks are valid until it returns; where it writes behind,
until a `then` that came after has been answered. True: early warning."""

Then = Callable[[Callable[[], None]], None]
"""Calls what it is given when the sink has done with every block handed over so far, or never will;
on any thread."""


def at_once(done: Callable[[], None]) -> None:
    """The `Then` of a sink that is done when it returns."""
    done()


class Behind(ABC):
    """A sink (see archive.records) in front of another one, which it calls on a thread.

    Used by one thread. The medium is nobody else's from the first call until `drain` or `stop`
    returns. Leaving the `with` ends the thread.
    """

    def __init__(self, sink: Sink) -> None:
        self.busy_s = 0.0  # spent in the sink
        self.waited_s = 0.0  # spent by callers because there was no room, or in `drain`
        self.stalls = 0  # how often the medium had nothing to write in the middle of a file
        self.stalled_s = 0.0  # for how long
        self._sink = sink
        self._early = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="write-behind", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @abstractmethod
    def __call__(self, blocks: Sequence[Block]) -> bool:
        """Take the blocks, waiting for room. True: the sink has given early warning. Raises what
        the sink raised."""

    @abstractmethod
    def then(self, done: Callable[[], None]) -> None:
        """See Then. `done` must return at once."""

    @abstractmethod
    def drain(self) -> None:
        """Wait until everything is with the medium. Raises what the sink raised."""

    def stop(self) -> None:
        """Forget what still waits and end the thread, when the sink has returned. Nothing can be
        written after that. A second call is harmless."""
        self.break_off(RuntimeError("nothing can be written any more"))
        self._thread.join()

    def break_off(self, error: BaseException) -> None:
        """Forget what still waits; the next call raises this error, as every one after it, unless
        there was one before. On any thread."""
        with self._changed:
            self._give_up(error)
            self._changed.notify_all()

    # --- inside

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _give_up(self, error: BaseException) -> None:
        """The first error stays."""
        self._error = self._error or error

    def _write(self, blocks: Sequence[Block]) -> bool:
        """On the thread; False: it failed, and there will be no more."""
        began_s = time.monotonic()
        try:
            early = self._sink(blocks)
        except BaseException as error:
            self.break_off(error)
            return False
        self.busy_s += time.monotonic() - began_s
        self._early |= early
        return True

    @abstractmethod
    def _work(self) -> None:
        """The thread's life."""


class WriteBehind(Behind):
    """The queue is bounded. The blocks in it are views of buffers that are used again: whoever
    wants one back says so with `then`, and is called when the medium has done with everything
    before."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink)
        self._queue: deque[tuple[Sequence[Block], int] | Callable[[], None]] = deque()
        self._queued = 0
        self._thread.start()

    def __call__(self, blocks: Sequence[Block]) -> bool:
        size = sum(map(len, blocks))
        began_s = time.monotonic()
        with self._changed:
            while self._queued and self._queued + size > QUEUED and self._error is None:
                self._changed.wait()
            self.waited_s += time.monotonic() - began_s
            self._raise_error()
            self._queue.append((blocks, size))
            self._queued += size
            self._changed.notify_all()
            return self._early

    def then(self, done: Callable[[], None]) -> None:
        with self._changed:
            failed = self._error is not None
            if not failed:
                self._queue.append(done)
                self._changed.notify_all()
        if failed:
            done()

    def drain(self) -> None:
        began_s = time.monotonic()
        passed = threading.Event()
        self.then(passed.set)
        passed.wait()
        self.waited_s += time.monotonic() - began_s
        with self._changed:
            self._raise_error()

    # --- inside

    def _give_up(self, error: BaseException) -> None:
        """Let those know who wait for what is queued."""
        super()._give_up(error)
        waiting = [done for done in self._queue if not isinstance(done, tuple)]
        self._queue.clear()
        self._queued = 0
        for done in waiting:
            done()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            if not isinstance(taken, tuple):
                taken()
                continue
            blocks, size = taken
            if not self._write(blocks):
                return
            with self._changed:
                self._queued = max(self._queued - size, 0)  # 0 after `stop`
                self._changed.notify_all()

    def _take(self) -> tuple[Sequence[Block], int] | Callable[[], None] | None:
        """What is next; None when there will be no more."""
        with self._changed:
            while not self._queue and self._error is None:
                self._changed.wait()
            return self._queue.popleft() if self._queue else None
