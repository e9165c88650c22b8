"""Holding a table that was made from what a watch told against the leg: does it have every name?

Whether a file's map and size are right is seen when it is read. Whether a name is missing is seen
here: a directory on the leg whose times are those in the table has the same names in it, and any
other is listed. No file is looked at.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence

from splitmirror.databases import Keep
from splitmirror.extents.known import Known
from splitmirror.extents.scan import listed
from splitmirror.extents.views import View, inside_tree
from splitmirror.model import Kind, Tree
from splitmirror.system.opening import FOLDER_FLAGS

_DIRECTORY = bytes((ord(Kind.DIRECTORY),))


def strange_directory(
    view: View, trees: Sequence[Tree], keep: Callable[[bytes], Keep], known: Known
) -> bytes | None:
    """The member name of the first directory that has other names in the view than in the table;
    None when there is none. What cannot be looked at is strange, too."""
    names = _Names(known, frozenset(tree.name for tree in trees), keep)
    for index, tree in enumerate(trees):
        try:
            root = view.open_tree(tree)
        except OSError:
            return tree.name
        try:
            for at in _directories(known, index):
                name = known.table.names[at]
                if not names.alike(root, inside_tree(name, tree), at, name):
                    return name
        finally:
            os.close(root)
    return None


def _directories(known: Known, tree: int) -> Iterator[int]:
    kinds = known.table.kinds()
    at = kinds.find(_DIRECTORY)
    while at >= 0:
        if known.table.tree(at) == tree:
            yield at
        at = kinds.find(_DIRECTORY, at + 1)


class _Names:
    """The names that a table has in its directories."""

    def __init__(
        self, known: Known, roots: frozenset[bytes], keep: Callable[[bytes], Keep]
    ) -> None:
        self._known, self._roots, self._keep = known, roots, keep

    def alike(self, root: int, inside: bytes, at: int, name: bytes) -> bool:
        """Whether the directory at `inside` of an open tree has the names of the one at `at`."""
        kept = self._keep(name)
        if kept is Keep.EMPTY:
            return True
        try:
            status = os.stat(inside or b".", dir_fd=root, follow_symlinks=False)
            if self._known.is_directory(at, status):
                return True
            there = set(self._there(root, inside, name + b"/", ask=kept is not Keep.WHOLE))
        except OSError:
            return False
        return there == self._known.inside(at).keys()

    def _there(self, root: int, inside: bytes, prefix: bytes, *, ask: bool) -> Iterator[bytes]:
        fd = os.open(inside or b".", FOLDER_FLAGS, dir_fd=root)
        try:
            files, others = listed(fd)
            sockets = {
                child.base
                for child in others
                if not child.folder
                and stat.S_ISSOCK(os.stat(child.base, dir_fd=fd, follow_symlinks=False).st_mode)
            }
        finally:
            os.close(fd)
        for base in (*files, *(child.base for child in others if child.base not in sockets)):
            member = prefix + base
            if member not in self._roots and not (ask and self._keep(member) is Keep.LEAVE):
                yield base
