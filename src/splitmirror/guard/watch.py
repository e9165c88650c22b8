"""The guard's own process: it watches the holder and the deadlines, and steps in."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from splitmirror.guard import wire
from splitmirror.guard.record import RecordFile, Released
from splitmirror.guard.thawers import Thawers
from splitmirror.model import Session
from splitmirror.system import process

_GREETING_S = 20.0

# A holder whose deadline has passed is thawed at once and gets this long to release by itself,
# so that it can tell what happened; then it is killed.
_GRACE_S = 1.0
_FIRST_THAW_S = (
    0.2  # a thaw that waits longer (for a freeze still going on) does not delay the kill
)
_THAW_AGAIN_S = 0.02  # while the holder is dying, perhaps held up by its own freeze
# A process that dies closes its files a moment before it counts as exited (do_exit in the kernel's
# exit.c): one that has hung up is not called living, and not killed, before this has passed.
_DYING_S = 0.2
_SESSION_S = 2.0  # how long the record waits to see that an ended session is gone

_CGROUP = "splitmirror-guard-"  # and the guard's pid
_THREAD_STACK = 256 << 10  # every page of it is locked in memory

# What a terminal, a shell or a service manager may send. The guard ends by itself when the holder
# does; what must end it at once can use SIGKILL, and then the holder releases.
_IGNORED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGPIPE,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A session to be ended, named by a pidfd that was taken while it lived."""

    session: Session
    pidfd: int


