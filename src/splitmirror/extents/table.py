"""The files of a run in a compact table: every name with its attributes and its map.

A database may have millions of files, and the table is held from the early map to the last part,
locked in memory; so a file costs one packed record, its name in one string of all names, its
extents 28 bytes each in one common buffer, and links and extended attributes are kept once for all
files that have the same. A `FileEntry` is made when it is looked at. What it costs is measured by a
test: at most 150 bytes a file of one extent beyond its path, its place in the index included.
"""

from __future__ import annotations

import heapq
import os
import stat
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from typing import BinaryIO, Final, NamedTuple, cast

from splitmirror.databases import SortKey
from splitmirror.errors import JournalDamaged
from splitmirror.extents.names import NameIndex, Names
from splitmirror.model import NOT_PLAIN, Attributes, ExtentFlag, ExtentMap, FileEntry, Kind

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
_INODES: Final = struct.Struct(f"<27xQI{_RECORD.size - 39}x")
_LYING: Final = struct.Struct("<B10xQ8xQ")
_HEADER: Final = struct.Struct("<8sIIqQQQQ")
_MAGIC: Final = b"smfiles\n"
_VERSION: Final = 2
_WITH_XATTRS: Final = 1  # header flags
_OF_LEG: Final = 2
_FILE: Final = ord(Kind.FILE)
_KINDS: Final = frozenset(ord(kind) for kind in Kind)
_SORTED_AT_ONCE: Final = 1 << 16  # files whose sort keys are in memory together
_UNWRITTEN: Final = int(ExtentFlag.UNWRITTEN)
_NOT_DATA: Final = int(NOT_PLAIN) | _UNWRITTEN
_EXTENT_SIZE: Final = ExtentMap.RECORD.size
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


PlainRow = tuple[int, int, int, int, int, Xattrs, int, int]
"""Tree, mode, uid, gid, mtime_ns, xattrs, size, physical: all there is to know of an ordinary file.
"""


