"""Looking at every file of the trees: attributes, and the map of each regular file.

Directories are walked by descriptors (openat(2)), so that nothing renamed meanwhile can lead the
walk elsewhere, and no symbolic link is followed. A regular file costs one open, fstat, FIEMAP and
close, and what Python adds to them counts: files that stand side by side in a directory are looked
at in one loop. `rescan` and `renew` look at less; `mapping` at nothing but maps.
"""

from __future__ import annotations

import os
import stat
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from splitmirror.databases import Keep
from splitmirror.errors import NotOnMirror
from splitmirror.extents.table import NO_EXTENTS, FileTable, Xattrs
from splitmirror.extents.views import View
from splitmirror.model import Extent, ExtentFlag, ExtentMap, Filesystem, Kind, Tree
from splitmirror.progress import Progress, silent
from splitmirror.system import fiemap
from splitmirror.system import xattrs as system_xattrs
from splitmirror.system.opening import FILE_FLAGS, FOLDER_FLAGS, VANISHED

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

_FORMAT: Final = 0o170000  # S_IFMT
_PIECE: Final = 4096  # files looked at in one go; then the progress is told


class Child(NamedTuple):
    """A name in a directory that is no regular file's; `folder`: it is a directory's."""

    base: bytes
    folder: bool


# What is in a directory, in the order of the names: regular files that stand side by side, or one
# of another kind.
Entry = list[bytes] | Child


class Folder(NamedTuple):
    """A directory being walked: its descriptor, and what is still to be looked at in it.

    `prefix`: of the member names in it, with the slash. `ask`: `keep` is asked about them. `known`:
    where names in it stand in an early table, if there is one.
    """

    fd: int
    prefix: bytes
    ask: bool
    entries: Iterator[Entry]
    known: Mapping[bytes, int] = {}


def scan(
    view: View,
    trees: Sequence[Tree],
    keep: Callable[[bytes], Keep],
    *,
    maps: bool = True,
    xattrs: bool = False,
    progress: Progress = silent,
) -> FileTable:
    """Every file of the trees that `keep` wants, directories before what they hold, names in the
    order of their bytes.

    Of several names of one inode the first is the file, the others are links to it. Sockets are
    skipped, and in a live view what vanishes meanwhile. `progress` is told files, not bytes, and
    how many there are in all only at the end. Raises
    NotOnMirror for a directory or file on another filesystem than its tree's, PrivilegeError, and
    what the view raises for what cannot be read.
    """
    return Scan(view, trees, keep, maps=maps, xattrs=xattrs, progress=progress).run()


def map_file(fd: int, size: int, filesystem: Filesystem) -> ExtentMap:
    """The map of an open file, fit to be compared with a table's: where the filesystem's addresses
    are not those of its device, every extent is marked unknown, that is not plain."""
    own = filesystem.fstype in _ADDRESSES_OF_ITS_OWN
    return ExtentMap(_unknown(fd, size) if own else fiemap.packed_extents(fd, size))


def mapper(filesystem: Filesystem) -> Callable[[int, int], bytes]:
    """`map_file` for many files of one filesystem and for one thread, as ExtentMap.packed."""
    return _unknown if filesystem.fstype in _ADDRESSES_OF_ITS_OWN else fiemap.mapper()


def _unknown(fd: int, size: int) -> bytes:
    return ExtentMap.of(
        Extent(logical, physical, length, flags | ExtentFlag.UNKNOWN)
        for logical, physical, length, flags in ExtentMap(fiemap.packed_extents(fd, size))
    ).packed


def listed(fd: int) -> tuple[list[bytes], list[Child]]:
    """The names in an open directory, each list in the order of its bytes: what it says is a
    regular file, and the others. Raises OSError."""
    files, others = [], []
    with os.scandir(b"/proc/self/fd/%d" % fd) as found:  # for names as bytes
        for entry in found:
            if entry.is_file(follow_symlinks=False):
                files.append(entry.name)
            else:
                others.append(Child(entry.name, entry.is_dir(follow_symlinks=False)))
    return sorted(files), sorted(others)


