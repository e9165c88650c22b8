"""A leg mounted by nobody: real ext4 and xfs on read-only loop devices."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.real.loopfs import FSTYPES, LoopFs, loop_filesystems, until

from splitmirror.errors import DeviceFailed, LegError
from splitmirror.system import blockdev, fiemap, filesystems, loop, programs, xattrs
from splitmirror.system.detached import mount_detached

pytestmark = pytest.mark.real

_OPTIONS = {"ext4": ["ro", "noload"], "xfs": ["ro", "norecovery", "nouuid"]}


@pytest.fixture(params=FSTYPES)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoopFs]:
    with loop_filesystems(tmp_path, request.param) as (made,):
        (made.path / "deep" / "down").mkdir(parents=True)
        (made.path / "deep" / "down" / "file").write_bytes(b"contents" * 1000)
        yield made


@pytest.fixture
def leg(disk: LoopFs, tmp_path: Path) -> Path:
    """A copy of the image made while it was frozen: what a split gives."""
    fd = filesystems.open_mountpoint(disk.mountpoint)
    filesystems.syncfs(fd)
    filesystems.freeze(fd)
    try:
        programs.run(
            ["cp", "--sparse=always", str(disk.image), str(tmp_path / "leg.img")], timeout_s=60
        )
    finally:
        filesystems.thaw(fd)
        os.close(fd)
    return tmp_path / "leg.img"


def mount_leg(leg: Path, fstype: str) -> int:
    device = loop.attach(leg, read_only=True, autoclear=True)
    try:
        return mount_detached(device.path, fstype, _OPTIONS[fstype])
    finally:
        os.close(device.fd)


def test_files_are_read_through_the_descriptor(disk: LoopFs, leg: Path) -> None:
    root = mount_leg(leg, disk.fstype)
    (disk.path / "deep" / "down" / "file").write_bytes(b"written after the split")
    fd = os.open("deep/down/file", os.O_RDONLY, dir_fd=root)
    assert os.read(fd, 1 << 20) == b"contents" * 1000
    os.close(fd)
    os.close(root)


def test_the_map_on_the_leg_is_the_map_on_the_primary(disk: LoopFs, leg: Path) -> None:
    root = mount_leg(leg, disk.fstype)
    there = os.open("deep/down/file", os.O_RDONLY, dir_fd=root)
    here = os.open(disk.path / "deep" / "down" / "file", os.O_RDONLY)
    found = fiemap.fiemap(there, 8000)
    assert found == fiemap.fiemap(here, 8000)
    ((begin, physical, length, flags),) = found
    raw = leg.read_bytes()[physical : physical + length]
    assert (begin, length, flags, raw) == (0, 8000, 0, b"contents" * 1000)
    for fd in (here, there, root):
        os.close(fd)


def test_no_mount_table_shows_it_and_closing_it_takes_all_away(disk: LoopFs, leg: Path) -> None:
    before = filesystems.mounts()
    root = mount_leg(leg, disk.fstype)
    assert filesystems.mounts() == before
    with pytest.raises(DeviceFailed, match="not in this namespace"):
        filesystems.mount_of_fd(root)
    assert len(loop.find(leg)) == 1
    os.close(root)
    assert until(lambda: loop.find(leg) == [])


def test_nothing_can_be_written_through_it_and_nothing_is_written_to_the_leg(
    disk: LoopFs, leg: Path
) -> None:
    before = hashlib.sha256(leg.read_bytes()).digest()
    root = mount_leg(leg, disk.fstype)
    os.listdir(root)
    with pytest.raises(OSError, match="Read-only file system"):
        os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=root)
    os.close(root)
    assert until(lambda: loop.find(leg) == [])
    assert hashlib.sha256(leg.read_bytes()).digest() == before


def test_it_goes_when_its_process_is_killed(disk: LoopFs, leg: Path) -> None:
    script = (
        "import os, sys, time\n"
        "from splitmirror.system import loop\n"
        "from splitmirror.system.detached import mount_detached\n"
        "device = loop.attach(sys.argv[1], read_only=True, autoclear=True)\n"
        "root = mount_detached(device.path, sys.argv[2], sys.argv[3:])\n"
        "print('mounted', flush=True); time.sleep(1000)\n"
    )
    options = _OPTIONS[disk.fstype]
    with subprocess.Popen(
        [sys.executable, "-c", script, str(leg), disk.fstype, *options],
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mounted\n"
        assert len(loop.find(leg)) == 1
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert until(lambda: loop.find(leg) == [])


def test_a_refused_option_is_told_in_the_kernels_words(disk: LoopFs) -> None:
    with pytest.raises(LegError, match=r"(?i)unknown parameter 'bogus'"):
        mount_detached(disk.device.path, disk.fstype, ["bogus"])


def test_a_device_without_the_filesystem_is_refused(disk: LoopFs, tmp_path: Path) -> None:
    blank = tmp_path / "blank.img"
    with blank.open("wb") as file:
        file.truncate(320 << 20)
    with loop.attached(blank, read_only=True) as device, pytest.raises(LegError, match="cannot"):
        mount_detached(device.path, disk.fstype, [])


def test_an_unknown_filesystem_is_refused_with_what_to_do() -> None:
    with pytest.raises(LegError) as caught:
        mount_detached("/dev/loop0", "nosuchfs", [])
    assert "modprobe nosuchfs" in caught.value.hint


def test_the_primarys_own_superblock_is_never_taken_for_the_leg(disk: LoopFs) -> None:
    """The kernel would share one that is mounted read-only, and so show what is written later."""
    programs.run(["mount", "-o", "remount,ro", disk.mountpoint], timeout_s=10)
    with pytest.raises(LegError):
        mount_detached(disk.device.path, disk.fstype, _OPTIONS[disk.fstype])


def test_extended_attributes_are_seen(disk: LoopFs, tmp_path: Path) -> None:
    target = disk.path / "attributed"
    target.touch()
    attributes = ((b"user.a\xff", b"\0\1"), (b"user.b", b""))
    xattrs.set(target, attributes)
    fd = os.open(target, os.O_RDONLY)
    assert xattrs.of(fd) == attributes
    os.close(fd)


# --- loop devices


def test_a_loop_device_shows_the_range_that_was_asked_for(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"a" * 8192 + b"b" * 4096 + b"c" * 8192)
    device = loop.attach(image, offset=8192, length=4096, read_only=True, autoclear=True)
    assert os.read(device.fd, 1 << 20) == b"b" * 4096
    assert blockdev.size(device.fd) == 4096
    assert loop.backing(device.path) == str(image)
    (layer,) = blockdev.walk(blockdev.devno_of(device.path))
    assert (layer.kind, layer.backing, layer.offset) == ("loop", str(image), 8192)
    writing = os.open(device.path, os.O_RDWR)
    with pytest.raises(OSError, match="not permitted"):
        os.write(writing, b"x" * 512)
    os.close(writing)
    loop.detach(device)
    assert loop.backing(device.path) is None
    loop.detach(device.path)  # harmless


def test_flushing_shows_what_was_written_below_the_loop_device(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"a" * 8192)
    device = loop.attach(image, read_only=True, autoclear=True)
    assert os.pread(device.fd, 4096, 0) == b"a" * 4096
    with image.open("r+b") as file:
        file.write(b"b" * 4096)
    assert os.pread(device.fd, 4096, 0) == b"a" * 4096, "the trap that the flush is for"
    loop.flush(device.fd)
    assert os.pread(device.fd, 4096, 0) == b"b" * 4096
    loop.detach(device)


def test_direct_io_that_cannot_be_had_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with pytest.raises(DeviceFailed, match="direct I/O"):
        loop.attach(image, offset=7, direct=True)
    assert loop.find(image) == []


def test_what_is_no_file_gets_no_loop_device(tmp_path: Path) -> None:
    with pytest.raises(DeviceFailed, match="neither a file"):
        loop.attach(tmp_path, read_only=True)
    with pytest.raises(DeviceFailed, match="No such file"):
        loop.attach(tmp_path / "missing", read_only=True)


def test_a_partition_is_walked_down_to_its_disk(tmp_path: Path) -> None:
    image = tmp_path / "image"
    first, sectors = 2048, 4096
    entry = struct.pack("<B3xB3xII", 0, 0x83, first, sectors)
    with image.open("wb") as file:
        file.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
        file.truncate(8 << 20)
    device = loop.attach(image)
    try:
        programs.run(["partx", "--add", device.path], timeout_s=10)
        partition, disk = blockdev.walk(blockdev.devno_of(device.path + "p1"))
        assert (partition.kind, partition.offset) == ("partition", first * 512)
        assert (disk.path, disk.kind, disk.backing) == (device.path, "loop", str(image))
        assert blockdev.size(partition.path) == sectors * 512
        programs.run(["partx", "--delete", device.path], timeout_s=10)
    finally:
        loop.detach(device)
