"""The reader in a process of its own, so that looking at files and laying out their reads does not
take the interpreter from packing and hashing them.

The windows' memory is shared between the two. The reader is forked, and so has the plan, the table
and the mounted leg without a byte being copied; it tells of each window that is filled through one
pipe, and is given the windows back through another. It dies with its parent, whatever happens to
that, and holds no descriptor open but those it reads through.

Sources: fork(2), mmap(2) MAP_SHARED, prctl(2) PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import fcntl
import gc
import marshal
import mmap
import os
import pickle
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final, NamedTuple, NoReturn

from splitmirror.errors import LegError
from splitmirror.extents.table import Xattrs
from splitmirror.stream.leg_reader import LegReader, Window
from splitmirror.stream.look import Look, PlainLook, ReadCounts
from splitmirror.stream.plan import Packed
from splitmirror.system import libc

_LENGTH: Final = struct.Struct("<Q")
_PR_SET_PDEATHSIG: Final = 1
_PIPE_SIZE: Final = 1 << 20
_ENDED_WELL: Final = 0

PlainShare = tuple[bytes, int, int, int, int, Xattrs, int, int]
"""An ordinary file in a window: name, mode, uid, gid, mtime_ns, xattrs, size, position."""


class Filled(NamedTuple):
    """What of another member lies in a window, at (position, length) each. One that does not end
    goes on at the beginning of the next window."""

    look: Look
    begins: bool
    ends: bool
    places: list[tuple[int, int]]


class FilledWindow(NamedTuple):
    """A window that was read."""

    buffer: memoryview
    shares: list[PlainShare | Filled]


OpenReader = Callable[[Sequence[memoryview], Callable[[], Callable[[], None]]], LegReader]
"""Makes the reader, in its own process, for these buffers and with this fence."""


class ReaderProcess:
    """Reads items, a window at a time, in another process. `close` ends that.

    `kept`: the descriptors that the reader needs; it closes all others. Used by one thread, but for
    what `windows` calls `then` with.
    """

    def __init__(
        self,
        open_reader: OpenReader,
        items: Iterable[Packed],
        counts: ReadCounts,
        *,
        windows: int,
        size: int,
        kept: Iterable[int],
    ) -> None:
        self._counts = counts
        self._buffers = [memoryview(mmap.mmap(-1, size)) for _ in range(windows)]
        told, tell = os.pipe()
        given, give = os.pipe()
        with suppress(OSError):  # fs.pipe-max-size: then a window takes more turns
            fcntl.fcntl(tell, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        self._told, self._give = told, give
        gc.freeze()  # what is collected here must not be copied there
        try:
            self._pid = os.fork()
        finally:
            gc.unfreeze()
        if not self._pid:
            _serve(open_reader, self._buffers, items, counts, tell, given, kept)
        os.close(tell)
        os.close(given)

    def close(self) -> None:
        """Nothing is read any more when this returns. A second call is harmless."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0
            os.close(self._told)
            os.close(self._give)
            self._buffers.clear()

    def windows(self, then: Callable[[Callable[[], None]], None]) -> Iterator[FilledWindow]:
        """The windows in order. Each is valid until the next is taken, and then until `then` has
        called what it is given.

        Raises LegError, naming file, device and offset, when the window is due that it belongs to.
        """
        while (told := self._waited()) is not None:
            at, shares = told
            yield FilledWindow(self._buffers[at], shares)
            then(self._give_back)

    def _give_back(self) -> None:
        with suppress(OSError):  # the reader has ended, or was closed
            os.write(self._give, b"\0")

    def _waited(self) -> tuple[int, list[PlainShare | Filled]] | None:
        """What the reader tells next: the number of a window's buffer, and what is in it."""
        began_s = time.monotonic()
        (length,) = _LENGTH.unpack(self._receive(_LENGTH.size))
        kind, body, counted = marshal.loads(self._receive(length))
        self._counts.take(ReadCounts(**counted), time.monotonic() - began_s)
        if kind == "error":
            raise pickle.loads(body)
        if kind == "end":
            return None
        at, entries = body
        return at, [entry if len(entry) > 2 else _filled(*entry) for entry in entries]

    def _receive(self, length: int) -> bytearray:
        found = bytearray(length)
        view = memoryview(found)
        while view:
            got = os.readv(self._told, [view])
            if not got:
                raise self._died()
            view = view[got:]
        return found

    def _died(self) -> LegError:
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        os.close(self._told)
        os.close(self._give)
        return LegError(
            f"the process that reads the leg ended ({os.waitstatus_to_exitcode(status)})",
            hint="If the kernel's log names it (out of memory), make room and run `splitmirror "
            "recover`; the split is still there.",
        )


def _filled(share: bytes, places: list[tuple[int, int]]) -> Filled:
    look, begins, ends = pickle.loads(share)
    return Filled(look, begins, ends, places)


# --- the other process


def _serve(
    open_reader: OpenReader,
    buffers: Sequence[memoryview],
    items: Iterable[Packed],
    counts: ReadCounts,
    tell: int,
    given: int,
    kept: Iterable[int],
) -> NoReturn:
    """Read everything and tell of it; never returns to the program that was forked."""
    try:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # ours to end is the parent's
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _close_but({0, 1, 2, tell, given, *kept})
        try:
            reader = open_reader(buffers, _GivenBack(given).fence)
            for window in reader.windows(items):
                _send(tell, "window", _described(window, buffers), counts)
            _send(tell, "end", None, counts)
        except LegError as error:
            _send(tell, "error", pickle.dumps(error), counts)
        except BaseException:
            _send(tell, "error", pickle.dumps(RuntimeError(traceback.format_exc())), counts)
    finally:
        os._exit(_ENDED_WELL)


class _GivenBack:
    """Counts the windows that were given back; they come in order."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._out = self._back = 0

    def fence(self) -> Callable[[], None]:
        """A window was taken: what this gives waits until it is back."""
        self._out += 1
        ticket = self._out

        def wait() -> None:
            while self._back < ticket:
                if not (got := os.read(self._fd, 4096)):
                    os._exit(_ENDED_WELL)  # nobody is there any more
                self._back += len(got)

        return wait


def _described(
    window: Window, buffers: Sequence[memoryview]
) -> tuple[int, list[PlainShare | tuple[bytes, list[tuple[int, int]]]]]:
    entries: list[PlainShare | tuple[bytes, list[tuple[int, int]]]] = []
    positions, spans, first = window.positions, window.spans, 0
    for share in window.shares:
        if isinstance(share, PlainLook):
            name, mode, uid, gid, mtime_ns, xattrs, size, span = share
            position = positions[first] if span is not None else 0
            first += span is not None
            entries.append((name, mode, uid, gid, mtime_ns, xattrs, size, position))
        else:
            first = share.last
            places = [(positions[at], spans[at].length) for at in range(share.first, share.last)]
            entries.append((pickle.dumps((share.look, share.begins, share.ends)), places))
    at = next(at for at, buffer in enumerate(buffers) if buffer is window.room.buffer)
    return at, entries


def _send(fd: int, kind: str, body: Any, counts: ReadCounts) -> None:
    told = marshal.dumps((kind, body, asdict(counts)))
    rest = memoryview(_LENGTH.pack(len(told)) + told)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _close_but(kept: set[int]) -> None:
    """Close every descriptor but these: locks and pipes of the parent end with the parent."""
    below = 0
    for fd in sorted(kept):
        if below < fd:  # an empty range would be taken for all of them (Python 3.11)
            os.closerange(below, fd)
        below = fd + 1
    os.closerange(below, os.sysconf("SC_OPEN_MAX"))
