"""Device-mapper's linear devices: what they lie on, and pieces put together to be read as one.

By ioctl on /dev/mapper/control: the tables are asked for while writers wait, where no program may
be started. Sources: linux/dm-ioctl.h, drivers/md/dm-ioctl.c, libdm's 10-dm.rules for the flags that
keep udev from looking into a device.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import struct
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from splitmirror.errors import DeviceFailed, LegError, PrivilegeError
from splitmirror.model import Run
from splitmirror.system import blockdev
from splitmirror.system.devicemapper import CONTROL, SECTOR, DeviceMapper, Target, packed

# struct dm_ioctl: version, data_size, data_start, target_count, open_count, flags, event_nr,
# padding, dev, name, uuid, 7 bytes of padding or data.
_HEAD: Final = struct.Struct("=3IIIIiIIIQ128s129s7x")
_LIST, _CREATE, _REMOVE, _RESUME, _LOAD = 2, 3, 4, 6, 9

_READ_ONLY: Final = 1 << 0  # DM_*_FLAG
_BUFFER_FULL: Final = 1 << 8
_DEFERRED_REMOVE: Final = 1 << 17

# DM_UDEV_DISABLE_{DM,SUBSYSTEM,DISK,OTHER}_RULES and the library's fallback, in the upper half of
# the cookie: no link, no scan by blkid or LVM, which would find a second PV or filesystem.
_NO_UDEV: Final = (0x1 | 0x2 | 0x4 | 0x8 | 0x20) << 16

_PREFIX: Final = "splitmirror-leg-"
_ROOM: Final = 64 << 10  # for an answer at first
_GONE_S: Final = 10
_GONE_POLL_S: Final = 0.002


class Segment(NamedTuple):
    """`length` bytes that a device maps to the byte `offset` of the device `below`."""

    below: int
    offset: int
    length: int


def segments(devno: int) -> tuple[Segment, ...] | None:
    """What a device-mapper device consists of, in order, when it is all linear; None when it is
    not. Raises DeviceFailed."""
    with DeviceMapper() as mapper:
        targets = mapper.table(devno)
    if any(target.kind != "linear" for target in targets):
        return None
    return tuple(
        Segment(
            below=blockdev.parse_devno(target.arguments[0]),
            offset=int(target.arguments[1]) * SECTOR,
            length=target.length * SECTOR,
        )
        for target in targets
    )


class Scattered(NamedTuple):
    """A device whose bytes lie in several pieces, in order: each `below` is one of the bases."""

    name: str
    path: str
    size: int
    pieces: tuple[Segment, ...]


def scattered(bases: Collection[int]) -> Iterator[Scattered]:
    """The device-mapper devices in several linear pieces that all lie, through linear layers, on
    some of `bases`: logical volumes that were extended, say. Those in one piece are not among them.
    Raises DeviceFailed."""
    for place in sorted(Path("/sys/block").glob("dm-*")):
        with contextlib.suppress(FileNotFoundError):  # one that is just going
            name = (place / "dm/name").read_text().strip()
            found = segments(blockdev.parse_devno((place / "dev").read_text().strip()))
            if found is None or len(found) < 2 or name.startswith(_PREFIX):
                continue
            pieces = [_on_base(segment, bases) for segment in found]
            if all(pieces):
                yield Scattered(
                    name=name,
                    path=f"/dev/mapper/{name}",
                    size=sum(segment.length for segment in found),
                    pieces=tuple(piece for piece in pieces if piece),
                )


def _on_base(segment: Segment, bases: Collection[int]) -> Segment | None:
    """The same bytes as those of a base below; None when none is there."""
    offset = segment.offset
    if segment.below in bases:
        return segment
    for layer in blockdev.walk(segment.below):
        if layer.devno in bases:
            return Segment(layer.devno, offset, segment.length)
        offset += layer.offset
    return None


@contextmanager
def joined(runs: Sequence[Run]) -> Iterator[str]:
    """Pieces of block devices as one read-only device, as long as the block lasts; gives its node.

    Nobody else looks into it, and it goes when its last user has closed it, however this process
    ends. Each run begins and ends at a sector. Raises DeviceFailed, PrivilegeError.
    """
    sweep()
    name = _new_name()
    node = _made(name, runs)
    try:
        fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _command(_REMOVE, name, flags=_DEFERRED_REMOVE, cookie=_NO_UDEV)
            yield node
        finally:
            os.close(fd)
    except BaseException:
        with contextlib.suppress(OSError):  # it went with its descriptor, or goes with its mount
            _command(_REMOVE, name, flags=_DEFERRED_REMOVE, cookie=_NO_UDEV)
        raise
    _see_gone(name, node)


def _see_gone(name: str, node: str) -> None:
    """Nothing on a leg may outlive the split; the kernel takes a closed mount down in the back."""
    until = time.monotonic() + _GONE_S
    while name in _names():
        if time.monotonic() > until:
            raise LegError(
                f"{node} ({name}) on the leg is still in use",
                hint=f"See who holds it with `lsblk {node}` and `fuser {node}`, and end that.",
            )
        time.sleep(_GONE_POLL_S)


def sweep() -> list[str]:
    """Take away what a process left that died while it made such a device. Gives their names."""
    gone = []
    for name in ours():
        pid = name.removeprefix(_PREFIX).partition("-")[0]
        if not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(OSError):  # another process was quicker
                _command(_REMOVE, name, flags=_DEFERRED_REMOVE, cookie=_NO_UDEV)
                gone.append(name)
    return gone


def ours() -> list[str]:
    """The names of what `joined` put together, in this or another process."""
    return [name for name in _names() if name.startswith(_PREFIX)]


def _new_name() -> str:
    return f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"


def _made(name: str, runs: Sequence[Run]) -> str:
    try:
        answer = _command(_CREATE, name, flags=0)
    except OSError as error:
        raise _cannot(error, runs) from None
    try:
        table = _linear(runs)
        _command(_LOAD, name, flags=_READ_ONLY, targets=len(table), data=packed(table))
        _command(_RESUME, name, flags=_READ_ONLY, cookie=_NO_UDEV)
    except BaseException as error:
        _command(_REMOVE, name, cookie=_NO_UDEV)
        if isinstance(error, OSError):
            raise _cannot(error, runs) from None
        raise
    return f"/dev/dm-{os.minor(_HEAD.unpack_from(answer)[10])}"


def _linear(runs: Sequence[Run]) -> list[Target]:
    """The table that has these pieces one behind the other."""
    table, at = [], 0
    for run in runs:
        number = os.stat(run.path).st_rdev
        where = (f"{os.major(number)}:{os.minor(number)}", str(run.offset // SECTOR))
        length = run.length // SECTOR
        table.append(Target(start=at, length=length, kind="linear", arguments=where))
        at += length
    return table


def _names() -> list[str]:
    """The names of all devices; none where there is no device-mapper."""
    try:
        answer = _command(_LIST, "", room=_ROOM)
    except OSError:
        return []
    at, found = _HEAD.unpack_from(answer)[4], []
    while at + 12 < len(answer):
        dev, behind = struct.unpack_from("=QI", answer, at)
        if not dev:
            break
        found.append(answer[at + 12 :].partition(b"\0")[0].decode())
        if not behind:
            break
        at += behind
    return found


def _command(
    number: int,
    name: str,
    *,
    flags: int = 0,
    cookie: int = 0,
    targets: int = 0,
    data: bytes = b"",
    room: int = 0,
) -> bytes:
    """One ioctl, with room for its answer. Raises OSError."""
    while True:
        size = _HEAD.size + max(len(data), room)
        head = _HEAD.pack(
            4, 0, 0, size, _HEAD.size, targets, 0, flags, cookie, 0, 0, name.encode(), b""
        )
        buffer = bytearray((head + data).ljust(size, b"\0"))
        control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(control, 0xC138FD00 | number, buffer)
        finally:
            os.close(control)
        if not _HEAD.unpack_from(buffer)[7] & _BUFFER_FULL:
            return bytes(buffer)
        room = 4 * size


def _cannot(error: OSError, runs: Sequence[Run]) -> DeviceFailed | PrivilegeError:
    paths = ", ".join(sorted({run.path for run in runs}))
    if error.errno in (errno.EPERM, errno.EACCES):
        return PrivilegeError("device-mapper needs root", hint="Run as root.")
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return DeviceFailed(
            f"the pieces of {paths} cannot be put together: {error.strerror}",
            hint="Load device-mapper: modprobe dm-mod; and see that the disk is there.",
        )
    return DeviceFailed(
        f"the pieces of {paths} cannot be put together: {error.strerror}",
        hint="See in the kernel log, and with lsblk, who else uses them.",
    )
