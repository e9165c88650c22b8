"""Extent arithmetic of the stream: any files, any extents, any runs, any windows."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    Run,
    Tree,
)
from splitmirror.stream.leg_runs import LegRuns, Span
from splitmirror.stream.look import Look
from splitmirror.stream.member import Member
from splitmirror.stream.pipeline import LegSource
from splitmirror.stream.plan import Item, plan_parts
from splitmirror.stream.windows import (
    BLOCK,
    LONG_WINDOW,
    MAX_GAP,
    MAX_READ,
    Share,
    draft_windows,
    lay_out,
)

DISK = 4 << 20


def entry(name: bytes, size: int, extents: ExtentMap, **changes: object) -> FileEntry:
    attributes = Attributes(kind=Kind.FILE, mode=0o600, uid=0, gid=0, size=size, mtime_ns=1)
    values: dict[str, object] = {"ino": 1, "nlink": 1, "ctime_ns": 1} | changes
    return FileEntry(name=name, tree=0, attributes=attributes, extents=extents, **values)  # type: ignore[arg-type]


def tree(offset: int = 0) -> Tree:
    filesystem = Filesystem(
        mountpoint="/nowhere",
        fstype="ext4",
        options=frozenset(),
        source="/dev/null",
        devno=0,
        volume="v",
        offset=offset,
    )
    return Tree(name=b"data", path=b"/nowhere", filesystem=filesystem, inside=b"")


@pytest.fixture(scope="module")
def disk() -> Iterator[tuple[Path, bytes]]:
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        content = random.Random(7).randbytes(DISK)
        file.write(content)
        file.flush()
        yield Path(file.name), content


@st.composite
def legs(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Runs on the disk, scattered, in any order, not all on whole blocks; they do not overlap."""
    count = draw(st.integers(1, 4))
    room = DISK // count
    runs = []
    for at in range(count):
        unit = draw(st.sampled_from([512, BLOCK, 64 << 10]))
        begin = draw(st.integers(0, room // 4 // unit)) * unit
        length = draw(st.integers(room // 4 // unit, room // 2 // unit)) * unit
        runs.append((at * room + begin, length))
    return draw(st.permutations(runs))


@st.composite
def files(draw: st.DrawFn, volume: int) -> list[tuple[int, ExtentMap]]:
    """(size, map) of files whose extents lie anywhere, overlap (reflinks), and leave holes."""
    unit = draw(st.sampled_from([512, 1024, BLOCK]))
    found = []
    for _ in range(draw(st.integers(1, 12))):
        extents, at = [], 0
        for _ in range(draw(st.integers(0, 6))):
            at += draw(st.sampled_from([0, 0, unit, 37 * unit]))
            length = draw(st.sampled_from([1, 3, 16, 200])) * unit
            physical = draw(st.integers(0, (volume - length) // unit)) * unit
            flags = draw(st.sampled_from([0, 0, 0, int(ExtentFlag.UNWRITTEN)]))
            extents.append(Extent(at, physical, length, flags))
            at += length
        short = draw(st.integers(0, unit - 1)) if extents else 0
        if short:
            last = extents[-1]
            extents[-1] = last._replace(length=last.length - short)
            size = last.logical + last.length - short
        else:
            size = at + draw(st.sampled_from([0, 5, unit]))
        found.append((size, ExtentMap.of(extents)))
    return found


def content(member: Member) -> bytearray:
    """The bytes of a member, its holes filled with zeros."""
    filled, at = bytearray(member.size), 0
    chunks = b"".join(bytes(chunk) for chunk in member.chunks)
    for begin, length in member.ranges:
        filled[begin : begin + length] = chunks[at : at + length]
        at += length
    assert at == len(chunks) == member.stored
    return filled


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_members_bytes_equal_a_naive_read_of_each_range(
    data: st.DataObject, disk: tuple[Path, bytes]
) -> None:
    path, on_disk = disk
    runs = data.draw(legs())
    volume = b"".join(on_disk[begin : begin + length] for begin, length in runs)
    leg = Leg(
        split_id="s",
        volumes={"v": tuple(Run(path=str(path), offset=at, length=length) for at, length in runs)},
    )
    offset = data.draw(st.sampled_from([0, 512, 1 << 16]))
    table = FileTable()
    maps = data.draw(files(len(volume) - offset))
    for number, (size, extents) in enumerate(maps):
        table.append(entry(b"data/%d" % number, size, extents))
    plan = plan_parts(table, range(len(table)), data.draw(st.sampled_from([64 << 10, 1 << 20])))
    found: dict[bytes, bytearray] = {name: bytearray() for name in table.names}
    with LegSource(leg, [tree(offset)], None, table, window=1 << 20) as source:
        # All parts by one reader: the kernel takes some 30 ms to end a process that read with AIO
        # (an RCU grace period), and on a loaded machine several times that.
        for _, stretches in source.parts(plan.parts):
            for stretch in stretches:
                if isinstance(stretch, Member):
                    found[stretch.name] += content(stretch)
                    continue
                for file in stretch:
                    found[file.name] += file.data
    for name, (size, extents) in zip(table.names, maps, strict=True):
        naive = bytearray(size)
        for extent in extents:
            if not extent.flags & ExtentFlag.UNWRITTEN:
                begin = offset + extent.physical
                naive[extent.logical : extent.logical + extent.length] = volume[
                    begin : begin + extent.length
                ]
        assert found[name] == naive


@given(legs(), st.data())
@settings(max_examples=100, deadline=None)
def test_runs_are_found_where_the_leg_says(
    runs: list[tuple[int, int]], data: st.DataObject
) -> None:
    leg = Leg(
        split_id="s",
        volumes={
            "other": (Run(path="/dev/other", offset=0, length=BLOCK),),
            "v": tuple(Run(path="/dev/v", offset=at, length=length) for at, length in runs),
        },
    )
    size = sum(length for _, length in runs)
    address = data.draw(st.integers(0, size))
    length = data.draw(st.integers(0, size - address))
    found = LegRuns(leg)
    spans = found.spans("v", address, length)
    assert [(found.all[span.source].path, span.address, span.length) for span in spans] == [
        (run.path, run.offset, run.length) for run in leg.locate("v", address, length)
    ]
    for span in spans:
        lower, upper = found.bounds[span.source]
        assert lower <= span.address and span.address + span.length <= upper
    with pytest.raises(ValueError, match="beyond the end"):
        found.spans("v", address, size - address + 1)


BOUNDS = [(512, 3 << 20), (8 << 20, (40 << 20) + 1024)]


@st.composite
def spans(draw: st.DrawFn) -> Span:
    source = draw(st.integers(0, 1))
    lower, upper = BOUNDS[source]
    length = min(draw(st.sampled_from([1, 512, BLOCK, 5000, 300_000, 5 << 20])), upper - lower)
    return Span(source, draw(st.integers(lower, upper - length)), length)


@given(st.lists(spans(), max_size=30))
@settings(max_examples=100, deadline=None)
def test_reads_stay_on_the_leg_and_bring_every_span_to_its_position(wanted: list[Span]) -> None:
    reads, positions = lay_out(wanted, BOUNDS)
    where: dict[tuple[int, int], int] = {}  # block of a source -> position in the buffer
    taken: list[tuple[int, int]] = []
    for read in reads:
        lower, upper = BOUNDS[read.source]
        assert lower <= read.begin and read.begin + read.length <= upper
        assert read.length <= MAX_READ
        assert sum(place.length for place in read.places) == read.length
        at = read.begin
        for place in read.places:
            if place.position is None:
                assert 0 < place.length <= MAX_GAP
            else:
                assert place.position % BLOCK == 0, "direct I/O needs aligned memory"
                taken.append((place.position, place.position + place.length))
                for sector in range(at, at + place.length, 512):
                    where[read.source, sector] = place.position + sector - at
            at += place.length
    taken.sort()
    assert all(a[1] <= b[0] for a, b in pairwise(taken)), "two in one place"
    for span, position in zip(wanted, positions, strict=True):
        begin = span.address // 512 * 512
        for sector in range(begin, span.address + span.length, 512):
            assert where[span.source, sector] == position + sector - span.address
    rooms = sum(-(-(span.address % BLOCK + span.length) // BLOCK) * BLOCK for span in wanted)
    assert not taken or taken[-1][1] <= rooms, "more of the buffer than was reserved"


def test_long_pieces_get_short_windows_and_small_ones_stay_together() -> None:
    small, long = Span(1, 8 << 20, BLOCK), Span(1, 16 << 20, 2 * LONG_WINDOW + BLOCK)
    attributes = Attributes(kind=Kind.FILE, mode=0, uid=0, gid=0, size=0, mtime_ns=0)
    looks = [
        Look(Item(at, 0, 0), b"%d" % at, attributes, spans=spans)
        for at, spans in enumerate([[small], [long], [small] * 3])
    ]
    windows = [draft.spans for draft in draft_windows(looks, len(BOUNDS), 64 << 20)]
    assert windows[0] == [small]
    assert windows[1:3] == [[Span(1, (16 << 20) + at, LONG_WINDOW)] for at in (0, LONG_WINDOW)]
    assert windows[3:] == [[Span(1, (16 << 20) + 2 * LONG_WINDOW, BLOCK), *[small] * 3]]


@given(st.lists(st.lists(spans(), max_size=4), max_size=12), st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_windows_hold_every_byte_once_in_order_and_never_too_much(
    members: list[list[Span]], megabytes: int
) -> None:
    attributes = Attributes(kind=Kind.FILE, mode=0, uid=0, gid=0, size=0, mtime_ns=0)
    looks = [
        Look(Item(at, 0, 0), b"%d" % at, attributes, spans=tuple(wanted))
        for at, wanted in enumerate(members)
    ]
    room = megabytes << 20
    found: list[list[int]] = [[] for _ in looks]
    begun = []
    for draft in draft_windows(looks, len(BOUNDS), room):
        _, positions = lay_out(draft.spans, BOUNDS)
        for span, position in zip(draft.spans, positions, strict=True):
            assert position + span.length <= room
        for share in draft.shares:
            assert isinstance(share, Share)
            if share.begins:
                begun.append(share.look.item.entry)
            for span in draft.spans[share.first : share.last]:
                found[share.look.item.entry] += [span.source, span.address, span.length]
    assert begun == list(range(len(looks)))
    for wanted, got in zip(members, found, strict=True):
        assert _joined(wanted) == _joined([Span(*got[at : at + 3]) for at in range(0, len(got), 3)])


def _joined(wanted: list[Span]) -> list[Span]:
    """Spans that continue one another as one."""
    joined: list[Span] = []
    for span in wanted:
        last = joined[-1] if joined else None
        if last and last.source == span.source and last.address + last.length == span.address:
            joined[-1] = last._replace(length=last.length + span.length)
        else:
            joined.append(span)
    return joined


@st.composite
def sized(draw: st.DrawFn) -> tuple[int, ExtentMap]:
    """A file by its map alone, up to 12 MiB, sparse or not."""
    extents, at = [], 0
    for _ in range(draw(st.integers(0, 5))):
        at += draw(st.sampled_from([0, BLOCK, 3 << 20]))
        length = draw(st.sampled_from([1, 7, 300, 700])) * BLOCK
        extents.append(Extent(at, at, length, 0))
        at += length
    return at + draw(st.sampled_from([0, 0, 100, 5 << 20])), ExtentMap.of(extents)


@given(st.lists(sized(), max_size=8), st.sampled_from([64 << 10, 1 << 20, 4 << 20, 16 << 20]))
@settings(max_examples=100, deadline=None)
def test_a_plan_holds_each_byte_of_each_file_once_in_order_and_no_part_is_too_large(
    wanted: list[tuple[int, ExtentMap]], part_size: int
) -> None:
    table = FileTable()
    for at, (size, extents) in enumerate(wanted):
        table.append(entry(b"data/%d" % at, size, extents))
    order = list(reversed(range(len(table))))
    plan = plan_parts(table, order, part_size)
    reached: dict[int, int] = {}
    seen = []
    for number, part in enumerate(plan.parts, 1):
        assert part.number == number and len(part.items)
        stored = 0
        for item in part.items:
            assert item.offset == reached.get(item.entry, 0)
            reached[item.entry] = item.offset + item.length
            seen.append(item.entry)
            stored += sum(
                max(0, min(begin + length, item.offset + item.length) - max(begin, item.offset))
                for begin, length in wanted[item.entry][1].data_ranges()
            )
        assert part.stored == stored
        assert stored + 512 * len(part.items) <= part_size
    assert list(dict.fromkeys(seen)) == order
    assert reached == {at: size for at, (size, _) in enumerate(wanted)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan"
        loaded = type(plan).load(path, plan.save(path))
        assert [list(part.items) for part in loaded.parts] == [list(p.items) for p in plan.parts]
        assert list(loaded.table) == list(table)
        assert os.listdir(folder) == ["plan"]
