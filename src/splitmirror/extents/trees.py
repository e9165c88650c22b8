"""Which filesystem each part of the set lies on, and where that lies on the mirror.

A map says where a file's bytes are on the filesystem's device; that is also where they are on the
mirror only if every layer between the two maps its addresses linearly. So each root is followed to
its filesystem (through links, bind mounts and subvolumes), and the filesystem down to a mirrored
volume; what else is met is refused by name. Sources: proc(5) on mountinfo, sysfs, xfs(5).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from splitmirror.databases import Keep, Root, keep_all
from splitmirror.errors import ConfigError, DeviceFailed, NotOnMirror, UnsupportedStack
from splitmirror.model import Filesystem, Tree, Volume
from splitmirror.system import blockdev, btrfs, filesystems
from splitmirror.system.blockdev import Layer
from splitmirror.system.filesystems import Mount

# Those whose extents FIEMAP tells, or that can be read through the mounted leg.
_KNOWN = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs"))

# Files of such a filesystem may lie on a second device, which no map tells apart.
_SECOND_DEVICES = {
    "rtdev": "xfs realtime device",
    "logdev": "xfs log device of its own",
}


def plan_trees(
    roots: Sequence[Root],
    volumes: Sequence[Volume],
    keep: Callable[[bytes], Keep] = keep_all,
) -> tuple[Tree, ...]:
    """The roots as trees on mirrored filesystems.

    A filesystem mounted below a root becomes a tree of its own, named by its place in the root,
    unless `keep` leaves it out or empties what it is in. Asks the kernel and runs no program,
    for it may be done while writers wait. Raises NotOnMirror, UnsupportedStack, ConfigError for a
    root that does not exist.
    """
    planner = _Planner(filesystems.mounts(), {blockdev.devno_of(v.device): v for v in volumes})
    trees: list[Tree] = []
    for root in roots:
        path = _resolved(root)
        trees.append(planner.tree(root.name, path))
        for mount in planner.mounted_below(path):
            below = os.fsencode(mount.mountpoint)
            name = root.name + b"/" + below[len(path.rstrip(b"/")) + 1 :]
            if wanted(root.name, name, keep):
                trees.append(planner.tree(name, below))
    return tuple(trees)


def _resolved(root: Root) -> bytes:
    try:
        return os.path.realpath(root.path, strict=True)
    except OSError as error:
        raise ConfigError(
            f"{os.fsdecode(root.path)}, which belongs to the set, cannot be found: "
            f"{error.strerror}",
            hint="Was it moved, or dropped a moment ago? Look at it and try again.",
            path=root.path,
        ) from error


def wanted(root: bytes, name: bytes, keep: Callable[[bytes], Keep]) -> bool:
    """Whether what is mounted at a member name belongs to the set: no directory above it is left
    out or emptied, and it is not so itself (statistics on a tmpfs, say)."""
    if keep(root) is Keep.WHOLE:
        return True
    at = len(root)
    while at < len(name):
        at = name.find(b"/", at + 1)
        at = len(name) if at < 0 else at
        kept = keep(name[:at])
        if kept is Keep.WHOLE:
            return True
        if kept is not Keep.KEEP:
            return False
    return True


@dataclass(frozen=True, slots=True)
class _Planner:
    """What is mounted, and what is mirrored, at one moment."""

    mounts: list[Mount]
    volumes: dict[int, Volume]  # by device number

    def tree(self, name: bytes, path: bytes) -> Tree:
        mount = filesystems.mount_of(path)
        return Tree(
            name=name,
            path=path,
            filesystem=self.filesystem(path, mount),
            inside=filesystems.inside(path, mount),
        )

    def mounted_below(self, path: bytes) -> Iterable[Mount]:
        """The uppermost mount of each mount point below a directory."""
        prefix = path.rstrip(b"/") + b"/"
        found = {m.mountpoint: m for m in self.mounts}
        return [
            m
            for m in found.values()
            if os.fsencode(m.mountpoint).startswith(prefix) and _visible(m)
        ]

    def filesystem(self, path: bytes, mount: Mount) -> Filesystem:
        what = f"{os.fsdecode(path)} ({mount.fstype} on {mount.source})"
        if mount.fstype not in _KNOWN:
            raise _unknown(what, mount)
        devno = filesystems.device_of(mount)
        volume, offset = self.locate(what, devno)
        if volume.folders:
            require_folder(what, path, filesystems.inside(path, mount), volume)
        if not (volume.folders and mount.fstype == "btrfs"):  # there no device is read
            refuse_second_device(what, path, mount)
        return Filesystem(
            mountpoint=mount.mountpoint,
            fstype=mount.fstype,
            options=mount.options,
            source=blockdev.devno_path(devno),
            devno=mount.devno,
            volume=volume.name,
            offset=offset,
        )

    def locate(self, what: str, devno: int) -> tuple[Volume, int]:
        """The mirrored volume below a device, and where on it the device begins."""
        if devno in self.volumes:
            return self.volumes[devno], 0
        return on_volume(what, blockdev.walk(devno), self.volumes, self.is_mirrored)

    def is_mirrored(self, path: str) -> bool:
        """Whether a file lies on a mirrored volume, in whatever way."""
        try:
            mount = filesystems.mount_of(path)
            self.filesystem(os.fsencode(path), mount)
        except (OSError, DeviceFailed, NotOnMirror):
            return False
        except UnsupportedStack:
            return True
        return True


def _visible(mount: Mount) -> bool:
    """Whether nothing else is mounted over it, there or further up."""
    try:
        return filesystems.mount_of(mount.mountpoint).mount_id == mount.mount_id
    except (OSError, DeviceFailed):
        return False


def on_volume(
    what: str,
    layers: Sequence[Layer],
    volumes: dict[int, Volume],
    is_mirrored: Callable[[str], bool],
) -> tuple[Volume, int]:
    """The volume, by device number, that a stack of linear layers reaches, and the offset on it.

    `what` names the filesystem in errors. Raises NotOnMirror where the stack ends at a disk, or at
    a loop device over a file that is not mirrored; UnsupportedStack where something else ends it.
    """
    offset = 0
    for layer in layers:
        if layer.devno in volumes:
            return volumes[layer.devno], offset
        offset += layer.offset
    last = layers[-1]
    if last.kind == "loop" and last.backing is not None:
        over = f"{last.path}, a loop device over {last.backing}"
        if is_mirrored(last.backing):
            raise _unsupported(what, over)
        raise _off_mirror(what, over, volumes.values())
    if last.kind == "disk":
        raise _off_mirror(what, f"the disk {last.path}", volumes.values())
    raise _unsupported(what, f"{last.path}: {last.kind}")


def require_folder(what: str, path: bytes, inside: bytes, volume: Volume) -> None:
    """Raise NotOnMirror unless a path lies in a directory of the volume that is copied, and in no
    subvolume in it: a snapshot has an empty directory there."""
    for folder in volume.folders:
        if folder.way_to(inside) is not None:
            if os.stat(folder.path).st_dev == os.stat(path).st_dev:
                return
            raise NotOnMirror(
                f"{what} is in a subvolume of its own below {folder.path}, which a snapshot of "
                "that leaves out",
                hint="Name it in [[mirror.directories]] as well.",
            )
    raise NotOnMirror(
        f"{what} is in none of the directories that are copied",
        hint=f"Those are: {', '.join(folder.path for folder in volume.folders)}. Name it, or the "
        "directory that it is in, in [[mirror.directories]] as well.",
    )


def refuse_second_device(what: str, path: bytes, mount: Mount) -> None:
    for option in sorted(mount.options):
        second = _SECOND_DEVICES.get(option.partition("=")[0])
        if mount.fstype == "xfs" and second is not None:
            raise _unsupported(what, f"its {second} ({option})")
    if mount.fstype != "btrfs":
        return
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        devices = btrfs.devices(fd)
    finally:
        os.close(fd)
    if len(devices) != 1:
        raise _unsupported(what, f"btrfs over {len(devices)} devices ({', '.join(devices)})")


def _unknown(what: str, mount: Mount) -> NotOnMirror | UnsupportedStack:
    """A filesystem without extents to map: in memory or on the network, or on who knows what."""
    if mount.fstype == "overlay" or mount.source.startswith("/dev/"):
        return UnsupportedStack(
            f"{what}: the files of {mount.fstype} cannot be mapped to the mirror",
            hint="Keep the database on ext4 or xfs, mounted directly.",
        )
    return NotOnMirror(
        f"{what} is not on the mirror: {mount.fstype} lies on no disk of this host",
        hint="Move it to a mirrored filesystem, or leave it out of the set.",
    )


def _off_mirror(what: str, device: str, volumes: Iterable[Volume]) -> NotOnMirror:
    mirrored = ", ".join(volume.device for volume in volumes) or "nothing"
    hint = f"Mirrored are: {mirrored}. Move it there, or mirror its volume too."
    if any(volume.folders for volume in volumes):
        hint = "Name its directory in [[mirror.directories]] as well."
    return NotOnMirror(f"{what} is not on the mirror but on {device}", hint=hint)


def _unsupported(what: str, layer: str) -> UnsupportedStack:
    return UnsupportedStack(
        f"between {what} and the mirror lies {layer}",
        hint="Only partitions and linear device-mapper volumes may; put the filesystem on the "
        "mirrored volume itself.",
    )
