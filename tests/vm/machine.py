"""The emulated machine: its disks and console, and power on and off. Source: qemu(1), QEMU 7.2.

Nothing of it has a name. Disks, console and sockets are open files only, the root disk is what was
changed since the cached image, and the emulator dies with the process that started it.
"""

from __future__ import annotations

import compileall
import contextlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from tests.vm.image import PROJECT, Image
from tests.vm.recipe import PYTHON

from splitmirror.system import programs

MIB = 1 << 20
GIB = 1 << 30

_CONSOLE_TAIL = 8000  # bytes: a panic with what led to it
_SERIAL = 20  # characters of a virtio disk's serial number
_SECTOR = 512
# Without `rep movsb`, which is emulated byte by byte, and AVX, whose registers are saved at each
# switch of tasks; with a clock that is read without a trap.
_PROCESSOR = "max,-erms,-fsrm,-avx,-avx2,+invtsc"
# Of Debian's kernel, what costs an emulated machine much and shows nothing here: its hardening
# against attackers, and waiting for the other processors to pass a quiet state. Addresses above
# all: a program at another address each time is translated anew each time it is run, which makes
# three quarters of what a short one costs.
_QUICK = (
    "tsc=reliable clocksource=tsc mitigations=off init_on_alloc=0 hardened_usercopy=off "
    "norandmaps randomize_kstack_offset=off apparmor=0 audit=0 rcupdate.rcu_expedited=1"
)
_HANDED_IN = ("src", "tests", "pyproject.toml")
_COMPILED = ("src", "tests/vm")
_OWN = ("root", "project")  # disks that every machine has
_STEP_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A scratch disk of `size` bytes, empty at first: `path` in the guest."""

    name: str
    size: int

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= _SERIAL or self.name in _OWN or not self.name.isalnum():
            raise ValueError(f"not a disk's name: {self.name!r}")
        if self.size <= 0 or self.size % _SECTOR:
            raise ValueError(f"not a disk's size: {self.size}")

    @property
    def path(self) -> str:
        return f"/dev/disk/by-id/virtio-{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Memory in bytes, and processors; both are the host's."""

    memory: int = 2 * GIB
    processors: int = 2


class Machine:
    """Off at first. What is on its disks stays while its power goes and comes. For a `with`."""

    def __init__(self, image: Image, disks: Sequence[Disk], shape: Shape) -> None:
        self._image = image
        self._disks = tuple(disks)
        self._shape = shape
        self._resources = contextlib.ExitStack()
        self._files: dict[str, IO[bytes]] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Machine:
        self._resources.callback(self.cut_power)
        self._console = self._nameless()
        for name in _OWN:
            self._files[name] = self._nameless()
        for disk in self._disks:
            self._files[disk.name] = self._nameless()
            self._files[disk.name].truncate(disk.size)
        base = ("-F", "raw", "-b", str(self._image.root))
        root = f"/proc/{os.getpid()}/fd/{self._files['root'].fileno()}"
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", *base, root]
        programs.run(argv, timeout_s=_STEP_DEADLINE_S)
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    def power_on(self) -> socket.socket:
        """Start it, with the project as it is now on a disk; gives the line to its agent."""
        assert self._process is None
        _write_project(self._files["project"])
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                self._argv(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=self._console,
                stderr=self._console,
                pass_fds=[theirs.fileno(), *(file.fileno() for file in self._files.values())],
            )
        return ours

    def cut_power(self) -> None:
        """What the disks had been given is on them. Harmless when it is off."""
        if self._process is not None:
            self._process.terminate()
            self.wait_off(_STEP_DEADLINE_S)

    def wait_off(self, limit_s: float) -> None:
        """Wait until it is off by itself. It is killed, and TimeoutExpired raised, after that."""
        process, self._process = self._process, None
        if process is not None:
            try:
                process.wait(limit_s)
            finally:
                process.kill()
                process.wait()

    def console_tail(self) -> str:
        """What the guest's kernel and the emulator said last."""
        length = os.fstat(self._console.fileno()).st_size
        start = max(0, length - _CONSOLE_TAIL)
        return os.pread(self._console.fileno(), _CONSOLE_TAIL, start).decode(errors="replace")

    def _nameless(self) -> IO[bytes]:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the machine)
        return self._resources.enter_context(file)

    def _argv(self, agent: int) -> list[str]:
        # It dies with us. KVM is not asked for: where that is nested, stock kernels may hang.
        argv = [
            *(programs.need("setpriv"), "--pdeathsig=KILL", programs.need("qemu-system-x86_64")),
            *("-accel", "tcg,thread=multi", "-cpu", _PROCESSOR),
            *("-smp", str(self._shape.processors)),
            *("-m", str(self._shape.memory // MIB), "-nodefaults", "-no-user-config"),
            *("-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd)),
            *("-append", f"console=ttyS0 quiet panic=-1 {_QUICK}"),
            "-no-reboot",  # a panic ends it, and so we hear of it
            *("-display", "none", "-serial", "stdio", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=agent,fd={agent}"),
            *("-device", "virtserialport,chardev=agent,name=agent"),
        ]
        for name, file in self._files.items():
            argv += _drive(name, file.fileno())
        return argv


def _drive(name: str, fd: int) -> list[str]:
    form = "qcow2" if name == "root" else "raw"
    # Unsafe: a flush of the guest goes as far as the host's memory, which is as long as we live.
    more = "discard=unmap,cache=unsafe,readonly=" + ("on" if name == "project" else "off")
    file = f"file=/proc/self/fd/{fd},format={form},if=none,id={name},{more}"
    return ["-drive", file, "-device", f"virtio-blk-pci,drive={name},serial={name}"]


def _write_project(file: IO[bytes]) -> None:
    data = project_tar()
    file.seek(0)
    file.truncate()
    file.write(data + bytes(-len(data) % _SECTOR))
    file.flush()


def project_tar() -> bytes:
    """The project, compiled where this Python's bytecode is the guest's too: that takes the guest
    five seconds after each boot."""
    if sys.version_info[:2] == tuple(map(int, PYTHON.split("."))):
        for name in _COMPILED:
            compileall.compile_dir(PROJECT / name, quiet=2)
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in _HANDED_IN:
            tar.add(PROJECT / name, arcname=name)
    return made.getvalue()
