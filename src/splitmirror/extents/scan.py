"""Looking at every file of the trees: attributes, and the map of each regular file.

Directories are walked by descriptors (openat(2)), so that nothing renamed meanwhile can lead the
walk elsewhere, and no symbolic link is followed. A regular file costs one open, fstat, FIEMAP and
close. Three ways to look:

- `scan`: everything; the early map from the live primary, and the check against the leg.
- `rescan`: what changed since an early scan, by directories' and files' times; for discovery under
  the freeze, when writers wait. Its maps are only as good as the early ones.
- `map_entries`: only the maps, of files that are known.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Final, NamedTuple, Self

from splitmirror.databases import Keep
from splitmirror.errors import NotOnMirror
from splitmirror.extents.known import Known
from splitmirror.extents.table import NO_EXTENTS, FileTable, Xattrs
from splitmirror.extents.views import (
    FILE_FLAGS,
    FOLDER_FLAGS,
    VANISHED,
    View,
    inside_tree,
    open_below,
)
from splitmirror.model import Extent, ExtentFlag, ExtentMap, Filesystem, Kind, Tree
from splitmirror.system import xattrs as system_xattrs
from splitmirror.system.fiemap import fiemap

_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFCHR: Kind.CHARDEV,
    stat.S_IFBLK: Kind.BLOCKDEV,
}  # a socket is bound to a process and means nothing in a backup

# Their "physical" addresses are the filesystem's own, not the device's.
_ADDRESSES_OF_ITS_OWN: Final = frozenset(("btrfs",))


_Child = tuple[bytes, Kind | None]  # a name in a directory; the kind where it is FILE or DIRECTORY
_base_name = itemgetter(0)


class _Folder(NamedTuple):
    """A directory being walked: its descriptor, and what is still to be looked at in it."""

    fd: int
    prefix: bytes  # of the member names in it, with the slash
    children: Iterator[_Child]


def scan(
    view: View,
    trees: Sequence[Tree],
    keep: Callable[[bytes], Keep],
    *,
    maps: bool = True,
    xattrs: bool = False,
) -> FileTable:
    """Every file of the trees that `keep` wants, directories before what they hold, names in the
    order of their bytes.

    Of several names of one inode the first is the file, the others are links to it. Sockets are
    skipped, and in a live view what vanishes meanwhile. Raises NotOnMirror for a directory or file
    on another filesystem than its tree's, PrivilegeError, and what the view raises for what cannot
    be read.
    """
    return _Scan(view, trees, keep, maps=maps, xattrs=xattrs, early=None).run()


def rescan(
    view: View,
    trees: Sequence[Tree],
    keep: Callable[[bytes], Keep],
    early: Known,
    *,
    maps: bool = True,
) -> FileTable:
    """Which files there are now, as a difference to an early scan.

    A directory whose times stand where they stood then is not listed again, and a file whose times,
    size and inode do is not opened: its early entry is taken over, map included. That map may be
    stale all the same: `check.check_maps`, or a scan of the leg, comes after it. `keep` must not
    want what it did not want then. Extended attributes are looked at if they were then. Raises as
    `scan`.
    """
    xattrs = early.table.has_xattrs
    return _Scan(view, trees, keep, maps=maps, xattrs=xattrs, early=early).run()


def map_file(fd: int, size: int, filesystem: Filesystem) -> ExtentMap:
    """The map of an open file, fit to be compared with a table's: where the filesystem's addresses
    are not those of its device, every extent is marked unknown, that is not plain."""
    found = fiemap(fd, size)
    if filesystem.fstype not in _ADDRESSES_OF_ITS_OWN:
        return found
    return ExtentMap.of(
        Extent(logical, physical, length, flags | ExtentFlag.UNKNOWN)
        for logical, physical, length, flags in found
    )


def map_entries(view: View, table: FileTable) -> Iterator[tuple[int, ExtentMap]]:
    """For every file of the table, in its order, its place and its map as it is now in the view.

    What is no regular file, or is empty, has an empty map. Raises what the view raises.
    """
    with _LastFolder(view) as folders:
        for at, name in enumerate(table.names):
            row = table.row(at)
            if row.kind != ord(Kind.FILE) or not row.size:
                yield at, NO_EXTENTS
                continue
            tree = view.trees[row.tree]
            fd = folders.open_file(name, tree)
            try:
                extents = map_file(fd, row.size, tree.filesystem)
            finally:
                os.close(fd)
            yield at, extents


class _LastFolder:
    """Opens files of a view one after another, keeping the directory of the last one open: in a
    table's order the next is mostly in the same."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._name = b""
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def open_file(self, name: bytes, tree: Tree) -> int:
        """A new descriptor. Raises what the view does."""
        try:
            if name == tree.name:
                return self._view.open_tree(tree)
            folder, _, base = name.rpartition(b"/")
            if folder != self._name or self._fd < 0:
                self._enter(folder, tree)
            return os.open(base, FILE_FLAGS, dir_fd=self._fd)
        except OSError as error:
            raise self._view.failed(name, error) from error

    def _enter(self, folder: bytes, tree: Tree) -> None:
        self.__exit__()
        tree_fd = self._view.open_tree(tree)
        try:
            self._fd = open_below(tree_fd, inside_tree(folder, tree), FOLDER_FLAGS)
        finally:
            os.close(tree_fd)
        self._name = folder


