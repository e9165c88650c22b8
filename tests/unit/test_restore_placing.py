"""Members put back as files: what they were, and never outside the target."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.made_sets import TIME_NS, attributes

from splitmirror.archive.ground import Anchor, components, refused
from splitmirror.archive.placing import Placer
from splitmirror.errors import (
    MediumDamaged,
    NoRoom,
    OutsideTarget,
    SplitmirrorError,
    TargetNotEmpty,
)
from splitmirror.model import Kind

ROOT = os.geteuid() == 0


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def placer(target: Path) -> Iterator[Placer]:
    with Placer([Anchor(directory=target)]) as placer:
        yield placer


def put(placer: Placer, name: bytes, content: bytes, **changed: Any) -> None:
    new = placer.file(name)
    try:
        new.write(0, memoryview(content))
        new.place(attributes(size=len(content), **changed))
    finally:
        new.abandon()


@pytest.mark.parametrize(
    "name",
    [
        b"/etc/x",
        b"..",
        b"../x",
        b"data/../../x",
        b"",
        b".",
        b"data/./x",
        b"data//x",
        b"a/",
        b"a\0b",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused_and_makes_nothing(
    placer: Placer, target: Path, name: bytes
) -> None:
    with pytest.raises(OutsideTarget):
        placer.file(name)
    with pytest.raises(OutsideTarget):
        placer.directory(name, attributes(Kind.DIRECTORY))
    assert not target.exists() or not list(target.iterdir())
    assert not (target.parent / "x").exists()


def test_names_of_any_bytes_are_names() -> None:
    assert components(b"data/\xff\xfe/..x/-") == (b"data", b"\xff\xfe", b"..x", b"-")


def test_a_planted_symbolic_link_is_not_followed(
    placer: Placer, target: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    placer.symlink(b"data/way", attributes(Kind.SYMLINK, link=os.fsencode(outside)))
    with pytest.raises(OutsideTarget):
        put(placer, b"data/way/file", b"x")
    with pytest.raises(OutsideTarget):
        placer.directory(b"data/way", attributes(Kind.DIRECTORY, mode=0o777))
    with pytest.raises(OutsideTarget):
        placer.hardlink(b"data/mine", b"data/way/file")
    assert list(outside.iterdir()) == []
    assert (target / "data/way").readlink() == outside


def test_a_file_does_not_go_through_a_link_of_its_own_name(target: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"as it was")
    with Placer([Anchor(directory=target)], replace=True) as placer:
        placer.symlink(b"file", attributes(Kind.SYMLINK, link=os.fsencode(victim)))
        put(placer, b"file", b"new")
    assert victim.read_bytes() == b"as it was"
    assert not (target / "file").is_symlink() and (target / "file").read_bytes() == b"new"


def test_a_link_replaced_while_its_directory_is_held_open_is_not_followed(
    placer: Placer, target: Path, tmp_path: Path
) -> None:
    put(placer, b"data/a/one", b"1")
    (target / "data/a").rename(tmp_path / "moved")
    (target / "data/a").symlink_to(tmp_path)
    put(placer, b"data/b/one", b"1")  # leaves data/a
    with pytest.raises(OutsideTarget):
        put(placer, b"data/a/two", b"2")
    assert not (tmp_path / "two").exists()


def test_a_hard_link_to_a_file_outside_is_refused(placer: Placer, target: Path) -> None:
    for link in (b"/etc/passwd", b"../../../../etc/passwd"):
        with pytest.raises(OutsideTarget):
            placer.hardlink(b"data/passwd", link)
    with pytest.raises(MediumDamaged, match="not there"):
        placer.hardlink(b"data/passwd", b"etc/passwd")
    assert not (target / "data/passwd").exists()
    assert not [path for path in target.rglob("*") if not path.is_dir()]


def test_hard_links_are_one_file(placer: Placer, target: Path) -> None:
    put(placer, b"data/one", b"1")
    placer.hardlink(b"data/deep/two", b"data/one")
    assert (target / "data/deep/two").samefile(target / "data/one")


def test_a_hard_link_replaces_an_old_link_to_the_same_file_and_leaves_no_temporary(
    target: Path,
) -> None:
    with Placer([Anchor(directory=target)], replace=True) as placer:
        put(placer, b"one", b"1")
        placer.hardlink(b"two", b"one")
        placer.hardlink(b"two", b"one")
    assert sorted(path.name for path in target.iterdir()) == ["one", "two"]


def test_a_name_met_twice_is_an_error_and_the_first_stays(placer: Placer, target: Path) -> None:
    put(placer, b"file", b"first")
    with pytest.raises(MediumDamaged, match="twice"):
        put(placer, b"file", b"second")
    with pytest.raises(MediumDamaged, match="twice"):
        placer.symlink(b"file", attributes(Kind.SYMLINK, link=b"x"))
    assert (target / "file").read_bytes() == b"first"
    assert [path.name for path in target.iterdir()] == ["file"]


def test_a_file_given_up_leaves_nothing_or_what_was_asked_for(placer: Placer, target: Path) -> None:
    for keep, left in ((False, []), (True, ["file.damaged"])):
        new = placer.file(b"file")
        new.write(0, memoryview(b"half"))
        assert not (target / "file").exists()
        new.abandon(keep=keep)
        new.abandon()
        assert [path.name for path in target.iterdir()] == left


def test_holes_stay_holes_and_the_size_is_the_files_own(placer: Placer, target: Path) -> None:
    new = placer.file(b"sparse")
    new.write(1 << 20, memoryview(b"x" * 4096))
    new.place(attributes(size=64 << 20))
    found = (target / "sparse").stat()
    assert found.st_size == 64 << 20 and found.st_blocks * 512 <= 64 << 10
    with (target / "sparse").open("rb") as file:
        assert (
            file.seek(0, os.SEEK_SET) == 0 and os.lseek(file.fileno(), 0, os.SEEK_DATA) == 1 << 20
        )


def test_times_to_the_nanosecond_also_of_directories_that_were_filled_later(
    placer: Placer, target: Path
) -> None:
    placer.directory(b"data", attributes(Kind.DIRECTORY, mode=0o500))
    placer.directory(b"data/deep", attributes(Kind.DIRECTORY, mode=0o500, mtime_ns=TIME_NS + 7))
    put(placer, b"data/deep/file", b"x", mtime_ns=-3)
    placer.symlink(b"data/link", attributes(Kind.SYMLINK, link=b"nowhere", mtime_ns=5))
    placer.finish()
    assert (target / "data").stat().st_mtime_ns == TIME_NS
    assert (target / "data/deep").stat().st_mtime_ns == TIME_NS + 7
    assert stat.S_IMODE((target / "data/deep").stat().st_mode) == 0o500
    assert (target / "data/deep/file").stat().st_mtime_ns == -3
    assert (target / "data/link").lstat().st_mtime_ns == 5


def test_directories_that_no_member_describes_are_private(placer: Placer, target: Path) -> None:
    put(placer, b"data/base/5/1259", b"x")
    placer.finish()
    for path in ("", "data", "data/base/5"):
        assert stat.S_IMODE((target / path).stat().st_mode) == 0o700


@pytest.mark.skipif(not ROOT, reason="only root gives files away")
def test_owner_and_set_id_bits_come_back_together(placer: Placer, target: Path) -> None:
    put(placer, b"tool", b"#!", uid=4711, gid=4712, mode=0o6755)
    found = (target / "tool").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (4711, 4712, 0o6755)


@pytest.mark.skipif(not ROOT, reason="only root makes devices")
def test_devices_and_fifos_come_back(placer: Placer, target: Path) -> None:
    placer.special(b"null", attributes(Kind.CHARDEV, rdev=os.makedev(1, 3), mode=0o666))
    placer.special(b"pipe", attributes(Kind.FIFO, mode=0o622))
    null, pipe = (target / "null").stat(), (target / "pipe").stat()
    assert stat.S_ISCHR(null.st_mode) and null.st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO(pipe.st_mode) and stat.S_IMODE(pipe.st_mode) == 0o622
    assert pipe.st_mtime_ns == TIME_NS


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else")
def test_without_root_the_data_come_back_and_what_is_missing_is_told() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        child = os.fork()
        if child == 0:  # pragma: no cover
            code = 2
            try:
                os.setgid(65534)
                os.setuid(65534)
                with Placer([Anchor(directory=Path(directory) / "target")]) as placer:
                    put(placer, b"data/tool", b"#!", uid=0, gid=0, mode=0o6755)
                    made = placer.special(b"data/null", attributes(Kind.CHARDEV, rdev=259))
                    placer.finish()
                    told = {skipped.what for skipped in placer.skipped}
                code = 0 if (made, told) == (False, {"owner", "device"}) else 1
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        tool = Path(directory) / "target/data/tool"
        assert tool.read_bytes() == b"#!" and tool.stat().st_uid == 65534
        assert stat.S_IMODE(tool.stat().st_mode) == 0o755  # set-id bits would name another owner


def test_extended_attributes_come_back_and_inherited_ones_go(placer: Placer, target: Path) -> None:
    wanted = ((b"user.colour", b"\x00\xffblue"),)
    put(placer, b"file", b"x", xattrs=wanted)
    placer.directory(b"dir", attributes(Kind.DIRECTORY, xattrs=wanted))
    os.setxattr(target / "dir", b"user.stale", b"1")
    placer.finish()
    for name in ("file", "dir"):
        assert {key: os.getxattr(target / name, key) for key in os.listxattr(target / name)} == {
            "user.colour": b"\x00\xffblue"
        }


def test_what_cannot_be_given_back_is_told_with_a_count(placer: Placer) -> None:
    impossible = ((b"nonsense.name", b"1"),)
    for name in (b"one", b"two"):
        put(placer, name, b"x", xattrs=impossible)
    (skipped,) = placer.skipped
    assert (skipped.what, skipped.first, skipped.count) == ("xattr nonsense.name", b"one", 2)


def test_a_tree_at_its_original_path_is_renamed_on_the_way(tmp_path: Path) -> None:
    anchors = [
        Anchor.at(b"data", os.fsencode(tmp_path / "pg/main")),
        Anchor.at(b"outside/etc/hba", os.fsencode(tmp_path / "etc/pg_hba.conf")),
        Anchor.at(b"data/nested", os.fsencode(tmp_path / "elsewhere")),
    ]
    with Placer(anchors, replace=True) as placer:
        put(placer, b"data/base/1", b"1")
        put(placer, b"outside/etc/hba", b"2")
        put(placer, b"data/nested/3", b"3")
        with pytest.raises(OutsideTarget, match="none of the set's trees"):
            put(placer, b"dataset/1", b"4")
    assert (tmp_path / "pg/main/base/1").read_bytes() == b"1"
    assert (tmp_path / "etc/pg_hba.conf").read_bytes() == b"2"
    assert (tmp_path / "elsewhere/3").read_bytes() == b"3"


def test_a_directory_in_a_files_way_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with Placer([Anchor(directory=tmp_path)], replace=True) as placer:
        with pytest.raises(TargetNotEmpty, match="file"):
            put(placer, b"file", b"x")
        put(placer, b"other", b"x")
        with pytest.raises(TargetNotEmpty, match="other"):
            placer.directory(b"other", attributes(Kind.DIRECTORY))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]


def test_a_full_disk_is_no_room_and_another_error_is_not() -> None:
    full = refused("/target/file", OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(full, NoRoom) and "/target/file" in str(full) and full.hint
    broken = refused("/target/file", OSError(errno.EIO, "Input/output error"))
    assert type(broken) is SplitmirrorError and "/target/file" in str(broken) and broken.hint
