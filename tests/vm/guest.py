"""A guest: Debian's kernel on an emulated machine, with scratch disks, and commands run in it.

`python -m tests.vm.shell` boots one to try something.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.vm.frames import Frame, Wire
from tests.vm.image import Image
from tests.vm.machine import GIB, MIB, Disk, Machine, Shape, project_tar

__all__ = ["GIB", "MIB", "CommandFailed", "Disk", "Guest", "GuestDied", "Result", "Shape"]

_BOOT_DEADLINE_S = 180.0  # 5 to 8 s where nothing else runs
_OFF_DEADLINE_S = 60.0
_ANSWER_SLACK_S = 60.0  # beyond a command's own deadline, which the guest keeps


class GuestDied(Exception):
    """The guest is gone or does not answer; with the tail of its console."""


class CommandFailed(Exception):
    """A command in the guest ended with another status than 0; with all that it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a command in the guest ended. `took_s` is by the guest's clock."""

    status: int
    out: str
    err: str
    took_s: float


class Guest:
    """A running guest, for a `with` block. Not thread-safe.

    Any method raises GuestDied when it is gone.
    """

    def __init__(
        self, image: Image, disks: Sequence[Disk] = (), shape: Shape | None = None
    ) -> None:
        self.boots_s: list[float] = []
        self._machine = Machine(image, disks, shape or Shape())

    def __enter__(self) -> Guest:
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._machine)
            self.boot()
            undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._machine.__exit__()
        self._socket.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 120,
        check: bool = True,
        stdin: bytes = b"",
        cwd: str = "/root",
        env: Mapping[str, str] | None = None,
        hear: Callable[[str, bytes], None] | None = None,
    ) -> Result:
        """Run a command as root and wait for its end; after `timeout_s` it is killed: status 124.

        `hear("out" or "err", bytes)` gets its words as they come. Raises CommandFailed unless it
        ends with 0, or `check` is false. What it leaves running goes on.
        """
        facts = {"argv": list(argv), "cwd": cwd, "env": dict(env or {}), "timeout_s": timeout_s}
        said = {"out": bytearray(), "err": bytearray()}
        self._send(Frame(kind="run", facts=facts, payload=stdin))
        while (frame := self._receive(timeout_s + _ANSWER_SLACK_S)).kind in said:
            said[frame.kind] += frame.payload
            if hear is not None:
                hear(frame.kind, frame.payload)
        if frame.kind == "refused":
            raise CommandFailed(f"{list(argv)}: {frame.facts['why']}")
        out, err = (said[kind].decode(errors="replace") for kind in ("out", "err"))
        result = Result(out=out, err=err, **frame.facts)
        if check and result.status:
            raise CommandFailed(f"{list(argv)}: status {result.status}\n{out}\n{err}")
        return result

    def shell(self, script: str, *, timeout_s: float = 120, check: bool = True) -> Result:
        """`run` a script with bash, which ends at the first command that fails."""
        return self.run(["bash", "-eu", "-c", script], timeout_s=timeout_s, check=check)

    def put(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file. Directories above it are made."""
        self._ask(Frame(kind="put", facts={"path": path, "mode": mode}, payload=data))

    def get(self, path: str) -> bytes:
        """A file's contents. Raises CommandFailed when it cannot be read."""
        return self._ask(Frame(kind="get", facts={"path": path})).payload

    def hand_in(self) -> None:
        """Bring the project in the guest to what it is here now; each boot does so by itself."""
        self.run(["find", "/project", "-mindepth", "1", "-delete"])
        self.run(["tar", "-x", "-C", "/project"], stdin=project_tar())

    def reset(self) -> None:
        """Cut the power and boot again. Every disk keeps what was written to it, the root too;
        what the guest's kernel had not written is lost."""
        self._machine.cut_power()
        self.boot()

    def power_off(self) -> None:
        """Let the guest write everything and power off. `boot` is the way back."""
        self._send(Frame(kind="off"))
        try:
            self._machine.wait_off(_OFF_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise self._died("it does not power off") from None

    def boot(self) -> None:
        """Power on, after `power_off`, and wait until commands can be run."""
        started = time.monotonic()
        self._socket = self._machine.power_on()
        self._wire = Wire(self._socket.recv, self._socket.sendall)
        assert self._receive(_BOOT_DEADLINE_S).kind == "hello"
        self.boots_s.append(time.monotonic() - started)

    def console_tail(self) -> str:
        """What the guest's kernel and the emulator said last."""
        return self._machine.console_tail()

    def _ask(self, frame: Frame) -> Frame:
        self._send(frame)
        answer = self._receive(_ANSWER_SLACK_S)
        if answer.kind == "refused":
            raise CommandFailed(f"{frame.kind} {frame.facts}: {answer.facts['why']}")
        return answer

    def _send(self, frame: Frame) -> None:
        self._socket.settimeout(_ANSWER_SLACK_S)
        try:
            self._wire.send(frame)
        except OSError as error:
            raise self._died("it takes no commands") from error

    def _receive(self, timeout_s: float) -> Frame:
        self._socket.settimeout(timeout_s)
        try:
            return self._wire.receive()
        except TimeoutError as error:
            raise self._died(f"no answer in {timeout_s:g} s") from error
        except (OSError, EOFError) as error:
            raise self._died("it is gone") from error

    def _died(self, how: str) -> GuestDied:
        return GuestDied(f"the guest: {how}; its console ends:\n{self.console_tail()}")
