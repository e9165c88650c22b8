"""Where the trees are looked at: on the primary, or on the leg mounted read-only.

The leg is never mounted itself: a read-only device over its runs is, a loop device or one of
device-mapper's, by the device and never by UUID (the leg has its primary's), with the options under
which no filesystem replays its journal or writes a byte, and detached, so that it dies with this
process. Where the leg is copies of directories, those are there already. Sources: ext4(5), xfs(5),
btrfs(5), linux/btrfs.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Final, Protocol, Self

from splitmirror.errors import (
    DeviceFailed,
    LegError,
    MirrorError,
    NotOnMirror,
    PrivilegeError,
    SplitmirrorError,
    UnsupportedStack,
)
from splitmirror.model import FileEntry, Filesystem, Folder, Leg, Run, Tree
from splitmirror.system import blockdev, btrfs, dmlinear, loop
from splitmirror.system.detached import mount_detached
from splitmirror.system.opening import FILE_FLAGS, FOLDER_FLAGS

_EXT: Final = ("ro", "noload")
_LEG_OPTIONS: Final = {
    "ext2": ("ro",),
    "ext3": _EXT,
    "ext4": _EXT,
    "xfs": ("ro", "norecovery", "nouuid"),
    "btrfs": ("ro", "rescue=nologreplay", "subvolid=5"),
}

# What the mount of a btrfs says when it would give the primary, which has the same UUID (Linux
# 6.6), or when its device is taken for the primary's at another place.
_TAKEN_FOR_THE_PRIMARY: Final = frozenset((errno.EBUSY, errno.EEXIST))

_GONE_DEADLINE_S: Final = 10  # the kernel takes a closed mount and its loop device down in the back
_GONE_POLL_S: Final = 0.002


class View(Protocol):
    """A place where the trees can be looked at. `live`: files change and vanish meanwhile."""

    trees: Sequence[Tree]
    live: bool

    def open_tree(self, tree: Tree) -> int:
        """A new descriptor of the tree's root, a directory or a file. Raises OSError."""
        ...

    def open_file(self, entry: FileEntry, tree: Tree) -> int:
        """A new descriptor of a regular file, to read. Raises what `failed` makes of an OSError."""
        ...

    def failed(self, name: bytes, error: OSError) -> SplitmirrorError:
        """The error for a file that cannot be looked at."""
        ...


def mountable(filesystem: Filesystem) -> bool:
    """Whether legs of this kind of filesystem can be mounted beside their mounted primary. With
    btrfs it is only known once it was tried."""
    return filesystem.fstype in _LEG_OPTIONS


def open_below(root_fd: int, path: bytes, flags: int) -> int:
    """A new descriptor of `path` below a directory, following no symbolic link on the way.

    b"" is the directory itself. Raises OSError.
    """
    parts = path.split(b"/") if path else [b"."]
    fd = root_fd
    try:
        for part in parts[:-1]:
            inner = os.open(part, FOLDER_FLAGS, dir_fd=fd)
            if fd != root_fd:
                os.close(fd)
            fd = inner
        return os.open(parts[-1], flags, dir_fd=fd)
    finally:
        if fd != root_fd:
            os.close(fd)


def inside_tree(name: bytes, tree: Tree) -> bytes:
    """A member's path below its tree's root; b"" for the root itself."""
    return name[len(tree.name) + 1 :]


class PrimaryView:
    """The trees where the database has them; `live` unless they are frozen."""

    def __init__(self, trees: Sequence[Tree], *, live: bool = True) -> None:
        self.trees = trees
        self.live = live

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def open_tree(self, tree: Tree) -> int:
        """Also raises NotOnMirror when another filesystem lies there than when it was planned."""
        fd = os.open(tree.path, FILE_FLAGS)
        filesystem = tree.filesystem
        # btrfs gives each subvolume a st_dev of its own
        if filesystem.fstype == "btrfs" or os.fstat(fd).st_dev == filesystem.devno:
            return fd
        os.close(fd)
        raise NotOnMirror(
            f"{os.fsdecode(tree.path)} is not on {filesystem.source} any more",
            hint="Something was mounted there, or unmounted, meanwhile. Back up again.",
            name=tree.name,
        )

    def open_file(self, entry: FileEntry, tree: Tree) -> int:
        try:
            return _open_in_tree(self.open_tree(tree), inside_tree(entry.name, tree))
        except OSError as error:
            raise self.failed(entry.name, error) from error

    def failed(self, name: bytes, error: OSError) -> SplitmirrorError:
        what = f"{os.fsdecode(name)} cannot be read on the primary: {error.strerror}"
        if error.errno in (errno.EACCES, errno.EPERM):
            return PrivilegeError(what, hint="Run as root.", name=name)
        return MirrorError(what, hint="The kernel log tells if the disk failed.", name=name)


