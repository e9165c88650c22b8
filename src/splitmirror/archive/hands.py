"""Several hands that place files at once, each a process with a Placer of its own.

Making files is the kernel's work, which goes on side by side where the directories differ. So each
directory has its hand, and what happens in it happens in the order of the medium. What goes wrong
with one member is told by `settle`; anything else stops all hands, and the next call raises it.
docs/adr/0011-restore-at-the-devices-rate.md says why they are processes.
"""

from __future__ import annotations

import mmap
import os
import select
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

from splitmirror.archive.ahead import Window, Windows
from splitmirror.archive.dressing import Skipped
from splitmirror.archive.ground import Anchor
from splitmirror.archive.hand import (
    Act,
    Answer,
    Failure,
    Hand,
    answer_of,
    orders_of,
    packed,
    serve,
)
from splitmirror.archive.pax import FileValues
from splitmirror.archive.placing import Placer
from splitmirror.errors import SplitmirrorError
from splitmirror.media import Place
from splitmirror.model import Attributes
from splitmirror.system.forked import Forked

MOST = 4  # processes; beyond that the filesystem's journal is what they wait for
FEW_FILES = 256  # up to so many, and so many bytes, one pair of hands is quick enough
FEW_BYTES = 32 << 20
_GATHERED = 64  # acts that are handed over together
_GATHERED_BYTES = 1 << 20
_WEIGHT = 16 << 10  # bytes that are written in the time in which a file is made


def hands_for(files: int, stored: int) -> int:
    """How many processes are worth their beginning; 0: this one does it itself."""
    if files <= FEW_FILES and stored <= FEW_BYTES:
        return 0
    return min(MOST, max(2, len(os.sched_getaffinity(0))))


class _Queue:
    """What a hand has to do. Under the lock of Hands: `unanswered`, `load`, `files`, `skipped`."""

    def __init__(self, process: Forked | None) -> None:
        self.process = process  # None: what it does is done at once
        self.acts: list[Act] = []  # gathered, to be handed over together
        self.windows: list[Window] = []  # in which their bytes lie
        self.size = 0
        self.unanswered: deque[tuple[list[Window], int]] = deque()
        self.load = 0  # the weight of all that is not answered
        self.files = 0
        self.skipped: list[tuple[str, str, bytes, int]] = []


