"""Restoring from a volume: what was there comes back, from few records, and nothing else."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.made_sets import (
    Counting,
    Made,
    blank,
    damage,
    directory,
    file,
    other,
    pieces,
    tree,
    write_set,
)

from splitmirror.archive import clearing
from splitmirror.archive.ground import Anchor
from splitmirror.archive.incomplete import INCOMPLETE
from splitmirror.catalog import Catalog
from splitmirror.databases import CopyReport, RunningCopy
from splitmirror.databases.none import Files
from splitmirror.drill import DrillReport, drill
from splitmirror.errors import (
    Busy,
    CatalogError,
    ConfigError,
    CopyFailed,
    NoRoom,
    NoSuchFile,
    NoSuchSet,
    OutsideTarget,
    SplitmirrorError,
    TargetNotEmpty,
    VerifyFailed,
    WrongMedium,
)
from splitmirror.media.memory import Memory
from splitmirror.media.supply import OneVolume
from splitmirror.model import Kind
from splitmirror.restore import RestoreReport, restore
from splitmirror.verify import verify

ROOT = os.geteuid() == 0


@pytest.fixture
def drive() -> Memory:
    return blank()


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.db") as catalog:
        yield catalog


def recorded(catalog: Catalog, made: Made) -> Made:
    catalog.record(made.backup_set, made.parts, made.members)
    return made


def report_of(failed: VerifyFailed) -> RestoreReport:
    report = failed.facts["report"]
    assert isinstance(report, RestoreReport)
    return report


def look(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything that tells one tree from another."""
    found: dict[bytes, tuple[object, ...]] = {}
    paths = [os.fsencode(root)]
    for path, directories, files in os.walk(os.fsencode(root)):
        paths += [os.path.join(path, base) for base in (*directories, *files)]
    inodes: dict[int, bytes] = {}
    for path in sorted(paths):
        status, name = os.lstat(path), path[len(os.fsencode(root)) :]
        content: bytes | str = b""
        if stat.S_ISREG(status.st_mode):
            content = Path(os.fsdecode(path)).read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        plain = not stat.S_ISDIR(status.st_mode)
        found[name] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_size if plain else 0,
            status.st_mtime_ns,
            status.st_rdev,
            status.st_nlink if plain else 0,
            inodes.setdefault(status.st_ino, name) if plain else b"",
            content,
            [
                (key, os.getxattr(path, key, follow_symlinks=False))
                for key in sorted(os.listxattr(path, follow_symlinks=False))
            ],
        )
    return found


def a_rich_tree(root: Path) -> None:
    """One of everything that a file can be."""
    (root / "deep/er").mkdir(parents=True)
    (root / "plain").write_bytes(b"plain " * 5000)
    (root / "empty").touch(mode=0o000)
    (root / "deep/er/link").symlink_to("/nowhere/\udcff")
    os.link(root / "plain", root / "deep/also plain")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe \n*")).write_bytes(b"odd name")
    with (root / "sparse").open("wb") as sparse:
        sparse.seek(3 << 20)
        sparse.write(b"x" * 5000)
        sparse.truncate(9 << 20)
    os.setxattr(root / "plain", "user.colour", b"\x00blue")
    os.setxattr(root / "deep", "user.kind", b"directory")
    os.mkfifo(root / "pipe", 0o622)
    if ROOT:
        os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (root / "owned").write_bytes(b"#!")
        os.chown(root / "owned", 4711, 4712)
        (root / "owned").chmod(0o6755)
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, ns=(1, 1_600_000_000_000_000_001 + number), follow_symlinks=False)


