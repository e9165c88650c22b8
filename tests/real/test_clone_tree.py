"""A tree of clones on a real xfs: with everything that a file is, and while it is written to."""

from __future__ import annotations

import errno
import os
import random
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from tests.real.loopfs import LoopFs, loop_filesystems
from tests.real.reflink_lab import MIB

from splitmirror.system import fiemap, programs, reflink
from splitmirror.system.clonetree import clone_tree

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

BLOCK = 4096


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopFs]:
    with loop_filesystems(tmp_path_factory.mktemp("clones"), "xfs", size=4 << 30) as (made,):
        yield made


@pytest.fixture
def source(host: LoopFs) -> Path:
    number = len(list(host.path.iterdir()))
    path: Path = host.path / f"tree{number}"
    path.mkdir()
    return path


def cloned(source: Path) -> Path:
    into = source.with_name(f"{source.name}-{time.monotonic_ns()}")
    into.mkdir()
    with ExitStack() as undo:
        fds = [os.open(path, os.O_RDONLY) for path in (source, into)]
        for fd in fds:
            undo.callback(os.close, fd)
        clone_tree(*fds)
    return into


def described(place: Path) -> dict[str, tuple[Any, ...]]:
    """Everything of what is there but inodes and the times of changing."""
    found = {}
    for path in (place, *place.rglob("*")):
        status = path.lstat()
        kept = {n: os.getxattr(path, n, follow_symlinks=False)
                for n in os.listxattr(path, follow_symlinks=False)}  # fmt: skip
        data: bytes | str = b""
        if stat.S_ISREG(status.st_mode):
            data = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            data = os.readlink(path)
        found[str(path.relative_to(place))] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev,
            status.st_nlink if stat.S_ISREG(status.st_mode) else 0, kept, data,
        )  # fmt: skip
    return found


def test_a_clone_has_all_that_its_original_has(source: Path) -> None:
    (source / "data").write_bytes(os.urandom(3 * MIB + 17))
    (source / "empty").touch()
    with (source / "holed").open("wb") as file:
        file.seek(2 * MIB)
        file.write(b"behind a hole")
        file.truncate(5 * MIB + 1)
    (source / os.fsdecode(b"odd \xff\n name")).write_bytes(b"odd")
    (source / "folder").mkdir(mode=0o2750)
    os.chown(source / "folder", 7, 8)
    (source / "folder" / "set-uid").write_bytes(b"program")
    os.chown(source / "folder" / "set-uid", 9, 10)
    os.chmod(source / "folder" / "set-uid", 0o4711)
    os.setxattr(source / "folder" / "set-uid", "user.note", b"kept")
    os.setxattr(source / "folder", "trusted.note", b"\0\1")
    os.link(source / "data", source / "folder" / "same data")
    os.symlink("../data", source / "folder" / "link")
    os.lchown(source / "folder" / "link", 11, 12)
    os.mkfifo(source / "fifo", 0o620)
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    for path in source.rglob("*"):
        os.utime(path, ns=(5, 1_000_000_007 * len(path.name)), follow_symlinks=False)
    expected = described(source)

    into = cloned(source)

    assert described(into) == expected
    assert (into / "data").samefile(into / "folder" / "same data")
    assert not (into / "data").samefile(source / "data")


def test_a_clone_shares_its_blocks_and_is_left_alone_by_the_defragmenter(source: Path) -> None:
    (source / "folder").mkdir()
    (source / "folder" / "data").write_bytes(os.urandom(MIB))
    into = source.with_name("kept-in-place")
    into.mkdir()
    for_clones, original = os.open(into, os.O_RDONLY), os.open(source, os.O_RDONLY)
    reflink.keep_in_place(for_clones)
    clone_tree(original, for_clones)
    os.close(for_clones)
    os.close(original)

    maps = []
    for place in (source, into):
        with (place / "folder" / "data").open("rb") as file:
            maps.append(fiemap.fiemap(file.fileno(), MIB, sync=True))
    assert maps[0] == maps[1] and len(maps[0])
    argv = ["xfs_io", "-r", "-c", "lsattr", str(into / "folder" / "data")]
    assert "f" in programs.run(argv, timeout_s=30).split()[0]


