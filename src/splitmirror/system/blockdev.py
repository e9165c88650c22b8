"""Block devices: size, cache, and what lies below one another.

Sources: linux/fs.h (BLK* ioctls), sysfs (/sys/dev/block), the kernel's
Documentation/admin-guide/device-mapper/linear.rst.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from splitmirror.errors import DeviceFailed
from splitmirror.system import fiemap
from splitmirror.system.devicemapper import DeviceMapper, Target

_BLKGETSIZE64 = 0x80081272
_BLKFLSBUF = 0x1261
_BLKDISCARD = 0x1277
_BLKSSZGET = 0x1268

_SECTOR = 512  # sysfs and device-mapper count in these, whatever the device's own sectors are


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One device of a stack. `kind` is "disk", "partition", "linear", "loop", or the name of what
    it is otherwise: md level, device-mapper target, bcache.

    `below` is the device that it maps to linearly, all of it, from the byte `offset` on; None where
    that ends: a disk, or something that is not a known linear mapping. `backing` is the file of a
    loop device, beginning at `offset` of it.
    """

    devno: int
    path: str
    kind: str
    below: int | None = None
    offset: int = 0
    backing: str | None = None


def size(device: int | str | os.PathLike[str]) -> int:
    """Bytes of a block device or regular file, by descriptor or path. Raises OSError."""
    if not isinstance(device, int):
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return size(fd)
        finally:
            os.close(fd)
    status = os.fstat(device)
    if not stat.S_ISBLK(status.st_mode):
        return status.st_size
    answer = fcntl.ioctl(device, _BLKGETSIZE64, bytes(8))
    return int(struct.unpack("=Q", answer)[0])


def sector_size(fd: int) -> int:
    """The logical sector size of a block device: what O_DIRECT must be aligned to."""
    return int(struct.unpack("=i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0])


def flush_buffers(fd: int) -> None:
    """Write back and drop the cached pages of a block device (BLKFLSBUF): what was written below
    it, past its cache, is seen by the next buffered read. Raises DeviceFailed."""
    try:
        fcntl.ioctl(fd, _BLKFLSBUF, 0)
    except OSError as error:
        raise DeviceFailed(
            f"the device's cache cannot be flushed: {error.strerror}", hint="Needs root."
        ) from None


def discard(fd: int, offset: int, length: int) -> None:
    """Tell a block device that a range is not needed any more (BLKDISCARD); its contents are then
    undefined. Raises OSError (EOPNOTSUPP where it cannot)."""
    fcntl.ioctl(fd, _BLKDISCARD, struct.pack("=QQ", offset, length))


def punch(fd: int, offset: int, length: int) -> None:
    """Make a range of a file or block device read as zeros and give its room back, where it can.
    Raises OSError (EOPNOTSUPP where it cannot)."""
    fiemap.punch_hole(fd, offset, length)


def devno_of(device: str) -> int:
    """The device number of a block device node. Raises DeviceFailed when it is none."""
    try:
        status = os.stat(device)
    except OSError as error:
        raise DeviceFailed(f"no device {device}: {error.strerror}", hint="Look at /dev.") from None
    if not stat.S_ISBLK(status.st_mode):
        raise DeviceFailed(f"{device} is not a block device", hint="Name a block device.")
    return status.st_rdev


def devno_path(devno: int) -> str:
    """The node in /dev for a device number, as the kernel names it; device-mapper devices by their
    name in /dev/mapper. Raises DeviceFailed when there is no such device."""
    sysfs = _sysfs(devno)
    name = _read(sysfs / "dm/name")
    if name is not None and Path(f"/dev/mapper/{name}").exists():
        return f"/dev/mapper/{name}"
    return f"/dev/{sysfs.name.replace('!', '/')}"


def walk(devno: int) -> list[Layer]:
    """The stack from a device downwards: itself first, then what each maps to linearly.

    It ends at a disk, a loop device (its backing file named) or anything else that is not a known
    linear mapping, which `kind` names. Raises DeviceFailed for a number that is no block device:
    a filesystem without one (btrfs and tmpfs have anonymous numbers).
    """
    layers: list[Layer] = []
    below: int | None = devno
    while below is not None:
        layers.append(_layer(below))
        below = layers[-1].below
    return layers


def files_below(devno: int) -> list[str]:
    """The backing files of all loop devices that a block device lies on, whatever is between them
    (sysfs names what a device uses). Empty for what is no block device."""
    try:
        sysfs = _sysfs(devno)
    except DeviceFailed:
        return []
    if (sysfs / "partition").exists():
        sysfs = sysfs.parent
    if (file := _read(sysfs / "loop/backing_file")) is not None:
        return [file]
    used = sorted((sysfs / "slaves").glob("*/dev"))
    return [file for dev in used for file in files_below(parse_devno(_read(dev) or ""))]


def _sysfs(devno: int) -> Path:
    link = Path(f"/sys/dev/block/{os.major(devno)}:{os.minor(devno)}")
    if not link.exists():
        raise DeviceFailed(
            f"{os.major(devno)}:{os.minor(devno)} is not a block device of this system",
            hint="The filesystem has no single device of its own.",
        )
    return link.resolve()


def _read(path: Path) -> str | None:
    try:
        return os.fsdecode(path.read_bytes()).rstrip("\n")
    except OSError:
        return None


def _layer(devno: int) -> Layer:
    sysfs = _sysfs(devno)
    path = devno_path(devno)
    if (sysfs / "partition").exists():
        start = int(_read(sysfs / "start") or 0) * _SECTOR
        below = parse_devno(_read(sysfs.parent / "dev") or "")
        return Layer(devno=devno, path=path, kind="partition", below=below, offset=start)
    if (sysfs / "dm").exists():
        return _device_mapper(devno, path)
    if (sysfs / "loop").exists():
        offset = int(_read(sysfs / "loop/offset") or 0)
        file = _read(sysfs / "loop/backing_file")
        return Layer(devno=devno, path=path, kind="loop", offset=offset, backing=file)
    return Layer(devno=devno, path=path, kind=_kind(sysfs))


def _kind(sysfs: Path) -> str:
    level = _read(sysfs / "md/level")
    if level is not None:
        return f"md {level}"
    if (sysfs / "bcache").exists() and sysfs.name.startswith("bcache"):
        return "bcache"
    slaves = sysfs / "slaves"
    if slaves.is_dir() and any(slaves.iterdir()):
        return f"unknown mapping {sysfs.name}"
    return "disk"


def _device_mapper(devno: int, path: str) -> Layer:
    with DeviceMapper() as mapper:
        return parse_table(mapper.table(devno), devno, path)


def parse_table(targets: Sequence[Target], devno: int, path: str) -> Layer:
    """The layer that a device-mapper table describes; linear's arguments are "major:minor", and
    where it begins there in sectors."""
    kinds = {target.kind for target in targets}
    if len(targets) != 1 or kinds != {"linear"}:
        kind = " and ".join(sorted(kinds)) or "empty"
        if kinds == {"linear"}:
            kind = f"linear in {len(targets)} pieces"
        return Layer(devno=devno, path=path, kind=f"dm {kind}")
    below, offset = targets[0].arguments
    return Layer(
        devno=devno,
        path=path,
        kind="linear",
        below=parse_devno(below),
        offset=int(offset) * _SECTOR,
    )


def parse_devno(text: str) -> int:
    """A device number as sysfs and device-mapper write it, "major:minor". Raises ValueError."""
    major, _, minor = text.partition(":")
    return os.makedev(int(major), int(minor))
