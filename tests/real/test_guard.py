"""The guard, on real filesystems and with real deaths."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.real.loopfs import (
    LoopFs,
    ended,
    freeze_held_up,
    freezing_threads,
    kill_pending,
    loop_filesystems,
    until,
)

import splitmirror
from splitmirror.errors import DeviceFailed, GuardLost, HoldBroken
from splitmirror.guard import Guard, read_record, wait_for_guards, wire
from splitmirror.model import Session
from splitmirror.system import process, programs

pytestmark = pytest.mark.real

# A backup that freezes and stays so. It says "ready" before the freeze and "frozen" after it.
_HOLDER = """
import os, sys, time
from pathlib import Path
from splitmirror.freeze import Freeze
from splitmirror.guard import Guard
from splitmirror.model import Session

record, deadline_s, session, extra, *mountpoints = sys.argv[1:]
with Guard(mountpoints, Path(record)) as guard, Freeze(mountpoints, guard, float(deadline_s)) as f:
    if session:
        pid, ticks = map(int, session.split(":"))
        guard.keep(Session(what="the session", pid=pid, start_ticks=ticks, signal=15))
    if extra == "fork" and os.fork() == 0:
        time.sleep(1000)
    print("ready", guard.pid, flush=True)
    if extra != "slow":
        f.flush()
    f.freeze()
    print("frozen", flush=True)
    if extra == "hang up":
        os.closerange(3, 1024)
        time.sleep(0.05)
        os._exit(0)
    if extra == "release":
        sys.stdin.readline()
        try:
            f.thaw()
        except Exception as error:
            print(type(error).__name__, flush=True)
    time.sleep(1000)