def in_order(files: list[bytes], others: list[Child]) -> Iterator[Entry]:
    """Both lists as one, by name."""
    begin = 0
    for child in others:
        end = bisect_left(files, child.base, begin)
        yield from _in_pieces(files, begin, end)
        yield child
        begin = end
    yield from _in_pieces(files, begin, len(files))


def _in_pieces(files: list[bytes], begin: int, end: int) -> Iterator[list[bytes]]:
    for at in range(begin, end, _PIECE):
        yield files[at : min(at + _PIECE, end)]


class Scan:
    """One walk over all trees. `rescan` and `renew` are walks that look at less."""

    def __init__(
        self,
        view: View,
        trees: Sequence[Tree],
        keep: Callable[[bytes], Keep],
        *,
        maps: bool = True,
        xattrs: bool = False,
        progress: Progress = silent,
    ) -> None:
        self._view = view
        self._trees = trees
        self._keep = keep
        self._maps = maps
        self._xattrs = xattrs
        self._progress = progress
        self._told = 0
        self._roots = frozenset(tree.name for tree in trees)
        self._first_names: dict[tuple[int, int], bytes] = {}  # (st_dev, st_ino) of hard links
        self._table = FileTable(looked_ns=time.time_ns(), has_xattrs=xattrs)
        self._at = 0  # the tree that is being walked
        self._device = 0  # its st_dev in this view
        self._map: Callable[[int, int], bytes] = fiemap.packed_extents

    def run(self) -> FileTable:
        for at, tree in enumerate(self._trees):
            if self._keep(tree.name) is not Keep.LEAVE:
                self._tree(at, tree)
        self._progress(len(self._table), len(self._table))
        return self._table

    def _tree(self, at: int, tree: Tree) -> None:
        try:
            fd = self._view.open_tree(tree)
        except OSError as error:
            self._missed(tree.name, error)
            return
        try:
            status = self._begin_tree(at, fd)
            if stat.S_ISDIR(status.st_mode):
                self._walk(os.dup(fd), tree.name, ask=True)
            else:
                self._add_open(fd, tree.name, status)
        finally:
            os.close(fd)

    def _begin_tree(self, at: int, fd: int) -> os.stat_result:
        status = os.fstat(fd)
        self._at, self._device = at, status.st_dev
        self._map = mapper(self._trees[at].filesystem)
        return status

    def _walk(self, fd: int, name: bytes, *, ask: bool) -> None:
        """Walk a directory with all that is in it; `fd` is closed. A stack of our own: paths may be
        deeper than Python may recurse."""
        folders = [self._enter(fd, name, ask=ask)]
        try:
            while folders:
                folder = folders[-1]
                entry = next(folder.entries, None)
                if entry is None:
                    os.close(folders.pop().fd)
                elif isinstance(entry, list):
                    self._files(folder, entry)
                elif (inner := self._other(folder, entry)) is not None:
                    folders.append(inner)
        finally:
            for folder in folders:
                os.close(folder.fd)

    def _enter(self, fd: int, name: bytes, *, ask: bool, above: Folder | None = None) -> Folder:
        """Add the directory itself, and begin with what is in it."""
        try:
            status = os.fstat(fd)
            kept = self._keep(name) if ask else Keep.WHOLE
            if kept is not Keep.EMPTY:  # an emptied one may be a mount: statistics in a tmpfs
                self._same_device(name, status)
            self._add(name, Kind.DIRECTORY, status, xattrs=self._xattrs_of(fd))
            if kept is Keep.EMPTY:
                return Folder(fd, name + b"/", ask, iter(()))
            files, others, known = self._inside(fd, name, status, above)
            entries = in_order(files, others)
            return Folder(fd, name + b"/", kept is not Keep.WHOLE, entries, known)
        except BaseException:
            os.close(fd)
            raise

    def _inside(
        self, fd: int, name: bytes, status: os.stat_result, above: Folder | None
    ) -> tuple[list[bytes], list[Child], Mapping[bytes, int]]:
        """What is in a directory, as `listed`, and what is known of it from before."""
        return *listed(fd), {}

    def _left_out(self, folder: Folder, name: bytes) -> bool:
        return name in self._roots or (folder.ask and self._keep(name) is Keep.LEAVE)

    def _wanted(self, folder: Folder, bases: list[bytes]) -> list[bytes]:
        """Those of the names in a directory that belong to it."""
        if not folder.ask and len(self._roots) == 1:
            return bases
        return [base for base in bases if not self._left_out(folder, folder.prefix + base)]

    def _files(self, folder: Folder, bases: list[bytes]) -> None:
        """Look at what the directory says are regular files."""
        self._look_at(folder, self._wanted(folder, bases))
        self._tell()

    def _look_at(self, folder: Folder, bases: list[bytes]) -> None:
        if not (self._maps or self._xattrs):
            for base in bases:
                self._look(folder, base)
            return
        prefix, add, xattrs = folder.prefix, self._table.append_file, self._xattrs
        at, device, map_of = self._at, self._device, self._map if self._maps else _no_map
        for base in bases:
            try:
                fd = os.open(base, FILE_FLAGS, dir_fd=folder.fd)
                try:
                    status = os.fstat(fd)
                    if (
                        status.st_nlink == 1
                        and status.st_mode & _FORMAT == stat.S_IFREG
                        and status.st_dev == device
                    ):
                        size = status.st_size
                        extents = map_of(fd, size) if size else b""
                        found = system_xattrs.of(fd) if xattrs else ()
                        add(prefix + base, at, status, extents, found)
                    else:
                        self._add_open(fd, prefix + base, status)
                finally:
                    os.close(fd)
            except OSError as error:
                self._missed(prefix + base, error)

    def _tell(self) -> None:
        if len(self._table) - self._told >= _PIECE:
            self._told = len(self._table)
            self._progress(self._told, 0)

    def _other(self, folder: Folder, child: Child) -> Folder | None:
        """Look at a name of another kind; gives the directory to enter, if it is one."""
        name = folder.prefix + child.base
        if self._left_out(folder, name):
            return None
        try:
            if child.folder:
                fd = os.open(child.base, FOLDER_FLAGS, dir_fd=folder.fd)
                return self._enter(fd, name, ask=folder.ask, above=folder)
            self._look(folder, child.base)
        except OSError as error:
            self._missed(name, error)
        return None

    def _look(self, folder: Folder, base: bytes) -> None:
        """Look at a name that is no directory, whatever it is, without opening it if it is a
        symbolic link, a FIFO or a device. A socket is skipped."""
        name = folder.prefix + base
        try:
            status = os.stat(base, dir_fd=folder.fd, follow_symlinks=False)
            kind = _KINDS.get(stat.S_IFMT(status.st_mode))
            if kind is Kind.FILE:
                self._look_file(folder, base, name, status)
            elif kind is not None and kind is not Kind.DIRECTORY:
                link = os.readlink(base, dir_fd=folder.fd) if kind is Kind.SYMLINK else b""
                by_folder = b"/proc/self/fd/%d/%b" % (folder.fd, base)  # a link cannot be opened
                found = system_xattrs.of(by_folder) if self._xattrs else ()
                self._add(name, kind, status, link=link, xattrs=found)
        except OSError as error:
            self._missed(name, error)

    def _look_file(self, folder: Folder, base: bytes, name: bytes, status: os.stat_result) -> None:
        if not (self._maps or self._xattrs):
            self._add_regular(-1, name, status)
            return
        fd = os.open(base, FILE_FLAGS, dir_fd=folder.fd)
        try:
            self._add_open(fd, name, os.fstat(fd))
        finally:
            os.close(fd)

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
            extents = ExtentMap(self._map(fd, status.st_size))
        self._add(name, Kind.FILE, status, extents=extents, xattrs=self._xattrs_of(fd))

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
        return system_xattrs.of(fd) if self._xattrs and fd >= 0 else ()

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


def _no_map(fd: int, size: int) -> bytes:
    return b""
