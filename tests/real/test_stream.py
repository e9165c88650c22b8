"""Members of real filesystems: what comes off the raw leg is what the mounted leg shows."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from splitmirror.databases import by_name, keep_all
from splitmirror.errors import LegError
from splitmirror.extents.scan import scan
from splitmirror.extents.table import FileTable
from splitmirror.extents.views import LegView, PrimaryView
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
from splitmirror.stream.member import Member
from splitmirror.stream.pipeline import LegSource
from splitmirror.stream.plan import Plan, plan_parts
from splitmirror.system import loop

pytestmark = pytest.mark.real

MIB = 1 << 20
MAKE = {
    "ext4-inline": ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "inline_data", "-I", "256"],
    "ext4-1k": ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
}


def run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, timeout=60)


@dataclass
class Primary:
    """A filesystem on an image that is mounted; `split` copies it while it is frozen."""

    image: Path
    mountpoint: Path
    made: str  # a key of MAKE

    @property
    def fstype(self) -> str:
        return self.made.partition("-")[0]

    @property
    def tree(self) -> Tree:
        filesystem = Filesystem(
            mountpoint=str(self.mountpoint),
            fstype=self.fstype,
            options=frozenset(),
            source=str(self.image),
            devno=self.mountpoint.stat().st_dev,
            volume="v",
            offset=0,
        )
        return Tree(
            name=b"data",
            path=os.fsencode(self.mountpoint / "db"),
            filesystem=filesystem,
            inside=b"db",
        )

    def scan(self) -> FileTable:
        run("sync", "-f", self.mountpoint)
        with PrimaryView([self.tree]) as view:
            return scan(view, [self.tree], keep_all)

    def split(self) -> Leg:
        copy = self.image.with_suffix(".leg")
        run("sync", "-f", self.mountpoint)
        run("fsfreeze", "--freeze", self.mountpoint)
        try:
            run("cp", "--sparse=always", self.image, copy)
        finally:
            run("fsfreeze", "--unfreeze", self.mountpoint)
        whole = Run(path=str(copy), offset=0, length=copy.stat().st_size)
        return Leg(split_id="s", volumes={"v": (whole,)})


@pytest.fixture(params=sorted(MAKE))
def primary(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Primary]:
    made = str(request.param)
    image, mountpoint = tmp_path / "image", tmp_path / "mnt"
    mountpoint.mkdir()
    with image.open("wb") as file:
        file.truncate(320 * MIB)
    run(*MAKE[made], image)
    run("mount", "-o", "loop", image, mountpoint)
    try:
        (mountpoint / "db").mkdir()
        yield Primary(image, mountpoint, made)
    finally:
        run("umount", mountpoint)


def fill(folder: Path) -> None:
    """Files of every sort that a map can have."""
    noise = random.Random(11)
    (folder / "base" / "5").mkdir(parents=True)
    (folder / "base" / "left-empty").mkdir()
    for number in range(200):
        content = noise.randbytes(noise.choice([0, 1, 40, 511, 4096, 8192, 8193, 70_000]))
        (folder / "base" / "5" / str(number)).write_bytes(content)
    (folder / "large").write_bytes(noise.randbytes(9 * MIB + 77))
    with (folder / "sparse").open("wb") as file:
        for offset in (0, 3 * MIB, (4 << 30) + 5):
            file.seek(offset)
            file.write(noise.randbytes(10_000))
        file.truncate(5 << 30)
    with (folder / "unwritten").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 2 * MIB)
        file.seek(MIB)
        file.write(noise.randbytes(5000))
    with (folder / "all holes").open("wb") as file:
        file.truncate(MIB)
    fragments(folder / "woven-a", folder / "woven-b")
    os.link(folder / "base" / "5" / "7", folder / "linked")
    (folder / "symbolic").symlink_to("base/5/7")
    os.mkfifo(folder / "fifo", 0o620)
    (folder / os.fsdecode(b"not utf-8 \xff\n")).write_bytes(b"x" * 100)
    os.chown(folder / "large", 1234, 4321)
    (folder / "large").chmod(0o4750)
    os.setxattr(folder / "large", "user.note", b"\0any\xff")
    os.setxattr(folder / "base", "user.note", b"of a directory")
    os.utime(folder / "large", ns=(1, 1_234_567_890_123_456_789))


def fragments(*paths: Path) -> None:
    """Files that grow by turns, so that each has many extents."""
    noise = random.Random(5)
    files = [path.open("wb", buffering=0) for path in paths]
    for _ in range(60):
        for file in files:
            file.write(noise.randbytes(20_000))
            os.fsync(file.fileno())
    for file in files:
        file.close()


def check_bytes(view: LegView, tree: Tree, member: Member) -> int:
    """Compare a member with the file in the mounted leg, byte by byte; the bytes compared."""
    inside = member.name[len(tree.name) + 1 :]
    root = view.open_tree(tree)
    fd = os.open(inside, os.O_RDONLY, dir_fd=root)
    os.close(root)
    try:
        begin = member.piece.offset if member.piece else 0
        data = b"".join(map(bytes, member.chunks))
        at, reached = 0, begin
        for offset, length in member.ranges:
            assert_zeros(fd, reached, begin + offset)
            assert data[at : at + length] == os.pread(fd, length, begin + offset), member.name
            at, reached = at + length, begin + offset + length
        assert at == len(data)
        assert_zeros(fd, reached, begin + member.size)
        return at
    finally:
        os.close(fd)


def assert_zeros(fd: int, begin: int, end: int) -> None:
    """What a member does not store reads as zeros."""
    while begin < end:
        try:
            begin = os.lseek(fd, begin, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            return
        data = os.pread(fd, min(MIB, max(end - begin, 0)), begin)
        assert not data.strip(b"\0")
        begin += MIB


def back_up(leg: Leg, tree: Tree, plan: Plan) -> tuple[dict[bytes, list[Member]], LegSource]:
    """Every member, its bytes checked."""
    found: dict[bytes, list[Member]] = {}
    with (
        LegView(leg, [tree]) as view,
        LegSource(leg, [tree], view, plan.table, window=4 * MIB) as source,
    ):
        for part in plan.parts:
            for member in source.members(part):
                if member.attributes.kind is Kind.FILE:
                    check_bytes(view, tree, member)
                found.setdefault(member.name, []).append(member)
    return found, source


def plan_of(table: FileTable, part_size: int = 4 * MIB) -> Plan:
    return plan_parts(table, table.ordered(by_name), part_size)


def test_every_members_bytes_and_attributes_are_those_of_the_mounted_leg(primary: Primary) -> None:
    fill(primary.mountpoint / "db")
    table = primary.scan()
    leg = primary.split()
    found, source = back_up(leg, primary.tree, plan_of(table))
    assert source.counts.renewed == 0
    assert set(found) == set(table.names)
    large = found[b"data/large"]
    assert [member.piece and member.piece.number for member in large] == [*range(1, len(large) + 1)]
    assert sum(member.size for member in large) == 9 * MIB + 77
    for member in (item for items in found.values() for item in items):
        inside = primary.mountpoint / "db" / os.fsdecode(member.name[5:])
        status, attributes = inside.lstat(), member.attributes
        assert (attributes.uid, attributes.gid) == (status.st_uid, status.st_gid)
        assert attributes.mode == stat.S_IMODE(status.st_mode)
        assert attributes.mtime_ns == status.st_mtime_ns
        if attributes.kind is Kind.FILE:
            assert attributes.size == status.st_size
    assert large[0].attributes.xattrs == ((b"user.note", b"\0any\xff"),)
    assert found[b"data/base"][0].attributes.xattrs == ((b"user.note", b"of a directory"),)
    assert found[b"data/symbolic"][0].attributes.link == b"base/5/7"
    assert found[b"data/fifo"][0].attributes.kind is Kind.FIFO
    assert found[b"data/sparse"][0].size == 5 << 30
    assert found[b"data/sparse"][0].stored < MIB
    assert found[b"data/unwritten"][0].stored < MIB
    assert len(found[b"data/woven-a"][0].ranges) == 1
    linked = [found[b"data/linked"][0].attributes, found[b"data/base/5/7"][0].attributes]
    assert any(each.link for each in linked)


def test_inline_files_are_read_through_the_mounted_leg(primary: Primary) -> None:
    for number in range(5):
        (primary.mountpoint / "db" / str(number)).write_bytes(b"small %d" % number)
    table = primary.scan()
    inline = sum(
        bool(extent.flags & ExtentFlag.DATA_INLINE) for entry in table for extent in entry.extents
    )
    found, source = back_up(primary.split(), primary.tree, plan_of(table))
    assert source.counts.through == inline == (5 if primary.made == "ext4-inline" else 0)
    assert found[b"data/3"][0].stored == 7


def test_stale_maps_come_out_right_and_are_counted(primary: Primary) -> None:
    folder = primary.mountpoint / "db"
    noise = random.Random(2)
    for name in ("moved", "grown", "truncated", "punched", "same"):
        (folder / name).write_bytes(noise.randbytes(300_000))
    table = primary.scan()
    content = (folder / "moved").read_bytes()
    os.truncate(folder / "moved", 0)
    run("sync", "-f", primary.mountpoint)
    (folder / "in its place").write_bytes(noise.randbytes(300_000))
    run("sync", "-f", primary.mountpoint)
    (folder / "moved").write_bytes(content)
    with (folder / "grown").open("ab") as file:
        file.write(noise.randbytes(200_000))
    os.truncate(folder / "truncated", 1000)
    run("fallocate", "--punch-hole", "-o", "65536", "-l", "65536", folder / "punched")
    found, source = back_up(primary.split(), primary.tree, plan_of(table, MIB))
    assert source.counts.renewed == 4
    assert found[b"data/grown"][0].size == 500_000
    assert found[b"data/truncated"][0].size == 1000
    assert found[b"data/punched"][0].stored == 300_000 - 65536


def test_a_file_in_pieces_that_shrank_or_grew_still_joins_to_the_file(primary: Primary) -> None:
    folder = primary.mountpoint / "db"
    for name in ("grown", "shrunk"):
        (folder / name).write_bytes(random.Random(3).randbytes(10 * MIB))
    plan = plan_of(primary.scan())
    os.truncate(folder / "shrunk", 3 * MIB + 5)
    with (folder / "grown").open("ab") as file:
        file.write(b"more" * 1000)
    found, source = back_up(primary.split(), primary.tree, plan)
    assert sum(member.size for member in found[b"data/shrunk"]) == 3 * MIB + 5
    assert sum(member.size for member in found[b"data/grown"]) == 10 * MIB + 4000
    assert source.counts.renewed == 2, "a file in pieces counts once"


def test_a_file_that_the_leg_does_not_have_is_named(primary: Primary) -> None:
    (primary.mountpoint / "db" / "gone").write_bytes(b"x" * 5000)
    plan = plan_of(primary.scan())
    (primary.mountpoint / "db" / "gone").unlink()
    with pytest.raises(LegError, match="does not have data/gone"):
        back_up(primary.split(), primary.tree, plan)


def test_without_a_mounted_leg_the_tables_maps_are_read(primary: Primary) -> None:
    folder = primary.mountpoint / "db"
    fill(folder)
    for path in (folder / os.fsdecode(b"not utf-8 \xff\n"), folder / "base" / "5"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()  # inline ones are among them
    table, leg, tree = primary.scan(), primary.split(), primary.tree
    plan = plan_of(table)
    compared = 0
    with LegView(leg, [tree]) as view, LegSource(leg, [tree], None, table) as source:
        for part in plan.parts:
            for member in source.members(part):
                if member.attributes.kind is Kind.FILE and member.size:
                    compared += check_bytes(view, tree, member)
    assert compared > 11 * MIB


def one_file(device: str, offset: int, length: int) -> tuple[Leg, Tree, FileTable]:
    """A leg at `offset` of a device, all of it one file."""
    filesystem = Filesystem(
        mountpoint="/nowhere",
        fstype="ext4",
        options=frozenset(),
        source=device,
        devno=0,
        volume="v",
        offset=0,
    )
    tree = Tree(name=b"data", path=b"/nowhere", filesystem=filesystem, inside=b"")
    table = FileTable()
    attributes = Attributes(kind=Kind.FILE, mode=0, uid=0, gid=0, size=length, mtime_ns=0)
    table.append(
        FileEntry(
            name=b"data",
            tree=0,
            attributes=attributes,
            ino=1,
            nlink=1,
            ctime_ns=0,
            extents=ExtentMap.of([Extent(0, 0, length, 0)]),
        )
    )
    leg = Leg(split_id="s", volumes={"v": (Run(path=device, offset=offset, length=length),)})
    return leg, tree, table


@pytest.mark.parametrize(
    ("sector_size", "offset"), [(512, 512), (4096, 512), (512, 100)], ids=str
)  # direct I/O serves only the first: 512 is no sector of 4096, and 100 of none
def test_a_leg_on_a_device_is_read_as_it_is_now_whatever_its_cache_holds(
    tmp_path: Path, sector_size: int, offset: int
) -> None:
    """A device that was read before the mirror wrote below it has old pages in its cache."""
    image = tmp_path / "disk"
    image.write_bytes(b"old!" * (MIB // 4))
    with image.open("rb+", buffering=0) as below:
        device = loop.attach(image, read_only=True, autoclear=True, sector_size=sector_size)
        try:
            with Path(device.path).open("rb") as held:
                assert held.read(4) == b"old!"
                below.write(b"new!" * (MIB // 4))
                leg, tree, table = one_file(device.path, offset, MIB - offset)
                with LegSource(leg, [tree], None, table, window=MIB) as source:
                    (data,) = (
                        b"".join(map(bytes, member.chunks))
                        for member in source.members(plan_of(table).parts[0])
                    )
        finally:
            os.close(device.fd)
    assert data == b"new!" * ((MIB - offset) // 4)
