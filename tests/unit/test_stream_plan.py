"""Which file goes into which part, and that a plan survives."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitmirror.errors import JournalDamaged
from splitmirror.extents.table import FileTable
from splitmirror.model import Attributes, Extent, ExtentMap, FileEntry, Kind
from splitmirror.stream import plan as plan_module
from splitmirror.stream.plan import Item, Plan, plan_parts

MIB = 1 << 20


def table_of(*files: tuple[bytes, Kind, int, bytes]) -> FileTable:
    """(name, kind, size, link) of files whose data all lie in one extent."""
    table = FileTable()
    for name, kind, size, link in files:
        attributes = Attributes(
            kind=kind, mode=0o600, uid=0, gid=0, size=size, mtime_ns=1, link=link
        )
        extents = ExtentMap.of([Extent(0, 0, size, 0)] if size else [])
        table.append(
            FileEntry(
                name=name,
                tree=0,
                attributes=attributes,
                ino=1,
                nlink=2 if b"linked" in name else 1,
                ctime_ns=1,
                extents=extents,
            )
        )
    return table


def items(plan: Plan) -> list[list[tuple[bytes, bytes | None, bool]]]:
    """(name, link, stored) of each part's items."""
    names = plan.table.names
    return [
        [(names[i.entry], None if i.link is None else names[i.link], i.stored) for i in part.items]
        for part in plan.parts
    ]


def test_a_hard_link_stays_a_link_where_its_file_stands_whole_in_the_part() -> None:
    table = table_of(
        (b"data", Kind.DIRECTORY, 0, b""),
        (b"data/linked", Kind.FILE, 5000, b""),
        (b"data/linked2", Kind.HARDLINK, 0, b"data/linked"),
    )
    assert items(plan_parts(table, [0, 1, 2], MIB)) == [
        [
            (b"data", None, True),
            (b"data/linked", None, True),
            (b"data/linked2", b"data/linked", False),
        ]
    ]


def test_whichever_name_comes_first_in_the_order_has_the_data() -> None:
    table = table_of(
        (b"data/linked", Kind.FILE, 5000, b""),
        (b"data/linked2", Kind.HARDLINK, 0, b"data/linked"),
    )
    plan = plan_parts(table, [1, 0], MIB)
    assert items(plan) == [
        [(b"data/linked2", None, True), (b"data/linked", b"data/linked2", False)]
    ]
    assert plan.parts[0].items[0] == Item(1, 0, 5000)
    assert plan.stored == 5000


def test_a_hard_link_to_a_file_in_another_part_repeats_the_data_once_a_part() -> None:
    table = table_of(
        (b"data/linked", Kind.FILE, 100_000, b""),
        (b"data/between", Kind.FILE, 500_000, b""),
        (b"data/linked2", Kind.HARDLINK, 0, b"data/linked"),
        (b"data/linked3", Kind.HARDLINK, 0, b"data/linked"),
    )
    plan = plan_parts(table, [0, 1, 2, 3], 560_000)
    assert items(plan) == [
        [(b"data/linked", None, True)],
        [(b"data/between", None, True)],
        [(b"data/linked2", b"data/linked", True), (b"data/linked3", b"data/linked2", False)],
    ]
    assert plan.parts[2].items[0].length == 100_000


def test_a_hard_link_to_a_file_in_pieces_repeats_the_data() -> None:
    table = table_of(
        (b"data/linked", Kind.FILE, 5 * MIB, b""),
        (b"data/linked2", Kind.HARDLINK, 0, b"data/linked"),
    )
    plan = plan_parts(table, [0, 1], 4 * MIB)
    flat = [item for part in plan.parts for item in part.items]
    assert [(i.entry, i.offset, i.length, i.link, i.stored) for i in flat if i.entry == 1] == [
        (1, i.offset, i.length, 0, True) for i in flat if i.entry == 1
    ]
    assert sum(i.length for i in flat) == 10 * MIB