class FileTable:
    """Files in the order in which they were found: a directory before what it holds, and a hard
    link after the name it is linked to.

    Names are unique; the caller sees to that. `looked_ns` is the wall clock when the scan that
    made the table began (0: not known), `has_xattrs` whether it looked for extended attributes,
    `of_leg` whether all of it was taken from the split's own leg, which stands still.
    Not safe for appending from several threads; reading is.
    """

    __slots__ = ("_extents", "_extra_at", "_extras", "_index", "_records", "has_xattrs",
                 "looked_ns", "names", "of_leg")  # fmt: skip

    def __init__(
        self, *, looked_ns: int = 0, has_xattrs: bool = False, of_leg: bool = False
    ) -> None:
        self.looked_ns = looked_ns
        self.has_xattrs = has_xattrs
        self.of_leg = of_leg
        self.names = Names()
        self._records = bytearray()
        self._extents = bytearray()
        self._extras: list[tuple[bytes, Xattrs]] = [(b"", ())]
        self._extra_at: dict[tuple[bytes, Xattrs], int] = {(b"", ()): 0}
        self._index = NameIndex(())

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
        """`append` straight from what stat(2) gave."""
        extents_at, extents_count = self._keep_extents(extents.packed)
        device = kind is Kind.CHARDEV or kind is Kind.BLOCKDEV
        self._records += _RECORD.pack(
            ord(kind), stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid,
            status.st_size if kind is Kind.FILE else 0, status.st_mtime_ns, status.st_ino,
            status.st_nlink, status.st_ctime_ns, status.st_rdev if device else 0, extents_count,
            tree, extents_at, self._keep_extra((link, xattrs)),
        )  # fmt: skip
        self.names.append(name)

    def append_file(
        self, name: bytes, tree: int, status: os.stat_result, extents: bytes, xattrs: Xattrs = ()
    ) -> None:
        """`append` of a regular file, with its map as ExtentMap.packed: for scans, where every
        microsecond counts."""
        self._records += _RECORD.pack(
            _FILE, status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_size,
            status.st_mtime_ns, status.st_ino, status.st_nlink, status.st_ctime_ns, 0,
            len(extents) // _EXTENT_SIZE, tree, len(self._extents) // _EXTENT_SIZE,
            self._keep_extra((b"", xattrs)) if xattrs else 0,
        )  # fmt: skip
        self._extents += extents
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

    def taking_over(self) -> FileTable:
        """An empty table that can take stretches of this one by `extend_from`, without copying
        their maps. This one is not to be appended to any more."""
        table = FileTable(looked_ns=self.looked_ns, has_xattrs=self.has_xattrs, of_leg=self.of_leg)
        table._extents = self._extents
        table._extras, table._extra_at = self._extras, self._extra_at
        return table

    def extend_from(self, other: FileTable, begin: int, end: int) -> None:
        """Add the files from `begin` up to `end` of the table that this one takes over."""
        size = _RECORD.size
        self._records += memoryview(other._records)[begin * size : end * size]
        self.names.extend_from(other.names, begin, end)

    def _keep_extents(self, packed: bytes) -> tuple[int, int]:
        at = len(self._extents) // _EXTENT_SIZE
        self._extents += packed
        return at, len(packed) // _EXTENT_SIZE

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

    def plain(self, at: int) -> PlainRow | None:
        """The file at `at`, if it is an ordinary one: regular, its bytes all in one extent that can
        be read off the device (or none at all)."""
        (kind, mode, uid, gid, size, mtime_ns, _, _, _, _, count, tree, first, extra) = (
            _RECORD.unpack_from(self._records, at * _RECORD.size)
        )
        if kind != _FILE or count > 1:
            return None
        if not count:
            physical = 0
            if size:
                return None
        else:
            logical, physical, length, flags = ExtentMap.RECORD.unpack_from(
                self._extents, first * ExtentMap.RECORD.size
            )
            if logical or length != size or flags & _NOT_DATA:
                return None
        return tree, mode, uid, gid, mtime_ns, self._extras[extra][1], size, physical

    def kind(self, at: int) -> int:
        """The tar type flag's byte of the file at `at`."""
        return self._records[at * _RECORD.size]

    def kinds(self) -> bytes:
        """The tar type flag's byte of every file."""
        return bytes(self._records[:: _RECORD.size])

    def tree(self, at: int) -> int:
        """The index of the tree of the file at `at`."""
        _, tree, _, _ = _PLACED.unpack_from(self._records, at * _RECORD.size)
        return int(tree)

    def xattrs(self, at: int) -> Xattrs:
        """The extended attributes of the file at `at`, if they were looked for."""
        *_, extra = _PLACED.unpack_from(self._records, at * _RECORD.size)
        return self._extras[int(extra)][1]

    def inodes(self) -> Iterator[tuple[int, int]]:
        """The inode of every file, and how many names it has."""
        return cast("Iterator[tuple[int, int]]", _INODES.iter_unpack(self._records))

    def seen(self, at: int) -> tuple[int, int, int, int, int, int]:
        """What would show a change: kind, size, mtime_ns, ino, nlink, ctime_ns."""
        return cast(
            "tuple[int, int, int, int, int, int]",
            _SEEN.unpack_from(self._records, at * _RECORD.size),
        )

    def lies_as(self, at: int, other: FileTable, other_at: int, *, inodes: bool = True) -> bool:
        """Whether a file's bytes lie where those of one of another table do: they are equal in
        kind, inode (unless without `inodes`), size, link and map. Times, owner, mode and attributes
        do not matter."""
        here = _LYING.unpack_from(self._records, at * _RECORD.size)
        there = _LYING.unpack_from(other._records, other_at * _RECORD.size)
        return (
            (here == there if inodes else here[:2] == there[:2])
            and self.packed_extents(at) == other.packed_extents(other_at)
            and self.link(at) == other.link(other_at)
        )

    def link(self, at: int) -> bytes:
        """Where the link at `at` points; b"" for what is no link."""
        *_, extra = _PLACED.unpack_from(self._records, at * _RECORD.size)
        return self._extras[int(extra)][0]

    def find(self, name: bytes) -> int | None:
        """Where a name stands. Its first call makes an index, for about a microsecond a name, and
        so does the first one after something was added."""
        if self._index.size != len(self.names):
            self._index = NameIndex(self.names)
        return self._index.find(name)

    @property
    def stored_bytes(self) -> int:
        """Bytes of data in all files, without holes and unwritten extents; counted anew. Not for a
        table that took over another's maps: those of files that it does not have count too."""
        return _stored(self._extents)

    def stored(self, at: int) -> int:
        """`stored_bytes` of the file at `at`."""
        packed = self.packed_extents(at)
        if len(packed) != _EXTENT_SIZE:
            return _stored(packed) if packed else 0
        _, _, length, flags = ExtentMap.RECORD.unpack(packed)
        return 0 if flags & _UNWRITTEN else int(length)

    def ordered(self, order: Callable[[bytes], SortKey]) -> Sequence[int]:
        """The files' places in a logical order; a hard link whose target would come later comes
        straight behind its target, for tar cannot link to what it has not seen.

        `order` may be called twice for a name: its keys are not kept, for they would take more
        memory than all else.
        """

        def key(at: int) -> tuple[SortKey, int, SortKey]:
            return self._sort_key(at, order)

        stretches = [
            array("I", sorted(range(begin, min(begin + _SORTED_AT_ONCE, len(self))), key=key))
            for begin in range(0, len(self), _SORTED_AT_ONCE)
        ]
        if any(key(left[-1]) > key(right[0]) for left, right in pairwise(stretches)):
            return array("I", heapq.merge(*stretches, key=key))
        return array("I", chain.from_iterable(stretches))

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
        names = self.names.packed
        extras = b"".join(_packed_extra(extra) for extra in self._extras[1:])
        sections = (names, self._records, self._extents, extras)
        flags = (_WITH_XATTRS if self.has_xattrs else 0) | (_OF_LEG if self.of_leg else 0)
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
        table = cls(
            looked_ns=looked_ns,
            has_xattrs=bool(flags & _WITH_XATTRS),
            of_leg=bool(flags & _OF_LEG),
        )
        names, records, extents, extras = (_read_exactly(reader, length) for length in lengths)
        try:
            table._fill(names, records, extents, extras)
        except (struct.error, IndexError, ValueError) as error:
            raise _damaged(str(error)) from error
        return table

    def _fill(self, names: bytearray, records: bytearray, extents: bytearray,
              extras: bytearray) -> None:  # fmt: skip
        self.names = Names(names)
        self._records, self._extents = records, extents
        for extra in _unpack_extras(extras):
            self._keep_extra(extra)
        if len(records) != len(self.names) * _RECORD.size:
            raise ValueError(f"{len(self.names)} names but {len(records)} bytes of records")
        if not _KINDS.issuperset(self.kinds()):
            raise ValueError("a file is of no known kind")
        whole = len(extents) // _EXTENT_SIZE
        for count, _, first, extra_at in _PLACED.iter_unpack(records):
            if first + count > whole or extra_at >= len(self._extras):
                raise ValueError("a file points beyond the table")
        if NameIndex(self.names).repeated():
            raise ValueError("a name stands in it twice")


def _stored(extents: bytes | bytearray) -> int:
    return sum(
        length
        for _, _, length, flags in ExtentMap.RECORD.iter_unpack(extents)
        if not flags & _UNWRITTEN
    )


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
