"""Reading windows off the raw leg: many large reads in flight, past the page cache.

While one window is emitted the next ones are looked at, laid out and read: one thread looks at the
files and hands all reads of a window to the kernel at once. Memory is bounded by the windows
themselves, which are used again and again. Direct I/O (open(2), O_DIRECT) keeps the leg's data from
driving the database's out of the page cache; where a device refuses it, and through the mounted
leg, a few threads make the reads and the pages are dropped after each (posix_fadvise(2)).
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any, Final, NamedTuple

from splitmirror.errors import LegError
from splitmirror.model import Run
from splitmirror.stream.leg_runs import LegRuns
from splitmirror.stream.look import Looker, ReadCounts
from splitmirror.stream.plan import Packed
from splitmirror.stream.windows import MAX_GAP, Draft, Read, draft_windows, lay_out
from splitmirror.system import blockdev
from splitmirror.system.aio import AsyncReads, Request, address_of

READERS: Final = 3
# Small reads share a task: handing one over costs as much as reading 20 KiB.
TASK_BYTES: Final = 4 << 20
TASK_READS: Final = 64

_HINT: Final = "Look at the kernel's log; replace the mirror disk if it fails, and back up anew."


class Devices:
    """The devices and images of a leg, open for reading. Closed by `close`; thread-safe."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._direct: dict[str, int] = {}
        self._buffered: dict[str, int] = {}
        try:
            for path in {run.path for run in runs}:
                self._open(path)
        except BaseException:
            self.close()
            raise

    def _open(self, path: str) -> None:
        """Open a path both ways; a leg's cached pages may be older than the split."""
        try:
            fd = self._buffered[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if stat.S_ISBLK(os.fstat(fd).st_mode):
                blockdev.flush_buffers(fd)
            with suppress(OSError):  # tmpfs, memfd: EINVAL
                self._direct[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            self.close()
            raise LegError(
                f"the leg's {path} cannot be opened: {error.strerror}", hint=_HINT, device=path
            ) from error

    def close(self) -> None:
        """A second call is harmless."""
        for fds in (self._direct, self._buffered):
            while fds:
                os.close(fds.popitem()[1])

    def direct(self, source: int) -> int | None:
        """The descriptor for direct I/O of a run's path; None where it is refused."""
        return self._direct.get(self._runs[source].path)

    def read(self, source: int, begin: int, into: list[memoryview]) -> None:
        """Fill `into` from `begin` of a run's path. Raises OSError, EOFError."""
        path = self._runs[source].path
        direct = self._direct.get(path)
        if direct is not None:
            try:
                read_fully(direct, begin, into)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:  # not aligned to this device's sectors
                    raise
        read_past_cache(self._buffered[path], begin, into)


def read_fully(fd: int, begin: int, into: list[memoryview]) -> None:
    """preadv(2) until everything is there. Raises EOFError where the file ends before."""
    wanted = sum(map(len, into))
    while got := os.preadv(fd, into, begin):
        wanted -= got
        if not wanted:
            return
        begin += got
        into = _behind(into, got)
    raise EOFError(f"it ends {wanted} bytes early")


def read_past_cache(fd: int, begin: int, into: list[memoryview]) -> None:
    """`read_fully`, buffered, and the pages are given back."""
    read_fully(fd, begin, into)
    os.posix_fadvise(fd, begin, sum(map(len, into)), os.POSIX_FADV_DONTNEED)


def _behind(views: list[memoryview], done: int) -> list[memoryview]:
    """What of the views lies behind their first `done` bytes."""
    rest = []
    for view in views:
        if done < len(view):
            rest.append(view[done:])
        done = max(done - len(view), 0)
    return rest


class Room:
    """The memory of one window, and the reads into it that are in flight."""

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = buffer
        self.address = address_of(buffer)
        self.reads: AsyncReads | None = None
        with suppress(OSError):  # not on this kernel, or too many elsewhere: threads do it
            self.reads = AsyncReads()


class Planned(NamedTuple):
    """A window that is laid out."""

    draft: Draft
    reads: list[Read]
    positions: list[int]


class Window:
    """Room with the data of some shares, once `wait` has returned: that of each of the `spans` at
    its one of the `positions`."""

    __slots__ = ("_finish", "pending", "positions", "room", "shares", "spans")

    def __init__(
        self, draft: Draft, positions: list[int], room: Room, finish: Callable[[], None]
    ) -> None:
        self.shares, self.spans, self.positions = draft.shares, draft.spans, positions
        self.room = room
        self.pending: list[Future[None]] = []
        self._finish = finish

    def wait(self) -> None:
        """Until all reads are done. Raises LegError for the first that failed."""
        self._finish()
        for read in self.pending:
            read.result()

    def give_up(self) -> None:
        """Until nothing is read any more, whatever became of it."""
        for read in self.pending:
            read.cancel()
        wait(self.pending)
        if self.room.reads is not None:
            self.room.reads.finish()


class LegReader:
    """Reads items into `buffers`, a window at a time. `close` ends the threads and lets everything
    go. Used by one thread, for one `windows`.

    `fence` is raised when a window is given back; its buffer is used again when that is passed.
    """

    def __init__(
        self,
        runs: LegRuns,
        looker: Looker,
        counts: ReadCounts,
        buffers: Sequence[memoryview],
        fence: Callable[[], Callable[[], None]],
    ) -> None:
        self._runs, self._looker, self._counts = runs, looker, counts
        self._size, self._fence = len(buffers[0]), fence
        self._gap = memoryview(mmap.mmap(-1, MAX_GAP))  # for the bytes between; never looked at
        self._gap_address = address_of(self._gap)
        self._devices = Devices(runs.all)
        self._rooms = [Room(buffer) for buffer in buffers]
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="leg-look")
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="leg-start")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="leg-read")

    def close(self) -> None:
        """Waits for the reads that are under way. A second call is harmless."""
        self._planner.shutdown(wait=True, cancel_futures=True)
        self._starter.shutdown(wait=True, cancel_futures=True)
        self._readers.shutdown(wait=True, cancel_futures=True)
        while self._rooms:
            if (reads := self._rooms.pop().reads) is not None:
                reads.close()
        self._devices.close()

    def windows(self, items: Iterable[Packed]) -> Iterator[Window]:
        """The windows of these items; each is valid until the next is taken and the fence that is
        raised then is passed.

        Raises LegError, naming file, device and offset, when the window is due that it belongs to.
        """
        drafts = draft_windows(self._looker.look(items), len(self._runs.all), self._size)
        begun: deque[Window] = deque()
        plans = deque([self._planner.submit(self._plan, drafts)])

        def begin(room: Room, passed: Callable[[], None]) -> Future[Window | None]:
            plans.append(self._planner.submit(self._plan, drafts))
            return self._starter.submit(self._begin, plans.popleft(), begun, room, passed)

        ahead = deque(begin(room, _at_once) for room in self._rooms)
        try:
            while (window := ahead.popleft().result()) is not None:
                window.wait()
                begun.popleft()
                yield window
                ahead.append(begin(window.room, self._fence()))
        finally:
            for future in chain[Future[Any]](ahead, plans):
                future.cancel()
            wait(chain[Future[Any]](ahead, plans))
            for window in begun:
                window.give_up()

    def _plan(self, drafts: Iterator[Draft]) -> Planned | None:
        """Look at the files of the next window and lay out its reads; None behind the last."""
        began_s = time.monotonic()
        draft = next(drafts, None)
        if draft is None:
            return None
        bounds = self._runs.bounds + [(0, look.attributes.size) for look in draft.through]
        planned = Planned(draft, *lay_out(draft.spans, bounds))
        self._counts.look_s += time.monotonic() - began_s
        self._counts.reads += len(planned.reads)
        self._counts.bytes_read += sum(read.length for read in planned.reads)
        return planned

    def _begin(
        self,
        plan: Future[Planned | None],
        begun: deque[Window],
        room: Room,
        passed: Callable[[], None],
    ) -> Window | None:
        """Begin to read a window that is planned. Not on the planner's thread: handing over many
        reads takes until the device has had most of them."""
        planned = plan.result()
        if planned is None:
            return None
        passed()
        draft = planned.draft
        direct, others = self._parted(planned.reads, draft, room)
        window = Window(draft, planned.positions, room, partial(self._finish, direct, draft, room))
        begun.append(window)
        if direct:
            self._start(direct, room)
        for task in _tasks(others):
            window.pending.append(self._readers.submit(self._read, task, draft, room.buffer))
        return window

    def _parted(
        self, planned: list[Read], draft: Draft, room: Room
    ) -> tuple[list[Read], list[Read]]:
        """Those that the kernel makes in the background, and those that threads have to make."""
        if room.reads is None:
            return [], planned
        direct = [
            source < draft.devices and self._devices.direct(source) is not None
            for source in range(draft.devices + len(draft.through))
        ]
        return (
            [read for read in planned if direct[read.source]],
            [read for read in planned if not direct[read.source]],
        )

    def _start(self, reads: list[Read], room: Room) -> None:
        """Hand reads to the kernel."""
        assert room.reads is not None
        gap, base = self._gap_address, room.address
        fds = {source: self._devices.direct(source) for source in {read.source for read in reads}}
        requests = [
            Request(
                fds[source] or 0,
                begin,
                length,
                [(gap if position is None else base + position, size) for position, size in places],
            )
            for source, begin, length, places in reads
        ]
        room.reads.start(requests)

    def _finish(self, reads: list[Read], draft: Draft, room: Room) -> None:
        """Wait for the reads of a window. What the kernel could not do that way is done again
        plainly: it knows a device's alignment, and finds the error's name."""
        if room.reads is None:
            return
        failed = room.reads.finish()
        if failed:
            self._read([reads[failure.at] for failure in failed], draft, room.buffer)

    def _read(self, task: Sequence[Read], draft: Draft, buffer: memoryview) -> None:
        """Some reads of a window, one after another."""
        for read in task:
            try:
                self._read_one(read, draft, buffer)
            except (OSError, EOFError) as error:
                raise self._failed(read, draft, error) from error

    def _read_one(self, read: Read, draft: Draft, buffer: memoryview) -> None:
        into = [
            self._gap[: place.length]
            if place.position is None
            else buffer[place.position : place.position + place.length]
            for place in read.places
        ]
        if read.source < draft.devices:
            self._devices.read(read.source, read.begin, into)
            return
        fd = self._looker.open(draft.through[read.source - draft.devices])
        try:
            read_past_cache(fd, read.begin, into)
        finally:
            os.close(fd)

    def _failed(self, read: Read, draft: Draft, error: OSError | EOFError) -> LegError:
        """Which file of the window it was, for a read may serve several: the first."""
        why = error.strerror if isinstance(error, OSError) else str(error)
        end = read.begin + read.length
        name = next(
            (
                name
                for name, spans in draft.named_spans()
                for span in spans
                if span.source == read.source and read.begin < span.address + span.length
                if span.address < end
            ),
            b"",
        )
        device = "the mounted leg"
        if read.source < draft.devices:
            device = self._runs.all[read.source].path
        return LegError(
            f"cannot read {os.fsdecode(name)} from {device} at {read.begin}: {why}",
            hint=_HINT,
            name=name,
            device=device,
            offset=read.begin,
        )


def _at_once() -> None:
    """The fence of a buffer that was not used yet."""


def _tasks(reads: Sequence[Read]) -> Iterator[list[Read]]:
    """Reads that one thread makes one after another: a large one, or several small ones."""
    task: list[Read] = []
    size = 0
    for read in reads:
        if task and (size + read.length > TASK_BYTES or len(task) == TASK_READS):
            yield task
            task, size = [], 0
        task.append(read)
        size += read.length
    if task:
        yield task
