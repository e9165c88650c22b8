"""What the guard leaves behind when it has stepped in: a JSON document, replaced atomically."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Thawed:
    """What became of one filesystem: how often a thaw found it frozen; why it could not be."""

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


class RecordFile:
    """Where the record goes. Its directory is opened beforehand, so that writing it needs no path
    to be walked."""

    def __init__(self, path: str) -> None:
        """Raises OSError when the directory cannot be opened."""
        directory, self._name = os.path.split(path)
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

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