def _kind(entry: os.DirEntry[str]) -> Kind | None:
    """What the directory itself says; None for what is neither file nor directory."""
    if entry.is_file(follow_symlinks=False):
        return Kind.FILE
    return Kind.DIRECTORY if entry.is_dir(follow_symlinks=False) else None


class _Scan:
    """One walk over all trees."""

    def __init__(
        self,
        view: View,
        trees: Sequence[Tree],
        keep: Callable[[bytes], Keep],
        *,
        maps: bool,
        xattrs: bool,
        early: Known | None,
    ) -> None:
        self._view = view
        self._trees = trees
        self._keep = keep
        self._maps = maps
        self._xattrs = xattrs
        self._early = early
        self._roots = frozenset(tree.name for tree in trees)
        self._first_names: dict[tuple[int, int], bytes] = {}  # (st_dev, st_ino) of hard links
        self._table = FileTable(looked_ns=time.time_ns(), has_xattrs=xattrs)
        self._at = 0  # the tree that is being walked
        self._device = 0  # its st_dev in this view

    def run(self) -> FileTable:
        for at, tree in enumerate(self._trees):
            self._at = at
            if self._keep(tree.name) is not Keep.LEAVE:
                self._tree(tree)
        return self._table

    def _tree(self, tree: Tree) -> None:
        try:
            fd = self._view.open_tree(tree)
        except OSError as error:
            self._missed(tree.name, error)
            return
        try:
            status = os.fstat(fd)
            self._device = status.st_dev
            if stat.S_ISDIR(status.st_mode):
                self._walk(os.dup(fd), tree.name, status)
            else:
                self._add_open(fd, tree.name, status)
        finally:
            os.close(fd)

    def _walk(self, fd: int, name: bytes, status: os.stat_result) -> None:
        """Walk a whole tree; `fd` is closed. A stack of our own: paths may be deeper than Python
        may recurse."""
        folders = [self._enter(fd, name, status)]
        try:
            while folders:
                folder = folders[-1]
                child = next(folder.children, None)
                if child is None:
                    os.close(folders.pop().fd)
                elif (inner := self._look(folder, *child)) is not None:
                    folders.append(inner)
        finally:
            for folder in folders:
                os.close(folder.fd)

    def _enter(self, fd: int, name: bytes, status: os.stat_result) -> _Folder:
        """Add the directory itself, and begin with what is in it."""
        try:
            self._add(name, Kind.DIRECTORY, status, xattrs=self._xattrs_of(fd))
            if self._keep(name) is Keep.EMPTY:
                return _Folder(fd, name + b"/", iter(()))
            return _Folder(fd, name + b"/", iter(self._children(fd, name, status)))
        except BaseException:
            os.close(fd)
            raise

    def _children(self, fd: int, name: bytes, status: os.stat_result) -> list[_Child]:
        if self._early is not None:
            known = self._early.children(name, status)
            if known is not None:
                return known
        with os.scandir(fd) as found:
            return sorted(
                ((os.fsencode(entry.name), _kind(entry)) for entry in found), key=_base_name
            )

    def _look(self, folder: _Folder, base: bytes, kind: Kind | None) -> _Folder | None:
        """Look at one name in a directory; gives the directory to enter, if it is one.

        `kind` is what the directory says of it, or FILE and DIRECTORY only; None: ask.
        """
        name = folder.prefix + base
        if name in self._roots or self._keep(name) is Keep.LEAVE:
            return None
        try:
            if kind is Kind.DIRECTORY:
                return self._folder(folder, base, name)
            if kind is Kind.FILE:
                self._file(folder, base, name)
            else:
                self._other(folder, base, name)
        except OSError as error:
            self._missed(name, error)
        return None

    def _folder(self, folder: _Folder, base: bytes, name: bytes) -> _Folder:
        fd = os.open(base, FOLDER_FLAGS, dir_fd=folder.fd)
        try:
            status = os.fstat(fd)
            if self._keep(name) is not Keep.EMPTY:  # an emptied one may be a mount: stats in tmpfs
                self._same_device(name, status)
        except BaseException:
            os.close(fd)
            raise
        return self._enter(fd, name, status)

    def _file(self, folder: _Folder, base: bytes, name: bytes) -> None:
        if self._early is not None or not (self._maps or self._xattrs):
            status = os.stat(base, dir_fd=folder.fd, follow_symlinks=False)
            if self._taken_over(name, status):
                return
            if not (self._maps or self._xattrs) and stat.S_ISREG(status.st_mode):
                self._add_regular(-1, name, status)
                return
        fd = os.open(base, FILE_FLAGS, dir_fd=folder.fd)
        try:
            self._add_open(fd, name, os.fstat(fd))
        finally:
            os.close(fd)

    def _taken_over(self, name: bytes, status: os.stat_result) -> bool:
        """Whether the early entry of a file still holds, and was added."""
        if self._early is None or status.st_dev != self._device:
            return False
        at = self._early.file(name, status)
        if at is None:
            return False
        self._table.append_from(self._early.table, at, tree=self._at)
        return True

    def _add_open(self, fd: int, name: bytes, status: os.stat_result) -> None:
        """Add what was opened as a file, whatever it has turned out to be."""
        if stat.S_ISREG(status.st_mode):
            self._add_regular(fd, name, status)
        elif (kind := _KINDS.get(stat.S_IFMT(status.st_mode))) and kind is not Kind.DIRECTORY:
            self._add(name, kind, status, xattrs=self._xattrs_of(fd))

    def _add_regular(self, fd: int, name: bytes, status: os.stat_result) -> None:
        self._same_device(name, status)
        if status.st_nlink > 1:
            first = self._first_names.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                self._add(name, Kind.HARDLINK, status, link=first)
                return
        extents = NO_EXTENTS
        if self._maps and status.st_size:
            extents = map_file(fd, status.st_size, self._trees[self._at].filesystem)
        self._add(name, Kind.FILE, status, extents=extents, xattrs=self._xattrs_of(fd))

    def _other(self, folder: _Folder, base: bytes, name: bytes) -> None:
        """Add a symbolic link, a FIFO or a device; skip a socket."""
        status = os.stat(base, dir_fd=folder.fd, follow_symlinks=False)
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return
        link = os.readlink(base, dir_fd=folder.fd) if kind is Kind.SYMLINK else b""
        by_folder = b"/proc/self/fd/%d/%b" % (folder.fd, base)  # a link cannot be opened itself
        found = system_xattrs.of(by_folder) if self._xattrs else ()
        self._add(name, kind, status, link=link, xattrs=found)

    def _add(
        self,
        name: bytes,
        kind: Kind,
        status: os.stat_result,
        *,
        extents: ExtentMap = NO_EXTENTS,
        link: bytes = b"",
        xattrs: Xattrs = (),
    ) -> None:
        self._table.append_status(
            name, self._at, kind, status, extents=extents, link=link, xattrs=xattrs
        )

    def _xattrs_of(self, fd: int) -> Xattrs:
        return system_xattrs.of(fd) if self._xattrs else ()

    def _same_device(self, name: bytes, status: os.stat_result) -> None:
        if status.st_dev == self._device:
            return
        tree = self._trees[self._at]
        raise NotOnMirror(
            f"{os.fsdecode(name)} is on another filesystem than {os.fsdecode(tree.path)}: "
            f"device {os.major(status.st_dev)}:{os.minor(status.st_dev)}, "
            f"not that of {tree.filesystem.source}",
            hint="Something was mounted there meanwhile, or it is a btrfs subvolume; unmount it, "
            "move it onto the mirror, or leave it out.",
            name=name,
        )

    def _missed(self, name: bytes, error: OSError) -> None:
        """What could not be looked at: gone meanwhile, or a failure."""
        if not (self._view.live and error.errno in VANISHED):
            raise self._view.failed(name, error) from error