def test_a_whole_set_comes_back_as_it_was(drive: Memory, catalog: Catalog, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    a_rich_tree(source)
    made = recorded(catalog, write_set(drive, [tree(source, b"data")]))
    report = restore(OneVolume(drive), catalog, made.set_id, (), tmp_path / "target")
    assert look(tmp_path / "target/data") == look(source)
    assert (report.mismatches, report.skipped) == ((), ())
    assert report.files + report.directories == len(made.members)
    assert report.bytes == made.backup_set.stored_bytes
    blocks = (tmp_path / "target/data/sparse").stat().st_blocks
    assert blocks == (source / "sparse").stat().st_blocks


def test_without_a_catalogue_the_sets_own_is_read_off_the_medium(
    drive: Memory, tmp_path: Path
) -> None:
    write_set(drive, [[directory(b"data"), file(b"data/old", b"1")]], set_id="orders-1")
    write_set(drive, [[directory(b"data"), file(b"data/new", b"2")]], set_id="orders-2")
    restore(OneVolume(drive), None, "latest", (), tmp_path / "latest")
    assert (tmp_path / "latest/data/new").read_bytes() == b"2"
    restore(OneVolume(drive), None, "orders-1", [b"data/old"], tmp_path / "older")
    assert (tmp_path / "older/data/old").read_bytes() == b"1"
    with pytest.raises(NoSuchSet):
        restore(OneVolume(drive), None, "users", (), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_one_file_of_a_large_set_costs_few_records(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    large = [file(b"data/%04d" % i, random.Random(i).randbytes(40_000)) for i in range(600)]
    made = recorded(catalog, write_set(drive, [[directory(b"data")], large, large[:0]]))
    counting = Counting(drive)
    restore(OneVolume(counting), catalog, made.set_id, [b"data/0555"], tmp_path / "target")
    assert (tmp_path / "target/data/0555").read_bytes() == random.Random(555).randbytes(40_000)
    # VOL1, the part's labels, and the twelve records that the file touches
    assert counting.read_records <= 1 + 3 + 12
    assert len(drive.cartridge.objects) > 5000


def test_two_files_far_apart_do_not_cost_what_lies_between(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    between = [file(b"data/%d" % i, b"x" * (1 << 20)) for i in range(12)]
    members = [file(b"data/a", b"a"), *between, file(b"data/z", b"z")]
    made = recorded(catalog, write_set(drive, [members]))
    counting = Counting(drive)
    restore(OneVolume(counting), catalog, made.set_id, [b"data/[az]"], tmp_path / "target")
    assert (tmp_path / "target/data/z").read_bytes() == b"z"
    assert counting.read_records <= 8 and len(drive.cartridge.objects) > 3000


def test_a_whole_set_is_read_once_and_forwards(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    parts = [[file(b"data/%d-%d" % (p, i), b"x" * 9000) for i in range(40)] for p in range(3)]
    made = recorded(catalog, write_set(drive, [[directory(b"data"), *parts[0]], *parts[1:]]))
    counting = Counting(drive)
    restore(OneVolume(counting), catalog, made.set_id, (), tmp_path / "target")
    records = sum(part.length // part.block_size for part in made.parts)
    assert counting.read_records <= records + 1 + 3
    assert counting.located == sorted(counting.located) and len(counting.located) == 5


def test_a_subtree_and_a_glob_bring_their_directories_with_their_attributes(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    made = recorded(
        catalog,
        write_set(
            drive,
            [
                [
                    directory(b"data", mode=0o700),
                    directory(b"data/base", mode=0o2750),
                    file(b"data/base/1", b"1"),
                    file(b"data/base/2", b"2"),
                    file(b"data/conf", b"c"),
                ]
            ],
        ),
    )
    restore(OneVolume(drive), catalog, made.set_id, [b"data/base"], tmp_path / "tree")
    assert sorted(path.name for path in (tmp_path / "tree/data").rglob("*")) == ["1", "2", "base"]
    restore(OneVolume(drive), catalog, made.set_id, [b"**/[2-9]", b"data/c*"], tmp_path / "glob")
    assert (tmp_path / "glob/data/base/2").read_bytes() == b"2"
    assert not (tmp_path / "glob/data/base/1").exists()
    assert stat.S_IMODE((tmp_path / "glob/data/base").stat().st_mode) == 0o2750


def test_pieces_are_joined_and_holes_in_them_kept(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    content = random.Random(7).randbytes(100_000)
    cut = pieces(b"data/big", content, 30_000)
    holed = replace(cut[2], ranges=((1000, 500),), chunks=[memoryview(content[61_000:61_500])])
    parts = [[directory(b"data"), cut[0]], [cut[1], file(b"data/x", b"x")], [holed], [cut[3]]]
    made = recorded(catalog, write_set(drive, parts))
    restore(OneVolume(drive), catalog, made.set_id, [b"data/big"], tmp_path / "target")
    expected = bytearray(content)
    expected[60_000:61_000] = bytes(1000)
    expected[61_500:90_000] = bytes(28_500)
    assert (tmp_path / "target/data/big").read_bytes() == expected


def test_a_missing_or_damaged_piece_leaves_no_file(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    cut = pieces(b"data/big", b"first" * 2000 + b"other" * 2000 + b"third" * 2000, 10_000)
    made = write_set(drive, [[directory(b"data"), file(b"data/x", b"x")], cut[:1], cut[1:]])
    recorded(catalog, made)
    damage(drive, b"otherother")
    with pytest.raises(VerifyFailed) as caught:
        restore(OneVolume(drive), catalog, made.set_id, (), tmp_path / "target")
    assert [bad.name for bad in report_of(caught.value).mismatches] == [b"data/big"]
    assert [path.name for path in (tmp_path / "target/data").iterdir()] == ["x"]


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_file_without_one_of_its_pieces_is_no_file(
    drive: Memory, catalog: Catalog, tmp_path: Path, missing: int
) -> None:
    cut = pieces(b"data/big", b"x" * 30_000, 10_000)
    made = write_set(drive, [[directory(b"data"), *cut]])
    members = [row for row in made.members if not row[1].piece or row[1].piece.number != missing]
    catalog.record(made.backup_set, made.parts, members)
    with pytest.raises(VerifyFailed, match="big"):
        restore(OneVolume(drive), catalog, made.set_id, (), tmp_path / "target")
    assert list((tmp_path / "target/data").iterdir()) == []


def test_a_hard_link_comes_alone_with_the_data_of_its_target(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    members = [
        directory(b"data"),
        file(b"data/a", b"the data"),
        other(b"data/b", Kind.HARDLINK, link=b"data/a"),
        other(b"data/c", Kind.HARDLINK, link=b"data/a"),
    ]
    repeated = [file(b"data/d", b"the data", link=b"data/a")]
    made = recorded(catalog, write_set(drive, [members, repeated]))
    restore(OneVolume(drive), catalog, made.set_id, [b"data/b", b"data/c"], tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "two/data").iterdir()) == ["b", "c"]
    assert (tmp_path / "two/data/b").read_bytes() == b"the data"
    assert (tmp_path / "two/data/b").samefile(tmp_path / "two/data/c")
    restore(OneVolume(drive), catalog, made.set_id, [b"data/d"], tmp_path / "one")
    assert (tmp_path / "one/data/d").read_bytes() == b"the data"
    report = restore(OneVolume(drive), catalog, made.set_id, (), tmp_path / "all")
    assert report.files == 4
    for name in "bcd":
        assert (tmp_path / "all/data" / name).samefile(tmp_path / "all/data/a")


# --- malicious media


@pytest.mark.parametrize(
    "name", [b"../x", b"/tmp/x", b"data/../../x", b".", b"data/./x", b"data//x", b"data/"]
)
def test_a_medium_that_names_a_place_outside_writes_nothing_there(
    drive: Memory, catalog: Catalog, tmp_path: Path, name: bytes
) -> None:
    made = write_set(drive, [[directory(b"data"), file(name, b"evil")]])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutsideTarget):
        restore(OneVolume(drive), None, made.set_id, (), tmp_path / "target")
    after = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert {path.relative_to(tmp_path).parts[0] for path in after} <= {"target"}
    assert [path.name for path in after if path.is_file()] == [INCOMPLETE]


def test_a_file_through_a_planted_link_is_refused(drive: Memory, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for link in (os.fsencode(outside), b"../../outside"):
        drive = blank()
        members = [
            directory(b"data"),
            other(b"data/way", Kind.SYMLINK, link=link),
            file(b"data/way/evil", b"evil"),
        ]
        made = write_set(drive, [members])
        with pytest.raises(OutsideTarget, match="symbolic link"):
            restore(OneVolume(drive), None, made.set_id, (), tmp_path / f"target{len(link)}")
    assert list(outside.iterdir()) == []


def test_a_directory_through_a_planted_link_changes_nothing_outside(
    drive: Memory, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    members = [
        other(b"data", Kind.SYMLINK, link=os.fsencode(outside)),
        directory(b"data", mode=0o777),
    ]
    made = write_set(drive, [members])
    with pytest.raises(OutsideTarget):
        restore(OneVolume(drive), None, made.set_id, (), tmp_path / "target")
    assert stat.S_IMODE(outside.stat().st_mode) == 0o700


@pytest.mark.parametrize("link", [b"/etc/passwd", b"../../../../../../../../etc/passwd"])
def test_a_hard_link_to_a_file_of_the_host_is_refused(
    drive: Memory, tmp_path: Path, link: bytes
) -> None:
    evil = other(b"data/evil", Kind.HARDLINK, link=link)
    made = write_set(drive, [[directory(b"data"), evil, file(b"data/good", b"g")]])
    with pytest.raises((OutsideTarget, VerifyFailed)):
        restore(OneVolume(drive), None, made.set_id, (), tmp_path / "target")
    assert not (tmp_path / "target/data/evil").exists()
    assert Path("/etc/passwd").stat().st_nlink == 1


def test_a_name_that_comes_twice_is_told_and_the_first_stays(drive: Memory, tmp_path: Path) -> None:
    members = [directory(b"data"), file(b"data/a", b"first"), file(b"data/a", b"second")]
    made = write_set(drive, [members])
    with pytest.raises(VerifyFailed, match="twice"):
        restore(OneVolume(drive), None, made.set_id, (), tmp_path / "target")
    assert (tmp_path / "target/data/a").read_bytes() == b"first"


def test_a_catalogue_of_another_volume_is_told_by_name(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    made = write_set(drive, [[directory(b"data"), file(b"data/a", b"first")]])
    moved = [
        (number, replace(record, name=record.name.replace(b"a", b"o")))
        for number, record in made.members
    ]
    catalog.record(made.backup_set, made.parts, moved)
    with pytest.raises(VerifyFailed, match="as the catalogue says"):
        restore(OneVolume(drive), catalog, made.set_id, (), tmp_path / "target")
    position = made.parts[0].position
    assert position is not None
    elsewhere = [replace(made.parts[0], position=replace(position, volume="SM0099"))]
    catalog.record(made.backup_set, elsewhere, made.members)
    with pytest.raises(WrongMedium, match="SM0099"):
        restore(OneVolume(drive), catalog, made.set_id, (), tmp_path / "other")


# --- damage


def test_a_flipped_byte_is_found_by_its_hash_and_costs_one_file(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    members = [directory(b"data"), *(file(b"data/%d" % i, b"%d" % i * 9000) for i in range(9))]
    made = recorded(catalog, write_set(drive, [members]))
    damage(drive, b"4" * 3000)
    with pytest.raises(VerifyFailed, match=r"data/4: .*hash") as caught:
        restore(OneVolume(drive), catalog, made.set_id, (), tmp_path / "target")
    assert caught.value.exit_code == 65
    names = sorted(path.name for path in (tmp_path / "target/data").iterdir())
    assert names == [str(i) for i in range(9) if i != 4]
    with pytest.raises(VerifyFailed):
        restore(OneVolume(drive), catalog, made.set_id, (), tmp_path / "kept", keep_damaged=True)
    assert len((tmp_path / "kept/data/4.damaged").read_bytes()) == 9000
    assert not (tmp_path / "kept/data/4").exists()


def test_a_damaged_header_costs_its_own_member_only(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    members = [directory(b"data"), *(file(b"data/name%d" % i, b"x" * 9000) for i in range(9))]
    made = recorded(catalog, write_set(drive, [members]))
    damage(drive, b"data/name4")
    with pytest.raises(VerifyFailed) as caught:
        restore(OneVolume(drive), catalog, made.set_id, (), tmp_path / "target")
    assert [bad.name for bad in report_of(caught.value).mismatches] == [b"data/name4"]
    assert len(list((tmp_path / "target/data").iterdir())) == 8


def test_holes_that_moved_are_damage_though_the_bytes_are_the_same(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    whole = file(b"data/a", b"a" * 65536)
    holed = replace(whole, ranges=((4096, 100),), chunks=[memoryview(b"a" * 100)])
    made = recorded(catalog, write_set(drive, [[directory(b"data"), holed]]))
    for at, found in enumerate(drive.cartridge.objects):
        if found is not None and b"2\n4096\n100\n" in found:
            drive.cartridge.objects[at] = found.replace(b"2\n4096\n100\n", b"2\n8192\n100\n")
    with pytest.raises(VerifyFailed, match="holes"):
        restore(OneVolume(drive), catalog, made.set_id, (), tmp_path / "target")
    assert not (tmp_path / "target/data/a").exists()
    assert "holes" in verify(OneVolume(drive), made.set_id).damage[0].what


def test_verify_finds_nothing_in_a_sound_set(drive: Memory, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    a_rich_tree(source)
    cut = pieces(b"data/big", b"z" * 50_000, 20_000)
    made = write_set(drive, [tree(source, b"data"), cut[:2], cut[2:]])
    report = verify(OneVolume(drive), "latest")
    report.require_sound()
    assert (report.set_id, report.parts, report.files) == (made.set_id, 3, len(made.members))
    assert report.bytes == made.backup_set.stored_bytes


def test_verify_tells_all_damage_not_only_the_first(drive: Memory) -> None:
    parts = [
        [directory(b"data"), file(b"data/a", b"a" * 9000), file(b"data/b", b"b" * 9000)],
        [file(b"data/c", b"c" * 9000), file(b"data/damagedname", b"d" * 9000)],
    ]
    made = write_set(drive, parts)
    damage(drive, b"a" * 3000)
    damage(drive, b"c" * 3000)
    damage(drive, b"data/damagedname", count=2)  # its header, and its line in the manifest
    report = verify(OneVolume(drive), made.set_id)
    told = [f"{found.where} {found.what}" for found in report.damage]
    assert not report.sound and len(told) == 4, told
    for number, what in enumerate(["data/a", "data/c", "data/damagedname", "manifest"]):
        assert what in told[number], told
    with pytest.raises(VerifyFailed, match="data/c"):
        report.require_sound()


def test_verify_finds_a_header_that_says_otherwise_than_the_manifest(drive: Memory) -> None:
    made = write_set(drive, [[directory(b"data"), file(b"data/a", b"a" * 9000)]])
    assert verify(OneVolume(drive), made.set_id).sound
    header_of(drive, b"data/a", b"0000640", b"0000644", 4)
    (damage,) = verify(OneVolume(drive), made.set_id).damage
    assert "data/a" in damage.what and "mode" in damage.what


def header_of(drive: Memory, name: bytes, old: bytes, new: bytes, more: int) -> None:
    """Change a field of a tar header, and its checksum by `more`."""
    for at, found in enumerate(drive.cartridge.objects):
        begin = -1 if found is None else found.find(name + b"\0" * 50 + b"\0")
        if found is not None and begin >= 0:
            header = found[begin : begin + 512].replace(old, new, 1)
            checksum = int(header[148:154], 8) + more
            header = header[:148] + b"%06o" % checksum + header[154:]
            drive.cartridge.objects[at] = found[:begin] + header + found[begin + 512 :]
            return
    raise AssertionError("no such header")


def test_verify_of_a_set_that_was_cut_off_says_so(drive: Memory) -> None:
    made = write_set(drive, [[file(b"data/a", b"a")]], complete=False)
    report = verify(OneVolume(drive), made.set_id)
    assert [found.where for found in report.damage] == ["catalogue of the set"]
    assert report.files == 1


# --- before anything is written


def test_a_target_that_holds_something_is_refused(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    made = recorded(catalog, write_set(drive, [[directory(b"data"), file(b"data/a", b"a")]]))
    target = tmp_path / "target"
    target.mkdir()
    (target / ".hidden").touch()
    with pytest.raises(TargetNotEmpty, match="hidden"):
        restore(OneVolume(drive), catalog, made.set_id, (), target)
    with pytest.raises(TargetNotEmpty):
        restore(OneVolume(drive), catalog, made.set_id, (), target / ".hidden")
    assert [path.name for path in target.iterdir()] == [".hidden"]
    for place, original in ((target, True), (None, False)):
        with pytest.raises(ConfigError):
            restore(OneVolume(drive), catalog, made.set_id, (), place, original=original)


def test_too_little_room_is_told_before_anything_is_written(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    made = write_set(drive, [[directory(b"data"), file(b"data/a", b"a")]])
    huge = [(number, replace(record, stored=1 << 60)) for number, record in made.members]
    catalog.record(made.backup_set, made.parts, huge)
    with pytest.raises(NoRoom, match="TiB"):
        restore(OneVolume(drive), catalog, made.set_id, (), tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_what_the_set_does_not_hold_is_told(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    made = recorded(catalog, write_set(drive, [[directory(b"data"), file(b"data/a", b"a")]]))
    with pytest.raises(NoSuchFile, match="data/b"):
        restore(OneVolume(drive), catalog, made.set_id, [b"data/b"], tmp_path / "target")
    with pytest.raises(NoSuchSet):
        restore(OneVolume(drive), catalog, "users", (), tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_an_incomplete_set_gives_files_but_not_itself(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    made = write_set(drive, [[directory(b"data"), file(b"data/a", b"a")]], complete=False)
    recorded(catalog, made)
    with pytest.raises(NoSuchSet, match="incomplete"):
        restore(OneVolume(drive), catalog, made.set_id, (), tmp_path / "target")
    restore(OneVolume(drive), catalog, made.set_id, [b"**"], tmp_path / "target")
    assert (tmp_path / "target/data/a").read_bytes() == b"a"


# --- at the original place


@pytest.fixture
def original(tmp_path: Path) -> Path:
    place = tmp_path / "srv/data"
    (place / "base").mkdir(parents=True)
    (place / "base/1").write_bytes(b"as it was at the backup")
    (place / "conf").write_bytes(b"conf")
    return place


def backed_up(drive: Memory, catalog: Catalog, place: Path) -> Made:
    trees = [(b"data", os.fsencode(place))]
    return recorded(catalog, write_set(drive, [tree(place, b"data")], trees=trees))


def test_a_whole_set_at_its_original_place_is_all_there_is_afterwards(
    drive: Memory, catalog: Catalog, original: Path
) -> None:
    before = look(original)
    made = backed_up(drive, catalog, original)
    (original / "base/1").write_bytes(b"changed since")
    (original / "base/2").mkdir()
    (original / "base/2/new").touch()
    (original / "stale.pid").touch()
    (original / "conf").unlink()
    (original / "conf").symlink_to("/etc/passwd")
    (original / "of another server").mkdir()
    report = restore(OneVolume(drive), catalog, made.set_id, (), None, original=True)
    after = look(original)
    assert after.pop(b"/of another server") is not None
    assert after == before
    assert report.removed == 3


def test_the_wrong_volume_takes_nothing_away_from_the_original_place(
    drive: Memory, catalog: Catalog, original: Path
) -> None:
    made = backed_up(drive, catalog, original)
    (original / "new").touch()
    another = blank()
    write_set(another, [[file(b"data/a", b"a")]], set_id="of-somebody-else")
    with pytest.raises(WrongMedium, match="not at object"):
        restore(OneVolume(another), catalog, made.set_id, (), None, original=True)
    with pytest.raises(WrongMedium, match="blank"):
        restore(OneVolume(blank()), catalog, made.set_id, (), None, original=True)
    assert (original / "new").exists()


def test_one_file_at_its_original_place_leaves_the_others_alone(
    drive: Memory, catalog: Catalog, original: Path
) -> None:
    made = backed_up(drive, catalog, original)
    (original / "base/1").write_bytes(b"changed since")
    (original / "conf").write_bytes(b"changed too")
    (original / "new").touch()
    report = restore(OneVolume(drive), catalog, made.set_id, [b"data/base/1"], None, original=True)
    assert (original / "base/1").read_bytes() == b"as it was at the backup"
    assert (original / "conf").read_bytes() == b"changed too" and (original / "new").exists()
    assert report.removed == 0


def test_a_damaged_file_leaves_the_old_one_at_its_original_place(
    drive: Memory, catalog: Catalog, original: Path
) -> None:
    made = backed_up(drive, catalog, original)
    (original / "base/1").write_bytes(b"changed since")
    damage(drive, b"as it was at the backup")
    with pytest.raises(VerifyFailed):
        restore(OneVolume(drive), catalog, made.set_id, (), None, original=True)
    assert (original / "base/1").read_bytes() == b"changed since"
    assert len(list((original / "base").iterdir())) == 1


def test_a_place_in_use_is_not_restored_over(
    drive: Memory, catalog: Catalog, original: Path
) -> None:
    made = backed_up(drive, catalog, original)
    holder = (
        "import os, sys; os.chdir(sys.argv[1]); file = open(sys.argv[2], 'a');"
        "print(os.getpid(), file=file, flush=True); file.close() if sys.argv[3] else None;"
        "print('ready', flush=True); sys.stdin.read()"
    )
    for name, close in (("postmaster.pid", "1"), ("base/1", "")):
        argv = [sys.executable, "-c", holder, str(original), name, close]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            content = (original / name).read_bytes()
            with pytest.raises(Busy, match=f"process {server.pid} has"):
                restore(OneVolume(drive), catalog, made.set_id, (), None, original=True)
            assert (original / name).read_bytes() == content
            server.communicate()
    restore(OneVolume(drive), catalog, made.set_id, (), None, original=True)  # its pid is stale now
    assert not (original / "postmaster.pid").exists()


def test_clearing_never_enters_the_place_of_another_tree_nor_follows_a_link(
    tmp_path: Path,
) -> None:
    outer, inner, elsewhere = (tmp_path / name for name in ("outer", "outer/a/inner", "else"))
    for place in (inner, elsewhere):
        place.mkdir(parents=True)
        (place / "kept").touch()
    (outer / "a/way").symlink_to(elsewhere)
    (outer / "a/stale").mkdir()
    anchors = [
        Anchor.at(b"outer", os.fsencode(outer)),
        Anchor.at(b"inner", os.fsencode(inner)),
    ]
    kinds = {b"outer": Kind.DIRECTORY, b"outer/a": Kind.DIRECTORY}
    assert clearing.clear(anchors, kinds.get) == 2
    assert (inner / "kept").exists() and (elsewhere / "kept").exists()
    assert sorted(path.name for path in (outer / "a").iterdir()) == ["inner"]


# --- the catalogue from the medium


def rows(catalog: Catalog, set_id: str) -> tuple[object, ...]:
    return catalog.get(set_id), catalog.parts(set_id), list(catalog.members(set_id))


def test_a_rebuilt_catalogue_equals_the_recorded_one_row_by_row(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    from splitmirror.catalog.rebuild import record_sets

    source = tmp_path / "source"
    source.mkdir()
    a_rich_tree(source)
    cut = pieces(b"data/big", b"z" * 50_000, 20_000)
    repeated = file(b"data/repeated", b"z", link=b"data/plain")
    first = write_set(
        drive,
        [tree(source, b"data"), [*cut[:2], repeated], cut[2:]],
        trees=[(b"data", b"/srv/\xff")],
        facts={"version": "15"},
    )
    second = write_set(drive, [[file(b"data/x", b"x")]], set_id="orders-2")
    for made in (first, second):
        recorded(catalog, made)
    with Catalog.open(tmp_path / "rebuilt.db") as rebuilt:
        for _ in range(2):
            sets = record_sets(OneVolume(drive), rebuilt)
            assert [found.set_id for found in sets] == ["orders-1", "orders-2"]
            for made in (first, second):
                assert rows(rebuilt, made.set_id) == rows(catalog, made.set_id)


def test_a_set_that_was_cut_off_is_rebuilt_from_its_manifests_and_marked(
    drive: Memory, catalog: Catalog, tmp_path: Path
) -> None:
    from splitmirror.catalog.rebuild import record_sets

    made = write_set(drive, [[file(b"data/a", b"a")], [file(b"data/b", b"b")]], complete=False)
    for _ in range(2):
        (found,) = record_sets(OneVolume(drive), catalog)
        assert (found.set_id, found.complete, found.files) == (made.set_id, False, 2)
        assert catalog.parts(made.set_id) == made.parts
        assert list(catalog.members(made.set_id)) == made.members
    restore(OneVolume(drive), catalog, made.set_id, [b"data/b"], tmp_path / "target")
    assert (tmp_path / "target/data/b").read_bytes() == b"b"


def test_a_rebuild_keeps_what_only_the_catalogue_knows(drive: Memory, catalog: Catalog) -> None:
    from splitmirror.catalog.rebuild import record_sets

    made = write_set(drive, [[file(b"data/a", b"a" * 9000)]])
    ended = replace(made.backup_set, ended=made.backup_set.started)
    catalog.record(ended, made.parts, made.members)
    record_sets(OneVolume(drive), catalog)
    assert catalog.get(made.set_id) == ended
    damage(drive, b"splitmirror set")  # its catalogue on the medium cannot be read any more
    record_sets(OneVolume(drive), catalog)
    assert catalog.get(made.set_id) == ended


def test_a_rebuild_takes_what_lies_before_the_damage(drive: Memory, catalog: Catalog) -> None:
    from splitmirror.catalog.rebuild import record_sets

    for number in (1, 2, 3):
        write_set(drive, [[file(b"data/a", b"a")]], set_id=f"orders-{number}")
    damage(drive, b"HDR1CATALOGUE        RDERS3")
    with pytest.raises(SplitmirrorError):
        record_sets(OneVolume(drive), catalog)
    assert [found.set_id for found in catalog.sets()] == ["orders-1", "orders-2", "orders-3"]
    assert [found.complete for found in catalog.sets()] == [True, True, False]


def test_a_missing_catalogue_tells_of_the_rebuild(tmp_path: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        Catalog.open(tmp_path / "none.db", must_exist=True)
    assert "catalog rebuild" in caught.value.hint


# --- the drill


class Ledger:
    """A copy that counts the files of its tree."""

    def __init__(self, roots: Mapping[bytes, Path], problems: tuple[str, ...]) -> None:
        self.dsn = str(roots[b"data"])
        self.problems = problems

    def check(self) -> CopyReport:
        return CopyReport(passed=not self.problems, checks=("looked",), problems=self.problems)


class Looking(Files):
    """The driver for plain files, noting what it is given."""

    hidden: Sequence[Path] = ()
    problems: tuple[str, ...] = ()
    fails: BaseException | None = None

    def start_copy(
        self,
        roots: Mapping[bytes, Path],
        facts: Mapping[str, str],
        hide: Sequence[Path],
        scratch: Path,
    ) -> AbstractContextManager[RunningCopy]:
        self.hidden = hide

        @contextmanager
        def started() -> Iterator[RunningCopy]:
            if self.fails is not None:
                raise self.fails
            assert scratch.is_dir() and not list(scratch.iterdir())
            yield Ledger(roots, self.problems)

        return started()


@pytest.fixture
def drilled(drive: Memory, catalog: Catalog) -> Made:
    members = [directory(b"data"), file(b"data/a", b"a"), file(b"outside/etc/pg/15/hba", b"h")]
    return recorded(catalog, write_set(drive, [members], trees=[(b"data", b"/srv/data")]))


def test_a_drill_starts_the_restored_set_and_leaves_nothing(
    drive: Memory, catalog: Catalog, drilled: Made, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    database = Looking({})
    report = drill(
        OneVolume(drive),
        catalog,
        drilled.set_id,
        database,
        scratch=scratch,
        probe=lambda copy: (Path(copy.dsn) / "a").read_bytes(),
    )
    assert report.passed and report.probed == b"a" and report.checks == ("looked",)
    assert (report.files, report.mismatches) == (2, 0)
    hidden = {str(path) for path in database.hidden}
    assert hidden == {"/srv/data", "/etc/pg/15/hba", "/etc/pg/15"}
    assert list(scratch.iterdir()) == []


def test_a_drill_that_fails_leaves_nothing_either(
    drive: Memory, catalog: Catalog, drilled: Made, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    database = Looking({})
    for error in (CopyFailed("it does not start"), KeyboardInterrupt()):
        database.fails = error
        with pytest.raises(type(error)):
            drill(OneVolume(drive), catalog, drilled.set_id, database, scratch=scratch)
        assert list(scratch.iterdir()) == []
    database.fails, database.problems = None, ("index is torn",)
    report: DrillReport[None] = drill(
        OneVolume(drive), catalog, drilled.set_id, database, scratch=scratch
    )
    with pytest.raises(CopyFailed, match="torn"):
        report.require_passed()
    assert list(scratch.iterdir()) == []


def test_a_drill_without_room_says_where_it_looked(
    drive: Memory, catalog: Catalog, drilled: Made, tmp_path: Path
) -> None:
    catalog.amend(replace(drilled.backup_set, stored_bytes=1 << 60))
    with pytest.raises(NoRoom, match=str(tmp_path)):
        drill(OneVolume(drive), catalog, drilled.set_id, Looking({}), scratch=tmp_path)
