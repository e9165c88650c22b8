"""The embedded mirror on real parts: qemu-storage-daemon, nbdfuse, loop devices, filesystems."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.real.qsd_lab import (
    MIB,
    SIZE,
    attached,
    in_another_process,
    primaries,
    remains,
    scribble,
    settings_in,
    small_filesystem,
)

from splitmirror.errors import (
    Busy,
    DeadlineExceeded,
    LegError,
    MirrorError,
    NoRoom,
    UnsafeMirror,
)
from splitmirror.mirrors.qsd import Disk, QsdMirror
from splitmirror.model import Volume
from splitmirror.progress import silent
from splitmirror.system import (
    blockjobs,
    fiemap,
    filesystems,
    loop,
    openers,
    programs,
)
from splitmirror.system.stackrecord import SyncKind
from splitmirror.testing.mirror_case import contents

pytestmark = pytest.mark.real


# --- synchronize


def test_an_incremental_synchronize_copies_only_what_changed(mirror: QsdMirror) -> None:
    assert mirror.last_sync is not None
    assert (mirror.last_sync.kind, mirror.last_sync.bytes) == (SyncKind.FULL, 2 * SIZE)
    volume = mirror.volumes()[0]
    for offset in (0, 3 * MIB, 9 * MIB):
        scribble(volume, offset, 128 << 10)
    assert mirror.state().dirty_bytes == 3 * (128 << 10)
    mirror.synchronize(silent)
    report = mirror.last_sync
    assert (report.kind, report.bytes, report.passes) == (SyncKind.INCREMENTAL, 3 * (128 << 10), 1)
    assert mirror.state().dirty_bytes == 0


def test_little_that_is_dirty_is_left_to_the_split(tmp_path: Path) -> None:
    with attached(settings_in(tmp_path, level_below="1MiB")) as mirror:
        mirror.synchronize(silent)
        scribble(mirror.volumes()[0], 0, 64 << 10)
        mirror.synchronize(silent)
        assert mirror.last_sync is not None and mirror.last_sync.passes == 0
        expected = primaries(mirror)
        mirror.split("s")
        assert contents(mirror.leg("s", 10)) == expected


def test_preparing_a_split_leaves_little_to_copy_behind_it(tmp_path: Path) -> None:
    with attached(settings_in(tmp_path, level_below="1MiB")) as mirror:
        mirror.synchronize(silent)
        scribble(mirror.volumes()[0], 0, 6 * MIB)  # a checkpoint, say
        mirror.prepare_split("s")
        assert mirror.state().dirty_bytes <= MIB
        expected = primaries(mirror)
        mirror.split("s")
        assert contents(mirror.leg("s", 10)) == expected


def test_a_rejoin_copies_only_what_changed_while_split(mirror: QsdMirror) -> None:
    mirror.split("s")
    mirror.leg("s", 10)
    scribble(mirror.volumes()[1], 5 * MIB, MIB)
    mirror.rejoin("s")
    assert mirror.last_sync is not None
    assert (mirror.last_sync.kind, mirror.last_sync.bytes) == (SyncKind.INCREMENTAL, MIB)


def test_the_full_copy_is_throttled(tmp_path: Path) -> None:
    with attached(settings_in(tmp_path, establish_speed="16MiB")) as mirror:
        for volume in mirror.volumes():
            scribble(volume, 0, SIZE)
        began = time.monotonic()
        mirror.synchronize(silent)
        assert time.monotonic() - began > 0.5  # 16 MiB a disk; unthrottled a few ms
        assert mirror.last_sync is not None
        assert (mirror.last_sync.bytes, mirror.last_sync.passes) == (2 * SIZE, 0), "copied twice"


def test_a_synchronize_that_is_killed_leaves_nothing_that_stops_the_next_one(
    tmp_path: Path,
) -> None:
    settings = settings_in(tmp_path, establish_speed="1MiB")
    with attached(settings) as mirror:
        for volume in mirror.volumes():
            scribble(volume, 0, SIZE)
        code = "mirror.synchronize(lambda done, total: done and print('.', flush=True))\n"
        with in_another_process(settings, code) as other:
            assert other.stdout is not None
            other.stdout.readline()  # it copies
            assert mirror.state().why.startswith("full resync needed")
            with pytest.raises(Busy):
                mirror.synchronize(silent)
            other.kill()
        faster = QsdMirror(settings_in(tmp_path))
        faster.synchronize(silent)
        assert faster.last_sync is not None and faster.last_sync.kind is SyncKind.FULL
        expected = primaries(faster)
        faster.split("s")
        assert contents(faster.leg("s", 10)) == expected
        faster.close()


def test_an_interrupted_synchronize_leaves_no_job(tmp_path: Path) -> None:
    with attached(settings_in(tmp_path, establish_speed="1MiB")) as mirror:
        for volume in mirror.volumes():
            scribble(volume, 0, SIZE)

        def interrupt(done: int, total: int) -> None:
            if done:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            mirror.synchronize(interrupt)
        assert not blockjobs.jobs(mirror._stack.talk()[1])
        assert not mirror.state().level


# --- split


def test_b_never_runs_ahead_of_a_on_the_legs_without_a_freeze(mirror: QsdMirror) -> None:
    first, second = mirror.volumes()
    for round_ in range(5):
        for volume in (first, second):  # so that the copies take their time
            scribble(volume, MIB, 8 * MIB)
        with numbers_to(first, second) as written:
            wait_for_numbers(written, 20)
            mirror.split(f"round-{round_}")
            wait_for_numbers(written, 20)
        leg = contents(mirror.leg(f"round-{round_}", 30))
        a, b = (int.from_bytes(leg[name][:8], "little") for name in ("d0", "d1"))
        last = int.from_bytes(Path(first.device).read_bytes()[:8], "little")
        mirror.rejoin(f"round-{round_}")
        assert 20 <= b <= a <= b + 1
        assert a < last, "the writer did not go on after the split"


@contextlib.contextmanager
def numbers_to(first: Volume, second: Volume) -> Iterator[threading.Semaphore]:
    """Write 1, 2, 3, … past every cache to the first volume and then to the second."""
    stop, written = threading.Event(), threading.Semaphore(0)

    def write() -> None:
        fds = [os.open(v.device, os.O_WRONLY | os.O_DIRECT) for v in (first, second)]
        with mmap.mmap(-1, 4096) as block:
            number = 0
            while not stop.is_set():
                number += 1
                struct.pack_into("<Q", block, 0, number)
                for fd in fds:
                    os.pwrite(fd, block, 0)
                written.release()
        for fd in fds:
            os.close(fd)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield written
    finally:
        stop.set()
        writer.join()


def wait_for_numbers(written: threading.Semaphore, count: int) -> None:
    """Wait for that many more than there are now."""
    while written.acquire(blocking=False):
        pass
    for _ in range(count):
        assert written.acquire(timeout=10)


def test_a_split_without_its_maker_is_found_by_its_id(mirror: QsdMirror, tmp_path: Path) -> None:
    for volume in mirror.volumes():
        scribble(volume, 0, SIZE)
    expected = primaries(mirror)
    code = "mirror.split('lost')\nos.kill(os.getpid(), signal.SIGKILL)\n"
    with in_another_process(settings_in(tmp_path), code) as other:
        pass
    assert other.returncode == -signal.SIGKILL
    for volume in mirror.volumes():
        scribble(volume, 0, SIZE)
    assert mirror.state().split_id == "lost"
    mirror.split("lost")
    assert contents(mirror.leg("lost", 30)) == expected


def test_nothing_is_written_to_the_host_during_a_split(mirror: QsdMirror, tmp_path: Path) -> None:
    def times() -> dict[str, int]:
        return {str(p): p.lstat().st_mtime_ns for p in (tmp_path / "qsd").iterdir()}

    before = times()
    mirror.split("s")
    assert times() == before


def test_a_leg_that_is_not_complete_in_time_says_so(tmp_path: Path) -> None:
    with attached(settings_in(tmp_path)) as mirror:
        mirror.synchronize(silent)
        for volume in mirror.volumes():
            scribble(volume, 0, SIZE)
        _, monitor = mirror._stack.talk()
        mirror.split("s")
        with contextlib.suppress(MirrorError):  # slow it down, if it still goes on
            for disk in ("d0", "d1"):
                monitor.execute("block-job-set-speed", {"device": f"split.{disk}.s", "speed": 1})
        with contextlib.suppress(DeadlineExceeded):
            mirror.leg("s", 0)
        mirror.rejoin("s")  # gives up the copies that still run
        assert mirror.state().level


def test_a_frozen_filesystem_is_whole_on_its_leg(mirror: QsdMirror, tmp_path: Path) -> None:
    device = mirror.volumes()[0].device
    where, there = tmp_path / "mnt", tmp_path / "leg"
    where.mkdir()
    there.mkdir()
    programs.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", device], timeout_s=30)
    programs.run(["mount", device, str(where)], timeout_s=30)
    fd = filesystems.open_mountpoint(str(where))
    try:
        (where / "file").write_bytes(b"before" * 10_000)
        filesystems.syncfs(fd)
        filesystems.freeze(fd)
        try:
            mirror.split("s")
        finally:
            assert filesystems.thaw(fd)
        (where / "file").write_bytes(b"after")
        (where / "new").write_bytes(b"new")
        os.sync()
        (run,) = mirror.leg("s", 10).volumes["d0"]
        with loop.attached(run.path, read_only=True) as leg:
            programs.run(["e2fsck", "-fn", leg.path], timeout_s=30)
            programs.run(["mount", "-o", "ro,noload", leg.path, str(there)], timeout_s=30)
            names = sorted(path.name for path in there.iterdir())
            content = (there / "file").read_bytes()
            programs.run(["umount", str(there)], timeout_s=30)
    finally:
        os.close(fd)
        programs.run(["umount", str(where)], timeout_s=30)
    assert content == b"before" * 10_000
    assert names == ["file", "lost+found"]


def test_nothing_has_the_leg_open_once_it_is_given_out(mirror: QsdMirror, tmp_path: Path) -> None:
    assert openers.users(tmp_path / "d0.mir")
    mirror.split("s")
    mirror.leg("s", 10)
    assert not openers.users(tmp_path / "d0.mir")


def test_a_leg_that_is_still_read_is_not_given_back(mirror: QsdMirror, tmp_path: Path) -> None:
    mirror.split("s")
    (run,) = mirror.leg("s", 10).volumes["d1"]
    with loop.attached(run.path, read_only=True) as device, pytest.raises(Busy, match=device.path):
        mirror.rejoin("s")
    with Path(run.path).open("rb"), pytest.raises(Busy, match=f"process {os.getpid()}"):
        mirror.rejoin("s")
    assert mirror.state().split_id == "s"
    mirror.rejoin("s")
    assert mirror.state().split_id is None


def test_a_leg_that_is_just_let_go_can_be_given_back(mirror: QsdMirror) -> None:
    mirror.split("s")
    (run,) = mirror.leg("s", 10).volumes["d1"]
    device = loop.attach(run.path, read_only=True, autoclear=True)
    late = threading.Timer(0.3, lambda: os.close(device.fd))
    late.start()
    mirror.rejoin("s")
    late.join()
    assert mirror.state().level


def test_a_name_that_no_job_can_have_is_refused(mirror: QsdMirror) -> None:
    with pytest.raises(MirrorError, match="cannot name a split"):
        mirror.split("../../etc")


# --- the leg's room


def test_a_leg_with_a_hole_is_refused_before_the_split(mirror: QsdMirror, tmp_path: Path) -> None:
    assert not [finding for finding in mirror.preflight([]) if finding.problem]
    fd = os.open(tmp_path / "d1.mir", os.O_RDWR)
    fiemap.punch_hole(fd, 8 * MIB, 4096)
    os.close(fd)
    (problem,) = [finding.problem for finding in mirror.preflight([]) if finding.problem]
    assert isinstance(problem, UnsafeMirror)
    assert "fallocate" in problem.hint
    os.posix_fallocate(fd := os.open(tmp_path / "d1.mir", os.O_RDWR), 0, SIZE)
    os.close(fd)
    assert not [finding for finding in mirror.preflight([]) if finding.problem]


def test_a_copy_without_room_spoils_its_leg_and_nothing_else(tmp_path: Path) -> None:
    """As if the split were made although preflight refused it."""
    with small_filesystem(tmp_path, 64 * MIB) as host:
        disk = Disk(name="d0", primary=f"{tmp_path}/d0.img", mirror=f"{host}/d0.mir", size=SIZE)
        with attached(settings_in(tmp_path, disks=(disk,))) as mirror:
            mirror.synchronize(silent)
            (volume,) = mirror.volumes()
            scribble(volume, 4 * MIB, 4 * MIB)
            leg_fd = os.open(host / "d0.mir", os.O_RDWR)
            fiemap.punch_hole(leg_fd, 4 * MIB, 4 * MIB)
            filler = host / "filler"
            fill(filler)
            mirror.split("s")
            with pytest.raises(LegError, match="No space left"):
                mirror.leg("s", 10)
            assert "the copy failed" in mirror.state().why
            filler.unlink()
            os.posix_fallocate(leg_fd, 0, SIZE)
            os.close(leg_fd)
            mirror.rejoin("s")
            assert mirror.state().level
            expected = primaries(mirror)
            mirror.split("t")
            assert contents(mirror.leg("t", 10)) == expected


def fill(path: Path) -> None:
    """Use up every block of a filesystem."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(MIB)):
            os.fsync(file.fileno())
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1024)):
            os.fsync(file.fileno())


def test_an_attach_without_room_for_the_mirror_leaves_nothing(tmp_path: Path) -> None:
    with small_filesystem(tmp_path, 8 * MIB) as host:
        disk = Disk(name="d0", primary=f"{tmp_path}/d0.img", mirror=f"{host}/d0.mir", size=SIZE)
        with pytest.raises(NoRoom):
            QsdMirror(settings_in(tmp_path, disks=(disk,))).attach()
        assert not (tmp_path / "d0.img").exists()
        assert sorted(path.name for path in host.iterdir()) == ["lost+found"]
    assert not remains(tmp_path)


def test_the_mirror_is_made_or_grown_to_the_primarys_size(tmp_path: Path) -> None:
    (tmp_path / "d1.mir").write_bytes(b"short")
    with attached(settings_in(tmp_path)):
        for name in ("d0", "d1"):
            leg = (tmp_path / f"{name}.mir").stat()
            assert (leg.st_size, leg.st_blocks * 512 >= SIZE) == (SIZE, True)
        assert (tmp_path / "d0.img").stat().st_blocks * 512 < SIZE
