"""The reservoir in front of a drive that must stream: the mark, stalls, what is said of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from splitmirror.errors import EndOfMedium
from splitmirror.media import Block, Pace
from splitmirror.stream import reservoir
from splitmirror.stream.reservoir import Reservoir, size_for
from splitmirror.system import memory

BLOCK = 512
SLOTS = 10


def pace(mark: float = 0.5, *, native: int = 1 << 20, least: int = 1 << 19) -> Pace:
    return Pace(native=native, least=least, buffer_s=1.0, mark=mark)


def block(number: int) -> bytes:
    return bytes([number]) * BLOCK


class Drive:
    """Takes one call when it is allowed to."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.allowed = threading.Semaphore(0)
        self.came = threading.Semaphore(0)  # a call for each that came
        self.error: Exception | None = None

    def __call__(self, blocks: Sequence[Block]) -> bool:
        self.came.release()
        self.allowed.acquire()
        if self.error is not None:
            raise self.error
        self.written += [bytes(one) for one in blocks]
        return False


def of(drive: Callable[[Sequence[Block]], bool], mark: float = 0.5) -> Reservoir:
    return Reservoir(drive, pace(mark), BLOCK, SLOTS * BLOCK)


def test_the_drive_starts_only_when_the_mark_is_reached() -> None:
    drive = Drive()
    with of(drive) as behind:
        behind([block(n) for n in range(4)])
        assert not drive.came.acquire(timeout=0.05), "it started below the mark"
        behind([block(4)])
        assert drive.came.acquire(timeout=10)
        drive.allowed.release(9)
        behind.drain()
        assert drive.written == [block(n) for n in range(5)]
        assert behind.stalls == 0


def test_what_is_less_than_the_mark_is_written_at_the_end_of_the_file() -> None:
    drive = Drive()
    drive.allowed.release(9)
    with of(drive) as behind:
        behind([block(1)])
        behind.drain()
        assert drive.written == [block(1)]
        assert behind.stalls == 0


def test_when_it_has_run_dry_it_is_filled_to_the_mark_once_more_and_that_is_a_stall() -> None:
    drive = Drive()
    drive.allowed.release(99)
    with of(drive) as behind:
        behind([block(n) for n in range(5)])
        until(lambda: len(drive.written) == 5)
        behind([block(5)])
        time.sleep(0.02)
        assert len(drive.written) == 5, "it started again below the mark"
        behind([block(n) for n in range(6, 10)])
        behind.drain()
        assert drive.written == [block(n) for n in range(10)]
        assert behind.stalls == 1
        assert behind.stalled_s > 0.01


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_between_files_the_drive_stops_and_that_is_no_stall() -> None:
    drive = Drive()
    drive.allowed.release(99)
    with of(drive) as behind:
        for _ in range(3):
            behind([block(n) for n in range(7)])
            behind.drain()
        assert behind.stalls == 0
        behind.drain()
    assert len(drive.written) == 21


def test_more_than_it_holds_goes_through_in_order_and_waits_for_room() -> None:
    drive = Drive()
    with of(drive, mark=1.0) as behind:
        caller = threading.Thread(target=behind, args=([block(n) for n in range(95)],))
        caller.start()
        assert drive.came.acquire(timeout=10)
        caller.join(0.05)
        assert caller.is_alive(), "it waits for room"
        drive.allowed.release(999)
        caller.join(10)
        behind.drain()
        assert drive.written == [block(n) for n in range(95)]
        assert behind.waited_s > 0


def test_what_was_handed_over_may_change_at_once() -> None:
    drive, one, back = Drive(), bytearray(block(1)), threading.Event()
    drive.allowed.release(9)
    with of(drive) as behind:
        behind([memoryview(one)])
        behind.then(back.set)
        assert back.is_set()
        one[:] = block(2)
        behind([memoryview(one)])
        behind.drain()
    assert drive.written == [block(1), block(2)]


def test_an_error_of_the_drive_is_raised_by_every_later_call() -> None:
    drive = Drive()
    drive.error = EndOfMedium("full")
    drive.allowed.release(9)
    with of(drive, mark=0.1) as behind:
        behind([block(1)])
        for _ in range(2):
            with pytest.raises(EndOfMedium):
                for _ in range(99):
                    behind([block(2)])
        with pytest.raises(EndOfMedium):
            behind.drain()


def test_whoever_waits_for_room_is_told_when_all_is_broken_off() -> None:
    drive = Drive()
    caught: list[BaseException] = []

    def fill() -> None:
        try:
            behind([block(1)] * (3 * SLOTS))
        except EndOfMedium as error:
            caught.append(error)

    with of(drive) as behind:
        caller = threading.Thread(target=fill)
        caller.start()
        assert drive.came.acquire(timeout=10)
        behind.break_off(EndOfMedium("another stream failed"))
        caller.join(10)
        assert [str(error) for error in caught] == ["another stream failed"]
        drive.allowed.release(9)


def test_a_source_slower_than_the_least_rate_is_told_when_it_made_the_drive_stall() -> None:
    drive = Drive()
    drive.allowed.release(999)
    with Reservoir(drive, pace(0.1, least=1 << 30), BLOCK, SLOTS * BLOCK) as behind:
        for number in range(4):
            behind([block(number)])
            until(lambda: len(drive.written) > number)  # noqa: B023 - read before the next
        behind.drain()
        assert behind.stalls == 3
        assert "the drive needs 1.0 GiB/s" in behind.slower()
    with Reservoir(drive, pace(0.1, least=1), BLOCK, SLOTS * BLOCK) as behind:
        behind([block(1)])
        behind.drain()
        assert behind.slower() == ""


def test_its_size_is_seconds_of_the_drives_rate_and_bounded_by_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reservoir, "available", lambda: 64 << 20)
    assert size_for(pace(native=4 << 20), BLOCK, 1) == (4 << 20, "")
    size, told = size_for(pace(native=40 << 20), BLOCK, 2)
    assert size == 8 << 20
    assert "40.0 MiB" in told and "8.0 MiB" in told
    monkeypatch.setattr(reservoir, "available", lambda: 0)
    assert size_for(pace(), BLOCK, 1)[0] == 4 * BLOCK


def test_the_kernel_says_how_much_memory_there_is() -> None:
    assert 1 << 20 < memory.available() < 1 << 50
