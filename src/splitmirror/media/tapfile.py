"""The file of a virtual tape: made, opened and locked, and what its errors mean.

Source: open(2), flock(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from splitmirror.errors import Busy, EndOfMedium, MediumError, NoSuchVolume, WrongMedium
from splitmirror.system import briefly

_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def opened(path: Path, *, writable: bool) -> int:
    """A descriptor of the file, locked: writable for one, which makes it where it is missing,
    read-only for many. Raises NoSuchVolume, WrongMedium, Busy, MediumError."""
    fd = _open(path, writable)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        _lock(path, fd, fcntl.LOCK_EX if writable else fcntl.LOCK_SH)
        undo.pop_all()
    return fd


def _lock(path: Path, fd: int, kind: int) -> None:
    try:
        lock = kind | fcntl.LOCK_NB
        briefly.tried(lambda: fcntl.flock(fd, lock), frozenset({errno.EAGAIN}))
    except BlockingIOError:
        raise Busy(
            f"the virtual tape {path} is in use",
            hint="Wait for the run that writes or reads it, or end it.",
            path=str(path),
        ) from None
    except OSError as error:  # a filesystem that knows no locks
        raise trouble(path, "cannot be locked", error) from error


def _open(path: Path, writable: bool) -> int:
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise WrongMedium(
                f"{path} is not a file",
                hint="A virtual tape is an ordinary file; name another path.",
                path=str(path),
            )
        created = writable and not path.exists()
        flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        if created:
            _sync_directory(path.parent)
    except FileNotFoundError:
        raise NoSuchVolume(
            f"there is no virtual tape {path}",
            hint="Check the path; its directory must exist, the file is made when it is first "
            "written.",
            path=str(path),
        ) from None
    except OSError as error:
        raise trouble(path, "cannot be opened", error) from error
    return fd


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def not_written(path: Path, error: OSError) -> MediumError:
    """The error to raise when a write failed."""
    if error.errno not in _NO_ROOM:
        return trouble(path, "cannot be written", error)
    return EndOfMedium(
        f"the filesystem of {path} is full",
        hint=f"Make room on the filesystem that holds {path.parent}, or set [medium] capacity to "
        "what it can hold.",
        path=str(path),
    )


def trouble(path: Path, what: str, error: OSError) -> MediumError:
    """The error to raise when the file system refuses something."""
    return MediumError(
        f"the virtual tape {path} {what}: {error.strerror}",
        hint="Check the path, its owner and the disk below it.",
        path=str(path),
    )
