"""The reader in a process of its own, so that looking at files and laying out their reads does not
take the interpreter from packing and hashing them.

The windows' memory is shared between the two. The reader is forked, and so has the plan, the table
and the mounted leg without a byte being copied; it tells of each window that is filled, and is told
when one can be filled again.
"""

from __future__ import annotations

import marshal
import mmap
import pickle
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NamedTuple

from splitmirror.errors import LegError
from splitmirror.extents.table import Xattrs
from splitmirror.stream.leg_reader import LegReader, Window
from splitmirror.stream.look import Look, PlainLook, ReadCounts
from splitmirror.stream.plan import Packed
from splitmirror.system.forked import Forked

PlainShare = tuple[bytes, int, int, int, int, Xattrs, int, int]
"""An ordinary file in a window: name, mode, uid, gid, mtime_ns, xattrs, size, position."""

Places = list[tuple[int, int]]
"""(position, length) in a window's buffer."""


class Filled(NamedTuple):
    """What of another member lies in a window. One that does not end goes on at the beginning of
    the next window."""

    look: Look
    begins: bool
    ends: bool
    places: Places


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
        self._told: deque[bytes] = deque()

        def serve(orders: Iterator[bytes], answer: Callable[[bytes], None]) -> None:
            _serve(open_reader, self._buffers, items, counts, orders, answer)

        self._process = Forked(serve, kept=kept)

    def close(self) -> None:
        """Nothing is read any more when this returns. A second call is harmless."""
        self._process.kill()
        self._buffers.clear()

    def windows(self, then: Callable[[Callable[[], None]], None]) -> Iterator[FilledWindow]:
        """The windows in order. Each is valid until the next is taken, and then until `then` has
        called what it is given. None come after `close`.

        Raises LegError, naming file, device and offset, when the window is due that it belongs to.
        """
        while self._buffers and (told := self._waited()) is not None:
            at, shares = told
            yield FilledWindow(self._buffers[at], shares)
            then(self._give_back)

    def _give_back(self) -> None:
        with suppress(OSError):  # the reader has ended, or was closed
            self._process.send(b"")

    def _waited(self) -> tuple[int, list[PlainShare | Filled]] | None:
        """What the reader tells next: the number of a window's buffer, and what is in it."""
        began_s = time.monotonic()
        while not self._told:
            more = self._process.receive()
            if more is None:
                raise self._died()
            self._told += more
        kind, body, counted = marshal.loads(self._told.popleft())
        self._counts.take(ReadCounts(**counted), time.monotonic() - began_s)
        if kind == "error":
            raise pickle.loads(body)
        if kind == "end":
            return None
        at, entries = body
        return at, [entry if len(entry) > 2 else _filled(*entry) for entry in entries]

    def _died(self) -> LegError:
        return LegError(
            f"the process that reads the leg ended ({self._process.wait()})",
            hint="If the kernel's log names it (out of memory), make room and run `splitmirror "
            "recover`; the split is still there.",
        )


def _filled(share: bytes, places: Places) -> Filled:
    look, begins, ends = pickle.loads(share)
    return Filled(look, begins, ends, places)


# --- the other process


def _serve(
    open_reader: OpenReader,
    buffers: Sequence[memoryview],
    items: Iterable[Packed],
    counts: ReadCounts,
    given_back: Iterator[bytes],
    answer: Callable[[bytes], None],
) -> None:
    """Read everything and tell of it."""

    def tell(kind: str, body: Any) -> None:
        answer(marshal.dumps((kind, body, asdict(counts))))

    try:
        reader = open_reader(buffers, _GivenBack(given_back).fence)
        for window in reader.windows(items):
            tell("window", _described(window, buffers))
        tell("end", None)
    except LegError as error:
        tell("error", pickle.dumps(error))
    except Exception:  # an error of the program itself: it is raised where it is seen
        tell("error", pickle.dumps(RuntimeError(traceback.format_exc())))


class _GivenBack:
    """Counts the windows that were given back; they come in order."""

    def __init__(self, orders: Iterator[bytes]) -> None:
        self._orders = orders
        self._out = self._back = 0

    def fence(self) -> Callable[[], None]:
        """A window was taken: what this gives waits until it is back."""
        self._out += 1
        ticket = self._out

        def wait() -> None:
            while self._back < ticket:
                if next(self._orders, None) is None:
                    raise BrokenPipeError("nobody is there any more")
                self._back += 1

        return wait


def _described(
    window: Window, buffers: Sequence[memoryview]
) -> tuple[int, list[PlainShare | tuple[bytes, Places]]]:
    """The number of the window's buffer, and what lies where in it."""
    entries: list[PlainShare | tuple[bytes, Places]] = []
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
