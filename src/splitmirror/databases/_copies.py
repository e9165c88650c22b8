"""What every driver does before it starts a restored copy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from splitmirror.errors import CopyFailed


def refuse_original(roots: Mapping[bytes, Path], hide: Sequence[Path]) -> None:
    """Raise CopyFailed when a root of the copy is, holds or lies in a place that is to be hidden:
    then it is no copy."""
    hidden = {Path(os.path.realpath(path)) for path in hide}
    for name, path in roots.items():
        real = Path(os.path.realpath(path))
        for original in hidden:
            if real == original or original in real.parents or real in original.parents:
                raise CopyFailed(
                    f"{os.fsdecode(name)} of the copy, {path}, is no other place than the "
                    f"original's {original}",
                    hint="Restore to a scratch directory, away from the original.",
                    path=str(path),
                )


def hand_over(paths: Iterable[Path], uid: int) -> None:
    """Give whole trees to `uid` and to the group of that number. Follows no symbolic link."""
    for path in paths:
        os.chown(path, uid, uid, follow_symlinks=False)
        if path.is_symlink() or not path.is_dir():
            continue
        for _, directories, files, here in os.fwalk(path):
            for name in (*directories, *files):
                os.chown(name, uid, uid, dir_fd=here, follow_symlinks=False)