def test_a_link_to_nothing_is_refused() -> None:
    table = table_of((b"data/linked2", Kind.HARDLINK, 0, b"data/linked"))
    with pytest.raises(ValueError, match="linked to nothing"):
        plan_parts(table, [0], MIB)


def test_large_files_are_cut_at_whole_mebibytes_and_the_pieces_numbered() -> None:
    table = table_of((b"data/large", Kind.FILE, 10 * MIB + 5, b""))
    plan = plan_parts(table, [0], 4 * MIB)
    flat = [item for part in plan.parts for item in part.items]
    assert all(item.offset % MIB == 0 for item in flat)
    assert sum(item.length for item in flat) == 10 * MIB + 5
    assert [item.piece.number for item in flat if item.piece] == list(range(1, len(flat) + 1))
    assert {item.piece.count for item in flat if item.piece} == {len(flat)}
    assert len(plan.parts) == len(flat) == 4


def test_holes_take_no_room() -> None:
    table = FileTable()
    attributes = Attributes(kind=Kind.FILE, mode=0, uid=0, gid=0, size=5 << 30, mtime_ns=0)
    extents = ExtentMap.of([Extent(0, 0, 4096, 0), Extent(4 << 30, 4096, 4096, 0)])
    table.append(
        FileEntry(
            name=b"data/sparse", tree=0, attributes=attributes, ino=1, nlink=1, ctime_ns=0,
            extents=extents,
        )
    )  # fmt: skip
    plan = plan_parts(table, [0], MIB)
    assert [list(part.items) for part in plan.parts] == [[Item(0, 0, 5 << 30)]]


@pytest.mark.parametrize("size", [0, 1, 512, 513, 100_000])
@pytest.mark.parametrize("stored", [0.0, 0.5, 1.0])
def test_a_file_of_one_extent_takes_the_same_room_however_it_is_reckoned(
    size: int, stored: float
) -> None:
    """Nearly all files have at most one, and theirs is reckoned without laying them out."""
    table = FileTable()
    attributes = Attributes(kind=Kind.FILE, mode=0, uid=0, gid=0, size=size, mtime_ns=0)
    length = int(size * stored)
    extents = ExtentMap.of([Extent(size - length, 4096, length, 0)] if length else [])
    for name in (b"data/sparse", b"data/linked"):
        table.append(
            FileEntry(
                name=name, tree=0, attributes=attributes, ino=1, ctime_ns=0, extents=extents,
                nlink=2 if b"linked" in name else 1,
            )
        )  # fmt: skip
    left = []
    for at in (0, 1):  # the second is laid out, for it has another name
        filling = plan_module._Filling(table, MIB)
        filling.add(at)
        left.append((filling._left, filling._stored))
    assert left[0] == left[1]


def test_no_files_make_no_parts() -> None:
    assert plan_parts(FileTable(), [], MIB).parts == ()


def test_a_part_size_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="part size"):
        plan_parts(FileTable(), [], 4096)


def test_a_plan_that_is_not_the_journals_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    plan = plan_parts(table_of((b"data/a", Kind.FILE, 9, b"")), [0], MIB)
    digest = plan.save(path)
    assert Plan.load(path, digest).parts == plan.parts
    content = path.read_bytes()
    for damaged in (content[:-1], b"", content[:50] + b"x" + content[51:]):
        path.write_bytes(damaged)
        with pytest.raises(JournalDamaged) as caught:
            Plan.load(path, digest)
        assert caught.value.hint
    path.unlink()
    with pytest.raises(JournalDamaged):
        Plan.load(path, digest)


def test_saving_again_replaces_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    first = plan_parts(table_of((b"data/a", Kind.FILE, 9, b"")), [0], MIB).save(path)
    second = plan_parts(table_of((b"data/b", Kind.FILE, 9, b"")), [0], MIB).save(path)
    assert first != second
    assert Plan.load(path, second).table.names == [b"data/b"]
    assert [found.name for found in tmp_path.iterdir()] == ["plan"]
