"""Which members of the set changed since the early map, as far as the kernel tells.

The kernel names a directory by its handle. Where that directory is now says which member a changed
name is: what happened in a directory before it was moved is found at its new place, and that it was
moved is a change of the directories that had it and have it. What the kernel does not tell is in
docs/adr/0010-the-watch-shortens.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, NamedTuple, Self

from splitmirror.model import Tree
from splitmirror.system import filesystems
from splitmirror.system.fanotify import Place, Watch, path_of
from splitmirror.system.opening import FILE_FLAGS

ARMED: Final = "armed"

_WHY: Final = {
    errno.ENOSYS: "this kernel has no fanotify",
    errno.EINVAL: "this kernel is too old to name what changes (before 5.9)",
    errno.EPERM: "no right to watch a filesystem (CAP_SYS_ADMIN)",
    errno.EXDEV: "subvolumes cannot be watched",
    errno.ENODEV: "it has no id",
    errno.EOPNOTSUPP: "its files have no handles",
}

Named = tuple[int, bytes]  # the index of a tree, and a member name in it


class Changed(NamedTuple):
    """Member names that were made, written to, moved or taken away, also such as never belonged to
    the set; and the directories in which names came or went. A directory among the names stands for
    all that is in it."""

    names: frozenset[Named]
    folders: frozenset[Named]


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mount with trees of the set on it; `fd` is of one of them."""

    fd: int
    trees: list[int] = field(default_factory=list)


class _Unknown(Exception):
    """Not every change can be named; the text says why."""


class Changes:
    """What changes in some trees, from `arm` until `names`. `state`: ARMED, or in words why nobody
    knows what changed. The watch ends with `close`, at the latest when the `with` block is left."""

    def __init__(self) -> None:
        self.state = "not armed"
        self._watch: Watch | None = None
        self._trees: tuple[Tree, ...] = ()
        self._mounts: dict[int, dict[int, _Mount]] = {}  # by f_fsid, then by the mount's id
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching. The kernel takes some milliseconds for it: not while anybody waits. A
        second call is harmless."""
        self._watch = None
        self._mounts.clear()
        self._stack.close()

    def arm(self, trees: Sequence[Tree]) -> None:
        """Note what changes on the filesystems of the trees from here on, and only there. Where
        that cannot be had, `state` says why; it raises nothing."""
        self.close()
        self._trees = tuple(trees)
        self.state, where = ARMED, ""
        try:
            self._watch = Watch()
            self._stack.callback(self._watch.close)
            for at, tree in enumerate(trees):
                where = f"{tree.filesystem.mountpoint}: "
                self._add(self._watch, at, tree)
            self._watch.start()
            return
        except OSError as error:
            self._give_up(where + _WHY.get(error.errno or 0, error.strerror or str(error)))
        except _Unknown as unknown:
            self._give_up(where + str(unknown))
        self.close()

    def _add(self, watch: Watch, at: int, tree: Tree) -> None:
        fd = os.open(tree.path, FILE_FLAGS)
        self._stack.callback(os.close, fd)
        if os.readlink(b"/proc/self/fd/%d" % fd) != tree.path:
            raise _Unknown(f"{os.fsdecode(tree.path)} is not where it is mounted")
        fsid = os.fstatvfs(fd).f_fsid
        armed = [self._trees[mount.trees[0]] for mount in self._mounts.get(fsid, {}).values()]
        if not armed:
            watch.arm(fd)
        elif armed[0].filesystem.devno != tree.filesystem.devno:
            raise _Unknown(f"it has the id of {armed[0].filesystem.mountpoint}")
        mounts = self._mounts.setdefault(fsid, {})
        mounts.setdefault(filesystems.mount_of_fd(fd).mount_id, _Mount(fd)).trees.append(at)

    def told(self, trees: Sequence[Tree]) -> Changed | None:
        """What changed since `arm`; None: everything may have, `state` says why. To be called
        once."""
        if self._watch is None:
            return None
        try:
            told = self._watch.stop()
            if self._watch.lost:
                raise _Unknown(self._watch.lost)
            if tuple(trees) != self._trees:
                raise _Unknown("the set has other trees than when it was mapped")
            found = _Members()
            for place, bases in told.names.items():
                self._find(place, bases, place in told.moved, found)
            return Changed(frozenset(found.names), frozenset(found.folders))
        except OSError as error:
            self._give_up(f"what changed cannot be found: {error.strerror}")
        except _Unknown as unknown:
            self._give_up(str(unknown))
        return None

    def _give_up(self, why: str) -> None:
        self.state = why.encode(errors="backslashreplace").decode()  # a path may be any bytes

    def _find(self, place: Place, bases: set[bytes], moved: bool, found: _Members) -> None:
        """Which members these names in a directory are, in every tree that it is in."""
        if place.fsid not in self._mounts:
            raise _Unknown("a change was told of another filesystem")
        for mount in self._mounts[place.fsid].values():
            path = path_of(place, mount.fd)
            if path is None:  # gone, and that is a change of the directory that had it
                continue
            for at in mount.trees:
                found.add(at, self._trees[at], path.rstrip(b"/"), bases, moved)


class _Members:
    """What was found so far; see Changed."""

    def __init__(self) -> None:
        self.names: set[Named] = set()
        self.folders: set[Named] = set()

    def add(self, at: int, tree: Tree, path: bytes, bases: set[bytes], moved: bool) -> None:
        """What these names in the directory at `path` are in a tree. Raises _Unknown."""
        root = tree.path.rstrip(b"/")
        if path == root or path.startswith(root + b"/"):
            folder = tree.name + path[len(root) :]
            self.names.update((at, folder + b"/" + base) for base in bases)
            if moved:
                self.folders.add((at, folder))
            return
        for base in bases:
            whole = path + b"/" + base
            if whole == root:
                self.names.add((at, tree.name))
            elif root.startswith(whole + b"/"):
                raise _Unknown(f"{os.fsdecode(whole)}, in which {os.fsdecode(root)} is, was moved")