class Hands:
    """Places members, for several threads if need be. Leaving it waits for the hands, or after an
    error stops them; nothing half made is left.

    `processes` 0: everything is done by this one, at once.
    """

    def __init__(
        self,
        anchors: Sequence[Anchor],
        windows: Windows,
        *,
        replace: bool = False,
        flush_each: bool = False,
        processes: int = 0,
    ) -> None:
        self.turn = 0  # acts that were asked for so far
        self.directories = 0
        self._make = partial(Placer, anchors, replace=replace, flush_each=flush_each)
        self._placer = self._make()
        self._self = Hand(self._placer, windows.memory)
        self._windows = windows
        self._stop = memoryview(mmap.mmap(-1, mmap.PAGESIZE))  # shared with the processes
        self._processes = processes
        self._asking = threading.RLock()  # held by the thread that asks for something
        self._changed = threading.Condition()
        self._first: BaseException | None = None
        self._failures: list[Failure] = []
        self._queues: list[_Queue] = []
        self._of: dict[bytes, _Queue] = {}  # each directory's
        self._links: set[bytes] = set()  # links and the like since all was done: never entered
        self._tops = {anchor.prefix for anchor in anchors}
        self._directory: bytes | None = None  # the latest, and its queue
        self._listener = threading.Thread(target=self._listen, name="hands", daemon=True)
        self._leaving = ExitStack()

    def __enter__(self) -> Hands:
        with ExitStack() as leaving:
            leaving.enter_context(self._placer)
            leaving.callback(self._end)
            for _ in range(self._processes):
                hand = Hand(self._make(), self._windows.memory)
                siblings = [queue.process for queue in self._queues if queue.process]
                forked = Forked(partial(serve, hand, self._stop), siblings)
                self._queues.append(_Queue(forked))
            if self._processes:
                self._listener.start()
            else:
                self._queues.append(_Queue(None))
            self._queue = self._queues[0]
            self._leaving = leaving.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stop[0] = 1
            self._leaving.__exit__(kind, error, trace)
            return
        with self._leaving:
            self._wait()

    # --- what members become

    def small(self, values: FileValues, places: Sequence[Place], windows: Sequence[Window]) -> None:
        """A whole regular file, its bytes known to be the right ones: `places` of `windows`."""
        with self._asking:
            queue = self._queue_of(values[0])
            self.do_with(queue, windows, values[-1], "small", values[0], values, places)

    def file(self, name: bytes) -> ComingFile:
        """Begin a regular file that comes piece by piece."""
        with self._asking:
            return ComingFile(self, self._queue_of(name), name)

    def directory(self, name: bytes, attributes: Attributes) -> None:
        """It gets its attributes in `finish`."""
        with self._asking:
            self.do(self._queue_of(name + b"/"), "directory", name)
            self._placer.dress_later(name, attributes)
            self.directories += 1

    def hardlink(self, name: bytes, target: bytes) -> None:
        """Another name for a member that was asked for before."""
        with self._asking:
            queue = self._queue_of(name)
            theirs = self._of.get(target.rpartition(b"/")[0])
            if theirs is not None and theirs is not queue:
                self._wait(theirs)
            self.do(queue, "hardlink", name, target)

    def symlink(self, name: bytes, attributes: Attributes) -> None:
        with self._asking:
            self._links.add(name)
            self.do(self._queue_of(name), "symlink", name, packed(attributes))

    def special(self, name: bytes, attributes: Attributes) -> None:
        """A device or a fifo."""
        with self._asking:
            self._links.add(name)
            self.do(self._queue_of(name), "special", name, packed(attributes))

    # --- all of them

    def flush(self) -> None:
        """Hand over what was gathered. Raises what stopped the hands."""
        with self._asking:
            for queue in self._queues:
                self._hand_over(queue)

    def settle(self) -> list[Failure]:
        """Wait until all that was asked for is done: what failed since the last time, in order.
        Raises what stopped the hands."""
        with self._asking:
            self._wait()
            failures, self._failures = self._failures, []
            return sorted(failures)

    def finish(self) -> None:
        """Directories' attributes, then everything is made durable."""
        self._wait()
        self._placer.finish()

    @property
    def files(self) -> int:
        """How many were placed, directories not among them. To be asked when all is settled."""
        return self._placer.files + sum(queue.files for queue in self._queues)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What could not be given back. To be asked when all is settled."""
        found = {(one.what, one.why): one for one in self._placer.skipped}
        for what, why, first, count in (one for queue in self._queues for one in queue.skipped):
            none = Skipped(what=what, why=why, first=first, count=0)
            found[what, why] = found.get((what, why), none).and_more(count)
        return tuple(found.values())

    # --- for ComingFile too

    def do(self, queue: _Queue, what: str, name: bytes, *arguments: Any) -> None:
        """An act for this queue's hand."""
        with self._asking:
            self.turn += 1
            act = (self.turn, what, (name, *arguments))
            if queue.process is None:
                if failure := self._self.do(act):
                    self._failures.append(failure)
                return
            queue.acts.append(act)
            if len(queue.acts) >= _GATHERED or queue.size >= _GATHERED_BYTES:
                self._hand_over(queue)

    def do_with(
        self,
        queue: _Queue,
        windows: Sequence[Window],
        size: int,
        what: str,
        name: bytes,
        *arguments: Any,
    ) -> None:
        """The same, of which `size` bytes lie in these windows."""
        with self._asking:
            if queue.process is not None:  # else it is done before they can be needed again
                for window in windows:
                    if window not in queue.windows:
                        self._windows.hold(window)
                        queue.windows.append(window)
                queue.size += size
            self.do(queue, what, name, *arguments)

    # --- inside: the caller's side

    def _queue_of(self, name: bytes) -> _Queue:
        """The queue of the directory that a member stands in."""
        directory = name.rpartition(b"/")[0]
        if directory != self._directory or name in self._tops:
            self._placer.prepare(name)
            if self._links and not self._links.isdisjoint(_with_above(directory)):
                self._wait()  # whether one of them is in the way must not depend on luck
            queue = self._of.get(directory)
            if queue is None:
                queue = self._of[directory] = min(self._queues, key=lambda queue: queue.load)
            self._directory, self._queue = directory, queue
        return self._queue

    def _hand_over(self, queue: _Queue) -> None:
        if queue.acts and queue.process is not None:
            weight = queue.size + len(queue.acts) * _WEIGHT
            with self._changed:
                queue.unanswered.append((queue.windows, weight))
                queue.load += weight
            order = orders_of(queue.acts)
            queue.acts, queue.windows, queue.size = [], [], 0
            try:
                queue.process.send(order)
            except BrokenPipeError:
                self._wait(queue)  # for the listener to tell why
        self._raise_first()

    def _wait(self, *queues: _Queue) -> None:
        """Until these hands, or all, have done everything."""
        for queue in queues or self._queues:
            self._hand_over(queue)
        with self._changed:
            while self._first is None and any(queue.unanswered for queue in queues or self._queues):
                self._changed.wait()
        if not queues:
            self._links.clear()
        self._raise_first()

    def _raise_first(self) -> None:
        if self._first is not None:
            raise self._first

    def _end(self) -> None:
        """The processes end."""
        processes = [queue.process for queue in self._queues if queue.process]
        for process in processes:
            process.no_more()
        if self._listener.ident is not None:
            self._listener.join()
        for process in processes:
            process.wait()
        for queue in self._queues:
            held = [queue.windows, *(windows for windows, _ in queue.unanswered)]
            self._windows.release(window for windows in held for window in windows)

    # --- inside: the listener's side

    def _listen(self) -> None:
        """Take the answers, until all processes have ended."""
        queues = {queue.process.fileno(): queue for queue in self._queues if queue.process}
        poll = select.poll()
        for fd in queues:
            poll.register(fd, select.POLLIN)
        while queues:
            for fd, _ in poll.poll():
                process = queues[fd].process
                assert process is not None
                answers = process.receive()
                if answers is None:
                    poll.unregister(fd)
                    self._gone(queues.pop(fd))
                for answer in answers or ():
                    self._answered(queues[fd], answer_of(answer))

    def _answered(self, queue: _Queue, answer: Answer) -> None:
        windows, weight = queue.unanswered[0]
        self._windows.release(windows)
        with self._changed:
            queue.unanswered.popleft()
            queue.load -= weight
            queue.files, queue.skipped = answer.files, answer.skipped
            self._failures += answer.failures
            if answer.stopped and self._first is None:
                self._first = _unpickled(answer.stopped)
            self._changed.notify_all()

    def _gone(self, queue: _Queue) -> None:
        with self._changed:
            if queue.unanswered and self._first is None:
                self._first = SplitmirrorError(
                    "a process that placed files has ended before it was done",
                    hint="Something ended it: look for the OOM killer or an operator. Then start "
                    "again.",
                )
            self._changed.notify_all()


