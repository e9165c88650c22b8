"""Finding names, and what is in a directory, in a table as a scan gives it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.unit.test_extents_scan import looked_at, tree

from splitmirror.databases import Keep
from splitmirror.extents.known import Known
from splitmirror.extents.names import scan_key
from splitmirror.extents.table import FileTable

# Names that sort otherwise than the paths they are in.
AWKWARD = ("a", "a\x01b", "a.b", "a b", "ab", "a-", "b", "\udcff", "a\x01")


@pytest.fixture
def table(tmp_path: Path) -> FileTable:
    for name in AWKWARD:
        place = tmp_path / "t" / name
        place.mkdir(parents=True)
        for inner in AWKWARD[:4]:
            (place / inner).touch()
        (place / "a-" / "deep").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a").touch()
    return looked_at(tree(tmp_path / "t", b"t"), tree(tmp_path / "other", b"t/other"))


def test_every_name_is_found_where_it_stands(table: FileTable) -> None:
    known = Known(table)

    for at, name in enumerate(table.names):
        assert known.find(name) == at
        assert known.find(name, table.tree(at)) == at
        assert known.place(name, table.tree(at)) == at
        assert known.find(name, 1 - table.tree(at)) is None
    assert known.find(b"t/none") is None
    assert known.find(b"elsewhere") is None


def test_what_is_in_a_directory_stands_behind_it(table: FileTable) -> None:
    known, names = Known(table), list(table.names)

    for at, name in enumerate(names):
        if chr(table.kind(at)) != "5":
            continue
        below = [n for i, n in enumerate(names)
                 if n.startswith(name + b"/") and table.tree(i) == table.tree(at)]  # fmt: skip
        assert names[at + 1 : known.behind(at)] == below
        inside = {n[len(name) + 1 :] for n in below if b"/" not in n[len(name) + 1 :]}
        assert known.inside(at).keys() == inside
        assert all(names[child] == name + b"/" + base for base, child in known.inside(at).items())


def test_a_name_that_is_not_there_has_a_place_all_the_same(table: FileTable) -> None:
    known = Known(table)
    keys = [scan_key(name) for at, name in enumerate(table.names) if not table.tree(at)]

    for name in (b"t/a/new", b"t/0", b"t/zz", b"t/a.b/\x01"):
        place = known.place(name, 0)
        assert keys == sorted(keys)
        assert keys[place - 1] < scan_key(name)
        assert place == len(keys) or scan_key(name) < keys[place]
    assert known.place(b"u", 7) == len(table)


def test_names_of_one_file_are_known_together(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    for name in ("x", "single", "y"):
        (tmp_path / "t" / name).touch()
    for first, second in (("x", "b"), ("x", "c"), ("y", "z")):
        os.link(tmp_path / "t" / first, tmp_path / "t" / second)
    table = looked_at(tree(tmp_path / "t", b"t"))
    known = Known(table)

    groups = [[table.names[at] for at in group] for group in known.linked]
    assert groups == [[b"t/b", b"t/c", b"t/x"], [b"t/y", b"t/z"]]
    inode = (tmp_path / "t/c").stat().st_ino
    assert [table.names[at] for at in known.with_inodes({inode})] == [b"t/b", b"t/c", b"t/x"]
    assert known.mapped == 6


def test_no_files_are_known_of_an_empty_table() -> None:
    known = Known(FileTable())

    assert known.find(b"t") is None
    assert known.place(b"t", 0) == 0
    assert (known.mapped, known.stored_bytes, known.linked) == (0, 0, ())


def test_an_emptied_directory_has_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "t/e").mkdir(parents=True)
    (tmp_path / "t/e/f").touch()

    table = looked_at(
        tree(tmp_path / "t", b"t"),
        keep=lambda name: Keep.EMPTY if name == b"t/e" else Keep.KEEP,
    )

    assert Known(table).inside(1) == {}