class LegView:
    """The trees on a split leg: each of their filesystems mounted read-only while this is entered.

    Entering raises LegError when the leg cannot be mounted or a tree is not on it, UnsupportedStack
    where mounting cannot be right. On leaving, mounts and loop devices are gone (LegError if not:
    some descriptor is still open); the leg itself is not touched. Opening files is thread-safe.
    """

    live = False

    def __init__(self, leg: Leg, trees: Sequence[Tree]) -> None:
        self.trees = trees
        self._leg = leg
        self._stack = ExitStack()
        self._roots: dict[str, int] = {}  # an open directory: of what is mounted, or of a copy
        self._ways: dict[bytes, tuple[int, bytes]] = {}  # for a tree: its root, the way from there
        self._tree_fds: dict[bytes, int] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for tree in self.trees:
                self._ways[tree.name] = self._way(tree, stack)
                self._tree_fds[tree.name] = fd = self._open_root(tree)
                stack.callback(os.close, fd)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for known in (self._roots, self._ways, self._tree_fds):
            known.clear()
        try:
            self._stack.close()
        except SplitmirrorError as second:
            if error is None:
                raise
            error.add_note(f"{second} {second.hint}")

    def open_tree(self, tree: Tree) -> int:
        if stat.S_ISDIR(os.fstat(self._tree_fds[tree.name]).st_mode):
            return os.open(".", FOLDER_FLAGS, dir_fd=self._tree_fds[tree.name])
        return self._open_root(tree)

    def open_file(self, entry: FileEntry, tree: Tree) -> int:
        try:
            inside = inside_tree(entry.name, tree)
            if not inside:
                return self._open_root(tree)
            return open_below(self._tree_fds[tree.name], inside, FILE_FLAGS)
        except OSError as error:
            raise self.failed(entry.name, error) from error

    def failed(self, name: bytes, error: OSError) -> SplitmirrorError:
        return LegError(
            f"{os.fsdecode(name)} cannot be read on the leg: {error.strerror}",
            hint="The leg is not what was split, or its disk failed: see the kernel log. "
            "Synchronize the mirror and back up again.",
            name=name,
        )

    def _way(self, tree: Tree, stack: ExitStack) -> tuple[int, bytes]:
        """The open directory that a tree is below, and the way to it from there. What is opened for
        it is closed with `stack`."""
        filesystem = tree.filesystem
        folders = self._leg.folders.get(filesystem.volume, ())
        if not folders:
            key, way = f"{filesystem.volume} {filesystem.offset}", tree.inside
            if key not in self._roots:
                self._roots[key] = stack.enter_context(_mounted(self._leg, filesystem))
            return self._roots[key], way
        for folder in folders:
            if (way_to := folder.way_to(tree.inside)) is not None:
                if folder.path not in self._roots:
                    self._roots[folder.path] = fd = _open_copy(folder)
                    stack.callback(os.close, fd)
                return self._roots[folder.path], way_to
        raise _not_on(self._leg, f"copy of {os.fsdecode(tree.path)}")

    def _open_root(self, tree: Tree) -> int:
        root, way = self._ways[tree.name]
        try:
            return open_below(root, way, FILE_FLAGS)
        except OSError as error:
            raise self.failed(tree.name, error) from error


def _open_in_tree(tree_fd: int, inside: bytes) -> int:
    """Open a file of a tree, trading in the tree's own descriptor."""
    if not inside:
        return tree_fd
    try:
        return open_below(tree_fd, inside, FILE_FLAGS)
    finally:
        os.close(tree_fd)


def _open_copy(folder: Folder) -> int:
    try:
        return os.open(folder.path, FOLDER_FLAGS)
    except OSError as error:
        raise LegError(
            f"the leg is gone: {folder.path} cannot be opened: {error.strerror}",
            hint="Someone deleted it, or unmounted what it lies on. The primary is unharmed.",
        ) from error


def _not_on(leg: Leg, what: str) -> LegError:
    return LegError(
        f"the leg of split {leg.split_id} has no {what}",
        hint="The mirror was configured otherwise when it was split. Back up again.",
    )


@contextlib.contextmanager
def _mounted(leg: Leg, filesystem: Filesystem) -> Iterator[int]:
    """One filesystem of the leg, mounted: the descriptor of its root directory."""
    if not mountable(filesystem):
        raise UnsupportedStack(
            f"a leg of {filesystem.fstype} cannot be mounted beside {filesystem.mountpoint}",
            hint="Keep the database on ext4 or xfs.",
        )
    with _device(_runs(leg, filesystem), filesystem) as device:
        fd = _mount(device, filesystem)
        try:
            yield fd
        finally:
            os.close(fd)