class ComingFile:
    """A file that comes piece by piece. End it with `place` or `abandon`."""

    def __init__(self, hands: Hands, queue: _Queue, name: bytes) -> None:
        self._hands, self._queue, self._name = hands, queue, name
        hands.do(queue, "begin", name, hands.turn + 1)
        self._number = hands.turn

    def expect(self, offset: int, length: int) -> None:
        """So many bytes come next, all of them data."""
        self._hands.do(self._queue, "expect", self._name, self._number, offset, length)

    def write(self, offset: int, place: Place, windows: Sequence[Window]) -> None:
        """The bytes at a place of `windows` go to `offset`."""
        size = place[1] - place[0]
        self._hands.do_with(
            self._queue, windows, size, "write", self._name, self._number, offset, *place
        )

    def place(self, attributes: Attributes) -> None:
        """Give it its size and attributes, and its name."""
        self._hands.do(self._queue, "place", self._name, self._number, packed(attributes))

    def abandon(self, *, keep: bool = False) -> None:
        """See NewFile.abandon."""
        self._hands.do(self._queue, "abandon", self._name, self._number, keep)


def _unpickled(error: bytes) -> BaseException:
    import pickle

    raised: BaseException = pickle.loads(error)
    return raised


def _with_above(directory: bytes) -> list[bytes]:
    """The directory and those it lies in."""
    found = [directory]
    while b"/" in directory:
        directory = directory.rpartition(b"/")[0]
        found.append(directory)
    return found
