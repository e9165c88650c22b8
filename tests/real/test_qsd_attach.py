"""Starting, stopping and losing the embedded mirror, on real parts."""

from __future__ import annotations

import dataclasses
import os
import signal
import stat
from pathlib import Path

import pytest
from tests.real.qsd_lab import (
    MIB,
    SIZE,
    attached,
    daemon_of,
    in_another_process,
    kill,
    place_of,
    primaries,
    remains,
    scribble,
    settings_in,
)

from splitmirror.errors import (
    Busy,
    ConfigError,
    MirrorError,
    MirrorNotReady,
    SplitmirrorError,
    UnsafeMirror,
    WouldFreeze,
)
from splitmirror.mirrors import qsd
from splitmirror.mirrors.qsd import Disk, QsdMirror
from splitmirror.model import Filesystem
from splitmirror.progress import silent
from splitmirror.system import (
    blockdev,
    filesystems,
    loop,
    nbdstack,
    programs,
    selfprobe,
)
from splitmirror.system.nbdstack import Place
from splitmirror.system.qmp import Monitor
from splitmirror.system.stackrecord import RecordFile, SyncKind
from splitmirror.testing.mirror_case import contents

pytestmark = pytest.mark.real

CAP_SYS_RESOURCE = 24  # capabilities(7)


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
