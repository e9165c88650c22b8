"""What a run keeps in its own directory, so that a crash costs no more than the part that was being
written: the trusted split, and what is known of each part that is whole on the medium.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import msgspec
from blake3 import blake3

from splitmirror.archive.manifest import PartRecord
from splitmirror.archive.part import member_lines, member_text
from splitmirror.archive.set_catalogue import part_line, part_of
from splitmirror.databases import RedoFile
from splitmirror.errors import JournalDamaged, NoRoom
from splitmirror.journal import Journal
from splitmirror.journal import read as read_journal
from splitmirror.model import BackupSet, Tree

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """What must outlive a crash once the split is trusted, beside the plan.

    A run that is taken up again goes on as it began, whatever the configuration says by then.
    """

    backup_set: BackupSet
    trees: tuple[Tree, ...]
    copied: tuple[RedoFile, ...]
    block_size: int
    part_size: int
    streams: int  # stretches of the set that are written at once

    def save(self, path: Path) -> str:
        """Durable when it returns; gives the digest that `load` wants."""
        text = json_of(self).encode()
        write_durably(path, text)
        return blake3(text).hexdigest()

    @classmethod
    def load(cls, path: Path, digest: str) -> Trusted:
        """Raises JournalDamaged when the file is not what was saved."""
        text = path.read_bytes() if path.exists() else b""
        if blake3(text).hexdigest() != digest:
            raise JournalDamaged(
                f"{path} is not what the journal says it is",
                hint="The backup cannot go on; back up anew.",
            )
        return from_json(text, cls)


class Notes:
    """What the run notes of each part that is whole on the medium: its manifest, in the run's
    directory, and the part's own line, in the journal. So a part costs two syncs, and each takes
    as long as reading many MiB where the run's disk is busy."""

    def __init__(self, directory: Path, journal: Journal) -> None:
        self._directory, self._journal = directory, journal

    @contextmanager
    def manifest(self, number: int) -> Iterator[IO[bytes]]:
        """An empty file for the manifest of a part; written when this is left. Raises NoRoom."""
        path = self._manifest(number)
        with self._room(path), path.open("w+b") as file:
            yield file

    def note(self, part: PartRecord) -> None:
        """Durable when it returns, and its manifest too. Raises NoRoom."""
        path = self._manifest(part.number)
        with self._room(path):
            sync(path)
            sync(self._directory)
        assert part.position is not None
        line, volume = part_line(part).decode(), part.position.volume
        self._journal.record("part", number=part.number, volume=volume, line=line)

    def parts(self) -> list[PartRecord]:
        """All that are noted, in the order of their numbers. Where several streams were cut off,
        some are missing."""
        records = (record for record in read_journal(self._directory) if record.kind == "part")
        found = {record.facts["number"]: record.facts["line"] for record in records}
        return [part_of(found[number].encode()) for number in sorted(found)]

    def size(self, parts: Sequence[PartRecord]) -> int:
        """Bytes of these parts' manifests: of `text`, and a little more."""
        return sum(self._manifest(part.number).stat().st_size for part in parts)

    def lines(self, parts: Sequence[PartRecord]) -> Iterator[bytes]:
        """The members' lines of these parts."""
        for part in parts:
            with self._manifest(part.number).open("rb") as file:
                yield from member_lines(file)

    def text(self, parts: Sequence[PartRecord]) -> Iterator[bytes]:
        """The same in large chunks, as the set's catalogue has them."""
        for part in parts:
            with self._manifest(part.number).open("rb") as file:
                yield from member_text(file)

    def _manifest(self, number: int) -> Path:
        return self._directory / f"manifest-{number:04d}"

    @contextmanager
    def _room(self, path: Path) -> Iterator[None]:
        """Tell a full disk under the run's directory from one of the medium's."""
        try:
            yield
        except OSError as error:
            raise NoRoom(
                f"{path} cannot be written: {error.strerror}", hint=f"Make room in {path.parent}."
            ) from error


class Noting:
    """Notes one part after another on a thread, one at a time. A crash before a part is noted has
    it written once more. Leaving the `with` waits, and passes over what went wrong then."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="noting")
        self._under_way: Future[None] | None = None

    def __enter__(self) -> Noting:
        return self

    def __exit__(self, *failure: object) -> None:
        self._thread.shutdown(wait=True)

    def begin(self, note: Callable[[], None]) -> None:
        """Begin to note a part, once the one before is noted. Raises what noting that one did."""
        self.wait()
        self._under_way = self._thread.submit(note)

    def wait(self) -> None:
        """Until all are noted. Raises what noting the last one did."""
        if self._under_way is not None:
            self._under_way.result()


def json_of(value: object) -> str:
    """A value of ours as JSON for the run's own files; `from_json` gives it back."""
    return msgspec.json.encode(value, enc_hook=str).decode()


def from_json(text: bytes | str, kind: type[T]) -> T:
    """Raises msgspec.ValidationError for what `json_of` cannot have given."""
    return msgspec.json.decode(text, type=kind, dec_hook=lambda wanted, value: wanted(value))


def write_durably(path: Path, text: bytes) -> None:
    """Write a file so that it is whole or not there, whatever happens. Raises NoRoom."""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_bytes(text)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise NoRoom(
            f"{path} cannot be written: {error.strerror}", hint=f"Make room in {path.parent}."
        ) from error


def sync(path: Path) -> None:
    """fsync a file or directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
