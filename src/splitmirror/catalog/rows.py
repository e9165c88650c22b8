"""What the catalogue holds, as values, and their way into its tables and out again."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from splitmirror.archive.manifest import MemberRecord, PartRecord
from splitmirror.archive.seeking import WHOLE, PlainRecord, Recorded
from splitmirror.media.pools import Dated
from splitmirror.media.shelf import VolumeRecord, VolumeState
from splitmirror.model import (
    Attributes,
    BackupSet,
    Check,
    Kind,
    MapCounts,
    MediaPosition,
    Mode,
    Origin,
    Phase,
    Speed,
    VolumeUse,
)
from splitmirror.stream.member import Piece

UNKNOWN: Final = "?"  # what the manifests do not tell of a set that was cut off


class Located(NamedTuple):
    """A member and the number of the part that holds it."""

    part: int
    record: MemberRecord

    @property
    def name(self) -> bytes:
        return self.record.name

    @property
    def kind(self) -> Kind:
        return self.record.attributes.kind

    @property
    def size(self) -> int:
        """Of the piece, where it is one."""
        return self.record.size

    @property
    def title(self) -> str:
        return self.record.title


Row = Mapping[str, Any]  # at the edge only


def _utc(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def set_columns(record: BackupSet) -> dict[str, object]:
    """The row of a set, without its number."""
    trees = [[os.fsdecode(name), os.fsdecode(path)] for name, path in record.trees]
    return {
        "set_id": record.set_id,
        "source": record.source,
        "host": record.host,
        "database": record.database,
        "mode": str(record.mode),
        "check_when": str(record.check),
        "mirror": record.mirror,
        "medium": record.medium,
        "started": _utc(record.started),
        "ended": _utc(record.ended),
        "complete": record.complete,
        "files": record.files,
        "stored_bytes": record.stored_bytes,
        "write_pause_s": record.write_pause_s,
        "pause_parts": json.dumps(dict(record.pause_parts)),
        "quiesce_window_s": record.quiesce_window_s,
        "maps_early": record.maps.early,
        "maps_renewed": record.maps.renewed,
        "maps_new": record.maps.new,
        "maps_gone": record.maps.gone,
        "watch": record.watch,
        "trees": json.dumps(trees),
        "facts": json.dumps(dict(record.facts)),
        "speed": None if record.speed is None else json.dumps(asdict(record.speed)),
        "volumes": json.dumps([asdict(use) for use in record.volumes]),
    }


def phase_columns(phases: Iterable[Phase]) -> Iterator[dict[str, object]]:
    for ordinal, phase in enumerate(phases):
        yield {
            "ordinal": ordinal,
            "name": phase.name,
            "began_s": phase.began_s,
            "seconds": phase.seconds,
        }


def as_set(row: Row, phases: Iterable[Phase]) -> BackupSet:
    """The set of a row and its phases."""
    return BackupSet(
        set_id=row["set_id"],
        source=row["source"],
        host=row["host"],
        database=row["database"],
        mode=Mode(row["mode"]),
        check=Check(row["check_when"]),
        mirror=row["mirror"],
        medium=row["medium"],
        started=datetime.fromisoformat(row["started"]),
        ended=_moment(row["ended"]),
        complete=bool(row["complete"]),
        files=row["files"],
        stored_bytes=row["stored_bytes"],
        write_pause_s=row["write_pause_s"],
        pause_parts=json.loads(row["pause_parts"]),
        quiesce_window_s=row["quiesce_window_s"],
        phases=tuple(phases),
        maps=MapCounts(
            early=row["maps_early"],
            renewed=row["maps_renewed"],
            new=row["maps_new"],
            gone=row["maps_gone"],
        ),
        watch=row["watch"],
        trees=tuple(
            (os.fsencode(name), os.fsencode(path)) for name, path in json.loads(row["trees"])
        ),
        facts=json.loads(row["facts"]),
        speed=None if row["speed"] is None else Speed(**json.loads(row["speed"])),
        volumes=tuple(
            VolumeUse(**{**use, "notes": tuple(use["notes"])}) for use in json.loads(row["volumes"])
        ),
    )


def volume_columns(record: VolumeRecord) -> dict[str, object]:
    """The row of a volume, its label included."""
    return {
        "label": record.serial,
        "medium": record.medium,
        "pool": record.pool,
        "barcode": record.barcode,
        "state": str(record.state),
        "held": record.held,
        "write_once": record.write_once,
        "first_written": _utc(record.first_written),
        "last_written": _utc(record.last_written),
        "bytes": record.bytes,
        "stalls": record.stalls,
        "recycled": record.recycled,
        "recycling": _utc(record.recycling),
    }


def as_volume(row: Row) -> VolumeRecord:
    plain = ("medium", "pool", "barcode", "held", "bytes", "stalls", "recycled")
    return VolumeRecord(
        serial=row["label"],
        state=VolumeState(row["state"]),
        write_once=bool(row["write_once"]),
        first_written=_moment(row["first_written"]),
        last_written=_moment(row["last_written"]),
        recycling=_moment(row["recycling"]),
        **{column: row[column] for column in plain},
    )


def as_dated(row: Row) -> Dated:
    """A set as retention sees it. `of_parts`: where its parts are, with commas between; its own
    catalogue may be on one volume more."""
    of_parts = row["of_parts"].split(",") if row["of_parts"] else []
    return Dated(
        set_id=row["set_id"],
        source=None if row["source"] == UNKNOWN else row["source"],
        started=datetime.fromisoformat(row["started"]),
        complete=bool(row["complete"]),
        volumes=frozenset([*of_parts, *(use["volume"] for use in json.loads(row["volumes"]))]),
    )


def part_columns(part: PartRecord) -> dict[str, object]:
    """Raises ValueError for a part whose place is not known."""
    if part.position is None:
        raise ValueError(f"part {part.number} has no position")
    return {
        "number": part.number,
        "volume": part.position.volume,
        "tape_file": part.position.tape_file,
        "object": part.position.object,
        "members": part.members,
        "stored": part.stored,
        "length": part.length,
        "block_size": part.block_size,
        "manifest": part.manifest,
        "digest": part.digest,
    }


def as_part(set_id: str, row: Row) -> PartRecord:
    plain = ("number", "members", "stored", "length", "block_size", "manifest", "digest")
    return PartRecord(
        set_id=set_id,
        position=MediaPosition(
            volume=row["volume"], tape_file=row["tape_file"], object=row["object"]
        ),
        **{column: row[column] for column in plain},
    )


def member_columns(part: int, record: MemberRecord) -> dict[str, object]:
    attributes, piece = record.attributes, record.piece
    return {
        "part": part,
        "offset": record.offset,
        "name": record.name,
        "kind": attributes.kind.value,
        "mode": attributes.mode,
        "uid": attributes.uid,
        "gid": attributes.gid,
        "whole": attributes.size,
        "mtime_ns": attributes.mtime_ns,
        "link": attributes.link,
        "rdev": attributes.rdev,
        "xattrs": _packed(attributes.xattrs),
        "size": record.size,
        "stored": record.stored,
        "blake3": record.blake3,
        "map": record.map,
        "piece": piece.number if piece else None,
        "pieces": piece.count if piece else None,
        "piece_offset": piece.offset if piece else None,
        "origin": record.origin.value,
        "title": record.title,
    }


# In the order in which as_member takes them: a million rows are read by position, not by name.
# What an ordinary file has stands first.
MEMBER_COLUMNS = (
    *("part", "offset", "kind", "piece", "link", "stored"),
    *("name", "mode", "uid", "gid", "mtime_ns", "xattrs", "size", "blake3"),
    *("whole", "rdev", "map", "origin", "title", "pieces", "piece_offset"),
)
_ORDINARY = MEMBER_COLUMNS.index("whole")
_FILE = Kind.FILE.value
_KINDS = {kind.value: kind for kind in Kind}
_ORIGINS = {origin.value: origin for origin in Origin}


def as_member(row: Sequence[Any]) -> Located:
    """The member of a row with MEMBER_COLUMNS."""
    part, offset, kind, piece, link, stored, name, mode, uid, gid, mtime_ns, xattrs, *rest = row
    size, blake3, whole, rdev, map_digest, origin, title, pieces, begin = rest
    attributes = Attributes(
        kind=_KINDS[kind],
        mode=mode,
        uid=uid,
        gid=gid,
        size=whole,
        mtime_ns=mtime_ns,
        link=link,
        rdev=rdev,
        xattrs=_unpacked(xattrs),
    )
    record = MemberRecord(
        name=name,
        attributes=attributes,
        offset=offset,
        size=size,
        stored=stored,
        blake3=blake3,
        map=map_digest,
        origin=_ORIGINS[origin],
        piece=None if piece is None else Piece(number=piece, count=pieces, offset=begin),
        title=title,
    )
    return Located(part, record)


def recorded(row: Sequence[Any]) -> Recorded:
    """The same in the shortest form."""
    _, offset, kind, piece, link, stored, name, *rest = row[:_ORDINARY]
    mode, uid, gid, mtime_ns, xattrs, size, blake3 = rest
    if kind == _FILE and stored == size <= WHOLE and piece is None and not link:
        values = (name, mode, uid, gid, mtime_ns, _unpacked(xattrs) if xattrs else (), size)
        return PlainRecord(offset, values, blake3)
    return as_member(row).record


_LENGTHS = struct.Struct("<II")  # of an extended attribute's name and value, which follow


def _packed(xattrs: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b"".join(_LENGTHS.pack(len(key), len(value)) + key + value for key, value in xattrs)


def _unpacked(packed: bytes) -> tuple[tuple[bytes, bytes], ...]:
    found, at = [], 0
    while at < len(packed):
        key, value = _LENGTHS.unpack_from(packed, at)
        at += _LENGTHS.size
        found.append((packed[at : at + key], packed[at + key : at + key + value]))
        at += key + value
    return tuple(found)
