"""What lies below a lab's filesystems: a mirror over image files, made there and taken away again.

One class a kind of mirror. Each gives the `[mirror]` table of the lab's configuration, and a device
for each of the lab's disks. All of them are small and real: what is an image file here is a disk
elsewhere.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from splitmirror import config
from splitmirror.errors import Busy, ConfigError, ProgramFailed, SplitmirrorError
from splitmirror.mirrors import Attachable
from splitmirror.model import Mode
from splitmirror.system import loop, programs

if TYPE_CHECKING:
    from splitmirror.demo.lab import Disk, Lab

_PATIENCE_S: Final = 20.0
_POLL_S: Final = 0.1
_MAKE_S: Final = 120.0  # for a program that makes a volume; under emulation they are slow
# By default so small an array has a bitmap of a few chunks, and nearly all of it is copied again.
_BITMAP: Final = ("--bitmap=internal", "--bitmap-chunk=1M")
_OWN_ROOM: Final = 24 << 20  # bytes that LVM and md take of a disk for themselves, and a little


class Below(Protocol):
    """A kind of mirror."""

    def table(self, lab: Lab) -> str:
        """The `[mirror]` table, as TOML."""
        ...

    def devices(self, lab: Lab, undo: ExitStack) -> dict[str, str]:
        """Make it: a device for each disk, by its name. `undo` takes it away. Raises MirrorError,
        DeviceFailed, MissingProgram."""
        ...


class Embedded:
    """The embedded mirror, on any Linux."""

    def table(self, lab: Lab) -> str:
        disks = "".join(
            f"""
[[mirror.disks]]
name = "{disk.name}"
primary = "{lab.image(disk.name, "primary")}"
mirror = "{lab.image(disk.name, "mirror")}"
size = {disk.size}
"""
            for disk in lab.disks
        )
        return f'driver = "qsd"\ndir = "{lab.base}/mirror"\nestablish_speed = "1GiB"\n{disks}'

    def devices(self, lab: Lab, undo: ExitStack) -> dict[str, str]:
        mirror = config.load(lab.config_path).open_mirror()
        undo.callback(mirror.close)
        assert isinstance(mirror, Attachable)
        undo.callback(patiently, mirror.detach, Busy)
        return {volume.name: volume.device for volume in mirror.attach()}


class Lvm:
    """A raid1 logical volume a disk, in a volume group of the lab's own. Both sides are new files,
    which read as zeros: there is nothing to be copied at first."""

    def table(self, lab: Lab) -> str:
        volumes = "".join(
            f'\n[[mirror.volumes]]\nlv = "{_group(lab)}/{disk.name}"\n' for disk in lab.disks
        )
        return f'driver = "lvm"\n{volumes}'

    def devices(self, lab: Lab, undo: ExitStack) -> dict[str, str]:
        sides = {disk.name: _loops(lab, disk, undo) for disk in lab.disks}
        everything = [device for pair in sides.values() for device in pair]
        programs.run(["vgcreate", "-q", "-y", _group(lab), *everything], timeout_s=_MAKE_S)
        undo.callback(patiently, partial(_remove_group, lab), ProgramFailed)
        for disk in lab.disks:
            made = ["--type", "raid1", "-m1", "--nosync", "-L", f"{disk.size}b", "-n", disk.name]
            argv = ["lvcreate", "-q", "-y", *made, _group(lab), *sides[disk.name]]
            programs.run(argv, timeout_s=_MAKE_S)
        return {disk.name: f"/dev/{_group(lab)}/{disk.name}" for disk in lab.disks}


def _group(lab: Lab) -> str:
    """The lab's volume group: the name of its directory, as LVM takes it."""
    return re.sub(r"[^A-Za-z0-9_]", "_", lab.base.name)


def _remove_group(lab: Lab) -> None:
    programs.run(["vgremove", "-q", "-f", "-y", _group(lab)], timeout_s=_MAKE_S)


class Md:
    """A raid1 array a disk, with a bitmap; level from the first, as with LVM."""

    def table(self, lab: Lab) -> str:
        arrays = "".join(
            f'\n[[mirror.arrays]]\ndevice = "{_array(lab, disk)}"\n' for disk in lab.disks
        )
        return f'driver = "md"\n{arrays}'

    def devices(self, lab: Lab, undo: ExitStack) -> dict[str, str]:
        for disk in lab.disks:
            made = ["--level=1", "--raid-devices=2", "--metadata=1.2", "--assume-clean", *_BITMAP]
            argv = ["mdadm", "--create", _array(lab, disk), "--quiet", "--run", *made]
            programs.run([*argv, *_loops(lab, disk, undo)], timeout_s=_MAKE_S)
            undo.callback(patiently, partial(_stop_array, lab, disk), ProgramFailed)
        return {disk.name: os.path.realpath(_array(lab, disk)) for disk in lab.disks}


