"""Freezing real filesystems, alone and together, undisturbed and disturbed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.real.loopfs import (
    LoopFs,
    freeze_held_up,
    freezing_threads,
    loop_filesystems,
    until,
)

from splitmirror.errors import FreezeFailed, GuardLost, HoldBroken
from splitmirror.freeze import Freeze
from splitmirror.guard import Guard, read_record
from splitmirror.system import filesystems, programs

pytestmark = pytest.mark.real


@pytest.fixture
def guard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guard]:
    name = "disks" if "disks" in request.fixturenames else "disk"
    made = request.getfixturevalue(name)
    paths = [one.mountpoint for one in (made if isinstance(made, list) else [made])]
    with Guard(paths, tmp_path / "guard.json") as guard:
        yield guard


def mountpoints(disks: list[LoopFs]) -> list[str]:
    return [disk.mountpoint for disk in disks]


def test_writers_wait_from_freeze_to_thaw_and_no_longer(disks: list[LoopFs], guard: Guard) -> None:
    with Freeze(mountpoints(disks), guard, 10) as freeze:
        freeze.flush()
        before_s = time.monotonic()
        freeze.freeze()
        assert not any(disk.writable_within(0.1) for disk in disks)
        freeze.thaw()
        after_s = time.monotonic()
    assert all(disk.writable_within(1) for disk in disks)
    assert before_s <= freeze.began_s < freeze.ended_s <= after_s
    parts = freeze.parts
    assert parts.held_s >= 0.2
    total = parts.freeze_s + parts.held_s + parts.thaw_s
    assert total == pytest.approx(freeze.ended_s - freeze.began_s)


def test_after_the_thaw_the_guard_has_nothing_to_do(disk: LoopFs, tmp_path: Path) -> None:
    record = tmp_path / "guard.json"
    with (
        Guard([disk.mountpoint], record) as guard,
        Freeze([disk.mountpoint], guard, 60) as freeze,
    ):
        freeze.freeze()
        freeze.thaw()
        freeze.thaw()  # harmless
    assert read_record(record) is None  # had it been armed still, it would have stepped in


def test_a_thaw_by_someone_else_breaks_the_hold_by_name(disks: list[LoopFs], guard: Guard) -> None:
    with Freeze(mountpoints(disks), guard, 10) as freeze:
        freeze.freeze()
        disks[1].thaw()
        with pytest.raises(HoldBroken) as caught:
            freeze.thaw()
    assert disks[1].mountpoint in str(caught.value)
    assert disks[0].mountpoint not in str(caught.value)
    assert all(disk.writable_within(1) for disk in disks)
    guard.confirm()


def test_a_freeze_beyond_its_deadline_breaks_the_hold(disk: LoopFs, guard: Guard) -> None:
    with Freeze([disk.mountpoint], guard, 0.1) as freeze:
        freeze.freeze()
        assert disk.writable_within(0.8)
        with pytest.raises(HoldBroken):
            freeze.thaw()


def test_two_mount_points_of_one_superblock_are_frozen_once(
    disk: LoopFs, guard: Guard, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    programs.run(["mount", "--bind", disk.mountpoint, str(second)], timeout_s=10)
    try:
        with Freeze([disk.mountpoint, str(second)], guard, 10) as freeze:
            freeze.freeze()  # a second FIFREEZE would be refused: frozen already
            assert not disk.writable_within(0.05)
            freeze.thaw()
        assert disk.writable_within(1)
    finally:
        programs.run(["umount", str(second)], timeout_s=10)


def test_several_filesystems_are_frozen_at_the_same_time(disks: list[LoopFs], guard: Guard) -> None:
    """One that is held up does not keep the others waiting for their turn."""
    with freeze_held_up(disks[0]) as let_go, Freeze(mountpoints(disks), guard, 60) as freeze:
        seen: list[bool] = []

        def watch() -> None:
            seen.append(until(lambda: freezing_threads("self")))
            seen.append(until(lambda: not disks[1].writable_within(0.1)))
            let_go()

        watcher = threading.Thread(target=watch)
        watcher.start()
        freeze.freeze()
        freeze.thaw()
        watcher.join()
    assert seen == [True, True]


def test_flushing_first_leaves_little_for_the_freeze(tmp_path: Path) -> None:
    with loop_filesystems(tmp_path, "ext4", size=1 << 30) as (disk,):
        disk.make_dirty(400 << 20)
        began_s = time.monotonic()
        with (
            Guard([disk.mountpoint], tmp_path / "guard.json") as guard,
            Freeze([disk.mountpoint], guard, 60) as freeze,
        ):
            freeze.flush()
            flushed_s = time.monotonic() - began_s
            freeze.freeze()
            freeze.thaw()
        assert freeze.parts.freeze_s < flushed_s / 2


def test_what_someone_else_froze_is_refused_and_left_to_him(
    disks: list[LoopFs], guard: Guard
) -> None:
    programs.run(["fsfreeze", "-f", disks[1].mountpoint], timeout_s=10)
    with Freeze(mountpoints(disks), guard, 10) as freeze:
        with pytest.raises(FreezeFailed, match="frozen already") as caught:
            freeze.freeze()
        assert disks[1].mountpoint in str(caught.value)
        assert disks[0].writable_within(1)
    assert not disks[1].writable_within(0.05)
    assert disks[1].thaw()
    guard.confirm()


def test_a_filesystem_that_cannot_be_frozen_is_refused_by_name(tmp_path: Path) -> None:
    with (
        Guard(["/proc"], tmp_path / "guard.json") as guard,
        Freeze(["/proc"], guard, 10) as freeze,
        pytest.raises(FreezeFailed, match=r"/proc: .*cannot be frozen"),
    ):
        freeze.freeze()


def test_an_error_inside_the_block_thaws(disk: LoopFs, guard: Guard) -> None:
    with pytest.raises(ZeroDivisionError), Freeze([disk.mountpoint], guard, 10) as freeze:
        freeze.freeze()
        raise ZeroDivisionError
    assert disk.writable_within(1)
    assert freeze.ended_s > freeze.began_s


def test_the_guards_death_thaws_at_once_and_breaks_the_hold(disk: LoopFs, tmp_path: Path) -> None:
    with (
        Guard([disk.mountpoint], tmp_path / "guard.json") as guard,
        Freeze([disk.mountpoint], guard, 10) as freeze,
    ):
        freeze.freeze()
        os.kill(guard.pid, signal.SIGKILL)
        assert disk.writable_within(1)
        with pytest.raises(HoldBroken):
            freeze.thaw()


def test_the_guards_death_during_the_freeze_ends_thawed(disk: LoopFs, tmp_path: Path) -> None:
    with (
        freeze_held_up(disk) as let_go,
        Guard([disk.mountpoint], tmp_path / "guard.json") as guard,
        Freeze([disk.mountpoint], guard, 60) as freeze,
    ):
        died = threading.Event()
        guard.on_death(died.set)
        victim = guard.pid

        def kill() -> None:
            if until(lambda: freezing_threads("self")):
                os.kill(victim, signal.SIGKILL)
                died.wait(5)
            let_go()

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(GuardLost):
            freeze.freeze()
        killer.join()
        assert died.is_set()
        assert disk.writable_within(1)


def test_without_a_guard_nothing_is_frozen(disk: LoopFs, tmp_path: Path) -> None:
    with (
        Guard([disk.mountpoint], tmp_path / "guard.json") as guard,
        Freeze([disk.mountpoint], guard, 10) as freeze,
    ):
        died = threading.Event()
        guard.on_death(died.set)
        os.kill(guard.pid, signal.SIGKILL)
        assert died.wait(5)
        with pytest.raises(GuardLost):
            freeze.freeze()
        assert disk.writable_within(1)
        assert freeze.began_s == 0


def test_ctrl_c_during_the_freeze_ends_thawed(disk: LoopFs, guard: Guard, tmp_path: Path) -> None:
    with freeze_held_up(disk) as let_go:
        caught = threading.Event()

        def interrupt() -> None:
            if until(lambda: freezing_threads("self")):
                os.kill(os.getpid(), signal.SIGINT)
                caught.wait(5)
            let_go()

        interrupter = threading.Thread(target=interrupt)
        with pytest.raises(KeyboardInterrupt), Freeze([disk.mountpoint], guard, 60) as freeze:
            interrupter.start()
            try:
                freeze.freeze()
            finally:
                caught.set()
        interrupter.join()
        assert disk.writable_within(1)
        assert not disk.thaw()
        guard.confirm()
    assert read_record(tmp_path / "guard.json") is None


def test_leaving_closes_every_descriptor_and_thread(disk: LoopFs, guard: Guard) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    with Freeze([disk.mountpoint], guard, 10) as freeze:
        freeze.freeze()
        freeze.thaw()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert until(lambda: threading.active_count() == threads)
    fd = filesystems.open_mountpoint(disk.mountpoint)
    assert filesystems.thaw(fd) is False
    os.close(fd)
