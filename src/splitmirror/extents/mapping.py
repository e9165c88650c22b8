"""Asking for the maps of files that are known, and for nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Self

from splitmirror.extents.scan import mapper
from splitmirror.extents.table import FileTable
from splitmirror.extents.views import View, inside_tree, open_below
from splitmirror.model import Kind, Tree
from splitmirror.system.opening import FILE_FLAGS, FOLDER_FLAGS

_FILE = ord(Kind.FILE)


def map_entries(view: View, table: FileTable) -> Iterator[tuple[int, bytes]]:
    """For every file of the table, in its order, its place and its map (ExtentMap.packed) as it is
    now in the view.

    What is no regular file, or is empty, has an empty map. Raises what the view raises.
    """
    mappers = [mapper(tree.filesystem) for tree in view.trees]
    with _LastFolder(view) as folders:
        for at, name in enumerate(table.names):
            kind, size, *_ = table.seen(at)
            if kind != _FILE or not size:
                yield at, b""
                continue
            tree = table.tree(at)
            fd = folders.open_file(name, view.trees[tree])
            try:
                extents = mappers[tree](fd, size)
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