def _array(lab: Lab, disk: Disk) -> str:
    return f"/dev/md/{_group(lab)}_{disk.name}"


def _stop_array(lab: Lab, disk: Disk) -> None:
    programs.run(["mdadm", "--stop", "--quiet", _array(lab, disk)], timeout_s=_MAKE_S)


class Reflink:
    """A snapshot in place of a mirror: image files on an xfs of the lab's own."""

    def table(self, lab: Lab) -> str:
        disks = "".join(
            f'\n[[mirror.disks]]\nname = "{disk.name}"\nimage = "{_clonable(lab, disk)}"\n'
            for disk in lab.disks
        )
        return f'driver = "reflink"\n{disks}'

    def devices(self, lab: Lab, undo: ExitStack) -> dict[str, str]:
        host, place = lab.base / "disks" / "host", lab.base / "disks" / "xfs"
        _truncated(host, 2 * sum(disk.size for disk in lab.disks) + (512 << 20))
        programs.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(host)], timeout_s=_MAKE_S)
        place.mkdir()
        programs.run(["mount", "-o", "loop", str(host), str(place)], timeout_s=_MAKE_S)
        undo.callback(patiently, partial(_unmount, place), ProgramFailed)
        return {disk.name: _loop(_clonable(lab, disk), disk.size, undo) for disk in lab.disks}


def _clonable(lab: Lab, disk: Disk) -> Path:
    return lab.base / "disks" / "xfs" / f"{disk.name}.img"


def _unmount(place: Path) -> None:
    programs.run(["umount", str(place)], timeout_s=_MAKE_S)


class Directories:
    """A copy in place of a mirror: the cluster's directory, on a filesystem that can make one."""

    def table(self, lab: Lab) -> str:
        path = lab.mountpoint("data") / "pg"
        return f'driver = "directories"\n\n[[mirror.directories]]\nname = "data"\npath = "{path}"\n'

    def devices(self, lab: Lab, undo: ExitStack) -> dict[str, str]:
        return {
            disk.name: _loop(lab.image(disk.name, "primary"), disk.size, undo) for disk in lab.disks
        }


KINDS: Final[dict[str, type[Below]]] = {
    "qsd": Embedded,
    "lvm": Lvm,
    "md": Md,
    "reflink": Reflink,
    "directories": Directories,
}
_NEEDS_MAPPER: Final = ("/dev/mapper/control", "lvm")


def kind(name: str) -> Below:
    """The kind of that name; of "auto" LVM where the kernel and the programs for it are there, else
    the embedded mirror. Raises ConfigError."""
    if name == "auto":
        control, program = _NEEDS_MAPPER
        able = os.path.exists(control) and programs.find(program) is not None
        name = "lvm" if able else "qsd"
    if name not in KINDS:
        raise ConfigError(f"no mirror {name!r}", hint=f"Take one of: auto, {', '.join(KINDS)}.")
    return KINDS[name]()


def check_fits(below: Below, database: str, mode: Mode) -> None:
    """Raises ConfigError where the demo's database cannot be split so."""
    if isinstance(below, Directories) and (database, mode) != ("postgresql", Mode.HOT):
        raise ConfigError(
            f"{database} in {mode} mode cannot be shown with --mirror directories",
            hint="Take postgresql in hot mode, or another --mirror; docs/mirrors.md says why.",
        )


def data_fstype(below: Below) -> str:
    """What the lab's data disk is made as: of an ext4 there are no copies."""
    return "xfs" if isinstance(below, Directories) else "ext4"


def _loops(lab: Lab, disk: Disk, undo: ExitStack) -> list[str]:
    """Loop devices over both sides of a disk."""
    size = disk.size + _OWN_ROOM
    return [_loop(lab.image(disk.name, side), size, undo) for side in ("primary", "mirror")]


def _loop(image: Path, size: int, undo: ExitStack) -> str:
    device = loop.attach(_truncated(image, size), read_only=False)
    os.close(device.fd)  # so that it goes with its last user
    undo.callback(_see_it_gone, device.path, str(image))
    return device.path


def _see_it_gone(device: str, image: str) -> None:
    """Detach it. It goes with its last user, and udev looks at a disk that LVM or md has left."""
    loop.detach(device)
    until_s = time.monotonic() + _PATIENCE_S
    while loop.backing(device) == image and time.monotonic() < until_s:
        time.sleep(_POLL_S)


def _truncated(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


def patiently(act: Callable[[], object], refusal: type[SplitmirrorError]) -> None:
    """Try again for a while: what an interrupted program had open takes a moment to close, and a
    walled-off process elsewhere may have a copy of a mount until it ends."""
    until_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            act()
            return
        except refusal:
            if time.monotonic() > until_s:
                raise
            time.sleep(_POLL_S)
