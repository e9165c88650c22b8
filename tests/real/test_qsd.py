"""The embedded mirror on real parts: qemu-storage-daemon, nbdfuse, loop devices, filesystems."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from splitmirror.errors import (
    Busy,
    ConfigError,
    DeadlineExceeded,
    LegError,
    MirrorError,
    MirrorNotReady,
    NoRoom,
    SplitmirrorError,
    UnsafeMirror,
    WouldFreeze,
)
from splitmirror.mirrors import qsd
from splitmirror.mirrors.qsd import Disk, QsdMirror, Settings
from splitmirror.model import Filesystem, Volume
from splitmirror.progress import silent
from splitmirror.system import (
    blockdev,
    blockjobs,
    fiemap,
    filesystems,
    loop,
    nbdstack,
    process,
    programs,
    selfprobe,
)
from splitmirror.system.nbdstack import Place
from splitmirror.system.qmp import Monitor
from splitmirror.system.stackrecord import RecordFile, SyncKind
from splitmirror.testing.mirrors import contents, write_through_device

pytestmark = pytest.mark.real

MIB = 1 << 20
SIZE = 16 * MIB
CAP_SYS_RESOURCE = 24  # capabilities(7)


def settings_in(place: Path, **changes: object) -> Settings:
    disks = tuple(
        Disk(name=name, primary=f"{place}/{name}.img", mirror=f"{place}/{name}.mir", size=SIZE)
        for name in ("d0", "d1")
    )
    known: dict[str, object] = {"dir": f"{place}/qsd", "disks": disks, "level_below": 0}
    return Settings(**(known | changes))  # type: ignore[arg-type]


@contextlib.contextmanager
def attached(settings: Settings) -> Iterator[QsdMirror]:
    mirror = QsdMirror(settings)
    mirror.attach()
    try:
        yield mirror
    finally:
        mirror.close()
        QsdMirror(settings).detach()


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[QsdMirror]:
    """Two disks of 16 MiB, attached and level."""
    with attached(settings_in(tmp_path)) as mirror:
        mirror.synchronize(silent)
        yield mirror


def place_of(mirror: QsdMirror) -> Place:
    return Place(directory=Path(mirror._settings.dir))


def scribble(volume: Volume, offset: int = 0, length: int = MIB) -> None:
    write_through_device(volume, offset, os.urandom(length))


def primaries(mirror: QsdMirror) -> dict[str, bytes]:
    return {v.name: Path(v.device).read_bytes() for v in mirror.volumes()}


def daemon_of(mirror: QsdMirror) -> int:
    daemon = nbdstack.find_daemon(place_of(mirror))
    assert daemon is not None
    return daemon.pid


def kill(pid: int) -> None:
    ticks = process.start_ticks(pid)
    assert ticks is not None
    os.kill(pid, signal.SIGKILL)
    assert process.wait_gone(pid, ticks, 10)


def remains(place: Path) -> list[str]:
    """Every loop device, mount and process that has to do with a directory."""
    found = [m.mountpoint for m in filesystems.mounts() if m.mountpoint.startswith(f"{place}/")]
    backing = ""
    for device in Path("/sys/block").glob("loop*"):
        backing = (
            loop.backing(f"/dev/{device.name}") if Path(f"/dev/{device.name}").exists() else ""
        )
        if backing and backing.startswith(f"{place}/"):
            found.append(f"/dev/{device.name}")
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                int(entry.name) != os.getpid()
                and f"{place}/".encode() in (entry / "cmdline").read_bytes()
            ):
                found.append(f"process {entry.name}")
    return found


@contextlib.contextmanager
def small_filesystem(place: Path, size: int, *options: str) -> Iterator[Path]:
    """An ext4 of its own."""
    image = place / "host.img"
    image.touch()
    os.truncate(image, size)
    where = place / "host"
    where.mkdir()
    with loop.attached(image, read_only=False) as device:
        programs.run(["mkfs.ext4", "-q", "-m", "0", *options, device.path], timeout_s=30)
        programs.run(["mount", device.path, str(where)], timeout_s=30)
        try:
            yield where
        finally:
            programs.run(["umount", str(where)], timeout_s=30)


def in_another_process(settings: Settings, code: str) -> subprocess.Popen[bytes]:
    """Run code with `mirror` opened, in a process of its own; it tells when it is under way."""
    prologue = (
        "import os, signal, sys, msgspec\n"
        "from splitmirror.mirrors import qsd\n"
        "settings = msgspec.json.decode(sys.argv[1], type=qsd.Settings)\n"
        "mirror = qsd.QsdMirror(settings)\n"
    )
    argument = msgspec.json.encode(settings)
    return subprocess.Popen(
        [sys.executable, "-c", prologue + code, argument], stdout=subprocess.PIPE
    )


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
    for volume in (first, second):  # so that the copies take their time
        scribble(volume, MIB, SIZE - MIB)
    stop, written = threading.Event(), threading.Semaphore(0)

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for volume in (first, second):
                write_through_device(volume, 0, struct.pack("<Q", number).ljust(4096, b"\0"))
            written.release()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            assert written.acquire(timeout=10)
        mirror.split("s")
        for _ in range(10):
            assert written.acquire(timeout=10)
    finally:
        stop.set()
        writer.join()
    leg = contents(mirror.leg("s", 30))
    a, b = (int.from_bytes(leg[name][:8], "little") for name in ("d0", "d1"))
    assert 10 <= b <= a <= b + 1
    last = int.from_bytes(Path(first.device).read_bytes()[:8], "little")
    assert a < last, "the writer did not go on after the split"


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


# --- what attach refuses


def test_images_where_room_cannot_be_reserved_are_refused(tmp_path: Path) -> None:
    disk = Disk(name="d0", primary=f"{tmp_path}/d0.img", mirror="/dev/shm/d0.mir", size=SIZE)
    with pytest.raises(UnsafeMirror, match="tmpfs"):
        QsdMirror(settings_in(tmp_path, disks=(disk,))).attach()
    assert not (tmp_path / "d0.img").exists()


def test_a_primary_that_is_not_there_is_missed_by_name(tmp_path: Path) -> None:
    disk = Disk(name="d0", primary=f"{tmp_path}/d0.img", mirror=f"{tmp_path}/d0.mir")
    with pytest.raises(MirrorError, match=r"no primary .*d0\.img") as caught:
        QsdMirror(settings_in(tmp_path, disks=(disk,))).attach()
    assert "truncate -s" in caught.value.hint


def test_one_file_as_primary_and_mirror_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d0.img").write_bytes(bytes(SIZE))
    os.link(tmp_path / "d0.img", tmp_path / "d0.mir")
    disk = Disk(name="d0", primary=f"{tmp_path}/d0.img", mirror=f"{tmp_path}/d0.mir")
    with pytest.raises(MirrorError, match="the same file"):
        QsdMirror(settings_in(tmp_path, disks=(disk,))).attach()


def test_a_mirror_larger_than_its_primary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d0.mir").write_bytes(bytes(2 * SIZE))
    with pytest.raises(MirrorError, match="larger"):
        QsdMirror(settings_in(tmp_path)).attach()
    assert (tmp_path / "d0.mir").stat().st_size == 2 * SIZE


def test_a_primary_of_another_size_than_told_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d0.img").write_bytes(bytes(2 * SIZE))
    with pytest.raises(ConfigError, match="size"):
        QsdMirror(settings_in(tmp_path)).attach()


def test_images_that_another_daemon_uses_are_refused(mirror: QsdMirror, tmp_path: Path) -> None:
    second = QsdMirror(settings_in(tmp_path, dir=f"{tmp_path}/second"))
    with pytest.raises(Busy, match=f"process {daemon_of(mirror)}"):
        second.attach()
    assert mirror.state().level


def test_an_attach_that_fails_half_way_is_undone(tmp_path: Path) -> None:
    """The second disk cannot be opened, when the probe is done and the first one serves."""
    (tmp_path / "d1.img").write_bytes(bytes(SIZE))
    programs.run(["chattr", "+i", str(tmp_path / "d1.img")], timeout_s=10)
    mirror = QsdMirror(settings_in(tmp_path))
    try:
        with pytest.raises(MirrorError, match="not permitted"):
            mirror.attach()
    finally:
        programs.run(["chattr", "-i", str(tmp_path / "d1.img")], timeout_s=10)
    assert not remains(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d1.img", "qsd"]
    assert not list((tmp_path / "qsd").iterdir())
    assert not mirror.state().attached


def test_an_attach_that_was_killed_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    code = (
        "from splitmirror.system import qsdstack\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "qsdstack.Stack._serve = die\n"
        "mirror.attach()\n"
    )
    with in_another_process(settings, code) as other:
        pass
    assert other.returncode == -signal.SIGKILL
    assert nbdstack.find_daemon(Place(directory=tmp_path / "qsd")) is not None
    assert "cut off" in QsdMirror(settings).state().why
    with attached(settings) as mirror:
        mirror.synchronize(silent)
        assert mirror.state().level
    assert not remains(tmp_path)


def test_a_stack_that_loses_writes_fails_the_probe(tmp_path: Path) -> None:
    image, other = tmp_path / "image", tmp_path / "other"
    for path in (image, other):
        path.write_bytes(bytes(selfprobe.SIZE))
    with loop.attached(image, read_only=False) as device:
        selfprobe.check_writes(device.path, image)
        with pytest.raises(UnsafeMirror, match="a pattern"):
            selfprobe.check_writes(device.path, other)


# --- detach


def test_detach_leaves_nothing_behind(tmp_path: Path) -> None:
    with attached(settings_in(tmp_path)) as mirror:
        assert remains(tmp_path)
    assert not mirror.state().attached
    assert not remains(tmp_path)
    assert not list((tmp_path / "qsd").iterdir())


def test_detach_is_refused_while_a_disk_is_mounted_or_open(
    mirror: QsdMirror, tmp_path: Path
) -> None:
    first, second = mirror.volumes()
    programs.run(["mkfs.ext4", "-q", second.device], timeout_s=30)
    where = tmp_path / "mnt"
    where.mkdir()
    programs.run(["mount", second.device, str(where)], timeout_s=30)
    with pytest.raises(Busy, match=str(where)) as caught:
        mirror.detach()
    programs.run(["umount", str(where)], timeout_s=30)
    assert "umount" in caught.value.hint
    with Path(first.device).open("rb"), pytest.raises(Busy, match=f"process {os.getpid()}"):
        mirror.detach()
    mirror.synchronize(silent)
    assert mirror.state().level


# --- a daemon that died


def test_a_killed_daemon_is_told_cleaned_up_and_made_good_by_a_full_copy(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    with attached(settings) as mirror:
        mirror.synchronize(silent)
        volume = mirror.volumes()[0]
        scribble(volume)
        kept = primaries(mirror)["d0"]
        kill(daemon_of(mirror))
        state = QsdMirror(settings).state()
        assert not state.attached and not state.level
        assert "daemon died" in state.why and "full resync needed" in state.why
        assert mirror.state() == state, "a handle that was connected sees something else"
        with pytest.raises(MirrorNotReady):
            mirror.volumes()
        with pytest.raises(MirrorNotReady):
            mirror.split("s")
        with pytest.raises(OSError, match="Input/output"):
            scribble(volume)
        mirror.detach()
        assert not remains(tmp_path)
        mirror.attach()
        assert "full resync needed" in mirror.state().why
        with pytest.raises(MirrorNotReady):
            mirror.split("s")
        mirror.synchronize(silent)
        assert mirror.last_sync is not None and mirror.last_sync.kind is SyncKind.FULL
        assert primaries(mirror)["d0"] == kept, "an acknowledged write is gone"


def test_a_complete_leg_survives_its_daemon(tmp_path: Path) -> None:
    with attached(settings_in(tmp_path)) as mirror:
        mirror.synchronize(silent)
        mirror.split("s")
        before = contents(mirror.leg("s", 10))
        mirror.split("s")
        kill(daemon_of(mirror))
        assert mirror.state().split_id == "s"
        assert contents(QsdMirror(settings_in(tmp_path)).leg("s", 10)) == before
        mirror.rejoin("s")
        assert mirror.state().split_id is None
        mirror.attach()  # cleans up by itself
        assert mirror.state().attached


def test_a_leg_that_was_being_copied_dies_with_its_daemon(mirror: QsdMirror) -> None:
    mirror.split("s")
    kill(daemon_of(mirror))
    with pytest.raises(MirrorNotReady):
        mirror.leg("s", 10)
    mirror.rejoin("s")


def test_a_killed_nbdfuse_is_told(mirror: QsdMirror, tmp_path: Path) -> None:
    fuse = nbdstack.find_fuse(place_of(mirror), "d1")
    assert fuse is not None
    kill(fuse.pid)
    state = mirror.state()
    assert not state.attached and "d1" in state.why
    mirror.detach()
    assert not remains(tmp_path)


def test_a_daemon_of_another_life_is_not_taken_for_ours(mirror: QsdMirror, tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "qsd")
    record = file.read()
    assert record is not None and record.daemon is not None
    file.save(dataclasses.replace(record, instance="0123456789abcdef"))
    state = mirror.state()
    assert not state.level and "full resync needed" in state.why
    stranger = dataclasses.replace(record.daemon, start_ticks=record.daemon.start_ticks - 1)
    file.save(dataclasses.replace(record, daemon=stranger))
    assert "daemon died" in mirror.state().why
    file.save(record)
    assert mirror.state().level


def test_a_bitmap_that_vanished_means_a_full_copy(mirror: QsdMirror) -> None:
    record, monitor = mirror._stack.talk()
    monitor.execute("block-dirty-bitmap-remove", {"node": "d1", "name": record.bitmap})
    assert "full resync needed" in mirror.state().why
    scribble(mirror.volumes()[1])
    with pytest.raises(MirrorError):
        mirror.split("s")
    mirror.synchronize(silent)
    assert mirror.last_sync is not None and mirror.last_sync.kind is SyncKind.FULL
    assert mirror.state().level


# --- the daemon


def test_the_daemon_outlives_us_in_a_session_of_its_own_and_spared_by_the_oom_killer(
    mirror: QsdMirror,
) -> None:
    fuse = nbdstack.find_fuse(place_of(mirror), "d0")
    assert fuse is not None
    status = Path("/proc/self/status").read_text()
    (effective,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    may_spare = int(effective, 16) >> CAP_SYS_RESOURCE & 1
    for pid in (daemon_of(mirror), fuse.pid):
        assert os.getsid(pid) != os.getsid(0)
        spared = Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "-1000"
        assert spared or not may_spare


def test_the_disks_have_direct_io_and_sectors_of_4_kib(mirror: QsdMirror) -> None:
    for volume in mirror.volumes():
        name = Path(volume.device).name
        assert Path(f"/sys/block/{name}/loop/dio").read_text().strip() == "1"
        fd = os.open(volume.device, os.O_RDONLY)
        assert blockdev.sector_size(fd) == 4096
        os.close(fd)
        assert stat.S_ISBLK(Path(volume.device).stat().st_mode)


def test_discards_give_the_primary_its_room_back(mirror: QsdMirror, tmp_path: Path) -> None:
    volume = mirror.volumes()[0]
    scribble(volume, 0, 8 * MIB)
    full = (tmp_path / "d0.img").stat().st_blocks
    fd = os.open(volume.device, os.O_RDWR)
    blockdev.discard(fd, 0, 8 * MIB)
    os.close(fd)
    assert (tmp_path / "d0.img").stat().st_blocks < full
    mirror.synchronize(silent)
    assert not [finding for finding in mirror.preflight([]) if finding.problem], "the leg shrank"


def test_onlookers_are_served_beside_the_run_and_told_when_there_are_too_many(
    mirror: QsdMirror, tmp_path: Path
) -> None:
    others = [QsdMirror(settings_in(tmp_path)) for _ in range(nbdstack.MONITORS)]
    states = [other.state() for other in others]
    assert [state.level for state in states] == [True] * (nbdstack.MONITORS - 1) + [False]
    assert states[-1].attached and "in use" in states[-1].why
    for other in others:
        other.close()
    assert others[-1].state().level
    others[-1].close()


def test_a_monitor_is_free_again_when_its_client_is_killed(
    mirror: QsdMirror, tmp_path: Path
) -> None:
    code = "mirror.state()\nos.kill(os.getpid(), signal.SIGKILL)\n"
    for _ in range(nbdstack.MONITORS + 1):
        with in_another_process(settings_in(tmp_path), code) as other:
            pass
        assert other.returncode == -signal.SIGKILL
    fresh = Monitor.connect(place_of(mirror).monitors[1:])
    assert fresh.peer_pid == daemon_of(mirror)
    fresh.close()


# --- preflight


def filesystem_on(volume: str, where: Path) -> Filesystem:
    mount = filesystems.mount_of(where)
    return Filesystem(
        mountpoint=mount.mountpoint,
        fstype=mount.fstype,
        options=mount.options,
        source=mount.source,
        devno=where.stat().st_dev,
        volume=volume,
        offset=0,
    )


@pytest.mark.parametrize(
    ("option", "safe"),
    [("defaults", True), ("dioread_nolock", True), ("nodioread_nolock", False),
     ("nodelalloc", False), ("data=journal", False)],
)  # fmt: skip
def test_ext4_options_that_zero_out_below_it_are_refused(
    mirror: QsdMirror, tmp_path: Path, option: str, safe: bool
) -> None:
    device = mirror.volumes()[0].device
    where = tmp_path / "mnt"
    where.mkdir()
    programs.run(["mkfs.ext4", "-q", device], timeout_s=30)
    programs.run(["mount", "-o", option, device, str(where)], timeout_s=30)
    try:
        findings = mirror.preflight([filesystem_on("d0", where)])
    finally:
        programs.run(["umount", str(where)], timeout_s=30)
    problems = [finding.problem for finding in findings if finding.problem]
    assert [type(problem) for problem in problems] == ([] if safe else [UnsafeMirror])


def test_images_on_a_filesystem_that_would_be_frozen_are_refused(
    mirror: QsdMirror, tmp_path: Path
) -> None:
    findings = mirror.preflight([filesystem_on("d0", tmp_path)])
    assert WouldFreeze in [type(finding.problem) for finding in findings]


def test_preflight_names_a_mirror_that_is_not_attached(tmp_path: Path) -> None:
    problems = [f.problem for f in QsdMirror(settings_in(tmp_path)).preflight([]) if f.problem]
    assert problems and all(isinstance(problem, SplitmirrorError) for problem in problems)
    assert isinstance(problems[0], MirrorNotReady) and problems[0].hint


def test_the_module_opens_a_mirror_by_its_settings(tmp_path: Path) -> None:
    assert not qsd.open_mirror(settings_in(tmp_path), tmp_path).state().attached
