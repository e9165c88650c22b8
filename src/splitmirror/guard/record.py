"""What the guard leaves behind when it has stepped in: a JSON document, replaced atomically.

While a guard lives it holds a shared flock(2) on the record's directory, so that whoever takes that
directory up after a crash can wait for it to be done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from pathlib import Path

_LOOK_AGAIN_S = 0.02


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Thawed:
    """What became of one filesystem: how often a thaw found it frozen; why it could not be. Of a
    device of device-mapper ("device 253:4") the same: suspended, and resumed."""

    mountpoint: str
    times: int
    problem: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The guard has stepped in.

    `cause`: "holder gone", "deadline: WHAT" or "let go while armed". `killed`: the holder lived,
    did not release by itself, and was killed. `thawed_after_s`: from what made the guard step in to
    the first thaw of every filesystem. `ended`: the sessions that were signalled; `remaining`:
    those of them that were still there afterwards.
    """

    cause: str
    at: float  # seconds since the epoch
    holder_pid: int
    holder_start_ticks: int
    killed: bool
    thawed_after_s: float
    filesystems: tuple[Thawed, ...]
    ended: tuple[str, ...] = ()
    remaining: tuple[str, ...] = ()
    late_imports: tuple[str, ...] = ()  # modules loaded after the start: a defect, if any


def read_record(record: Path) -> Released | None:
    """What the guard wrote; None when it never stepped in, or could not write."""
    try:
        facts = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        return None
    facts["filesystems"] = tuple(Thawed(**thawed) for thawed in facts["filesystems"])
    for name in ("ended", "remaining", "late_imports"):
        facts[name] = tuple(facts[name])
    return Released(**facts)


def wait_for_guards(directory: Path, seconds: float) -> bool:
    """Wait until no guard that leaves its record in `directory` lives. False: one still does after
    so many seconds. Raises OSError when the directory cannot be opened."""
    until = time.monotonic() + seconds
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK_AGAIN_S)
    finally:
        os.close(fd)


class RecordFile:
    """Where the record goes. Its directory is opened beforehand, so that writing it needs no path
    to be walked; the lock on it goes with the process."""

    def __init__(self, path: str) -> None:
        """Raises OSError when the directory cannot be opened."""
        directory, self._name = os.path.split(path)
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._directory, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def write(self, released: Released) -> None:
        """Replace the record, durably. A disk that is full or gone is passed over: nobody is left
        to be told, and everything is thawed by now."""
        text = json.dumps(dataclasses.asdict(released)).encode()
        with contextlib.suppress(OSError):
            self._replace(text)

    def _replace(self, text: bytes) -> None:
        new, where = self._name + ".new", self._directory
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=where)
        try:
            os.write(fd, text)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(new, self._name, src_dir_fd=where, dst_dir_fd=where)
        os.fsync(where)
