from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitmirror.model import Session
from splitmirror.system import process


@pytest.fixture
def sleeper() -> Iterator[Session]:
    with subprocess.Popen(["sleep", "1000"]) as started:
        ticks = process.start_ticks(started.pid)
        assert ticks is not None
        yield Session(what="sleeper", pid=started.pid, start_ticks=ticks, signal=signal.SIGTERM)
        started.kill()


def later_of_the_same_pid(session: Session) -> Session:
    return Session(
        what="another", pid=session.pid, start_ticks=session.start_ticks + 1, signal=session.signal
    )


def test_a_process_is_known_by_pid_and_start(sleeper: Session) -> None:
    assert process.alive(sleeper.pid, sleeper.start_ticks)
    assert not process.alive(sleeper.pid, sleeper.start_ticks + 1)


def test_the_start_is_found_whatever_the_name_holds() -> None:
    """The name stands in parentheses before it, and may hold parentheses and spaces."""
    script = (
        "from splitmirror.system import process; process.set_name(') R 1 (x');"
        "import sys; print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as named:
        assert named.stdout is not None
        named.stdout.readline()
        ticks = process.start_ticks(named.pid)
        assert ticks is not None
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
        assert uptime_s - ticks / os.sysconf("SC_CLK_TCK") < 60


def test_a_zombie_is_not_alive() -> None:
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert process.start_ticks(ended.pid) is None
    ended.wait()
    assert process.start_ticks(ended.pid) is None


def test_a_later_process_of_the_same_pid_is_never_signalled(sleeper: Session) -> None:
    assert not process.end(later_of_the_same_pid(sleeper))
    assert not process.wait_gone(sleeper.pid, sleeper.start_ticks, 0.1)


def test_ending_ends_and_a_second_time_is_harmless(sleeper: Session) -> None:
    assert process.end(sleeper)
    assert process.wait_gone(sleeper.pid, sleeper.start_ticks, 5)
    assert not process.end(sleeper)


def test_waiting_for_a_living_process_ends_at_the_deadline(sleeper: Session) -> None:
    began = time.monotonic()
    assert not process.wait_gone(sleeper.pid, sleeper.start_ticks, 0.05)
    assert 0.05 <= time.monotonic() - began < 1


def test_what_ignores_its_signal_is_killed_after_the_deadline() -> None:
    script = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('deaf', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        ticks = process.start_ticks(deaf.pid)
        assert ticks is not None
        session = Session(what="deaf", pid=deaf.pid, start_ticks=ticks, signal=signal.SIGTERM)
        assert process.end_and_wait(session, 0.1)
        assert deaf.wait(5) == -signal.SIGKILL


def test_pidfds_are_closed_for_children(sleeper: Session) -> None:
    pidfd = process.open_pidfd(sleeper.pid, sleeper.start_ticks)
    assert pidfd is not None
    assert not os.get_inheritable(pidfd)
    os.close(pidfd)
    assert process.open_pidfd(sleeper.pid, sleeper.start_ticks + 1) is None


def test_a_child_dies_with_its_parent_when_it_asked_for_it() -> None:
    child = (
        "import signal, sys, time; from splitmirror.system import process;"
        "process.die_with_parent(); print(__import__('os').getpid(), flush=True); time.sleep(1000)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        pid = int(started.stdout.readline())
        ticks = process.start_ticks(pid)
        assert ticks is not None
        started.kill()
        assert process.wait_gone(pid, ticks, 5)
