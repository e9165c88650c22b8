"""A scratch lab: two disks with their mirrors below one directory, ext4 and xfs on them, mounted.

Everything is real but small: image files behind a mirror, filesystems on its devices. Leaving takes
all of it away again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from splitmirror.demo.below import Below, Embedded, patiently
from splitmirror.errors import NoRoom, ProgramFailed
from splitmirror.system import filesystems, loop, programs
from splitmirror.units import show_size

MKFS = {
    "ext4": [
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-E",
        "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
    ],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-K"],
}
WAL_DISK_SIZE = 1 << 30
SLACK = 256 << 20  # journal, inodes and what the database writes meanwhile
MKFS_TIMEOUT_S = 120.0
MOUNT_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A mirrored disk of the lab and the filesystem on it. `inodes`: how many files an ext4 must be
    able to hold; 0: as many as mke2fs thinks right for its size."""

    name: str
    fstype: str
    size: int
    inodes: int = 0

    @property
    def mkfs(self) -> list[str]:
        """The command that makes the filesystem, without the device."""
        many = ["-N", str(self.inodes)] if self.inodes else []
        return [*MKFS[self.fstype], *many]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """Where everything of a lab lies."""

    base: Path
    disks: tuple[Disk, ...]
    below: Below = field(default_factory=Embedded)

    def mountpoint(self, disk: str) -> Path:
        return self.base / "mnt" / disk

    def image(self, disk: str, side: str) -> Path:
        """The image file of a disk; `side` is "primary" or "mirror"."""
        return self.base / "disks" / f"{disk}.{side}"

    @property
    def config_path(self) -> Path:
        return self.base / "splitmirror.toml"

    @property
    def tape(self) -> Path:
        return self.base / "media" / "SM0001.tap"

    @property
    def ledger(self) -> Path:
        return self.base / "ledger"


def data_and_wal(size: int, fstype: str = "ext4") -> tuple[Disk, ...]:
    """The demo's disks: one for `size` bytes of data, xfs for the write-ahead log."""
    return (
        Disk(name="data", fstype=fstype, size=2 * size + SLACK),
        Disk(name="wal", fstype="xfs", size=WAL_DISK_SIZE),
    )


def configuration(
    lab: Lab,
    database: Mapping[str, object],
    backup: Mapping[str, object] | None = None,
    tape: Path | None = None,
) -> str:
    """The configuration file of a lab; `tape`: another one than the lab's own. A JSON string is a
    TOML string (toml.io, basic strings)."""
    return f"""source = "demo"
state_dir = "{lab.base}/state"

[database]
{_table(database)}
[mirror]
{lab.below.table(lab)}
[medium]
driver = "virtualtape"
path = "{tape or lab.tape}"

[backup]
{_table(backup or {})}"""


def _table(values: Mapping[str, object]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


@contextmanager
def lab_at(base: Path, disks: tuple[Disk, ...], below: Below | None = None) -> Iterator[Lab]:
    """A lab below `base`, mounted; on the embedded mirror, or on what `below` says. Raises NoRoom,
    MissingProgram, MirrorError."""
    lab = Lab(base=base, disks=disks, below=below or Embedded())
    _check_room(lab)
    for part in ("disks", "media", "ledger", "state", "mirror"):
        (base / part).mkdir(parents=True)
    base.chmod(0o755)  # the database's user must get through to its mountpoints
    lab.config_path.write_text(configuration(lab, {"driver": "none", "paths": [str(base)]}))
    with ExitStack() as undo:
        devices = lab.below.devices(lab, undo)
        for disk in disks:
            programs.run([*disk.mkfs, devices[disk.name]], timeout_s=MKFS_TIMEOUT_S)
            _mount(devices[disk.name], lab.mountpoint(disk.name), undo)
        yield lab


def _mount(device: str, mountpoint: Path, undo: ExitStack) -> None:
    mountpoint.mkdir(parents=True)
    programs.run(["mount", device, str(mountpoint)], timeout_s=MOUNT_TIMEOUT_S)
    undo.callback(patiently, lambda: _unmount(mountpoint), ProgramFailed)


def _unmount(mountpoint: Path) -> None:
    programs.run(["umount", str(mountpoint)], timeout_s=MOUNT_TIMEOUT_S)


def _check_room(lab: Lab) -> None:
    """Mirrors are fully allocated; of primaries, tape and restored copy, the data's part."""
    needed = sum(disk.size for disk in lab.disks) + 4 * max(disk.size for disk in lab.disks) // 2
    free = shutil.disk_usage(lab.base.parent).free
    if free < needed:
        raise NoRoom(
            f"the lab needs {show_size(needed)}, {lab.base.parent} has {show_size(free)} free",
            hint="Choose another place with --directory, or a smaller --size.",
        )


def leftovers(base: Path) -> list[str]:
    """What of a lab is still there: mounts, loop devices, processes, files. Empty: nothing."""
    inside = f"{base}/"
    found = [
        f"mount {m.mountpoint}" for m in filesystems.mounts() if m.mountpoint.startswith(inside)
    ]
    for device in sorted(Path("/sys/block").glob("loop*")):
        if (backing := loop.backing(f"/dev/{device.name}")) and backing.startswith(inside):
            found.append(f"loop device {device.name} on {backing}")
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if inside in command and process.parent.name != str(Path("/proc/self").resolve().name):
            found.append(f"process {process.parent.name}: {command.strip()}")
    if base.exists():
        found.append(f"directory {base}")
    return found
