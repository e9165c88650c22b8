"""Scratch directories that go with the process that made them, or soon after it.

Each is locked (flock(2)) by its process. The kernel gives the lock back however that process ends,
and a lock, unlike a pid, is never a later process's, nor hidden by a pid namespace: a directory of
ours that can be locked was left by a dead one. A process that was walled off in it may have
outlived its parent for a moment, or for ever if it was stopped: it is ended first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from splitmirror.errors import SplitmirrorError
from splitmirror.system import walled

_PREFIX = "splitmirror-drill-"  # they are for the drill, and what it starts


@contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """A private directory in `place`, gone in the end with all that is in it. A failure to remove
    it never hides the block's own error."""
    directory, fd = _made(place)
    try:
        try:
            yield directory
        except BaseException as error:
            try:
                _remove(directory)
            except SplitmirrorError as second:
                error.add_note(str(second))
            raise
        _remove(directory)
    finally:
        os.close(fd)


def sweep(places: Iterable[Path]) -> list[Path]:
    """Take away the scratch directories whose processes are dead, and the walled-off processes that
    still work in them. Gives the directories. Another user's are let be. Raises SplitmirrorError
    when one cannot be taken away."""
    taken = []
    for directory in sorted({found for place in places for found in place.glob(f"{_PREFIX}*")}):
        fd = _locked(directory)
        if fd is not None:
            try:
                walled.end_inside(directory)
                _remove(directory)
            finally:
                os.close(fd)
            taken.append(directory)
    return taken


def _made(place: Path) -> tuple[Path, int]:
    """A new directory, and the descriptor that holds its lock."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        if (fd := _locked(directory)) is not None:
            return directory, fd
        # a sweep took it for a dead one's in the moment before it was locked


def _locked(directory: Path) -> int | None:
    """A descriptor that holds the directory's lock. None: its process lives, or it is none of ours,
    or it is gone."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_uid == os.geteuid() and directory.exists():
            return fd
    os.close(fd)
    return None


def _remove(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except OSError as error:
        raise SplitmirrorError(
            f"the scratch directory {directory} could not be removed: {error}",
            hint="Remove it by hand.",
        ) from error
