"""Asynchronous reads of a real file, against what plain reads give."""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitmirror.system.aio import AsyncReads, Failed, Request, address_of

SIZE = 4 << 20
BLOCK = 4096


@pytest.fixture
def memory() -> memoryview:
    return memoryview(mmap.mmap(-1, SIZE))


@pytest.fixture(params=[0, os.O_DIRECT], ids=["buffered", "direct"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, bytes]]:
    content = random.Random(1).randbytes(SIZE)
    (tmp_path / "it").write_bytes(content)
    try:
        fd = os.open(tmp_path / "it", os.O_RDONLY | request.param)
    except OSError as error:
        pytest.skip(f"no direct I/O here: {error.strerror}")
    yield fd, content
    os.close(fd)


@pytest.fixture
def reads() -> Iterator[AsyncReads]:
    try:
        reads = AsyncReads(depth=8)
    except OSError as error:
        pytest.skip(f"no asynchronous I/O here: {error.strerror}")
    yield reads
    reads.close()
    reads.close()


def test_more_reads_than_may_be_in_flight_all_arrive_where_they_belong(
    file: tuple[int, bytes], memory: memoryview, reads: AsyncReads
) -> None:
    fd, content = file
    base, order = address_of(memory), list(range(SIZE // BLOCK))
    random.Random(2).shuffle(order)
    reads.start(
        [
            Request(fd, at * BLOCK, BLOCK, [(base + place * BLOCK, BLOCK)])
            for place, at in enumerate(order)
        ]
    )
    assert reads.finish() == []
    for place, at in enumerate(order):
        assert memory[place * BLOCK :][:BLOCK] == content[at * BLOCK :][:BLOCK]


def test_one_read_fills_several_places(
    file: tuple[int, bytes], memory: memoryview, reads: AsyncReads
) -> None:
    fd, content = file
    base = address_of(memory)
    places = [(base + 3 * BLOCK, BLOCK), (base, 2 * BLOCK)]
    reads.start([Request(fd, BLOCK, 3 * BLOCK, places)])
    assert reads.finish() == []
    assert memory[3 * BLOCK : 4 * BLOCK] == content[BLOCK : 2 * BLOCK]
    assert memory[: 2 * BLOCK] == content[2 * BLOCK : 4 * BLOCK]


def test_a_read_beyond_the_end_and_one_of_nothing_open_are_told_apart(
    file: tuple[int, bytes], memory: memoryview, reads: AsyncReads
) -> None:
    fd, _ = file
    base = address_of(memory)
    reads.start(
        [
            Request(fd, 0, BLOCK, [(base, BLOCK)]),
            Request(fd, SIZE - BLOCK, 2 * BLOCK, [(base, 2 * BLOCK)]),
        ]
    )
    assert reads.finish() == [Failed(1, 0)]
    reads.start([Request(fd, 0, BLOCK, [(base, BLOCK)])])
    assert reads.finish() == [], "an earlier failure is not told again"


def test_what_the_kernel_will_not_take_is_a_failure_of_that_read_alone(
    file: tuple[int, bytes], memory: memoryview, reads: AsyncReads
) -> None:
    fd, content = file
    base = address_of(memory)
    reads.start(
        [
            Request(fd, 0, BLOCK, [(base, BLOCK)]),
            Request(999_999, 0, BLOCK, [(base, BLOCK)]),
            Request(fd, BLOCK, BLOCK, [(base + BLOCK, BLOCK)]),
        ]
    )
    assert reads.finish() == [Failed(1, errno.EBADF)]
    assert memory[: 2 * BLOCK] == content[: 2 * BLOCK]
