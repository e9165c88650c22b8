"""Reading a tape file ahead: a thread of its own takes large stretches off the medium while what
came before is looked at and placed.

Memory is bounded by the windows, which are used again and again. A window is free once nobody holds
it; whoever has something in it written by somebody else holds it for as long.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType

from splitmirror.errors import MediumDamaged, MediumError
from splitmirror.media import Medium, Place, read_many

WINDOW = 8 << 20  # bytes read in one go: a disk's full rate, and some 25 ms on tape
WINDOWS = 6  # for each volume: one looked at, some being placed, the others being filled
_BETWEEN = 64 << 10  # of each for what a medium has between the records, and to be aligned


class Window:
    """Records that lie side by side: number `first` of the tape file and those behind it, up to
    `behind`; `places` of the windows' memory. Or none of them, and the error that came instead."""

    __slots__ = ("base", "behind", "error", "first", "holders", "places")

    def __init__(self, base: int) -> None:
        self.base = base
        self.first = self.behind = self.holders = 0
        self.places: list[Place] = []
        self.error: BaseException | None = None


class Windows:
    """All the memory there is for reading ahead: one stretch, page-aligned, which processes that
    are forked off later see too. Thread-safe."""

    def __init__(self, readers: int = 1) -> None:
        """`readers`: how many volumes are read ahead at once."""
        size, windows = WINDOW + _BETWEEN, readers * WINDOWS
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
        self.memory = memoryview(mmap.mmap(-1, windows * size, flags))
        self.changed = threading.Condition()
        self._address = _address(self.memory)
        self._free = deque(Window(at * size) for at in range(windows))

    def place_of(self, view: memoryview) -> Place:
        """Where a view of the memory lies in it."""
        begin = _address(view) - self._address
        return begin, begin + len(view)

    def buffer(self, window: Window) -> memoryview:
        return self.memory[window.base : window.base + WINDOW + _BETWEEN]

    def hold(self, window: Window) -> None:
        """It stays as it is until it is released as often."""
        with self.changed:
            window.holders += 1

    def release(self, windows: Iterable[Window]) -> None:
        """Each is held once less; the last time makes it free."""
        with self.changed:
            for window in windows:
                window.holders -= 1
                if not window.holders:
                    window.places, window.error = [], None
                    self._free.append(window)
            self.changed.notify_all()

    def take(self) -> Window | None:
        """A free one, held once; None: there is none just now. Call it with `changed` locked."""
        window = self._free.popleft() if self._free else None
        if window is not None:
            window.holders = 1
        return window


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) if view else 0


class Ahead:
    """The records of one tape file, by their numbers, read ahead as far as they were ordered.

    The medium is nobody else's between the first order and `close`. `waiting` is called before this
    waits for the medium: whoever gathers work that holds windows must hand it over then.
    """

    def __init__(
        self,
        medium: Medium,
        windows: Windows,
        *,
        first_object: int,
        block_size: int,
        records: int,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._medium, self._windows, self._waiting = medium, windows, waiting
        self._object, self._block_size, self._records = first_object, block_size, records
        self._at_once = max(1, WINDOW // block_size)
        self._changed = windows.changed
        self._orders: deque[tuple[int, int]] = deque()  # first, behind; ascending
        self._ready: deque[Window] = deque()
        self._current: Window | None = None
        self._ordered = 0  # behind the last record that was ordered
        self._age = 0  # raised when what was ordered is not wanted any more
        self._closed = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; the medium is free again. A second call is harmless."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._drop()

    def order(self, first: int, behind: int) -> None:
        """Records from `first` up to `behind` are wanted next. Those that were ordered already are
        not read again; numbers beyond the tape file are passed over."""
        first, behind = max(first, self._ordered), min(behind, self._records)
        if first >= behind:
            return
        with self._changed:
            if self._orders and self._orders[-1][1] == first:
                first = self._orders.pop()[0]
            self._orders.append((first, behind))
            self._ordered = behind
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="read-ahead", daemon=True)
            self._thread.start()

    def window(self, number: int) -> Window:
        """The window that has record `number`. It is valid until a later record is asked for, or as
        long as it is held. Raises the medium's error at that record.

        Records are best asked for in the order in which they were ordered: others are located.
        """
        current = self._current
        if current is None or not current.first <= number < current.behind:
            current = self._go_to(number)
        if current.error is not None:
            raise current.error
        return current

    # --- the caller's side

    def _go_to(self, number: int) -> Window:
        if number >= self._records:
            raise MediumDamaged(f"the tape file has {self._records} records, not {number + 1}")
        if self._current is not None and number < self._current.first:
            self._begin_anew(number)
        self.order(number, number + 1)
        while self._current is None or number >= self._current.behind:
            self._next()
        if number < self._current.first:  # it was not ordered when its turn was
            self._begin_anew(number)
            return self._go_to(number)
        return self._current

    def _next(self) -> None:
        """Let go of the current window and wait for the next."""
        self._leave()
        if not self._ready:
            self._waiting()
        with self._changed:
            while not self._ready:
                self._changed.wait()
            self._current = self._ready.popleft()

    def _leave(self) -> None:
        if self._current is not None:
            self._windows.release([self._current])
            self._current = None

    def _begin_anew(self, number: int) -> None:
        """What was ordered is not wanted any more."""
        with self._changed:
            self._age += 1
            self._orders.clear()
            self._ordered = number
        self._drop()

    def _drop(self) -> None:
        self._leave()
        with self._changed:
            dropped, self._ready = self._ready, deque()
        self._windows.release(dropped)

    # --- the thread's side

    def _work(self) -> None:
        at = -1  # the record before which the medium stands; -1: not known
        while (turn := self._turn()) is not None:
            window, first, behind, age = turn
            at = self._fill(window, first, behind, at)
            with self._changed:
                wanted = age == self._age and not self._closed
                if wanted:
                    self._ready.append(window)
                    if window.behind < behind:
                        self._orders.appendleft((window.behind, behind))
                    self._changed.notify_all()
            if not wanted:
                self._windows.release([window])

    def _turn(self) -> tuple[Window, int, int, int] | None:
        """A free window and the order that is next, as far as it fits in; None: it is closed."""
        with self._changed:
            while not self._closed:
                if self._orders and (window := self._windows.take()) is not None:
                    first, behind = self._orders.popleft()
                    if behind - first > self._at_once:
                        self._orders.appendleft((first + self._at_once, behind))
                        behind = first + self._at_once
                    return window, first, behind, self._age
                self._changed.wait()
        return None

    def _fill(self, window: Window, first: int, behind: int, at: int) -> int:
        """Read records, at least the first or the error that comes instead. Where the medium stands
        now."""
        window.first, window.behind = first, first + 1
        try:
            if at != first:
                self._medium.locate(self._object + first)
            places, mark = read_many(self._medium, self._windows.buffer(window), behind - first)
        except BaseException as error:  # whoever wants the record is told
            window.error = error
            if not isinstance(error, MediumError):
                window.behind = self._records
            return -1
        if mark is not None:
            window.error = MediumDamaged(
                f"the tape file ends before its record {first + 1} of {self._records}"
            )
            window.behind = self._records
            return -1
        sizes = {end - begin for begin, end in places}
        if sizes != {self._block_size}:
            window.error = MediumDamaged(
                f"records of {', '.join(map(str, sorted(sizes)))} bytes in a tape file whose "
                f"records have {self._block_size}"
            )
            return -1
        window.places = [(window.base + begin, window.base + end) for begin, end in places]
        window.behind = first + len(places)
        return window.behind if window.behind == behind else -1
