"""Reading a leg that is an image file: what goes wrong, and what is left behind."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from splitmirror.errors import DatabaseError, LegError
from splitmirror.extents.table import FileTable
from splitmirror.model import (
    Attributes,
    Extent,
    ExtentFlag,
    ExtentMap,
    FileEntry,
    Filesystem,
    Kind,
    Leg,
    Origin,
    Run,
    Tree,
)
from splitmirror.stream.leg_reader import read_fully
from splitmirror.stream.member import Member
from splitmirror.stream.pipeline import LegSource, file_member
from splitmirror.stream.plan import Item, Items, Part, plan_parts

SIZE = 8 << 20
WINDOW = 1 << 20
TREE = Tree(
    name=b"data",
    path=b"/nowhere",
    filesystem=Filesystem(
        mountpoint="/nowhere",
        fstype="ext4",
        options=frozenset(),
        source="/dev/null",
        devno=0,
        volume="v",
        offset=0,
    ),
    inside=b"",
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(random.Random(3).randbytes(SIZE))
    return path


def table_of(*extents: tuple[int, int], flags: int = 0) -> FileTable:
    """A file for each (physical, length)."""
    table = FileTable()
    for number, (physical, length) in enumerate(extents):
        attributes = Attributes(kind=Kind.FILE, mode=0, uid=0, gid=0, size=length, mtime_ns=0)
        table.append(
            FileEntry(
                name=b"data/%d" % number,
                tree=0,
                attributes=attributes,
                ino=number,
                nlink=1,
                ctime_ns=0,
                extents=ExtentMap.of([Extent(0, physical, length, flags)]),
            )
        )
    return table


def source_of(image: Path, table: FileTable, *, length: int = SIZE) -> LegSource:
    runs = (Run(path=str(image), offset=0, length=length),)
    return LegSource(Leg(split_id="s", volumes={"v": runs}), [TREE], None, table, window=WINDOW)


def part_of(table: FileTable) -> Part:
    (part,) = plan_parts(table, range(len(table)), 1 << 30).parts
    return part


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_file_larger_than_all_windows_comes_out_whole(image: Path) -> None:
    table = table_of((4096, 6 << 20), (0, 100))
    with source_of(image, table) as source:
        found = [b"".join(map(bytes, member.chunks)) for member in source.members(part_of(table))]
    content = image.read_bytes()
    assert found == [content[4096 : 4096 + (6 << 20)], content[:100]]


def test_neighbours_are_read_together(image: Path) -> None:
    table = table_of(*((at * 8192, 4096) for at in range(50)))
    with source_of(image, table) as source:
        assert sum(member.stored for member in source.members(part_of(table))) == 50 * 4096
        assert source.counts.reads == 1
        assert source.counts.bytes_read == 50 * 8192 - 4096


def test_members_that_nobody_reads_are_passed_over(image: Path) -> None:
    table = table_of((0, 3 << 20), (4 << 20, 3 << 20), (8192, 10))
    with source_of(image, table) as source:
        found = [
            b"".join(map(bytes, member.chunks)) if member.name == b"data/2" else b""
            for member in source.members(part_of(table))
        ]
    assert found == [b"", b"", image.read_bytes()[8192:8202]]


def test_chunks_taken_too_late_are_refused_and_never_wrong(image: Path) -> None:
    table = table_of((0, 4096), (4 << 20, 3 << 20))
    with source_of(image, table) as source:
        members = source.members(part_of(table))
        first = next(members)
        next(members)
        with pytest.raises(RuntimeError, match="after the next member"):
            list(first.chunks)


def test_a_part_can_be_read_again_from_its_beginning(image: Path) -> None:
    table = table_of((0, 3 << 20), (4 << 20, 3 << 20))
    with source_of(image, table) as source:
        abandoned = source.members(part_of(table))
        next(iter(next(abandoned).chunks))
        again = [b"".join(map(bytes, member.chunks)) for member in source.members(part_of(table))]
        assert list(abandoned) == []
    content = image.read_bytes()
    assert again == [content[: 3 << 20], content[4 << 20 : 7 << 20]]


def test_nothing_is_left_when_the_consumer_stops_or_fails(image: Path) -> None:
    table = table_of(*((at << 20, 1 << 20) for at in range(8)))
    threads, before = threading.active_count(), descriptors()
    with source_of(image, table) as source:
        next(source.members(part_of(table)))
    assert (threading.active_count(), descriptors()) == (threads, before)
    with pytest.raises(ZeroDivisionError), source_of(image, table) as source:
        for member in source.members(part_of(table)):
            next(iter(member.chunks))
            raise ZeroDivisionError
    assert (threading.active_count(), descriptors()) == (threads, before)


def test_a_leg_that_ends_early_is_an_error_with_file_device_and_offset(image: Path) -> None:
    table = table_of((0, 4096), (7 << 20, 4096))
    os.truncate(image, 7 << 20)
    with source_of(image, table) as source, pytest.raises(LegError) as caught:
        list(source.members(part_of(table)))
    assert caught.value.facts == {"name": b"data/1", "device": str(image), "offset": 7 << 20}
    assert "data/1" in str(caught.value) and str(image) in str(caught.value)


def test_what_came_before_an_unreadable_file_is_good(image: Path) -> None:
    table = table_of((0, 4 << 20), (7 << 20, 4096))
    os.truncate(image, 7 << 20)
    with source_of(image, table) as source, pytest.raises(LegError):
        for member in source.members(part_of(table)):
            assert member.name == b"data/0"
            assert sum(map(len, member.chunks)) == 4 << 20


def test_a_map_beyond_the_volume_is_refused_by_name(image: Path) -> None:
    table = table_of((SIZE - 4096, 8192))
    with source_of(image, table) as source, pytest.raises(LegError, match="data/0 lies beyond"):
        list(source.members(part_of(table)))


def test_what_is_not_plain_needs_the_mounted_leg(image: Path) -> None:
    table = table_of((0, 100), flags=int(ExtentFlag.DATA_INLINE))
    with source_of(image, table) as source, pytest.raises(LegError, match="not mounted"):
        list(source.members(part_of(table)))


def test_a_leg_that_is_gone_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    threads, before = threading.active_count(), descriptors()
    table = table_of((0, 10))
    with (
        source_of(tmp_path / "gone", table) as source,
        pytest.raises(LegError, match="cannot be opened"),
    ):
        list(source.members(part_of(table)))
    assert (threading.active_count(), descriptors()) == (threads, before)


def test_a_leg_in_memory_that_refuses_direct_io_is_read_all_the_same() -> None:
    content = random.Random(5).randbytes(1 << 20)
    fd = os.memfd_create("leg")
    try:
        os.write(fd, content)
        table = table_of((4096, 5000), (512, 7))
        with source_of(Path(f"/proc/{os.getpid()}/fd/{fd}"), table, length=1 << 20) as source:
            found = [b"".join(map(bytes, m.chunks)) for m in source.members(part_of(table))]
        assert found == [content[4096:9096], content[512:519]]
    finally:
        os.close(fd)


def test_a_read_fills_every_place_or_says_how_much_is_missing() -> None:
    fd = os.memfd_create("short")
    try:
        os.write(fd, b"abcdefgh")
        into = [memoryview(bytearray(3)), memoryview(bytearray(5))]
        read_fully(fd, 0, into)
        assert b"".join(into) == b"abcdefgh"
        with pytest.raises(EOFError, match="3 bytes early"):
            read_fully(fd, 3, [memoryview(bytearray(8))])
    finally:
        os.close(fd)


# --- files beside the leg


def test_a_copied_file_brings_its_bytes_and_says_where_from(tmp_path: Path) -> None:
    path = tmp_path / "pg_hba.conf"
    with path.open("wb") as file:
        file.write(b"x" * 3_000_000)
        file.truncate(20 << 20)
    path.chmod(0o640)
    member = file_member(b"outside/pg_hba.conf", path, Origin.PRIMARY, title="conf")
    assert member.origin is Origin.PRIMARY and member.title == "conf"
    assert member.size == member.attributes.size == 20 << 20
    assert member.attributes.mode == 0o640
    assert 3_000_000 <= member.stored < 4_000_000
    data = b"".join(map(bytes, member.chunks))
    assert len(data) == member.stored and data.rstrip(b"\0") == b"x" * 3_000_000


def test_a_copied_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "wal"
    path.write_bytes(b"x" * 100)
    member = file_member(b"wal/1", path, Origin.DATABASE)
    os.truncate(path, 50)
    with pytest.raises(DatabaseError, match="shorter") as caught:
        list(member.chunks)
    assert caught.value.hint


@pytest.mark.parametrize("what", ["missing", "fifo"])
def test_what_cannot_be_copied_is_refused_by_name(tmp_path: Path, what: str) -> None:
    path = tmp_path / "it"
    if what == "fifo":
        os.mkfifo(path)
    with pytest.raises(DatabaseError, match=str(path)):
        file_member(b"outside/it", path, Origin.PRIMARY)


# --- ordinary small files


def test_ordinary_files_come_in_stretches_in_order_with_their_bytes(image: Path) -> None:
    table = table_of((8192, 100), (0, 4096), (4 << 20, 3 << 20), (16384, 7), (12288, 0))
    with source_of(image, table) as source:
        found = []
        for _, stretches in source.parts([part_of(table)]):
            for stretch in stretches:
                if isinstance(stretch, Member):
                    found.append([(stretch.name, b"".join(map(bytes, stretch.chunks)))])
                else:
                    found.append([(file.name, bytes(file.data)) for file in stretch])
    content = image.read_bytes()
    assert found == [
        [(b"data/0", content[8192:8292]), (b"data/1", content[:4096])],
        [(b"data/2", content[4 << 20 : 7 << 20])],
        [(b"data/3", content[16384:16391]), (b"data/4", b"")],
    ]


def test_the_next_part_is_read_before_the_one_before_it_is_done(image: Path) -> None:
    table = table_of((0, 4096), (8192, 4096))
    first, second = (Part(number=n, items=Items.of([Item(n - 1, 0, 4096)]), stored=4096, room=8192)
                     for n in (1, 2))  # fmt: skip
    with source_of(image, table) as source:
        parts = source.parts([first, second])
        _, stretches = next(parts)
        next(stretches)
        assert source.counts.reads == 1, "both lie in one window"
        assert [part.number for part, _ in parts] == [2]


def test_a_reader_that_is_killed_is_an_error_and_no_wait(image: Path) -> None:
    table = table_of(*((at << 20, 1 << 20) for at in range(8)))
    with source_of(image, table) as source:
        members = source.members(part_of(table))
        next(members)
        (child,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        with pytest.raises(LegError, match=r"ended \(-9\)"):
            list(members)


def test_a_window_is_not_used_again_while_the_medium_has_it(image: Path) -> None:
    table = table_of(*((at * WINDOW, WINDOW - 8192) for at in range(6)))
    waiting: list[Callable[[], None]] = []
    content = image.read_bytes()
    with source_of(image, table) as source:
        _, stretches = next(source.parts([part_of(table)], waiting.append))
        kept = []
        for stretch in islice(stretches, 3):
            assert isinstance(stretch, Member)
            kept += [(stretch.name, chunk) for chunk in stretch.chunks]
        for name, chunk in kept:
            at = int(name.rpartition(b"/")[2]) * WINDOW
            assert chunk == content[at : at + len(chunk)]
        assert len(waiting) == 2, "the windows before the one that is being emitted"
