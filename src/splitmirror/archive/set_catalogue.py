"""The last tape file of a set: a tar with all that a catalogue needs to know about it.

`.splitmirror/set.json` is the set, `.splitmirror/parts.jsonl` a line for each part with its place,
`.splitmirror/files.jsonl` a line for each member, as in the manifests, with its part's number. The
last line of the files counts them and hashes all three. Neither way is all of it in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from splitmirror.archive.manifest import (
    VERSION,
    MemberRecord,
    PartRecord,
    expect_format,
    lines_of,
    member_of,
)
from splitmirror.archive.naming import OURS, json_line, parse_line, to_bytes, to_text
from splitmirror.archive.records import BLOCK_SIZE, ReadRecord
from splitmirror.archive.tar import Entry, TarReader, TarWriter, contents, spool
from splitmirror.model import BackupSet
from splitmirror.stream.behind import Sink

SET_FORMAT = "splitmirror set"
SET = OURS + b"set.json"
PARTS = OURS + b"parts.jsonl"
FILES = OURS + b"files.jsonl"
_SMALL = 64 << 20  # bytes; more than set.json or parts.jsonl of any set


# --- the set and its parts as JSON


def set_document(backup_set: BackupSet) -> bytes:
    """A set as a line of JSON; times are RFC 3339, names as in the manifests."""
    document = msgspec.to_builtins(backup_set, builtin_types=(bytes,))
    document["trees"] = [[to_text(name), to_text(path)] for name, path in backup_set.trees]
    del document["speed"]  # not known before the set is on the medium
    return json_line({"format": SET_FORMAT, "version": VERSION, **document})


def set_of(line: bytes) -> BackupSet:
    """The reverse. Keys that are not known are passed over. Raises ValueError."""
    document = parse_line(line)
    expect_format(document, SET_FORMAT)
    with _checked():
        trees = document.get("trees", [])
        document["trees"] = [[to_bytes(name), to_bytes(path)] for name, path in trees]
        return msgspec.convert(document, BackupSet, builtin_types=(bytes,))


def part_line(part: PartRecord) -> bytes:
    """A part as a line of JSON."""
    document = msgspec.to_builtins(part, builtin_types=(bytes,))
    return json_line({**document, "digest": part.digest.hex()})


def part_of(line: bytes) -> PartRecord:
    """The reverse. Raises ValueError."""
    document = parse_line(line)
    with _checked():
        document["digest"] = bytes.fromhex(document["digest"])
        return msgspec.convert(document, PartRecord, builtin_types=(bytes,))


@contextmanager
def _checked() -> Iterator[None]:
    """What a document lacks or has wrong becomes ValueError."""
    try:
        yield
    except (msgspec.ValidationError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a line with a wrong or missing value: {error}") from error


# --- writing


def write_set_catalogue(
    sink: Sink,
    *,
    backup_set: BackupSet,
    parts: Iterable[PartRecord],
    files: Iterable[bytes],
    block_size: int = BLOCK_SIZE,
    scratch: Path | None = None,
) -> int:
    """Write the tape file; gives its length in bytes.

    `files` is the text of the members' lines, cut anywhere, in the order of parts and members, as
    the parts' manifests have it (`part.member_text`). It goes through a temporary file (in
    `scratch`), for a tar needs the length first. Raises what the sink raises.
    """
    parts = tuple(parts)
    tar = TarWriter(sink, block_size)
    head = set_document(backup_set)
    table = b"".join(part_line(part) for part in parts)
    tar.own(SET, len(head), (head,))
    tar.own(PARTS, len(table), (table,))
    with spool(scratch) as text:
        digest = blake3(head + table)
        for chunk in files:
            digest.update(chunk)
            text.write(chunk)
        count = sum(part.members for part in parts)
        text.write(json_line({"members": count, "blake3": digest.hexdigest()}))
        tar.own(FILES, text.tell(), contents(text))
    return tar.close()


# --- reading


class SetCatalogue:
    """A set's catalogue as it comes off the medium.

    `backup_set` and `parts` are known at once. Iterate it once, to the end, for the members, each
    with its part's number; at the end the hash was found true, and the source stands behind the
    filemark. Raises MediumDamaged.
    """

    def __init__(self, read: ReadRecord) -> None:
        self._tar = TarReader(read)
        self._entries = iter(self._tar)
        head, table = self._text(SET), self._text(PARTS)
        self._hash = blake3(head + table)
        try:
            self.backup_set: BackupSet = set_of(head)
            self.parts: tuple[PartRecord, ...] = tuple(map(part_of, table.splitlines()))
        except ValueError as error:
            raise self._tar.records.damaged(str(error)) from error

    def _text(self, name: bytes) -> bytes:
        entry = self._entry(name)
        if entry.header.archived > _SMALL:
            raise self._tar.records.damaged(f"{to_text(name)} is too long")
        return b"".join(map(bytes, entry.body))  # copied before the next is read

    def _entry(self, name: bytes) -> Entry:
        entry = next(self._entries, None)
        if entry is None or entry.header.name != name:
            raise self._tar.records.damaged(f"no set's catalogue: {to_text(name)} is missing")
        return entry

    def __iter__(self) -> Iterator[tuple[int, MemberRecord]]:
        body = self._entry(FILES).body
        try:
            yield from self._members(lines_of(body))
        except ValueError as error:
            raise self._tar.records.damaged(str(error)) from error
        for _ in self._entries:
            raise self._tar.records.damaged("a member behind the catalogue's last")

    def _members(self, lines: Iterator[bytes]) -> Iterator[tuple[int, MemberRecord]]:
        for count, line in enumerate(lines):
            document = parse_line(line)
            if "members" in document:
                self._end(document, count)
                return
            self._hash.update(line + b"\n")
            yield document["part"], member_of(document)
        raise ValueError("a catalogue without its last line")

    def _end(self, document: Mapping[str, Any], count: int) -> None:
        if document != {"members": count, "blake3": self._hash.hexdigest()}:
            raise ValueError("a catalogue whose last line does not fit the lines before it")


def is_set_catalogue(first_name: bytes) -> bool:
    """Whether a tape file whose first member has that name is a set's catalogue."""
    return first_name == SET
