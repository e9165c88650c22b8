"""The files of a run in a compact table: every name with its attributes and its map.

A database may have millions of files, and the table is held from the early map to the last part,
locked in memory; so a file costs one packed record, its extents 28 bytes each in one common buffer,
and links and extended attributes are kept once for all files that have the same. A `FileEntry` is
made when it is looked at. What it costs is measured by a test: at most 300 bytes a file beyond its
path.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, NamedTuple, cast

from splitmirror.databases import SortKey
from splitmirror.errors import JournalDamaged
from splitmirror.model import Attributes, ExtentFlag, ExtentMap, FileEntry, Kind

Xattrs = tuple[tuple[bytes, bytes], ...]

NO_EXTENTS: Final = ExtentMap()

# A record is what the file is, the same in every table, and where the rest of it lies in this one.
_ITSELF: Final = "BHIIQqQIqQI"
_PLACES: Final = "IQI"
_RECORD: Final = struct.Struct("<" + _ITSELF + _PLACES)
_ITSELF_SIZE: Final = struct.calcsize("<" + _ITSELF)
_PLACED: Final = struct.Struct(f"<{_ITSELF_SIZE - 4}xI{_PLACES}")  # extents_count, and the places
_PLACE: Final = struct.Struct("<" + _PLACES)
_SEEN: Final = struct.Struct("<B10xQqQIq")
_LYING: Final = struct.Struct("<B10xQ8xQ")
_HEADER: Final = struct.Struct("<8sIIqQQQQ")
_MAGIC: Final = b"smfiles\n"
_VERSION: Final = 1
_WITH_XATTRS: Final = 1  # header flag
_U32: Final = struct.Struct("<I")
_CHUNK: Final = 16 << 20  # bytes read at once, so that a damaged length allocates nothing huge


class Row(NamedTuple):
    """A file's record, unpacked. `kind` is the tar type flag's byte, `extra` an index."""

    kind: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ino: int
    nlink: int
    ctime_ns: int
    rdev: int
    extents_count: int
    tree: int
    extents_at: int  # in records of the extent buffer
    extra: int


class FileTable:
    """Files in the order in which they were found: a directory before what it holds, and a hard
    link after the name it is linked to.

    Names are unique; the caller sees to that. `looked_ns` is the wall clock when the scan that
    made the table began (0: not known), `has_xattrs` whether it looked for extended attributes.
    Not safe for appending from several threads; reading is.
    """

    __slots__ = ("_extents", "_extra_at", "_extras", "_index", "_records", "has_xattrs",
                 "looked_ns", "names")  # fmt: skip

    def __init__(self, *, looked_ns: int = 0, has_xattrs: bool = False) -> None:
        self.looked_ns = looked_ns
        self.has_xattrs = has_xattrs
        self.names: list[bytes] = []
        self._records = bytearray()
        self._extents = bytearray()
        self._extras: list[tuple[bytes, Xattrs]] = [(b"", ())]
        self._extra_at: dict[tuple[bytes, Xattrs], int] = {(b"", ()): 0}
        self._index: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[FileEntry]:
        return map(self.__getitem__, range(len(self)))

    # --- filling it

    def append(self, entry: FileEntry) -> None:
        """Add one file behind the others."""
        attributes = entry.attributes
        extents_at, extents_count = self._keep_extents(entry.extents.packed)
        self._records += _RECORD.pack(
            ord(attributes.kind), attributes.mode, attributes.uid, attributes.gid,
            attributes.size, attributes.mtime_ns, entry.ino, entry.nlink, entry.ctime_ns,
            attributes.rdev, extents_count,
            entry.tree, extents_at, self._keep_extra((attributes.link, attributes.xattrs)),
        )  # fmt: skip
        self.names.append(entry.name)

    def append_status(
        self,
        name: bytes,
        tree: int,
        kind: Kind,
        status: os.stat_result,
        *,
        extents: ExtentMap = NO_EXTENTS,
        link: bytes = b"",
        xattrs: Xattrs = (),
    ) -> None:
        """`append` straight from what stat(2) gave, for scans, where every microsecond counts."""
        extents_at, extents_count = self._keep_extents(extents.packed)
        device = kind is Kind.CHARDEV or kind is Kind.BLOCKDEV
        self._records += _RECORD.pack(
            ord(kind), stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid,
            status.st_size if kind is Kind.FILE else 0, status.st_mtime_ns, status.st_ino,
            status.st_nlink, status.st_ctime_ns, status.st_rdev if device else 0, extents_count,
            tree, extents_at, self._keep_extra((link, xattrs)),
        )  # fmt: skip
        self.names.append(name)

    def append_from(
        self,
        other: FileTable,
        at: int,
        *,
        tree: int | None = None,
        extents: ExtentMap | None = None,
    ) -> None:
        """Add the file at `at` of another table, in another tree or with another map if given."""
        begin = at * _RECORD.size
        if extents is None:
            count, of_tree, _, extra = _PLACED.unpack_from(other._records, begin)
            extents_at, _ = self._keep_extents(other.packed_extents(at))
            itself = other._records[begin : begin + _ITSELF_SIZE]
        else:
            _, of_tree, _, extra = _PLACED.unpack_from(other._records, begin)
            extents_at, count = self._keep_extents(extents.packed)
            itself = other._records[begin : begin + _ITSELF_SIZE - _U32.size] + _U32.pack(count)
        self._records += itself
        self._records += _PLACE.pack(
            of_tree if tree is None else tree,
            extents_at,
            self._keep_extra(other._extras[extra]) if extra else 0,
        )
        self.names.append(other.names[at])

    def _keep_extents(self, packed: bytes) -> tuple[int, int]:
        at = len(self._extents) // ExtentMap.RECORD.size
        self._extents += packed
        return at, len(packed) // ExtentMap.RECORD.size

    def _keep_extra(self, extra: tuple[bytes, Xattrs]) -> int:
        at = self._extra_at.setdefault(extra, len(self._extras))
        if at == len(self._extras):
            self._extras.append(extra)
        return at

    # --- looking at it

    def __getitem__(self, at: int) -> FileEntry:
        row = self.row(at)
        link, xattrs = self._extras[row.extra]
        return FileEntry(
            name=self.names[at],
            tree=row.tree,
            attributes=Attributes(
                kind=Kind(chr(row.kind)),
                mode=row.mode,
                uid=row.uid,
                gid=row.gid,
                size=row.size,
                mtime_ns=row.mtime_ns,
                link=link,
                rdev=row.rdev,
                xattrs=xattrs,
            ),
            ino=row.ino,
            nlink=row.nlink,
            ctime_ns=row.ctime_ns,
            extents=ExtentMap(self.packed_extents(at)),
        )

    def row(self, at: int) -> Row:
        """The record itself, without the cost of a FileEntry. Raises IndexError."""
        if not 0 <= at < len(self.names):
            raise IndexError(f"file {at} of {len(self.names)}")
        return Row._make(_RECORD.unpack_from(self._records, at * _RECORD.size))

    def packed_extents(self, at: int) -> bytes:
        """The map of the file at `at`, as ExtentMap.packed."""
        count, _, first, _ = _PLACED.unpack_from(self._records, at * _RECORD.size)
        begin = int(first) * ExtentMap.RECORD.size
        return bytes(self._extents[begin : begin + int(count) * ExtentMap.RECORD.size])

    def kind(self, at: int) -> int:
        """The tar type flag's byte of the file at `at`."""
        return self._records[at * _RECORD.size]

    def seen(self, at: int) -> tuple[int, int, int, int, int, int]:
        """What would show a change: kind, size, mtime_ns, ino, nlink, ctime_ns."""
        return cast(
            "tuple[int, int, int, int, int, int]",
            _SEEN.unpack_from(self._records, at * _RECORD.size),
        )

    def lies_as(self, at: int, other: FileTable, other_at: int) -> bool:
        """Whether a file's bytes lie where those of one of another table do: they are equal in
        kind, inode, size, link and map. Times, owner, mode and attributes do not matter."""
        here = _LYING.unpack_from(self._records, at * _RECORD.size)
        there = _LYING.unpack_from(other._records, other_at * _RECORD.size)
        return (
            here == there
            and self.packed_extents(at) == other.packed_extents(other_at)
            and self.link(at) == other.link(other_at)
        )

    def link(self, at: int) -> bytes:
        """Where the link at `at` points; b"" for what is no link."""
        *_, extra = _PLACED.unpack_from(self._records, at * _RECORD.size)
        return self._extras[int(extra)][0]

    def find(self, name: bytes) -> int | None:
        """Where a name stands. The index is made when first asked for, and follows."""
        for at in range(len(self._index), len(self.names)):
            self._index[self.names[at]] = at
        return self._index.get(name)

    @property
    def stored_bytes(self) -> int:
        """Bytes of data in all files, without holes and unwritten extents; counted anew."""
        return sum(
            length
            for _, _, length, flags in ExtentMap.RECORD.iter_unpack(self._extents)
            if not flags & ExtentFlag.UNWRITTEN
        )

    def ordered(self, order: Callable[[bytes], SortKey]) -> list[int]:
        """The files' places in a logical order; a hard link whose target would come later comes
        straight behind its target, for tar cannot link to what it has not seen."""
        return sorted(range(len(self)), key=lambda at: self._sort_key(at, order))

    def _sort_key(self, at: int, order: Callable[[bytes], SortKey]) -> tuple[SortKey, int, SortKey]:
        own = order(self.names[at])
        if self.kind(at) == ord(Kind.HARDLINK):
            target = order(self.link(at))
            if own < target:
                return target, 1, own
        return own, 0, ()

    # --- keeping it

    def dump(self, writer: BinaryIO) -> None:
        """Write the whole table; `load` gives an equal one."""
        names = b"".join(_packed_bytes(name) for name in self.names)
        extras = b"".join(_packed_extra(extra) for extra in self._extras[1:])
        sections = (names, self._records, self._extents, extras)
        flags = _WITH_XATTRS if self.has_xattrs else 0
        lengths = (len(section) for section in sections)
        writer.write(_HEADER.pack(_MAGIC, _VERSION, flags, self.looked_ns, *lengths))
        for section in sections:
            writer.write(section)

    @classmethod
    def load(cls, reader: BinaryIO) -> FileTable:
        """Read what `dump` wrote, and not a byte more.

        Raises JournalDamaged for what is cut off, of another version, or not a table at all.
        """
        magic, version, flags, looked_ns, *lengths = _HEADER.unpack(
            _read_exactly(reader, _HEADER.size)
        )
        if magic != _MAGIC:
            raise _damaged("it does not begin as one")
        if version != _VERSION:
            raise _damaged(f"it has version {version}, this program reads {_VERSION}")
        table = cls(looked_ns=looked_ns, has_xattrs=bool(flags & _WITH_XATTRS))
        names, records, extents, extras = (_read_exactly(reader, length) for length in lengths)
        try:
            table._fill(names, records, extents, extras)
        except (struct.error, IndexError, ValueError) as error:
            raise _damaged(str(error)) from error
        return table

    def _fill(self, names: bytearray, records: bytearray, extents: bytearray,
              extras: bytearray) -> None:  # fmt: skip
        self.names = list(_unpack_all_bytes(names))
        self._records, self._extents = records, extents
        for extra in _unpack_extras(extras):
            self._keep_extra(extra)
        if len(set(self.names)) != len(self.names):
            raise ValueError("a name stands in it twice")
        if len(records) != len(self.names) * _RECORD.size:
            raise ValueError(f"{len(self.names)} names but {len(records)} bytes of records")
        whole = len(extents) // ExtentMap.RECORD.size
        for at in range(len(self)):
            row = self.row(at)
            Kind(chr(row.kind))  # raises ValueError for what is none
            if row.extents_at + row.extents_count > whole or row.extra >= len(self._extras):
                raise ValueError(f"file {at} points beyond the table")


