"""Image files that stand for disks: making them, and proving that their room is their own.

A copy-before-write that finds no room on the leg is returned to the database's own write as
ENOSPC. So the leg is allocated in full beforehand (fallocate(2)), on a filesystem that overwrites
in place, where allocated room is reserved room.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitmirror.errors import MirrorError, NoRoom, UnsafeMirror
from splitmirror.model import ExtentMap
from splitmirror.system import fiemap, filesystems
from splitmirror.units import show_size

SECTOR_SIZE = 4096  # the loop device's; direct I/O on any host disk is aligned with it
IN_PLACE = ("ext4", "xfs")  # overwriting an allocated block needs no new one


def check_place(path: Path) -> None:
    """Raise UnsafeMirror when an image at `path` would lie where room cannot be reserved, and
    MirrorError when its directory does not exist."""
    if not path.parent.is_dir():
        raise MirrorError(
            f"there is no directory {path.parent} for the image {path.name}",
            hint=f"Make it with `mkdir -p {path.parent}`, or correct [mirror].",
        )
    mount = filesystems.mount_of(path if path.exists() else path.parent)
    if mount.fstype not in IN_PLACE:
        raise UnsafeMirror(
            f"{path} lies on {mount.fstype} ({mount.mountpoint}), where an allocated block is not "
            "kept for its next write: the mirror could run out of room under the database",
            hint=f"Put both images on {' or '.join(IN_PLACE)}.",
            path=str(path),
        )


def check_different(paths: list[Path]) -> None:
    """Raise MirrorError when two of these existing files are one and the same."""
    seen: dict[tuple[int, int], Path] = {}
    for path in paths:
        status = path.stat()
        other = seen.setdefault((status.st_dev, status.st_ino), path)
        if other is not path:
            raise MirrorError(
                f"{path} and {other} are the same file",
                hint="Give every primary and every mirror an image of its own.",
            )


def size_of(path: Path) -> int:
    """The size of an image that serves as a disk. Raises MirrorError when it cannot."""
    status = path.stat()
    if not path.is_file() or not status.st_size or status.st_size % SECTOR_SIZE:
        raise MirrorError(
            f"{path} is not a file of a whole number of {SECTOR_SIZE}-byte sectors",
            hint=f"Make it with `truncate -s SIZE {path}`, SIZE a multiple of {SECTOR_SIZE}.",
        )
    return status.st_size


def create_sparse(path: Path, size: int) -> None:
    """A new image without a block. Raises MirrorError when there is something already."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise MirrorError(
            f"{path} cannot be made: {error.strerror}", hint="Check its directory."
        ) from error
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def reserve(path: Path, size: int) -> None:
    """Make or grow an image to `size` bytes, all of them allocated; what it holds stays.

    Raises NoRoom with the file as it was before, MirrorError when it is larger already.
    """
    present = path.stat().st_size if path.exists() else None
    if present is not None and present > size:
        raise MirrorError(
            f"the mirror {path} is larger ({show_size(present)}) than its primary "
            f"({show_size(size)})",
            hint="Is it the right file? If so, shorten it to the primary's size or delete it.",
        )
    _check_room(path, size)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with _as_before(path, fd, present):
            os.posix_fallocate(fd, 0, size)
            os.fsync(fd)
    finally:
        os.close(fd)


def _check_room(path: Path, size: int) -> None:
    free = free_room(path)
    need = size - (path.stat().st_blocks * 512 if path.exists() else 0)
    if need > free:
        raise _no_room(path, need, free)


def free_room(path: Path) -> int:
    """Bytes that may still be written on the filesystem of `path`, root's reserve not counted."""
    status = os.statvfs(path if path.exists() else path.parent)
    return status.f_bavail * status.f_frsize


def _no_room(path: Path, need: int, free: int) -> NoRoom:
    return NoRoom(
        f"the mirror {path} needs {show_size(need)} more, {show_size(free)} are free",
        hint="Make room on that filesystem or put the mirror's image on another one.",
        need=need,
        free=free,
    )


@contextmanager
def _as_before(path: Path, fd: int, size: int | None) -> Iterator[None]:
    """On an error put the file back to `size`, or away when it was not there (None)."""
    try:
        yield
    except OSError as error:
        if size is None:
            path.unlink()
        else:
            os.ftruncate(fd, size)
        raise _no_room(path, os.fstat(fd).st_size, free_room(path)) from error


def check_reserved(path: Path, size: int) -> None:
    """Raise UnsafeMirror unless each of the first `size` bytes of an image has a block of its own.

    Takes about a microsecond an extent.
    """
    status = path.stat()
    short = size > status.st_size or size > status.st_blocks * 512 or unallocated(path)
    if short:
        raise UnsafeMirror(
            f"the mirror {path} is not fully allocated: a copy could run out of room, and the "
            "database's own write would fail with it",
            hint=f"Give it its room back: fallocate -l {size} {path}",
            path=str(path),
        )


def unallocated(path: Path) -> int:
    """How many bytes of an image have no block of the host's disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        return size - _covered(fiemap.fiemap(fd, size))
    finally:
        os.close(fd)


def _covered(extents: ExtentMap) -> int:
    return sum(extent.length for extent in extents)


def settle(path: Path) -> None:
    """Put an image that another process wrote on its disk, and drop what is cached of it here."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