def _mount(device: str, filesystem: Filesystem) -> int:
    """A descriptor of the root directory of what is on the device, and on no other."""
    options = _LEG_OPTIONS[filesystem.fstype]
    if filesystem.fstype != "btrfs":
        return mount_detached(device, filesystem.fstype, options)
    btrfs.forget(device)
    try:
        fd = mount_detached(device, filesystem.fstype, options)
    except LegError as error:
        if error.facts.get("errno") not in _TAKEN_FOR_THE_PRIMARY:
            raise
        raise _told_apart_by_nobody(filesystem) from error
    try:
        prove_device(fd, device, filesystem)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _runs(leg: Leg, filesystem: Filesystem) -> list[Run]:
    """Where the filesystem lies on the leg, in as few pieces as there are."""
    volume, offset = filesystem.volume, filesystem.offset
    if volume not in leg.volumes:
        raise _not_on(leg, f"volume {volume}")
    room = sum(run.length for run in leg.volumes[volume]) - offset
    if len(leg.volumes[volume]) > 1:  # else the size of what it is mounted from need not be asked
        room = min(room, blockdev.size(filesystem.source))
    pieces: list[Run] = []
    for run in leg.locate(volume, offset, room):
        before = pieces[-1] if pieces else None
        if before and (run.path, run.offset) == (before.path, before.offset + before.length):
            run, _ = replace(before, length=before.length + run.length), pieces.pop()
        pieces.append(run)
    return pieces


@contextlib.contextmanager
def _device(runs: Sequence[Run], filesystem: Filesystem) -> Iterator[str]:
    """A read-only device over these pieces of the leg, gone with the block, or with this process: a
    loop device over one piece, one of device-mapper's over several."""
    for run in runs:
        _flush(run)
    if len(runs) == 1:
        (run,) = runs
        device = loop.attach(
            run.path, offset=run.offset, length=run.length, read_only=True, autoclear=True
        )
        try:
            yield device.path
        finally:
            _let_go(device, run.path)
        return
    if not all(stat.S_ISBLK(os.stat(run.path).st_mode) for run in runs):
        raise UnsupportedStack(
            f"the leg of {filesystem.mountpoint} lies in {len(runs)} pieces of files and cannot be "
            "mounted as one device",
            hint="Use check on the frozen primary, or a volume whose leg lies in one piece.",
        )
    with dmlinear.joined(runs) as path:
        yield path


def _flush(run: Run) -> None:
    """A block device's cache may be older than what the mirror wrote below it."""
    try:
        fd = os.open(run.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LegError(
            f"the leg is gone: {run.path} cannot be opened: {error.strerror}",
            hint="Its disk failed or was taken away: see the kernel log. The primary is unharmed.",
        ) from None
    try:
        if stat.S_ISBLK(os.fstat(fd).st_mode):
            blockdev.flush_buffers(fd)
    finally:
        os.close(fd)


def prove_device(fd: int, device: str, filesystem: Filesystem) -> None:
    """btrfs finds devices by UUID, and before Linux 6.7 a mount of the leg gave the primary."""
    try:
        found = [os.stat(path).st_rdev for path in btrfs.devices(fd)]
    except (OSError, DeviceFailed):
        found = []
    if found != [os.stat(device).st_rdev]:
        raise _told_apart_by_nobody(filesystem)


def _told_apart_by_nobody(filesystem: Filesystem) -> UnsupportedStack:
    return UnsupportedStack(
        f"the btrfs of {filesystem.mountpoint} cannot be mounted from its leg: the kernel "
        "does not tell the two apart",
        hint="Take a kernel of 6.7 or later; or split the subvolume itself, with the directories "
        "engine; or keep the database on ext4 or xfs in an image file on btrfs, with the reflink "
        "engine.",
    )


def _let_go(device: loop.LoopDevice, path: str) -> None:
    """Close the loop device and see it gone: nothing on a leg may outlive the split. Its number may
    be another file's the next moment."""
    os.close(device.fd)
    ours = os.path.realpath(path)
    deadline = time.monotonic() + _GONE_DEADLINE_S
    while loop.backing(device.path) == ours:
        if time.monotonic() > deadline:
            raise LegError(
                f"{device.path} on the leg is still in use",
                hint=f"See who holds it with `losetup -l {device.path}` and end that.",
            )
        time.sleep(_GONE_POLL_S)
