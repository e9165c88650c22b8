"""Looking at what may have changed since an early scan, by the times of directories and files.

For discovery where nothing else says what changed. Writers may be waiting meanwhile, so every
directory and file costs one fstat or stat, and only those that changed are opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from splitmirror.databases import Keep
from splitmirror.extents.known import Known
from splitmirror.extents.scan import Child, Folder, Scan, listed
from splitmirror.extents.table import FileTable
from splitmirror.extents.views import View
from splitmirror.model import Kind, Tree

_DIRECTORY = ord(Kind.DIRECTORY)
_FILES = frozenset((ord(Kind.FILE), ord(Kind.HARDLINK)))


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
    return _Rescan(view, trees, keep, early, maps=maps).run()


class _Rescan(Scan):
    """A walk that asks an early table first."""

    def __init__(
        self,
        view: View,
        trees: Sequence[Tree],
        keep: Callable[[bytes], Keep],
        early: Known,
        *,
        maps: bool,
    ) -> None:
        super().__init__(view, trees, keep, maps=maps, xattrs=early.table.has_xattrs)
        self._early = early

    def _inside(
        self, fd: int, name: bytes, status: os.stat_result, above: Folder | None
    ) -> tuple[list[bytes], list[Child], Mapping[bytes, int]]:
        early, kind = self._early, self._early.table.kind
        base = name.rpartition(b"/")[2]
        at = early.find(name) if above is None else above.known.get(base)
        if at is None or kind(at) != _DIRECTORY:
            return super()._inside(fd, name, status, above)
        known = early.inside(at)
        if not early.is_directory(at, status):
            return *listed(fd), known
        files = [base for base, child in known.items() if kind(child) in _FILES]
        others = [
            Child(base, kind(child) == _DIRECTORY)
            for base, child in known.items()
            if kind(child) not in _FILES
        ]
        return files, others, known

    def _look_at(self, folder: Folder, bases: list[bytes]) -> None:
        changed: list[bytes] = []
        for base in bases:
            at = folder.known.get(base)
            if at is None or not self._stands(folder, base, at):
                changed.append(base)
                continue
            if changed:
                super()._look_at(folder, changed)
                changed = []
            self._table.append_from(self._early.table, at, tree=self._at)
        super()._look_at(folder, changed)

    def _stands(self, folder: Folder, base: bytes, at: int) -> bool:
        """Whether the early entry of a file still holds, as far as times tell."""
        try:
            status = os.stat(base, dir_fd=folder.fd, follow_symlinks=False)
        except OSError:
            return False  # looked at in full, which says what is wrong
        return status.st_dev == self._device and self._early.is_file(at, status)
