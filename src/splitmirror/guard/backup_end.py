"""The backup's end of the guard: starting it, arming it, and noticing its death."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from splitmirror.errors import GuardLost, HoldBroken
from splitmirror.guard import wire
from splitmirror.model import Session
from splitmirror.system import filesystems, process
from splitmirror.system.devicemapper import DeviceMapper

# The guard answers in well below a millisecond; one that is stopped or starved does not count.
_ANSWER_S = 5.0
_START_S = 20.0  # a loaded machine may take long to start an interpreter
_END_S = 5.0  # from being let go to its exit

# No site-packages, no environment, no bytecode: only the directory that this package lies in is
# added, so that it is found wherever and however it is installed.
_PYTHON_FLAGS = ("-I", "-S", "-B")
_BOOT = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from splitmirror.guard.watch import main; main(int(sys.argv[2]))"
)


class Guard:
    """A running guard over `mountpoints`, and over the device-mapper `devices` (their numbers) that
    may be suspended; `record` is where it writes when it has stepped in.

    Entering starts it, and raises GuardLost if it cannot be had, DeviceFailed when something is no
    mount point. Leaving lets it go; what is still armed then is thawed first. Threads may share it.
    `record` must lie on nothing that is frozen. `refused`: protections that this host did not give
    it, in words; it works without them, but more can end it.
    """

    def __init__(
        self, mountpoints: Sequence[str], record: Path, devices: Sequence[int] = ()
    ) -> None:
        self._mountpoints = tuple(mountpoints)
        self._devices = tuple(devices)
        self._record = record
        self._lock = threading.Lock()  # one question at a time
        self._questions = 0
        self._lost = False
        self._leaving = False
        self._group: Path | None = None
        self.refused: tuple[str, ...] = ()
        self._callbacks: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            self._socket, theirs = wire.pair()
            undo.callback(self._socket.close)
            with theirs:
                self._start(theirs, undo)
            self._meet()
            self._wake = os.eventfd(0, os.EFD_CLOEXEC)
            undo.callback(os.close, self._wake)
            self._watcher = threading.Thread(target=self._watch, name="guard watch", daemon=True)
            self._watcher.start()
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leaving = True
        with contextlib.suppress(GuardLost):
            self._ask("end")
        os.eventfd_write(self._wake, 1)
        self._watcher.join()
        self._undo.close()

    @property
    def pid(self) -> int:
        """The guard's process id."""
        return self._process.pid

    def arm(self, what: str, deadline_s: float) -> None:
        """From now on the guard steps in when this process dies, or `deadline_s` seconds from now
        unless `what` is disarmed before. Again: the deadline counts anew. Raises GuardLost."""
        self._ask("arm", what, deadline_s)

    def disarm(self, what: str) -> None:
        """`what` was released. Not armed: harmless. Raises GuardLost."""
        self._ask("disarm", what)

    def keep(self, session: Session) -> None:
        """Have this process ended if the guard steps in. Raises HoldBroken when it is gone
        already, GuardLost."""
        told = (session.what, session.pid, session.start_ticks, int(session.signal))
        if self._ask("keep", *told) != "ok":
            raise HoldBroken(
                f"{session.what} (process {session.pid}) has ended",
                hint="The database's log tells why its session ended. Run the backup again.",
            )

    def confirm(self) -> None:
        """The guard lives and answers, or this raises GuardLost."""
        self._ask("confirm")

    def on_death(self, callback: Callable[[], None]) -> Callable[[], object]:
        """Have `callback` called once, on another thread, should the guard die before it is let go;
        at once if it has died. What is returned takes it back (a second time: harmless)."""
        self._callbacks.append(callback)
        if self._lost and not self._leaving:
            self._tell(callback)
        return lambda: self._forget(callback)

    # --- starting and ending

    def _start(self, theirs: socket.socket, undo: contextlib.ExitStack) -> None:
        """Start the process with copies of the descriptors that it needs.

        Here they are all close-on-exec, and passed to the guard only: a child of the backup that
        had its end of the socket would hide the backup's death."""
        self._stderr = os.memfd_create("guard stderr", os.MFD_CLOEXEC)
        undo.callback(os.close, self._stderr)
        with contextlib.ExitStack() as ours:
            mounts = [(path, _open(path, ours)) for path in self._mountpoints]
            holder = os.pidfd_open(os.getpid())
            ours.callback(os.close, holder)
            mapper = [ours.enter_context(DeviceMapper()).fd] if self._devices else []
            passed = [holder, *mapper, *(fd for _, fd in mounts)]
            self._process = self._run(theirs.fileno(), passed)
        undo.callback(self._reap)
        self._pidfd = os.pidfd_open(self._process.pid)  # not reaped yet, so it names the guard
        undo.callback(os.close, self._pidfd)
        ticks = process.start_ticks(os.getpid())
        record = str(self._record.absolute())
        with contextlib.suppress(OSError):  # it has died: `_meet` tells why
            told = [*(mapper or [-1]), self._devices]
            wire.send(self._socket, [os.getpid(), ticks, holder, mounts, record, told])

    def _run(self, socket_fd: int, fds: list[int]) -> subprocess.Popen[bytes]:
        package_parent = str(Path(__file__).resolve().parents[2])
        try:
            return subprocess.Popen(
                [sys.executable, *_PYTHON_FLAGS, "-c", _BOOT, package_parent, str(socket_fd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                cwd="/",
                start_new_session=True,
                pass_fds=[socket_fd, *fds],
            )
        except OSError as error:
            raise _lost(f"cannot be started: {error.strerror}") from None

    def _meet(self) -> None:
        greeting = wire.receive(self._socket, _START_S)
        if isinstance(greeting, wire.Nothing):
            raise _lost(f"did not start: {self._last_words() or greeting.value}")
        _number, word, told, *refused = greeting
        if word != "ready":
            raise _lost(f"did not start: {told}")
        self._group = Path(told) if told else None
        self.refused = tuple(*refused)

    def _last_words(self) -> str:
        size = os.fstat(self._stderr).st_size
        lines = os.fsdecode(os.pread(self._stderr, size, 0)).strip().splitlines()
        return lines[-1] if lines else ""

    def _reap(self) -> None:
        """See the guard gone; kill one that does not go. If it was killed, by whomever, it could
        not take its cgroup away."""
        self._socket.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._group is not None and self._process.returncode:
            process.remove_cgroup(self._group)

    # --- talking

    def _ask(self, *question: object) -> str:
        with self._lock:
            if self._lost:
                raise _lost("is gone")
            self._questions += 1
            try:
                wire.send(self._socket, [self._questions, *question])
            except OSError:
                self._lost = True
                raise _lost("died") from None
            return self._answer(self._questions)

    def _answer(self, number: int) -> str:
        """The answer to question `number`; an earlier one's, cut off by Ctrl-C, is passed over."""
        while True:
            answer = wire.receive(self._socket, _ANSWER_S)
            if isinstance(answer, wire.Nothing):
                self._lost = True
                raise _lost(
                    "died" if answer is wire.Nothing.CLOSED else f"gave no answer in {_ANSWER_S} s"
                )
            if answer[0] == number:
                return str(answer[1])

    # --- noticing its death

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        poll.poll()
        if not self._leaving:
            self._lost = True
            for callback in tuple(self._callbacks):
                self._tell(callback)

    def _tell(self, callback: Callable[[], None]) -> None:
        if self._forget(callback):  # by whichever thread comes first
            callback()

    def _forget(self, callback: Callable[[], None]) -> bool:
        try:
            self._callbacks.remove(callback)
        except ValueError:
            return False
        return True


def _open(path: str, stack: contextlib.ExitStack) -> int:
    fd = filesystems.open_mountpoint(path)
    stack.callback(os.close, fd)
    return fd


def _lost(why: str) -> GuardLost:
    return GuardLost(
        f"the guard process {why}",
        hint="Nothing is quiesced without it. Was it killed? If something hangs, run "
        "`splitmirror release`; then run the backup again.",
    )
