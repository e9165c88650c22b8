"""Maps of real files where the folder's filesystem has extents, and their normal form."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitmirror.errors import DeviceFailed
from splitmirror.model import Extent, ExtentFlag, ExtentMap
from splitmirror.system import fiemap

LAST, MERGED, SHARED, UNWRITTEN = (
    int(flag)
    for flag in (ExtentFlag.LAST, ExtentFlag.MERGED, ExtentFlag.SHARED, ExtentFlag.UNWRITTEN)
)


def normal(size: int, *extents: tuple[int, int, int, int]) -> list[Extent]:
    return list(ExtentMap(fiemap._normalize(iter(extents), size)))


def test_neighbours_that_continue_one_another_are_merged() -> None:
    assert normal(300, (0, 1000, 100, 0), (100, 1100, 100, 0), (200, 1200, 100, LAST)) == [
        Extent(0, 1000, 300, 0)
    ]


@pytest.mark.parametrize(
    "second",
    [
        pytest.param((100, 2000, 100, 0), id="elsewhere on the device"),
        pytest.param((150, 1100, 100, 0), id="after a hole"),
        pytest.param((100, 1100, 100, UNWRITTEN), id="of other flags"),
    ],
)
def test_neighbours_that_do_not_continue_stay_apart(second: tuple[int, int, int, int]) -> None:
    assert len(normal(1000, (0, 1000, 100, 0), second)) == 2


def test_how_an_extent_was_reported_is_dropped() -> None:
    assert normal(100, (0, 0, 100, LAST | MERGED | SHARED | UNWRITTEN)) == [
        Extent(0, 0, 100, UNWRITTEN)
    ]


def test_what_lies_beyond_the_size_is_cut_off() -> None:
    assert normal(150, (0, 1000, 100, 0), (100, 9000, 4096, 0), (4196, 0, 10, UNWRITTEN)) == [
        Extent(0, 1000, 100, 0),
        Extent(100, 9000, 50, 0),
    ]


def test_an_extent_told_twice_counts_once() -> None:
    assert normal(300, (0, 1000, 200, 0), (100, 1100, 200, LAST)) == [Extent(0, 1000, 300, 0)]
    assert normal(200, (0, 1000, 200, 0), (100, 1100, 100, LAST)) == [Extent(0, 1000, 200, 0)]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, b"x", 0)
        os.fsync(fd)
        fiemap.fiemap(fd, 1)
    except DeviceFailed:
        pytest.skip("the folder for tests lies on a filesystem without extents")
    os.ftruncate(fd, 0)
    yield fd
    os.close(fd)


def test_an_empty_file_has_no_extents(file: int) -> None:
    assert fiemap.fiemap(file, 0) == ExtentMap()


def test_a_written_file_is_covered_to_its_size_exactly(file: int) -> None:
    os.pwrite(file, os.urandom(300_001), 0)
    found = fiemap.fiemap(file, 300_001, sync=True)
    assert found.data_ranges() == [(0, 300_001)]
    assert found.plain


def test_a_file_of_holes_has_no_extents(file: int) -> None:
    os.ftruncate(file, 1 << 20)
    assert fiemap.fiemap(file, 1 << 20, sync=True) == ExtentMap()


def test_more_extents_than_one_call_gives_are_all_found(file: int) -> None:
    expected = [(offset, 4096) for offset in range(0, 100 * 40960, 40960)]
    for offset, _ in expected:
        os.pwrite(file, b"y" * 4096, offset)
    size = expected[-1][0] + 4096
    assert fiemap.fiemap(file, size, sync=True).data_ranges() == expected
    assert list(fiemap.data_ranges(file, size)) == expected


def test_a_punched_hole_is_a_hole_and_reads_as_zeros(file: int) -> None:
    os.pwrite(file, b"z" * 65536, 0)
    fiemap.punch_hole(file, 8192, 16384)
    assert fiemap.fiemap(file, 65536, sync=True).data_ranges() == [(0, 8192), (24576, 40960)]
    assert os.pread(file, 65536, 0) == b"z" * 8192 + bytes(16384) + b"z" * 40960
    assert os.fstat(file).st_size == 65536


def test_an_unsynced_write_is_not_plain(file: int) -> None:
    """The trap for which maps are only taken after a flush."""
    os.pwrite(file, b"x" * 4096, 0)
    found = fiemap.fiemap(file, 4096)
    if found:  # some filesystems show nothing yet, which is a hole and as wrong
        assert not found.plain


def test_preallocated_room_holds_no_data(file: int) -> None:
    os.posix_fallocate(file, 0, 1 << 20)
    found = fiemap.fiemap(file, 1 << 20, sync=True)
    assert found.data_ranges() == []
    assert all(extent.flags == UNWRITTEN for extent in found)


def test_a_filesystem_without_extents_is_refused() -> None:
    fd = os.open("/proc/self/status", os.O_RDONLY)
    with pytest.raises(DeviceFailed, match="extents"):
        fiemap.fiemap(fd, 100)
    os.close(fd)


def test_a_map_takes_microseconds(file: int) -> None:
    os.pwrite(file, b"x" * 8192, 0)
    os.fsync(file)
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(100):
            fiemap.fiemap(file, 8192)
        best = min(best, (time.perf_counter() - began) / 100)
    assert best < 20e-6
