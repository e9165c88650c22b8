"""Verifies a part: all that was read against what the manifest says."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from blake3 import blake3

from splitmirror.archive.manifest import MemberRecord, PartRecord, description, map_digest
from splitmirror.archive.naming import is_manifest
from splitmirror.archive.reading import Manifest, ReadMember, member_of_entry
from splitmirror.archive.records import ReadRecord
from splitmirror.archive.tar import TarReader
from splitmirror.model import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A member that is not what the manifest says, and in which way."""

    name: bytes
    offset: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCheck:
    """A part that was read from end to end. It is sound when there are no problems."""

    part: PartRecord
    problems: tuple[Problem, ...]


_SEEN = struct.Struct("<Q32s32s")  # offset, hash of the data, hash of everything else


def verify_part(read: ReadRecord) -> PartCheck:
    """Read a part and compare every member with the manifest: hash, map, name, attributes, place.

    The manifest's own hash is checked; that it is the right manifest is for the caller to see by
    `part.digest`. Takes 72 bytes a member. Raises MediumDamaged where reading cannot go on.
    """
    tar = TarReader(read)
    entries = iter(tar)
    seen = bytearray()
    for entry in entries:
        if is_manifest(entry.header.name):
            manifest = Manifest(tar, entry, entries)
            problems = tuple(_compare(manifest, seen))
            return PartCheck(part=manifest.part, problems=problems)
        seen += _seen(_record_of(member_of_entry(tar, entry)))
    raise tar.records.damaged("a part without its manifest")


def _record_of(member: ReadMember) -> MemberRecord:
    """The record that the manifest must have of a member."""
    digest = blake3()
    for chunk in member.chunks:
        digest.update(chunk)
    stored, is_file = member.stored, member.attributes.kind is Kind.FILE
    return MemberRecord(
        name=member.name,
        attributes=member.attributes,
        offset=member.offset,
        size=member.size,
        stored=stored,
        blake3=digest.digest() if is_file else b"",
        map=map_digest(member.ranges, member.size) if stored != member.size else b"",
        piece=member.piece,
    )


def _seen(record: MemberRecord) -> bytes:
    rest = blake3(description(record).encode("ascii")).digest()
    return _SEEN.pack(record.offset, record.blake3, rest)


def _compare(manifest: Manifest, seen: bytearray) -> Iterator[Problem]:
    """What differs, in the order of the manifest. Both are in the order of the tar."""
    found = _SEEN.iter_unpack(seen)
    for record in manifest:
        offset, digest, rest = _SEEN.unpack(_seen(record))
        at, its_digest, its_rest = next(found, (None, b"", b""))
        if at != offset:
            what = "does not stand where the manifest says"
        elif its_rest != rest:
            what = "has another name, other attributes or holes than the manifest says"
        elif its_digest != digest:
            what = "holds other bytes than were written"
        else:
            continue
        yield Problem(name=record.name, offset=record.offset, what=what)
    if next(found, None) is not None:
        yield Problem(name=b"", offset=0, what="the part holds more members than its manifest")
