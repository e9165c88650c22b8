"""A guest: Debian's kernel under software emulation, with scratch disks, and commands run in it.

It leaves nothing: its disks, console and sockets have no names, its root disk is a shadow of the
cached image, and the emulator dies with the process that booted it (`setpriv --pdeathsig`).
`python -m tests.vm.shell` boots one to try something. Source: qemu(1), QEMU 7.2.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.vm.frames import Frame, Wire
from tests.vm.image import PROJECT, Image

from splitmirror.system import programs, qmp

MIB = 1 << 20
GIB = 1 << 30

_BOOT_DEADLINE_S = 180.0  # 8 s on an idle machine
_OFF_DEADLINE_S = 30.0
_ANSWER_SLACK_S = 60.0  # beyond a command's own deadline, which the guest keeps
_CONSOLE_TAIL = 3000  # bytes
_SERIAL = 20  # characters of a virtio disk's serial number
_HANDED_IN = ("src", "tests", "pyproject.toml")
_SECTOR = 512


class GuestDied(Exception):
    """The guest is gone or does not answer; with the tail of its console."""


class CommandFailed(Exception):
    """A command in the guest ended with another status than 0; with all that it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A scratch disk of `size` bytes, empty at first: `path` in the guest."""

    name: str
    size: int

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= _SERIAL or self.name in ("root", "project"):
            raise ValueError(f"not a disk's name: {self.name!r}")
        if self.size <= 0 or self.size % _SECTOR:
            raise ValueError(f"not a disk's size: {self.size}")

    @property
    def path(self) -> str:
        return f"/dev/disk/by-id/virtio-{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a command in the guest ended. `took_s` is by the guest's clock."""

    status: int
    out: str
    err: str
    took_s: float


class Guest:
    """A running guest, for a `with` block. Not thread-safe.

    Raises GuestDied from any method when it is gone.
    """

    def __init__(
        self,
        image: Image,
        disks: Sequence[Disk] = (),
        *,
        memory: int = 2 * GIB,
        processors: int = 2,
    ) -> None:
        self._image = image
        self._disks = tuple(disks)
        self._memory = memory
        self._processors = processors
        self._resources = contextlib.ExitStack()
        self.boots_s: list[float] = []

    def __enter__(self) -> Guest:
        with contextlib.ExitStack() as resources:
            self._start(resources)
            self._resources = resources.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

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
        """Bring the project in the guest to what it is here now; done at each boot by itself."""
        self.run(["find", "/project", "-mindepth", "1", "-delete"])
        self.run(["tar", "-x", "-C", "/project"], stdin=_project())

    def reset(self) -> None:
        """Cut the power and boot again. Every disk keeps what was written to it, the root too;
        what the guest's kernel had not written is lost."""
        self._monitor.execute("set-action", {"reboot": "reset"})
        self._monitor.execute("system_reset")
        self._greet()
        # Not before: the firmware resets the machine once more when it finds that it ran already.
        self._monitor.execute("set-action", {"reboot": "shutdown"})

    def power_off(self) -> None:
        """Let the guest write everything and power off; the disks and the guest are gone then."""
        self._send(Frame(kind="off"))
        try:
            self._process.wait(_OFF_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise self._died("it does not power off") from None

    def console_tail(self) -> str:
        """What the guest's kernel and the emulator said last."""
        self._console.seek(0, os.SEEK_END)
        self._console.seek(max(0, self._console.tell() - _CONSOLE_TAIL))
        return self._console.read().decode(errors="replace")

    def _start(self, resources: contextlib.ExitStack) -> None:
        self._console = _nameless(resources)
        ours, theirs = _pair(resources)
        monitor, its_end = _pair(resources)
        argv = _emulator(self._image, memory=self._memory, processors=self._processors)
        argv += _channels(agent=theirs.fileno(), monitor=its_end.fileno())
        drives = [_blank(resources, disk.size) for disk in self._disks]
        for disk, file in zip(self._disks, drives, strict=True):
            argv += _drive(disk.name, file.fileno())
        drives.append(_handed_in(resources))
        argv += _drive("project", drives[-1].fileno(), ",readonly=on")
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=self._console,
            pass_fds=[theirs.fileno(), its_end.fileno(), *(file.fileno() for file in drives)],
        )
        resources.callback(self._end)
        theirs.close()
        its_end.close()
        self._socket = ours
        self._wire = Wire(ours.recv, ours.sendall)
        self._greet()
        self._monitor = qmp.Monitor(monitor)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _greet(self) -> None:
        started = time.monotonic()
        self._socket.settimeout(_BOOT_DEADLINE_S)
        try:
            self._wire.find_mark()
            nonce = self._wire.receive().facts["nonce"]
            self._wire.send_mark()
        except (OSError, EOFError) as error:
            raise self._died("it did not boot") from error
        self._send(Frame(kind="hello", facts={"nonce": nonce}))
        self.boots_s.append(time.monotonic() - started)

    def _ask(self, frame: Frame) -> Frame:
        self._send(frame)
        answer = self._receive(_ANSWER_SLACK_S)
        if answer.kind == "refused":
            raise CommandFailed(f"{frame.kind} {frame.facts}: {answer.facts['why']}")
        return answer

    def _send(self, frame: Frame) -> None:
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


def _emulator(image: Image, *, memory: int, processors: int) -> list[str]:
    # The guest dies with us. KVM is not asked for: where it is nested it may hang stock kernels.
    return [
        *(programs.need("setpriv"), "--pdeathsig", "KILL", programs.need("qemu-system-x86_64")),
        *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(processors)),
        *("-m", str(memory // MIB), "-nodefaults", "-no-user-config", "-display", "none"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
        *("-append", "console=ttyS0 quiet panic=-1 mitigations=off"),
        "-no-reboot",  # a panic ends the emulator, and so we hear of it
        *("-drive", f"file={image.root},format=raw,if=none,id=root,snapshot=on,cache=unsafe"),
        *("-device", "virtio-blk-pci,drive=root,serial=root"),
        *("-serial", "stdio", "-device", "virtio-serial-pci"),
    ]


def _channels(*, agent: int, monitor: int) -> list[str]:
    return [
        *("-chardev", f"socket,id=agent,fd={agent}"),
        *("-device", "virtserialport,chardev=agent,name=agent"),
        *("-chardev", f"socket,id=monitor,fd={monitor}"),
        *("-mon", "chardev=monitor,mode=control"),
    ]


def _drive(name: str, fd: int, more: str = "") -> list[str]:
    file = f"file=/proc/self/fd/{fd},format=raw,if=none,id={name},cache=unsafe,discard=unmap{more}"
    return ["-drive", file, "-device", f"virtio-blk-pci,drive={name},serial={name}"]


def _pair(resources: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    return resources.enter_context(ours), resources.enter_context(theirs)


def _nameless(resources: contextlib.ExitStack) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the stack closes it)
    return resources.enter_context(file)


def _blank(resources: contextlib.ExitStack, size: int) -> IO[bytes]:
    file = _nameless(resources)
    file.truncate(size)
    return file


def _handed_in(resources: contextlib.ExitStack) -> IO[bytes]:
    data = _project()
    file = _nameless(resources)
    file.write(data + bytes(-len(data) % _SECTOR))
    file.flush()
    return file


def _project() -> bytes:
    """The project as a tar, with the compiled modules that are here: the guest may have use for
    them."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in _HANDED_IN:
            tar.add(Path(PROJECT, name), arcname=name)
    return made.getvalue()