"""


class Holder:
    """A process that plays the backup, and its guard."""

    def __init__(
        self,
        record: Path,
        filesystems: list[LoopFs],
        *,
        deadline_s: float = 60,
        session: Session | None = None,
        extra: str = "",
    ) -> None:
        told = f"{session.pid}:{session.start_ticks}" if session else ""
        mountpoints = [filesystem.mountpoint for filesystem in filesystems]
        self.record = record
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", _HOLDER, str(record), str(deadline_s), told, extra),
                *mountpoints,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        words = self.hears().split()
        assert words[:1] == ["ready"]
        self.guard_pid = int(words[1])
        ticks = process.start_ticks(self.guard_pid)
        assert ticks is not None
        self.guard_ticks = ticks

    def hears(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def guard_gone(self, deadline_s: float = 10) -> bool:
        return process.wait_gone(self.guard_pid, self.guard_ticks, deadline_s)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout and self.process.stdin
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.guard_gone()


def test_a_killed_backup_leaves_nothing_frozen(disks: list[LoopFs], session: Session) -> None:
    record = disks[0].image.parent / "guard.json"
    holder = Holder(record, disks, session=session)
    with contextlib.closing(holder):
        assert holder.hears() == "frozen\n"
        assert not any(disk.writable_within(0.05) for disk in disks)
        holder.process.kill()
        assert all(disk.writable_within(0.5) for disk in disks)
        assert holder.guard_gone()
    released = read_record(record)
    assert released is not None
    assert (released.cause, released.killed) == ("holder gone", False)
    assert [thawed.times for thawed in released.filesystems] == [1, 1]
    assert released.thawed_after_s < 0.1
    assert (released.ended, released.remaining) == (("the session",), ())
    assert ended(session)


def test_a_backup_whose_files_are_closed_but_that_is_still_dying_counts_as_dead(
    disk: LoopFs, tmp_path: Path
) -> None:
    holder = Holder(tmp_path / "guard.json", [disk], extra="hang up")
    with contextlib.closing(holder):
        assert holder.hears() == "frozen\n"
        assert holder.process.wait(10) == 0
        assert disk.writable_within(0.5)
        assert holder.guard_gone()
    released = read_record(holder.record)
    assert released is not None
    assert (released.cause, released.killed) == ("holder gone", False)


def test_a_stopped_backup_is_thawed_at_the_deadline_and_killed(
    disk: LoopFs, tmp_path: Path, session: Session
) -> None:
    holder = Holder(tmp_path / "guard.json", [disk], deadline_s=0.3, session=session)
    with contextlib.closing(holder):
        assert holder.hears() == "frozen\n"
        began = time.monotonic()
        holder.process.send_signal(signal.SIGSTOP)
        assert disk.writable_within(1.0)
        assert 0.1 < time.monotonic() - began < 0.9  # at the deadline, not at the kill
        assert holder.process.wait(10) == -signal.SIGKILL
        assert holder.guard_gone()
    released = read_record(holder.record)
    assert released is not None
    assert (released.cause, released.killed) == ("deadline: freeze", True)
    assert ended(session)


def test_a_backup_that_releases_late_by_itself_is_not_killed(disk: LoopFs, tmp_path: Path) -> None:
    holder = Holder(tmp_path / "guard.json", [disk], deadline_s=0.2, extra="release")
    with contextlib.closing(holder):
        assert holder.hears() == "frozen\n"
        assert disk.writable_within(1.0)
        print(file=holder.process.stdin, flush=True)
        assert holder.hears() == "HoldBroken\n"
        assert until(holder.record.exists)
        released = read_record(holder.record)
        assert released is not None
        assert (released.cause, released.killed) == ("deadline: freeze", False)
        assert holder.process.poll() is None
        assert process.alive(holder.guard_pid, holder.guard_ticks)


@pytest.mark.parametrize("death", ["killed", "deadline"])
def test_a_freeze_still_going_on_at_the_holders_death_ends_thawed(
    disk: LoopFs, tmp_path: Path, death: str
) -> None:
    """A thaw is refused while a freeze waits for a write to end, and the freeze then completes."""
    with freeze_held_up(disk) as let_go:
        deadline_s = 60 if death == "killed" else 0.05
        holder = Holder(tmp_path / "guard.json", [disk], deadline_s=deadline_s, extra="slow")
        with contextlib.closing(holder):
            assert until(lambda: freezing_threads(holder.process.pid))
            if death == "killed":
                holder.process.kill()
            assert until(lambda: kill_pending(holder.process.pid))
            assert not disk.thaw(), "a thaw is refused meanwhile"
            assert not holder.guard_gone(0.1)
            let_go()
            assert holder.guard_gone()
            assert disk.writable_within(1)
            assert holder.hears() == ""  # it never came to say "frozen"
    released = read_record(holder.record)
    assert released is not None
    assert [thawed.times for thawed in released.filesystems] == [1]


def test_a_freeze_behind_a_large_dirty_write_ends_thawed(tmp_path: Path) -> None:
    with loop_filesystems(tmp_path, "ext4", size=1 << 30) as (disk,):
        disk.make_dirty(600 << 20)
        holder = Holder(tmp_path / "guard.json", [disk], extra="slow")
        with contextlib.closing(holder):
            assert until(lambda: freezing_threads(holder.process.pid))
            holder.process.kill()
            assert holder.guard_gone(60)
            assert disk.writable_within(5)
            assert not disk.thaw()


def test_a_forked_child_that_still_has_the_pipe_does_not_hide_the_death(
    disk: LoopFs, tmp_path: Path
) -> None:
    holder = Holder(tmp_path / "guard.json", [disk], extra="fork")
    (child,) = [
        int(pid)
        for pid in Path(f"/proc/{holder.process.pid}/task/{holder.process.pid}/children")
        .read_text()
        .split()
        if int(pid) != holder.guard_pid
    ]
    ticks = process.start_ticks(child)
    assert ticks is not None
    with contextlib.closing(holder):
        assert holder.hears() == "frozen\n"
        holder.process.kill()
        try:
            assert disk.writable_within(0.5)
            assert process.alive(child, ticks)
        finally:
            process.end(Session(what="child", pid=child, start_ticks=ticks, signal=9))


def test_programs_that_the_backup_runs_do_not_inherit_its_descriptors(
    disk: LoopFs, tmp_path: Path
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with Guard([disk.mountpoint], tmp_path / "guard.json"):
        new = set(os.listdir("/proc/self/fd")) - before
        assert new
        listed = subprocess.run(
            ["ls", "/proc/self/fd"], close_fds=False, capture_output=True, text=True, check=True
        )
        inherited = [fd for fd in new if Path(f"/proc/self/fd/{fd}").exists()]
        assert not set(listed.stdout.split()) & (set(inherited) - {"3"})
        assert not any(os.get_inheritable(int(fd)) for fd in inherited)


def test_a_full_disk_for_the_record_does_not_hold_up_the_thaw(disk: LoopFs, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    programs.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k,nr_inodes=3", "tmpfs", str(small)], timeout_s=10
    )
    try:
        holder = Holder(small / "guard.json", [disk])
        with contextlib.closing(holder):
            for name in ("one", "two"):
                (small / name).touch()
            assert holder.hears() == "frozen\n"
            holder.process.kill()
            assert disk.writable_within(0.5)
            assert holder.guard_gone()
        for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):  # it went on to its end
            assert not Path(root, f"splitmirror-guard-{holder.guard_pid}").exists()
        assert read_record(small / "guard.json") is None
    finally:
        programs.run(["umount", str(small)], timeout_s=10)


def test_a_living_guard_can_be_waited_for(disk: LoopFs, tmp_path: Path) -> None:
    with Guard([disk.mountpoint], tmp_path / "guard.json"):
        assert not wait_for_guards(tmp_path, 0.1)
    assert wait_for_guards(tmp_path, 0)


def test_a_guard_that_is_let_go_leaves_nothing(disk: LoopFs, tmp_path: Path) -> None:
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    record = tmp_path / "guard.json"
    with Guard([disk.mountpoint], record) as guard:
        guard.arm("freeze", 10)
        guard.disarm("freeze")
        guard.confirm()
        pid, ticks = guard.pid, process.start_ticks(guard.pid)
        group = Path(f"/proc/{pid}/cgroup").read_text().splitlines()[-1].split(":", 2)[2]
    assert ticks is not None
    assert not process.alive(pid, ticks)
    assert not record.exists()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        assert group == "/" or not Path(root + group).exists()


def test_a_guard_that_is_let_go_while_armed_thaws_first(disk: LoopFs, tmp_path: Path) -> None:
    with Guard([disk.mountpoint], tmp_path / "guard.json") as guard:
        guard.arm("freeze", 60)
        programs.run(["fsfreeze", "-f", disk.mountpoint], timeout_s=10)
    assert disk.writable_within(0.5)
    released = read_record(tmp_path / "guard.json")
    assert released is not None
    assert released.cause == "let go while armed"


def test_the_guard_stands_apart(disk: LoopFs, tmp_path: Path) -> None:
    """Its own session, cwd /, no output, locked memory, deaf to what a terminal sends."""
    with Guard([disk.mountpoint], tmp_path / "guard.json") as guard:
        assert os.getsid(guard.pid) == guard.pid
        assert os.readlink(f"/proc/{guard.pid}/cwd") == "/"
        for standard in (0, 1, 2):
            assert os.readlink(f"/proc/{guard.pid}/fd/{standard}") == "/dev/null"
        status = Path(f"/proc/{guard.pid}/status").read_text()
        locked = next(line for line in status.splitlines() if line.startswith("VmLck"))
        assert int(locked.split()[1]) > 1000
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            os.kill(guard.pid, number)
        guard.confirm()


def test_the_guard_imports_nothing_once_it_watches(
    disks: list[LoopFs], tmp_path: Path, session: Session
) -> None:
    holder = Holder(tmp_path / "guard.json", disks, deadline_s=0.2, session=session)
    with contextlib.closing(holder):
        assert holder.hears() == "frozen\n"
        assert holder.guard_gone()
    released = read_record(holder.record)
    assert released is not None
    assert released.late_imports == ()


def test_the_death_of_the_guard_is_noticed_at_once(disk: LoopFs, tmp_path: Path) -> None:
    died = threading.Event()
    unwanted: list[str] = []
    with Guard([disk.mountpoint], tmp_path / "guard.json") as guard:
        guard.on_death(died.set)
        guard.on_death(lambda: unwanted.append("called"))()  # taken back at once
        os.kill(guard.pid, signal.SIGKILL)
        assert died.wait(1)
        with pytest.raises(GuardLost):
            guard.confirm()
        with pytest.raises(GuardLost):
            guard.arm("freeze", 1)
        late = threading.Event()
        guard.on_death(late.set)
        assert late.is_set()
    assert unwanted == []


def test_the_end_of_a_guard_that_is_let_go_is_no_death(disk: LoopFs, tmp_path: Path) -> None:
    died = threading.Event()
    with Guard([disk.mountpoint], tmp_path / "guard.json") as guard:
        guard.on_death(died.set)
    assert not died.is_set()


def test_an_answer_that_ctrl_c_cut_off_is_not_taken_for_the_next_one(
    disk: LoopFs, tmp_path: Path, session: Session
) -> None:
    gone = Session(what="gone", pid=session.pid, start_ticks=session.start_ticks + 1, signal=15)
    with Guard([disk.mountpoint], tmp_path / "guard.json") as guard:
        os.kill(guard.pid, signal.SIGSTOP)
        main = threading.main_thread().ident
        assert main is not None
        interrupter = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            guard.keep(gone)  # its answer would be "gone"
        os.kill(guard.pid, signal.SIGCONT)
        guard.keep(session)


def test_a_session_that_has_ended_is_a_broken_hold(
    disk: LoopFs, tmp_path: Path, session: Session
) -> None:
    gone = Session(what="it", pid=session.pid, start_ticks=session.start_ticks + 1, signal=15)
    with (
        Guard([disk.mountpoint], tmp_path / "guard.json") as guard,
        pytest.raises(HoldBroken, match=r"it .* has ended"),
    ):
        guard.keep(gone)
    assert not ended(session)


def test_a_directory_that_is_no_mount_point_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceFailed, match="not a mount point"), Guard([str(tmp_path)], tmp_path):
        pass


def test_a_guard_that_does_not_start_tells_why(
    disk: LoopFs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(GuardLost, match=r"did not start.*No such file"),
        Guard([disk.mountpoint], tmp_path / "missing" / "guard.json"),
    ):
        pass
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(GuardLost, match="did not start"), Guard([disk.mountpoint], tmp_path / "g"):
        pass


def test_a_package_that_only_the_environment_points_to_is_found(
    disk: LoopFs, tmp_path: Path
) -> None:
    package = Path(splitmirror.__file__).parent
    copy = tmp_path / "elsewhere" / "splitmirror"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        "import sys; from pathlib import Path; from splitmirror.guard import Guard\n"
        "with Guard([sys.argv[1]], Path(sys.argv[2])) as guard:\n"
        "    print(Path(f'/proc/{guard.pid}/cmdline').read_bytes().decode())"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", script, disk.mountpoint, str(tmp_path / "guard.json")],
        env={**os.environ, "PYTHONPATH": str(copy.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(copy.parent) in done.stdout
    assert not list(copy.rglob("*.pyc"))


def test_a_killed_guards_cgroup_is_swept_by_the_next_one(disk: LoopFs, tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    with Guard([disk.mountpoint], tmp_path / "first.json") as guard:
        told = Path(f"/proc/{guard.pid}/cgroup").read_text().splitlines()[-1]
        if "splitmirror-guard-" not in told:
            pytest.skip("no cgroup2 that we may write")
        roots = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]
        (root,) = [at for at in roots if (at / f"splitmirror-guard-{guard.pid}").exists()]
        orphan = root / f"splitmirror-guard-{gone.pid}"
        orphan.mkdir()
        with Guard([disk.mountpoint], tmp_path / "second.json"):
            assert not orphan.exists()
            assert (root / f"splitmirror-guard-{guard.pid}").exists()


def test_the_guard_runs_as_a_module_in_isolated_mode(tmp_path: Path) -> None:
    ours, theirs = wire.pair()
    holder = os.pidfd_open(os.getpid())
    with ours, theirs:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-B", "-m", "splitmirror.guard", str(theirs.fileno())],
            pass_fds=[theirs.fileno(), holder],
        )
        theirs.close()
        ticks = process.start_ticks(os.getpid())
        wire.send(ours, [os.getpid(), ticks, holder, [], str(tmp_path / "guard.json"), [-1, []]])
        greeting = wire.receive(ours, 20)
        wire.send(ours, [1, "end"])
        assert isinstance(greeting, list)
        assert greeting[1] == "ready"
        assert wire.receive(ours, 5) == [1, "ok"]
    os.close(holder)
    assert guard.wait(10) == 0
