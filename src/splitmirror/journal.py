"""What a run intends and has done: an append-only file, durable before and after each step.

A line is the CRC-32 of the rest in eight hex digits, a blank, and a JSON object. A torn last line
is what a crash leaves and is passed over; a damaged line before it is not (JournalDamaged).

Between freeze and thaw nothing may be written. `Journal.silent` keeps what is recorded there in
memory and writes it when the block is left.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from splitmirror.errors import JournalDamaged, NoRoom

NAME = "journal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One step: its kind, when it was recorded, its facts (JSON values)."""

    kind: str
    at: datetime
    facts: dict[str, Any] = field(default_factory=dict)


def _pack(record: Record) -> bytes:
    text = json.dumps({"kind": record.kind, "at": record.at.isoformat(), **record.facts}).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(line: bytes) -> Record:
    """Raises ValueError for a line that is not whole."""
    if not line.endswith(b"\n") or int(line[:8], 16) != zlib.crc32(line[9:-1]):
        raise ValueError("torn or damaged")
    facts = json.loads(line[9:-1])
    return Record(kind=facts.pop("kind"), at=datetime.fromisoformat(facts.pop("at")), facts=facts)


class Journal:
    """The open journal of a running run. Thread-safe; the run's lock sees to it that there is one
    writing process."""

    def __init__(self, directory: Path) -> None:
        """Opens the journal in `directory`, or begins it there; cuts off a torn tail."""
        self._path = directory / NAME
        whole = _whole_length(self._path) if self._path.exists() else 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        os.ftruncate(self._fd, whole)
        self._held: list[Record] | None = None
        self._writing = threading.Lock()
        if not whole:
            _sync_directory(directory)

    def record(self, kind: str, **facts: Any) -> None:
        """Durable when it returns, unless inside `silent`. Raises NoRoom."""
        record = Record(kind=kind, at=datetime.now(UTC), facts=facts)
        if self._held is not None:
            self._held.append(record)
            return
        self._write(_pack(record))

    def _write(self, lines: bytes) -> None:
        view = memoryview(lines)
        with self._writing:
            before = os.fstat(self._fd).st_size
            try:
                while view:
                    view = view[os.write(self._fd, view) :]
                os.fdatasync(self._fd)
            except OSError as error:
                os.ftruncate(self._fd, before)  # half a line would spoil the next one
                raise NoRoom(
                    f"the journal {self._path} cannot be written: {error.strerror}",
                    hint=f"Make room on the filesystem of {self._path.parent}, then run "
                    "`splitmirror recover`.",
                ) from error

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Write nothing until the block is left, whichever way. Blocks may be nested."""
        if self._held is not None:
            yield
            return
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            if held:
                self._write(b"".join(map(_pack, held)))

    def close(self) -> None:
        os.close(self._fd)


def read(directory: Path, *, lenient: bool = False) -> list[Record]:
    """All whole records of a run's journal, oldest first; empty when there is none.

    Raises JournalDamaged when a line other than the last is damaged; `lenient` passes over it.
    """
    path = directory / NAME
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(_parse(line))
        except ValueError:
            if lenient or number == len(lines):
                continue
            raise JournalDamaged(
                f"line {number} of {path} is damaged",
                hint="The file was changed or its disk failed. Release by hand with "
                "`splitmirror release`, then move the run's directory away.",
                path=str(path),
            ) from None
    return records


def _whole_length(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    return sum(len(_pack(record)) for record in read(path.parent))


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