def test_sockets_and_what_is_mounted_in_it_are_no_part_of_a_tree(source: Path) -> None:
    (source / "mounted").mkdir()
    (source / "beside").write_bytes(b"beside")
    with closing(socket.socket(socket.AF_UNIX)) as bound:
        where = os.open(source, os.O_RDONLY)  # a socket's path is short
        bound.bind(f"/proc/self/fd/{where}/socket")
        os.close(where)
        programs.run(["mount", "-t", "tmpfs", "none", str(source / "mounted")], timeout_s=30)
        try:
            (source / "mounted" / "elsewhere").touch()
            into = cloned(source)
        finally:
            programs.run(["umount", str(source / "mounted")], timeout_s=30)
    assert sorted(described(into)) == [".", "beside", "mounted"]


def test_a_tree_may_be_deeper_than_python_recurses(source: Path) -> None:
    deep = os.open(source, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir(b"d", dir_fd=deep)
        inner = os.open(b"d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = inner
    with os.fdopen(os.open(b"bottom", os.O_WRONLY | os.O_CREAT, dir_fd=deep), "wb") as file:
        file.write(b"there")
    os.close(deep)

    into = cloned(source)

    bottom = into / "/".join(["d"] * 1100) / "bottom"
    assert bottom.read_bytes() == b"there"


def test_a_file_in_many_pieces_is_cloned_whole(source: Path) -> None:
    path = source / "pieces"
    with path.open("wb") as file:
        for number in range(1000):  # every other block a hole
            os.pwrite(file.fileno(), bytes([number % 251]) * BLOCK, number * 2 * BLOCK)
        os.fsync(file.fileno())
        os.pwrite(file.fileno(), b"tail", 2000 * BLOCK)
        assert fiemap.count(file.fileno()) >= 1000

    assert (cloned(source) / "pieces").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("size", [0, 2 * MIB + 5, 9 * MIB])
def test_a_file_that_changes_its_size_while_it_is_cloned_is_cloned_as_it_is_then(
    source: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Between the look at its extents and the clone."""
    path = source / "changing"
    path.write_bytes(os.urandom(4 * MIB))
    records = fiemap.records
    looked: list[int] = []

    def then_it_changes(fd: int, *, sync: bool = False) -> list[bytes]:
        found = records(fd, sync=sync)
        if not looked:
            os.truncate(path, size)
        looked.append(fd)
        return found

    monkeypatch.setattr(fiemap, "records", then_it_changes)
    into = cloned(source)

    assert looked
    before = min(size, 4 * MIB)
    assert (into / "changing").read_bytes()[:before] == path.read_bytes()[:before]


def test_what_goes_on_in_a_tree_meanwhile_keeps_no_clone_from_being_made(source: Path) -> None:
    """Files that grow, shrink, come, go and are renamed. Every block of a clone is one that its
    original had at some time."""
    stop, failed = threading.Event(), []

    def write() -> None:
        chance = random.Random(7)
        try:
            while not stop.is_set():
                change(source, chance)
        except BaseException as error:
            failed.append(error)

    for number in range(20):
        (source / f"{number}").write_bytes(bytes([number]) * (number * 300_000))
    writer = threading.Thread(target=write)
    writer.start()
    try:
        trees = [cloned(source) for _ in range(5)]
    finally:
        stop.set()
        writer.join()

    assert not failed
    seen = 0
    for path in (path for tree in trees for path in tree.rglob("*") if path.is_file()):
        data, number = path.read_bytes(), int(path.name.rpartition("-")[2])
        assert set(data) <= {number, 0}, f"{path} has bytes of another file"
        seen += len(data)
    assert seen > 20 * MIB


def change(source: Path, chance: random.Random) -> None:
    number = chance.randrange(20)
    path = source / f"{number}"
    match chance.randrange(5):
        case 0:
            with path.open("r+b") as file:
                file.truncate(chance.randrange(6 * MIB))
        case 1:
            with path.open("ab") as file:
                file.write(bytes([number]) * chance.randrange(MIB))
        case 2:
            path.unlink()
            path.write_bytes(bytes([number]) * 100_000)
        case 3:
            (source / f"folder-{number}").mkdir(exist_ok=True)
            path.rename(source / f"folder-{number}" / f"moved-{number}")
            path.write_bytes(bytes([number]) * 2 * MIB)
        case 4:
            with path.open("r+b") as file:
                for _ in range(50):
                    file.seek(chance.randrange(4 * MIB) // BLOCK * BLOCK)
                    file.write(bytes([number]) * BLOCK)


def test_what_cannot_be_cloned_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "folder").mkdir()
    (source / "folder" / "file").write_bytes(b"data")

    def refuse(source: int, into: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(reflink, "clone_live", refuse)
    with pytest.raises(OSError, match=r"No space left.*folder/file") as raised:
        cloned(source)
    assert raised.value.filename == "folder/file"
