"""Looking anew at what changed since an early scan, where it is known by name, and nothing else.

Writers wait while this is done, so it costs what the changes cost: it gives the difference to the
early table, and the whole table is put together when nobody waits any more.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass

from splitmirror.databases import Keep
from splitmirror.extents.changes import Changed, Named
from splitmirror.extents.known import Known
from splitmirror.extents.names import scan_key
from splitmirror.extents.scan import Folder, Scan
from splitmirror.extents.table import FileTable
from splitmirror.extents.views import View, inside_tree, open_below
from splitmirror.model import Kind, Tree
from splitmirror.system.opening import FOLDER_FLAGS, VANISHED

_FILE = ord(Kind.FILE)
_DIRECTORY = ord(Kind.DIRECTORY)
_HARDLINK = ord(Kind.HARDLINK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """The files there are now, as a difference to an early table.

    `gone`: stretches of its rows that do not hold any more, in order; `added`: what there is
    instead, in the order of a scan.
    """

    early: Known
    gone: tuple[range, ...]
    added: FileTable

    def __len__(self) -> int:
        """How many files there are now."""
        return len(self.early.table) - sum(map(len, self.gone)) + len(self.added)

    @property
    def stored_bytes(self) -> int:
        """As that of a table."""
        stored = self.early.table.stored
        gone = sum(stored(at) for stretch in self.gone for at in stretch)
        return self.early.stored_bytes - gone + self.added.stored_bytes

    def replaced(self) -> FileTable:
        """The rows of the early table that do not hold any more."""
        table = FileTable()
        for stretch in self.gone:
            for at in stretch:
                table.append_from(self.early.table, at)
        return table

    def applied(self) -> FileTable:
        """All files there are now, in the order of a scan. It takes over the early table's maps:
        nothing may be appended to that one any more."""
        early, added = self.early.table, self.added
        table, end = early.taking_over(), len(early)
        places = [self.early.place(name, added.tree(at)) for at, name in enumerate(added.names)]
        at = done = 0  # rows of the early table, and added ones
        for gone in (*self.gone, range(end, end + 1)):
            while done < len(added) and places[done] < gone.stop:
                table.extend_from(early, at, min(places[done], gone.start))
                at = min(places[done], gone.start)
                table.append_from(added, done)
                done += 1
            table.extend_from(early, at, gone.start)
            at = gone.stop
        return table


def renew(
    view: View,
    trees: Sequence[Tree],
    keep: Callable[[bytes], Keep],
    early: Known,
    changed: Changed,
) -> Patch:
    """Look at the names that changed; at a directory among them with all that is in it. All names
    of a file are looked at together.

    Maps are asked for now, so in a view that stands still they are good. Raises as `scan`; that a
    name is gone is none of it.
    """
    names = set(changed.names)
    while True:
        renewal = _Renewal(view, trees, keep, early)
        patch = renewal.renew(names, changed.folders)
        others = _other_names(early, patch.gone, renewal.inodes_with_other_names())
        if others <= names:
            return patch
        names |= others


def _other_names(early: Known, gone: Iterable[range], inodes: Set[int]) -> set[Named]:
    """The names in the early table of files that were looked at by another name, or lost one."""
    lost = {at for stretch in gone for at in stretch}
    found = {at for group in early.linked if not lost.isdisjoint(group) for at in group}
    found.update(early.with_inodes(inodes) if inodes else ())
    return {(early.table.tree(at), early.table.names[at]) for at in found}


class _Renewal(Scan):
    """A walk to names that are given, in the order of a scan."""

    def __init__(
        self,
        view: View,
        trees: Sequence[Tree],
        keep: Callable[[bytes], Keep],
        early: Known,
    ) -> None:
        super().__init__(view, trees, keep, xattrs=early.table.has_xattrs)
        self._early = early
        self._gone: list[range] = []
        self._folder: Folder | None = None  # the one that was opened last
        self._opened: Named = (-1, b"")  # which one that is
        self._whole: Named = (-1, b"")  # looked at last with all that was in it; with a slash

    def renew(self, names: Set[Named], folders: Set[Named]) -> Patch:
        try:
            for tree, name in sorted(names | folders, key=lambda one: (one[0], scan_key(one[1]))):
                if tree != self._whole[0] or not name.startswith(self._whole[1]):
                    self._renew(tree, name, whole=(tree, name) in names)
        finally:
            self._close_folder()
        return Patch(early=self._early, gone=tuple(self._gone), added=self._table)

    def inodes_with_other_names(self) -> set[int]:
        """The inodes of those files that have more names than were looked at."""
        missing: dict[tuple[int, int], int] = {}
        for at, (ino, names) in enumerate(self._table.inodes()):
            if names > 1 and self._table.kind(at) in (_FILE, _HARDLINK):
                inode = self._trees[self._table.tree(at)].filesystem.devno, ino
                missing[inode] = missing.get(inode, names) - 1
        return {ino for (_, ino), names in missing.items() if names}

    def _renew(self, tree: int, name: bytes, *, whole: bool) -> None:
        """Look at a name anew; of a directory only at itself, unless `whole`."""
        at = self._early.find(name, tree)
        was_folder = at is not None and self._early.table.kind(at) == _DIRECTORY
        if not whole and not was_folder:
            return  # no part of the set, or found with the directory in which it came
        status = self._status(tree, name)
        if at is not None:
            stays = status is not None and stat.S_ISDIR(status.st_mode)
            stays = stays and status is not None and self._early.table.seen(at)[3] == status.st_ino
            whole = whole or not stays
            behind = self._early.behind(at) if was_folder and whole else at + 1
            self._gone.append(range(at, behind))
        if whole:
            self._whole = tree, name + b"/"
        if status is None:
            return
        if name == self._trees[tree].name and not stat.S_ISDIR(status.st_mode):
            self._tree(tree, self._trees[tree])
        elif not stat.S_ISDIR(status.st_mode):
            assert self._folder is not None
            self._look(self._folder, name[len(self._folder.prefix) :])
        else:
            self._directory(tree, name, whole=whole)

    def _directory(self, tree: int, name: bytes, *, whole: bool) -> None:
        """Add a directory, and with `whole` all that is in it."""
        try:
            if name == self._trees[tree].name:
                fd, ask = self._view.open_tree(self._trees[tree]), True
            else:
                assert self._folder is not None
                base, ask = name[len(self._folder.prefix) :], self._folder.ask
                fd = os.open(base, FOLDER_FLAGS, dir_fd=self._folder.fd)
            if whole:
                self._walk(fd, name, ask=ask)
                return
            try:
                self._add(name, Kind.DIRECTORY, os.fstat(fd), xattrs=self._xattrs_of(fd))
            finally:
                os.close(fd)
        except OSError as error:
            self._missed(name, error)

    def _status(self, tree: int, name: bytes) -> os.stat_result | None:
        """What is at a name now; None when it is gone, or no part of the set."""
        try:
            if name == self._trees[tree].name:
                fd = self._view.open_tree(self._trees[tree])
                try:
                    return self._begin_tree(tree, fd)
                finally:
                    os.close(fd)
            folder = self._open_folder(tree, name.rpartition(b"/")[0])
            if folder is None or self._left_out(folder, name):
                return None
            base = name[len(folder.prefix) :]
            return os.stat(base, dir_fd=folder.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in VANISHED:
                return None
            raise self._view.failed(name, error) from error

    def _open_folder(self, tree: int, name: bytes) -> Folder | None:
        """A directory that the early table has; None when what is in it is no part of the set."""
        if self._opened == (tree, name):
            return self._folder
        self._close_folder()
        self._opened = tree, name
        at, ask = self._early.find(name, tree), self._asks(tree, name)
        if at is None or self._early.table.kind(at) != _DIRECTORY or ask is None:
            return None
        fd = self._view.open_tree(self._trees[tree])
        try:
            self._begin_tree(tree, fd)
            inside = inside_tree(name, self._trees[tree])
            folder_fd = open_below(fd, inside, FOLDER_FLAGS)
        finally:
            os.close(fd)
        self._folder = Folder(folder_fd, name + b"/", ask, iter(()))
        return self._folder

    def _close_folder(self) -> None:
        if self._folder is not None:
            os.close(self._folder.fd)
        self._folder, self._opened = None, (-1, b"")

    def _asks(self, tree: int, name: bytes) -> bool | None:
        """Whether `keep` is asked about what is in a directory; None: that is no part of the
        set."""
        at = len(self._trees[tree].name)
        while True:
            kept = self._keep(name[:at])
            if kept is Keep.WHOLE:
                return False
            if kept is not Keep.KEEP:
                return None
            if at == len(name):
                return True
            at = name.find(b"/", at + 1)
            at = len(name) if at < 0 else at
