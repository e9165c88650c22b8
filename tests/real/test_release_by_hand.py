"""The guard's steps by hand, as `splitmirror release` makes them."""

from __future__ import annotations

import signal
import subprocess
import threading
from pathlib import Path

import pytest
from tests.real.loopfs import (
    LoopFs,
    ended,
    freeze_held_up,
    freezing_threads,
    kill_pending,
    until,
)

from splitmirror.guard import release_by_hand
from splitmirror.model import Session
from splitmirror.system import process, programs

pytestmark = pytest.mark.real


def test_release_by_hand_thaws_and_ends_and_a_second_time_is_harmless(
    disks: list[LoopFs], tmp_path: Path, session: Session
) -> None:
    mountpoints = [disk.mountpoint for disk in disks]
    for mountpoint in mountpoints:
        programs.run(["fsfreeze", "-f", mountpoint], timeout_s=10)
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        ticks = process.start_ticks(sleeper.pid)
        assert ticks is not None
        holder = Session(what="the backup", pid=sleeper.pid, start_ticks=ticks, signal=15)
        missing = str(tmp_path / "nowhere")
        first = release_by_hand([*mountpoints, missing], [session], holder)
        assert sleeper.wait(5) == -signal.SIGKILL
    assert all(disk.writable_within(0.5) for disk in disks)
    assert until(lambda: ended(session))
    assert f"{mountpoints[0]}: thawed" in first
    assert any(line.startswith(f"{missing}: not thawed") for line in first)
    second = release_by_hand(mountpoints, [session], holder)
    assert f"{mountpoints[0]}: was not frozen" in second
    assert f"the backup (process {sleeper.pid}): gone already" in second


def test_release_by_hand_outlasts_a_freeze_that_is_still_going_on(disk: LoopFs) -> None:
    with (
        freeze_held_up(disk) as let_go,
        subprocess.Popen(["fsfreeze", "-f", disk.mountpoint]) as freezer,
    ):
        ticks = process.start_ticks(freezer.pid)
        assert ticks is not None
        assert until(lambda: freezing_threads(freezer.pid))
        holder = Session(what="it", pid=freezer.pid, start_ticks=ticks, signal=9)
        lines: list[str] = []
        hand = threading.Thread(
            target=lambda: lines.extend(release_by_hand([disk.mountpoint], [], holder))
        )
        hand.start()
        assert until(lambda: kill_pending(freezer.pid))
        let_go()
        hand.join()
    assert lines == [f"it (process {freezer.pid}): killed", f"{disk.mountpoint}: thawed"]
    assert disk.writable_within(1)
