"""Who has which drive, and whose turn it is to move cartridges: flock(2) on files of a directory.

A lease dies with the process that holds it. The file stays, with the pid of its last holder in it,
for whoever is refused; it is never removed, for another process may be about to lock it.
"""

from __future__ import annotations

import fcntl
import os
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from splitmirror.errors import Busy, PrivilegeError
from splitmirror.system import locks

_LONGEST_NAME: Final = 200  # characters; a file's name has 255 bytes
_POLL_S: Final = 0.1


class Leases:
    """The lock files below a directory, which is made if need be."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def take(self, name: str) -> int | None:
        """A descriptor that holds the lease of that name until it is closed; None: someone else
        has it, perhaps in this very process. Raises PrivilegeError."""
        fd = self._open(name)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        return fd

    def user(self, name: str) -> str | None:
        """The process that has the lease, in words; None: nobody. Looking hinders nobody."""
        pid = locks.flocked_by(self._path(name))
        return None if pid is None else f"process {pid}"

    def holder(self, name: str) -> str:
        """The process that has the lease, or had it last, in words."""
        fd = self._open(name)
        try:
            return f"process {os.pread(fd, 64, 0).decode(errors='replace').strip() or '?'}"
        finally:
            os.close(fd)

    @contextmanager
    def turn(self, name: str, deadline_s: float) -> Iterator[None]:
        """Hold the lease for the block, waiting for it. Raises Busy at the deadline."""
        until_s = time.monotonic() + deadline_s
        while (fd := self.take(name)) is None:
            if time.monotonic() > until_s:
                raise Busy(
                    f"{self.holder(name)} has been moving cartridges for {deadline_s:g} s",
                    hint="Look at the library: an arm that is stuck is put right there.",
                )
            time.sleep(_POLL_S)
        try:
            yield
        finally:
            os.close(fd)

    def _path(self, name: str) -> Path:
        return self._directory / urllib.parse.quote(name, safe="")[-_LONGEST_NAME:]

    def _open(self, name: str) -> int:
        path = self._path(name)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise PrivilegeError(
                f"{path} cannot be written: {error.strerror}",
                hint="Run as root, or set state_dir to a directory that you may write.",
            ) from error
