"""Writing behind: order, bounds, errors, and who gets a buffer back when."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from splitmirror.errors import EndOfMedium
from splitmirror.media import Block
from splitmirror.stream.behind import QUEUED, WriteBehind, at_once


class Slow:
    """A sink that waits to be allowed to write."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.allowed = threading.Semaphore(0)
        self.error: Exception | None = None
        self.early = False

    def __call__(self, blocks: Sequence[Block]) -> bool:
        self.allowed.acquire()
        if self.error is not None:
            raise self.error
        self.written += map(bytes, blocks)
        return self.early

    def let(self, calls: int) -> None:
        self.allowed.release(calls)


def test_what_is_written_is_what_was_handed_over_in_order() -> None:
    sink = Slow()
    sink.let(3)
    with WriteBehind(sink) as behind:
        for block in (b"a", b"b", b"c"):
            assert behind([block]) is False
        behind.drain()
        assert sink.written == [b"a", b"b", b"c"]


def test_a_buffer_comes_back_only_when_all_before_is_written() -> None:
    sink, back = Slow(), threading.Event()
    with WriteBehind(sink) as behind:
        behind([b"a"])
        behind([b"b"])
        behind.then(back.set)
        sink.let(1)
        assert not back.wait(0.05), "b is still in the queue"
        sink.let(1)
        assert back.wait(10)


def test_the_queue_is_bounded() -> None:
    sink, block = Slow(), bytes(QUEUED // 2)
    with WriteBehind(sink) as behind:
        behind([block])
        behind([block])
        third = threading.Thread(target=behind, args=([b"x"],))
        third.start()
        third.join(0.05)
        assert third.is_alive(), "it waits for room"
        sink.let(3)
        third.join(10)
        assert not third.is_alive()
        behind.drain()
        assert behind.waited_s > 0


def test_a_block_larger_than_the_bound_passes_alone() -> None:
    sink = Slow()
    sink.let(1)
    with WriteBehind(sink) as behind:
        behind([bytes(QUEUED + 1)])
        behind.drain()
        assert len(sink.written[0]) == QUEUED + 1


def test_an_error_is_raised_by_every_later_call_and_gives_the_buffers_back() -> None:
    sink, back = Slow(), threading.Event()
    sink.error = EndOfMedium("full")
    with WriteBehind(sink) as behind:
        behind([b"a"])
        behind([b"b"])
        behind.then(back.set)
        sink.let(1)
        assert back.wait(10)
        for _ in range(2):
            with pytest.raises(EndOfMedium):
                behind([b"c"])
        with pytest.raises(EndOfMedium):
            behind.drain()
        late = threading.Event()
        behind.then(late.set)
        assert late.is_set()
    assert sink.written == []


def test_early_warning_is_told_when_the_sink_gave_it() -> None:
    sink = Slow()
    sink.early = True
    sink.let(2)
    with WriteBehind(sink) as behind:
        behind([b"a"])
        behind.drain()
        assert behind([b"b"]) is True


def test_stopping_forgets_what_is_queued_and_waits_for_what_is_written() -> None:
    sink, back = Slow(), threading.Event()
    behind = WriteBehind(sink)
    behind([b"a"])
    behind([b"b"])
    behind.then(back.set)
    sink.let(1)
    behind.stop()
    behind.stop()
    assert back.is_set()
    assert sink.written in ([], [b"a"])
    assert not any(thread.name == "write-behind" for thread in threading.enumerate())


def test_a_sink_that_writes_at_once_gives_a_buffer_back_at_once() -> None:
    back = threading.Event()
    at_once(back.set)
    assert back.is_set()