class _Watch:
    """What the guard process knows, and what it does about it."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        greeting = wire.receive(end, _GREETING_S)
        if isinstance(greeting, wire.Nothing):  # the backup died before it could say anything
            os._exit(1)
        self._holder_pid, self._holder_ticks, self._holder, mounts, record, mapper = greeting
        self._record = RecordFile(record)
        control, devices = mapper
        self._thawers = Thawers(mounts, devices, control)
        self._deadlines: dict[str, float] = {}  # by what is held, monotonic
        self._sessions: list[_Kept] = []
        self._modules: frozenset[str] = frozenset()
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)
        self._poll.register(self._holder, select.POLLIN)

    def run(self) -> None:
        """Watch until there is nothing more to watch."""
        self._modules = frozenset(sys.modules)
        while True:
            ready = dict(self._poll.poll(self._wait_ms()))
            if self._socket.fileno() in ready:
                if not self._answer():
                    return
            elif ready:  # the holder has exited, but a child that it forked still has its end
                self._step_in("holder gone", kill_after_s=_DYING_S)
                return
            elif (what := self._overdue()) is not None and self._deadline_passed(what):
                return

    def _wait_ms(self) -> float | None:
        if not self._deadlines:
            return None
        return max(0.0, min(self._deadlines.values()) - time.monotonic()) * 1000

    def _overdue(self) -> str | None:
        now = time.monotonic()
        return next((what for what, until in self._deadlines.items() if until <= now), None)

    def _answer(self) -> bool:
        """Take one message; whether to go on watching."""
        message = wire.receive(self._socket, 0)
        if isinstance(message, wire.Nothing):
            if message is wire.Nothing.LATE:
                return True
            self._step_in("holder gone", kill_after_s=_DYING_S)
            return False
        number, *question = message
        if question == ["end"] and self._deadlines:
            self._step_in("let go while armed", kill_after_s=None)
        word = self._obey(question)
        with contextlib.suppress(OSError):  # a holder that died meanwhile is seen by the poll
            wire.send(self._socket, [number, word])
        return question != ["end"]

    def _obey(self, question: list[object]) -> str:
        match question:
            case ["arm", str(what), float(deadline_s) | int(deadline_s)]:
                self._deadlines[what] = time.monotonic() + deadline_s
            case ["disarm", str(what)]:
                self._deadlines.pop(what, None)
            case ["keep", str(what), int(pid), int(ticks), int(signal_number)]:
                return self._keep(
                    Session(what=what, pid=pid, start_ticks=ticks, signal=signal_number)
                )
        return "ok"  # also to "confirm" and "end", which ask for nothing more

    def _keep(self, session: Session) -> str:
        pidfd = process.open_pidfd(session.pid, session.start_ticks)
        if pidfd is None:
            return "gone"
        self._sessions.append(_Kept(session=session, pidfd=pidfd))
        return "ok"

    def _deadline_passed(self, what: str) -> bool:
        """Thaw, and give the holder a moment to release by itself. Whether the guard is done."""
        began = time.monotonic()
        self._thawers.thaw(_FIRST_THAW_S)
        thawed_after_s = time.monotonic() - began
        while what in self._deadlines and (left := began + _GRACE_S - time.monotonic()) > 0:
            ready = dict(self._poll.poll(left * 1000))
            if self._socket.fileno() in ready:
                if not self._answer():
                    return True
            elif ready:
                break
        if what in self._deadlines:
            self._step_in(f"deadline: {what}", kill_after_s=0, thawed_after_s=thawed_after_s)
            return True
        self._leave_record(f"deadline: {what}", thawed_after_s=thawed_after_s)
        return False

    def _step_in(
        self, cause: str, *, kill_after_s: float | None, thawed_after_s: float | None = None
    ) -> None:
        """Release everything, in the order that the package's docstring gives; a holder that still
        lives after `kill_after_s` is killed (None: it may live)."""
        began = time.monotonic()
        if self._deadlines:
            self._thawers.thaw(_FIRST_THAW_S)
        took_s = time.monotonic() - began if thawed_after_s is None else thawed_after_s
        for kept in self._sessions:
            process.send(kept.pidfd, kept.session.signal)
        killed = kill_after_s is not None and self._kill_holder(kill_after_s)
        if self._deadlines:
            self._thawers.thaw_for_good()
        if self._deadlines or self._sessions:
            self._leave_record(cause, killed=killed, thawed_after_s=took_s, sessions=True)

    def _kill_holder(self, after_s: float) -> bool:
        """See the holder dead; whether it had to be killed."""
        killed = not self._seen_dead(after_s)
        if killed:
            process.send(self._holder, signal.SIGKILL)
            self._seen_dead(math.inf)
        return killed

    def _seen_dead(self, limit_s: float) -> bool:
        """Wait for the holder's exit, and keep everything thawed meanwhile."""
        until = time.monotonic() + limit_s
        while not process.wait_exit(self._holder, min(limit_s, _THAW_AGAIN_S)):
            if time.monotonic() >= until:
                return False
            if self._deadlines:  # one of its threads may wait for a write to go through
                self._thawers.thaw(_THAW_AGAIN_S)
        return True

    def _leave_record(
        self,
        cause: str,
        *,
        thawed_after_s: float,
        killed: bool = False,
        sessions: bool = False,
    ) -> None:
        ended = self._sessions if sessions else []
        until = time.monotonic() + _SESSION_S
        remaining = [k for k in ended if not process.wait_exit(k.pidfd, until - time.monotonic())]
        released = Released(
            cause=cause,
            at=time.time(),
            holder_pid=self._holder_pid,
            holder_start_ticks=self._holder_ticks,
            killed=killed,
            thawed_after_s=thawed_after_s,
            filesystems=self._thawers.results(),
            ended=tuple(kept.session.what for kept in ended),
            remaining=tuple(kept.session.what for kept in remaining),
            late_imports=tuple(sorted(set(sys.modules) - self._modules)),
        )
        self._record.write(released)


def _settle() -> list[str]:
    """Make this process hard to stop and quick to act; what was refused. Raises OSError when it
    cannot be locked in memory."""
    refused = []
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    process.set_name("split-guard")
    try:
        process.protect_from_oom()
    except OSError:  # a container without CAP_SYS_RESOURCE
        refused.append("it may be chosen by the kernel when memory runs out (CAP_SYS_RESOURCE)")
    threading.stack_size(_THREAD_STACK)
    process.lock_memory()
    gc.disable()
    return refused


def _be_silent() -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)


def main(socket_fd: int) -> NoReturn:
    """The guard process, over its end of the socket. Exits when it is let go or has stepped in."""
    end = socket.socket(fileno=socket_fd)
    try:
        refused = _settle()
        watch = _Watch(end)
    except OSError as error:
        wire.send(end, [0, "failed", f"{error.strerror} ({error.filename or 'is it root?'})"])
        os._exit(1)
    process.sweep_cgroups(_CGROUP)
    group: Path | None = process.own_cgroup(f"{_CGROUP}{os.getpid()}")
    if group is None:
        refused.append("it is stopped or frozen along with the backup's cgroup (no cgroup2)")
    _be_silent()
    wire.send(end, [0, "ready", str(group) if group else "", refused])
    watch.run()
    if group is not None:
        process.leave_cgroup(group)
    os._exit(0)  # a thread that is stuck in a thaw must not keep it