def _packed_bytes(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value


def _packed_extra(extra: tuple[bytes, Xattrs]) -> bytes:
    link, xattrs = extra
    parts = [_packed_bytes(link), _U32.pack(len(xattrs))]
    parts += [_packed_bytes(key) + _packed_bytes(value) for key, value in xattrs]
    return b"".join(parts)


def _unpack_bytes(section: bytearray, at: int) -> tuple[bytes, int]:
    (length,) = _U32.unpack_from(section, at)
    begin = at + _U32.size
    if begin + length > len(section):
        raise ValueError("a name or value is longer than its section")
    return bytes(section[begin : begin + length]), begin + length


def _unpack_all_bytes(section: bytearray) -> Iterator[bytes]:
    at = 0
    while at < len(section):
        value, at = _unpack_bytes(section, at)
        yield value


def _unpack_extras(section: bytearray) -> Iterator[tuple[bytes, Xattrs]]:
    at = 0
    while at < len(section):
        link, at = _unpack_bytes(section, at)
        (count,) = _U32.unpack_from(section, at)
        at += _U32.size
        xattrs = []
        for _ in range(count):
            key, at = _unpack_bytes(section, at)
            value, at = _unpack_bytes(section, at)
            xattrs.append((key, value))
        yield link, tuple(xattrs)


def _read_exactly(reader: BinaryIO, length: int) -> bytearray:
    """`length` bytes, or JournalDamaged."""
    found = bytearray()
    while len(found) < length:
        chunk = reader.read(min(_CHUNK, length - len(found)))
        if not chunk:
            raise _damaged(f"it ends after {len(found)} of {length} bytes")
        found += chunk
    return found


def _damaged(why: str) -> JournalDamaged:
    return JournalDamaged(
        f"a run's table of files cannot be read: {why}",
        hint="The run cannot be resumed; `splitmirror recover` takes away what it left.",
    )
