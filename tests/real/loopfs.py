"""Filesystems on loop devices for the tests of this folder, and ways to see them frozen.

Nothing here thaws by itself but `LoopFs.close`, which does it before it unmounts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from splitmirror.demo.below import patiently
from splitmirror.errors import ProgramFailed
from splitmirror.model import Session
from splitmirror.system import filesystems, loop, process, programs

FSTYPES = ("ext4", "xfs")
_MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
_FIFREEZE = f"0x{filesystems.FIFREEZE:x}"


class LoopFs:
    """A fresh filesystem in an image of `size` bytes, mounted at `mountpoint`."""

    def __init__(self, folder: Path, fstype: str, size: int = 320 << 20) -> None:
        folder.mkdir(parents=True)
        self.fstype = fstype
        self.image = folder / "disk.img"
        with self.image.open("wb") as image:
            image.truncate(size)
        programs.run([*_MKFS[fstype], str(self.image)], timeout_s=60)
        self.device = loop.attach(self.image)
        self.path = folder / "mnt"
        self.path.mkdir()
        self.mountpoint = str(self.path)
        self.mount(self.path)

    def mount(self, where: Path) -> None:
        programs.run(["mount", self.device.path, str(where)], timeout_s=30)

    def thaw(self) -> bool:
        """Thaw until it is not frozen any more; whether it was."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            was = filesystems.thaw(fd)
            while filesystems.thaw(fd):
                pass
            return was
        finally:
            os.close(fd)

    def close(self) -> None:
        self.thaw()
        # The kernel lets go of an image that lay on it in the back, behind its loop device.
        patiently(partial(programs.run, ["umount", self.mountpoint], timeout_s=30), ProgramFailed)
        loop.detach(self.device)
        self.image.unlink()

    def make_dirty(self, size: int) -> None:
        """Leave `size` bytes to be written back, so that a freeze takes its time."""
        block = os.urandom(1 << 20)
        with (self.path / "dirty").open("wb") as file:
            for _ in range(size >> 20):
                file.write(block)

    def writable_within(self, deadline_s: float) -> bool:
        """Whether a new file can be made in that time. The attempt goes on if not."""
        made = threading.Event()

        def make() -> None:
            with contextlib.suppress(OSError):
                (self.path / f"new-{time.monotonic_ns()}").touch()
                made.set()

        threading.Thread(target=make, daemon=True).start()
        return made.wait(deadline_s)


@contextlib.contextmanager
def loop_filesystems(folder: Path, *fstypes: str, size: int = 320 << 20) -> Iterator[list[LoopFs]]:
    with contextlib.ExitStack() as stack:
        made = []
        for number, fstype in enumerate(fstypes):
            made.append(LoopFs(folder / f"fs{number}", fstype, size))
            stack.callback(made[-1].close)
        yield made


@contextlib.contextmanager
def freeze_held_up(disk: LoopFs) -> Iterator[Callable[[], None]]:
    """Keep every FIFREEZE of a filesystem waiting until what is yielded is called.

    A splice(2) from an empty pipe into a file waits inside the write that a freeze must wait for.
    """
    source, feed = os.pipe()
    target = os.open(disk.path / "spliced", os.O_WRONLY | os.O_CREAT)
    writer = threading.Thread(target=lambda: os.splice(source, target, 4096), daemon=True)
    writer.start()
    wanted = [hex(source), "0x0", hex(target)]

    def waiting() -> bool:
        call = Path(f"/proc/self/task/{writer.native_id}/syscall").read_text().split()
        return call[1:4] == wanted

    def let_go() -> None:
        os.write(feed, b"x")

    try:
        assert until(waiting)
        yield let_go
    finally:
        let_go()
        writer.join()
        for fd in (source, feed, target):
            os.close(fd)


def freezing_threads(pid: int | str) -> int:
    """How many threads of a process are inside FIFREEZE right now (/proc/PID/task/*/syscall)."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += _FIFREEZE in (task / "syscall").read_text()
    return found


def kill_pending(pid: int) -> bool:
    """Whether SIGKILL has been sent and waits for a system call to end (proc(5), ShdPnd)."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = next(line for line in status.splitlines() if line.startswith("ShdPnd"))
    return bool(int(pending.split()[1], 16) & 1 << signal.SIGKILL - 1)


def ended(session: Session) -> bool:
    """Whether the process that stands for a database's session is gone."""
    return not process.alive(session.pid, session.start_ticks)


def until(condition: Callable[[], object], deadline_s: float = 10.0) -> bool:
    """Poll a condition that the kernel has no event for."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True
