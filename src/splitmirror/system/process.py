"""Processes: telling one from a later one of the same pid, ending it, and settings of our own.

A pid alone names nobody: the kernel gives it out again. `start_ticks` (field 22 of /proc/PID/stat,
proc(5)) together with the pid does, and a pidfd (pidfd_open(2)) taken while the process lives
keeps naming it whatever becomes of the pid.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path

from splitmirror.model import Session
from splitmirror.system import libc

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_NAME = 15
_MCL_CURRENT_AND_FUTURE = 1 | 2  # sys/mman.h


def boot_id() -> str:
    """Names this run of the kernel (random(4)): pids and device numbers are of one run only."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; None when there is none (or a zombie)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name before may hold anything
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def alive(pid: int, ticks: int) -> bool:
    """Whether the process that began at `ticks` still runs. A zombie does not."""
    return start_ticks(pid) == ticks


def open_pidfd(pid: int, ticks: int) -> int | None:
    """A pidfd (close-on-exec) of exactly that process; None when it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if alive(pid, ticks):  # looked at after the pidfd was taken, so it names this one
        return pidfd
    os.close(pidfd)
    return None


def send(pidfd: int, number: int) -> bool:
    """Signal the process behind a pidfd. False: it is gone already."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def wait_exit(pidfd: int, deadline_s: float) -> bool:
    """Wait until the process behind a pidfd has exited, at most `deadline_s` seconds."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0, deadline_s) * 1000))


def end(session: Session) -> bool:
    """Send a session its signal, to that very process only. False: it is gone already.

    Does not wait for its end; a second call is harmless.
    """
    pidfd = open_pidfd(session.pid, session.start_ticks)
    if pidfd is None:
        return False
    try:
        return send(pidfd, session.signal)
    finally:
        os.close(pidfd)


def wait_gone(pid: int, ticks: int, deadline_s: float) -> bool:
    """Wait until that process has ended, at most `deadline_s` seconds; whether it has."""
    pidfd = open_pidfd(pid, ticks)
    if pidfd is None:
        return True
    try:
        return wait_exit(pidfd, deadline_s)
    finally:
        os.close(pidfd)


def end_and_wait(session: Session, deadline_s: float) -> bool:
    """End a process of our own, with SIGKILL when its own signal does not in `deadline_s` seconds.

    Whether it is gone in twice that time; one that is gone already counts. Not for a database's
    process: killed so, a PostgreSQL backend takes the whole server down.
    """
    pidfd = open_pidfd(session.pid, session.start_ticks)
    if pidfd is None:
        return True
    try:
        for number in (session.signal, signal.SIGKILL):
            if not send(pidfd, number) or wait_exit(pidfd, deadline_s):
                return True
        return False
    finally:
        os.close(pidfd)


# --- settings of this process


def lock_memory() -> None:
    """Keep every page of this process, also those to come, in memory (mlockall(2)).

    Raises OSError where RLIMIT_MEMLOCK is too small and CAP_IPC_LOCK is missing.
    """
    libc.mlockall(_MCL_CURRENT_AND_FUTURE)


def protect_from_oom() -> None:
    """Take this process out of the OOM killer's choice (proc(5), oom_score_adj).

    Raises OSError without CAP_SYS_RESOURCE.
    """
    Path("/proc/self/oom_score_adj").write_text("-1000")


def set_name(name: str) -> None:
    """What ps and top show as the command's name; at most 15 bytes."""
    libc.prctl(PR_SET_NAME, name.encode()[:15])


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel signal this process when the thread that made it ends (PR_SET_PDEATHSIG).

    The caller checks afterwards that its parent is still the one that it expects: it may have
    died before this call.
    """
    libc.prctl(PR_SET_PDEATHSIG, int(number))


# --- control groups (cgroups(7), version 2)


def _cgroup_root() -> Path | None:
    for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        if (root / "cgroup.procs").exists() and (root / "cgroup.controllers").exists():
            return root
    return None


def own_cgroup(name: str) -> Path | None:
    """Move this process to a cgroup of its own, directly below the root, and give its directory.

    So that stopping a service or freezing a cgroup does not take it along. None where this host
    has no cgroup2 that we may write; that is no error. `leave_cgroup` undoes it.
    """
    root = _cgroup_root()
    if root is None:
        return None
    group = root / name
    try:
        group.mkdir(exist_ok=True)
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        remove_cgroup(group)
        return None
    return group


def sweep_cgroups(prefix: str) -> None:
    """Take away the cgroups named `prefix` and a pid whose process was killed, and left nobody to
    do it. One that still holds a process is left alone (the kernel refuses)."""
    root = _cgroup_root()
    for group in root.glob(f"{prefix}*") if root is not None else ():
        pid = group.name.removeprefix(prefix)
        if pid.isdecimal() and not Path("/proc", pid).exists():
            with contextlib.suppress(OSError):
                group.rmdir()


def leave_cgroup(group: Path) -> None:
    """Move this process to the root cgroup and take its own away. Harmless when it is gone."""
    with contextlib.suppress(OSError):
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
    remove_cgroup(group)


def remove_cgroup(group: Path, deadline_s: float = 0.5) -> None:
    """Take an empty cgroup away. A process that has just died is still counted for an instant,
    and there is no event for its end, so it is tried until the deadline. Harmless when gone."""
    until = time.monotonic() + deadline_s
    while True:
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > until:
                return
            time.sleep(0.005)
        else:
            return
