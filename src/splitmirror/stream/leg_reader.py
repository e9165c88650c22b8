"""Reading windows off the raw leg: several large reads in flight, past the page cache.

While one window is emitted the next ones are looked at, laid out and read: one thread looks at the
files, a few make the reads (preadv(2) lets go of the interpreter). Memory is bounded by the windows
themselves, which are used again and again. Direct I/O (open(2), O_DIRECT) keeps the leg's data from
driving the database's out of the page cache; where a device refuses it, the pages are dropped after
each read (posix_fadvise(2)).
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Final

from splitmirror.errors import LegError
from splitmirror.model import Run
from splitmirror.stream.leg_runs import LegRuns
from splitmirror.stream.look import Looker, ReadCounts
from splitmirror.stream.plan import Item
from splitmirror.stream.windows import MAX_GAP, Draft, Read, Share, draft_windows, lay_out
from splitmirror.system import blockdev

WINDOW: Final = 64 << 20
# One being emitted, one being read, one being looked at.
WINDOWS: Final = 3
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


class Window:
    """A buffer with the data of some shares, once `wait` has returned."""

    __slots__ = ("_draft", "_positions", "buffer", "pending")

    def __init__(self, draft: Draft, positions: list[int], buffer: memoryview) -> None:
        self.buffer = buffer
        self.pending: list[Future[None]] = []
        self._draft, self._positions = draft, positions

    @property
    def shares(self) -> list[Share]:
        return self._draft.shares

    def wait(self) -> None:
        """Until all reads are done. Raises LegError for the first that failed."""
        for read in self.pending:
            read.result()

    def chunks(self, share: Share) -> Iterator[memoryview]:
        """The data of a share, in order."""
        spans, positions, buffer = self._draft.spans, self._positions, self.buffer
        for at in range(share.first, share.last):
            position = positions[at]
            yield buffer[position : position + spans[at].length]


class LegReader:
    """Reads items, a window at a time. `close` ends the threads and lets everything go.

    Used by one thread. One `windows` at a time: the buffers are the same for all.
    """

    def __init__(
        self, runs: LegRuns, looker: Looker, counts: ReadCounts, *, window: int = WINDOW
    ) -> None:
        self._runs, self._looker, self._counts = runs, looker, counts
        self._size = window
        self._gap = _buffer(MAX_GAP)  # where the bytes between go; never looked at
        self._buffers = [_buffer(window) for _ in range(WINDOWS)]
        self._devices = Devices(runs.all)
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="leg-look")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="leg-read")

    def close(self) -> None:
        """Waits for the reads that are under way. A second call is harmless."""
        self._planner.shutdown(wait=True, cancel_futures=True)
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._devices.close()
        self._buffers.clear()

    def windows(self, items: Iterable[Item]) -> Iterator[Window]:
        """The windows of these items; each is valid until the next is taken.

        Raises LegError, naming file, device and offset, when the window is due that it belongs to.
        """
        drafts = draft_windows(self._looker.look(items), len(self._runs.all), self._size)
        reads: deque[list[Future[None]]] = deque()
        ahead = deque(
            self._planner.submit(self._begin, drafts, buffer, reads) for buffer in self._buffers
        )
        try:
            while (window := ahead.popleft().result()) is not None:
                window.wait()
                reads.popleft()
                yield window
                ahead.append(self._planner.submit(self._begin, drafts, window.buffer, reads))
        finally:
            for planned in ahead:
                planned.cancel()
            wait(ahead)
            for pending in reads:
                for read in pending:
                    read.cancel()
                wait(pending)

    def _begin(
        self, drafts: Iterator[Draft], buffer: memoryview, reads: deque[list[Future[None]]]
    ) -> Window | None:
        """Look at the files of the next window and begin to read it; None behind the last."""
        draft = next(drafts, None)
        if draft is None:
            return None
        bounds = self._runs.bounds + [(0, look.attributes.size) for look in draft.through]
        planned, positions = lay_out(draft.spans, bounds)
        window = Window(draft, positions, buffer)
        reads.append(window.pending)
        for task in _tasks(planned):
            window.pending.append(self._readers.submit(self._read, task, draft, buffer))
        self._counts.reads += len(planned)
        self._counts.bytes_read += sum(read.length for read in planned)
        return window

    def _read(self, task: Sequence[Read], draft: Draft, buffer: memoryview) -> None:
        """Some reads of a window, on a reader's thread."""
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
                share.look.name
                for share in draft.shares
                for span in draft.spans[share.first : share.last]
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


def _buffer(size: int) -> memoryview:
    """Memory at a page's beginning, as direct I/O needs it; given back with the last view of it."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages; with them direct I/O has less to do
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


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
