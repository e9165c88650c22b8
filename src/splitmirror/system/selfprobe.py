"""Proof on a scratch disk that a stack keeps what it is given, before a filesystem trusts it.

Each step writes through the block device and looks at the image below it, past every cache:
whole and partial clusters, a hole that must read as zeros, and writes while a copy is running.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitmirror.errors import UnsafeMirror
from splitmirror.system import blockdev, blockjobs, images, nbdstack
from splitmirror.system.blockjobs import Copy
from splitmirror.system.nbdstack import Place
from splitmirror.system.qmp import Monitor, Refused

NAME = "probe"  # of the scratch disk; no other one may be called so

SIZE = 4 << 20  # of the scratch disk: some clusters of every kind of write
_CLUSTER = 64 << 10  # the daemon's unit of copying
_COPY_DEADLINE_S = 30.0


def run(monitor: Monitor, place: Place) -> str:
    """Probe the daemon of this place with a scratch disk, which is gone afterwards.

    Gives the kind of asynchronous I/O that works here. Raises UnsafeMirror, MirrorError; then the
    daemon may still have the scratch disk and must be stopped.
    """
    disk, leg = (place.directory / f"{name}.scratch" for name in (NAME, f"{NAME}-leg"))
    try:
        for path in (disk, leg):
            path.unlink(missing_ok=True)
            images.reserve(path, SIZE)
        aio = _add_first_node(monitor, disk)
        nbdstack.add_node(monitor, leg.stem, leg, aio, unmap=False)
        device = nbdstack.expose(monitor, place, NAME)
        check_writes(device, disk)
        check_copy(monitor, device, NAME, disk, leg)
        nbdstack.withdraw(place, NAME)
        nbdstack.remove_export(monitor, NAME)
        for node in (NAME, leg.stem):
            nbdstack.remove_node(monitor, node)
    finally:
        disk.unlink(missing_ok=True)
        leg.unlink(missing_ok=True)
    return aio


def _add_first_node(monitor: Monitor, disk: Path) -> str:
    """Open the scratch image with io_uring, or, where the kernel forbids that, with threads."""
    try:
        nbdstack.add_node(monitor, NAME, disk, "io_uring", unmap=True)
    except Refused:
        nbdstack.add_node(monitor, NAME, disk, "threads", unmap=True)
        return "threads"
    return "io_uring"


def check_writes(device: str, image: Path) -> None:
    """Raise UnsafeMirror unless the image holds exactly what was written through the device."""
    model = bytearray(SIZE)
    with _opened(device) as fd:
        _write(fd, model, 0, os.urandom(1 << 20))
        _write(fd, model, 2 * _CLUSTER + 4096, os.urandom(4096))  # inside a cluster
        _write(fd, model, 5 * _CLUSTER - 100, os.urandom(333))  # across a cluster's end
        _write(fd, model, 3 << 20, os.urandom(12288))
        _compare("a pattern written through it", fd, image, model)
        _punch(fd, model, 7 * _CLUSTER, 2 * _CLUSTER)
        _punch(fd, model, 10 * _CLUSTER + 4096, 8192)
        _compare("a punched hole", fd, image, model)
        _write(fd, model, 8 * _CLUSTER - 4096, os.urandom(8192))
        _compare("a write into a hole", fd, image, model)


def check_copy(monitor: Monitor, device: str, node: str, image: Path, target: Path) -> None:
    """Raise UnsafeMirror unless a copy of the node onto the node `target.stem` shows the instant
    at which it began, while the device goes on being written."""
    before = bytearray(_read(image))
    after = bytearray(before)
    job = "probe.copy"
    # At one byte a second only the first cluster is copied; writes push the rest ahead of them.
    slowly = Copy(job_id=job, node=node, target=target.stem, bitmap=None, speed=1)
    blockjobs.transaction(monitor, [slowly.action()], grouped=False)
    with _opened(device) as fd:
        _write(fd, after, 2 << 20, os.urandom(_CLUSTER))
        _write(fd, after, _CLUSTER + 4096, os.urandom(4096))
        monitor.execute("block-job-set-speed", {"device": job, "speed": 0})
        (ended,) = blockjobs.wait_concluded(monitor, [job], deadline_s=_COPY_DEADLINE_S)
        monitor.execute("job-dismiss", {"id": job})
        _compare("a write during a copy", fd, image, after)
    if ended.error is not None:
        raise _unsafe(f"a copy failed: {ended.error}")
    if _read(target) != before:
        raise _unsafe("a copy does not show the instant at which it began")


@contextmanager
def _opened(device: str) -> Iterator[int]:
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _write(fd: int, model: bytearray, offset: int, data: bytes) -> None:
    os.pwrite(fd, data, offset)
    os.fsync(fd)
    model[offset : offset + len(data)] = data


def _punch(fd: int, model: bytearray, offset: int, length: int) -> None:
    blockdev.punch(fd, offset, length)
    model[offset : offset + length] = bytes(length)


def _compare(what: str, fd: int, image: Path, model: bytearray) -> None:
    if _read(image) != model:
        raise _unsafe(f"{what} is not found in the image")
    blockdev.flush_buffers(fd)
    if os.pread(fd, SIZE, 0) != model:
        raise _unsafe(f"{what} is not read back from the device")


def _read(image: Path) -> bytes:
    """The whole scratch image, from the disk."""
    fd = os.open(image, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, SIZE) as buffer:
            got = os.preadv(fd, [buffer], 0)
            return bytes(buffer[:got])
    finally:
        os.close(fd)


def _unsafe(what: str) -> UnsafeMirror:
    return UnsafeMirror(
        f"the mirror's stack failed its self-probe: {what}",
        hint="Do not use it with this kernel and these versions of qemu-storage-daemon and "
        "nbdfuse; report them. Nothing of yours was touched.",
    )
