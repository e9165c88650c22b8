"""Which file goes into which part: fixed, and durable, before the first block is written.

A plan holds the whole table of files (names, attributes, extent maps) and the parts that they make
up in logical order, so that a run that crashed goes on with exactly the parts it began with. A
part is never larger than the part size: a file whose stored data are larger is cut into pieces.

Sizes are estimates that err on the large side, for a member's header is made only when it is
written: extended attributes are read from the leg at that time.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, NamedTuple, Protocol, TypeVar, cast

import msgspec
from blake3 import blake3

from splitmirror.errors import JournalDamaged
from splitmirror.extents.table import FileTable
from splitmirror.model import Kind
from splitmirror.stream.member import Piece
from splitmirror.stream.room import StoredFile, data_room, header_room

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Large files are cut at multiples of this, so that pieces begin on a block of any filesystem.
CUT = 1 << 20
# Below this a part could not even hold the header and one block of a file.
SMALLEST_PART = 16 << 10

_FILE = ord(Kind.FILE)
_NONE = 0xFFFFFFFF
_MAGIC = b"splitmirror plan 2\n"
_HINT = "The run cannot be resumed: let `splitmirror recover` throw it away and back up anew."


Packed = tuple[int, int, int, int, int, int, bool]
"""An Item as it is kept: entry, offset, length, the piece's number and count, link, stored."""


class Item(NamedTuple):
    """One member of a part: `length` bytes from `offset` of a file of the table.

    `entry` and `link` are indices into the table. `link`: the file this is a hard link to.
    `stored` False: the link alone stands in the part, whose earlier, whole member `link` is; True:
    the member carries its data, though they may be those of `link` once more.
    """

    entry: int
    offset: int
    length: int
    piece: Piece | None = None
    link: int | None = None
    stored: bool = True


@dataclass(frozen=True, slots=True)
class Items(Sequence[Item]):
    """The items of a part, 33 bytes each."""

    packed: bytes

    RECORD: ClassVar[struct.Struct] = struct.Struct("<IQQIII?")

    @classmethod
    def of(cls, items: Sequence[Item]) -> Items:
        return cls(b"".join(map(cls._pack, items)))

    @classmethod
    def whole_file(cls, entry: int, size: int) -> bytes:
        """An Item that is all of a file without a link, packed."""
        return cls.RECORD.pack(entry, 0, size, 0, 0, _NONE, True)

    @classmethod
    def _pack(cls, item: Item) -> bytes:
        number, count = (item.piece.number, item.piece.count) if item.piece else (0, 0)
        link = _NONE if item.link is None else item.link
        return cls.RECORD.pack(
            item.entry, item.offset, item.length, number, count, link, item.stored
        )

    def records(self) -> Iterator[Packed]:
        """The items unpacked but not made: `item` makes one, for those that need it."""
        return self.RECORD.iter_unpack(self.packed)

    @staticmethod
    def is_plain(values: Packed) -> bool:
        """Whether it is a whole file's, without a link."""
        return values[5] == _NONE and not values[3]

    @staticmethod
    def item(values: Packed) -> Item:
        entry, offset, length, number, count, link, stored = values
        piece = Piece(number=number, count=count, offset=offset) if number else None
        return Item(entry, offset, length, piece, None if link == _NONE else link, stored)

    def __len__(self) -> int:
        return len(self.packed) // self.RECORD.size

    def __iter__(self) -> Iterator[Item]:
        return map(self.item, self.RECORD.iter_unpack(self.packed))

    def __getitem__(self, index: int) -> Item:  # type: ignore[override]  # no slices
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.item(self.RECORD.unpack_from(self.packed, index % len(self) * self.RECORD.size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One tape file of the set. `stored`: bytes of data in it, by the maps of the table. `room`:
    bytes of its tar, at most, but for extended attributes and what the part has of its own (see
    `room.PART_ROOM`)."""

    number: int  # from 1
    items: Items
    stored: int
    room: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All parts of a set, and the table that their items refer to."""

    table: FileTable
    parts: tuple[Part, ...]

    @property
    def stored(self) -> int:
        """Bytes of data that the whole set will hold."""
        return sum(part.stored for part in self.parts)

    def save(self, path: Path) -> str:
        """Write the plan so that it survives a crash right after this returns; its BLAKE3 digest.

        What was at `path` is replaced whole or not at all.
        """
        new = path.with_name(path.name + ".new")
        with new.open("wb") as file:
            hashed = _Hashed(file)
            head = _Head(parts=[(len(part.items), part.stored, part.room) for part in self.parts])
            hashed.write(_MAGIC + msgspec.json.encode(head) + b"\n")
            for part in self.parts:
                hashed.write(part.items.packed)
            self.table.dump(cast(BinaryIO, hashed))
            file.flush()
            os.fsync(file.fileno())
        _rename_durably(new, path)
        return hashed.digest.hexdigest()

    @classmethod
    def load(cls, path: Path, digest: str) -> Plan:
        """The plan that was saved with this digest. Raises JournalDamaged for any other file."""
        try:
            if blake3().update_mmap(path).hexdigest() != digest:
                raise JournalDamaged(
                    f"the plan {path} is not the one in the journal", hint=_HINT, path=path
                )
            with path.open("rb") as file:
                return cls._read(file)
        except (OSError, ValueError) as error:  # mmap of an empty file is a ValueError
            raise JournalDamaged(
                f"the plan {path} cannot be read: {error}", hint=_HINT, path=path
            ) from error

    @classmethod
    def _read(cls, file: BinaryIO) -> Plan:
        if file.readline() != _MAGIC:
            raise ValueError("it is of another version")
        head = msgspec.json.decode(file.readline(), type=_Head)
        parts = []
        for number, (count, stored, room) in enumerate(head.parts, 1):
            items = Items(file.read(count * Items.RECORD.size))
            parts.append(Part(number=number, items=items, stored=stored, room=room))
        return cls(table=FileTable.load(file), parts=tuple(parts))


class _Head(msgspec.Struct):
    """The second line of the file: of each part the number of items, `stored` and `room`. The
    parts' items follow, then the table."""

    parts: list[tuple[int, int, int]]


class _Hashed(io.RawIOBase):
    """Writes to `file` and hashes what it writes, so that a large table is never copied whole."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = blake3()
        self._file = file

    def write(self, data: Buffer) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _rename_durably(new: Path, path: Path) -> None:
    """fsync(2): a name is durable only once its directory is synced too."""
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def plan_parts(table: FileTable, order: Sequence[int], part_size: int) -> Plan:
    """Fill parts of at most `part_size` bytes with the files of `order` (indices into the table).

    A hard link stays a link where a whole member of the same file stands earlier in its part;
    whichever name of a file comes first in the order carries its data. Raises ValueError for a part
    size that is too small to hold anything, and for a link whose target the table does not have.
    """
    if part_size < SMALLEST_PART:
        raise ValueError(f"part size below {SMALLEST_PART} bytes: {part_size}")
    filling = _Filling(table, part_size)
    for index in order:
        filling.add(index)
    filling.close_part()
    return Plan(table=table, parts=tuple(filling.parts))


class Sized(Protocol):
    """A part by its size."""

    @property
    def room(self) -> int: ...


P = TypeVar("P", bound=Sized)


def divide(parts: Sequence[P], count: int) -> list[list[P]]:
    """The parts in `count` stretches that follow one another, each of about as much room; fewer
    where there are not so many parts. Always the same for the same parts."""
    total = sum(part.room for part in parts)
    stretches: list[list[P]] = [[] for _ in range(count)]
    before = 0
    for part in parts:
        middle = before + part.room / 2
        stretches[min(int(middle * count / total), count - 1) if total else 0].append(part)
        before += part.room
    return [stretch for stretch in stretches if stretch]


class _Filling:
    """The part that is being filled, and those that are full."""

    def __init__(self, table: FileTable, part_size: int) -> None:
        self.parts: list[Part] = []
        self._table = table
        self._size = part_size
        self._step = min(CUT, 1 << max((part_size // 4).bit_length() - 1, 12))
        self._items = bytearray()
        self._left = part_size
        self._stored = 0
        self._first: dict[int, int] = {}  # a file with several names: the first that was placed
        self._whole: dict[int, int] = {}  # ... and the first in this part that carries all of it

    def add(self, index: int) -> None:
        row, name = self._table.row(index), self._table.names[index]
        if row.kind == _FILE and row.nlink == 1 and row.extents_count < 2:
            self._add_simple(index, row.size, name)
            return
        kind = Kind(chr(row.kind))
        if kind is Kind.HARDLINK:
            self._add_name(index, self._target(index), name)
        elif kind is Kind.FILE and row.nlink > 1:
            self._add_name(index, index, name)
        elif kind is Kind.FILE:
            self._add_data(index, StoredFile(self._table, index, name), None)
        else:
            self._put(Item(index, 0, 0), header_room(name + self._table.link(index)), 0)

    def _add_simple(self, index: int, size: int, name: bytes) -> None:
        """A file with one name whose data, if any, lie in one extent: nearly all are such."""
        stored = self._table.stored(index)
        room = header_room(name) + data_room(size, stored, bool(stored))
        if room > self._size:
            self._add_data(index, StoredFile(self._table, index, name), None)
            return
        if room > self._left:
            self.close_part()
        self._items += Items.whole_file(index, size)
        self._left -= room
        self._stored += stored

    def _target(self, index: int) -> int:
        target = self._table.link(index)
        found = self._table.find(target)
        if found is None:
            raise ValueError(f"{self._table.names[index]!r} is linked to nothing: {target!r}")
        return found

    def _add_name(self, index: int, file: int, name: bytes) -> None:
        """One of the names of a file that has several."""
        carrier = self._whole.get(file)
        if carrier is not None:
            room = header_room(name + self._table.names[carrier])
            if room <= self._left:
                self._put(Item(index, 0, 0, link=carrier, stored=False), room, 0)
                return
        first = self._first.setdefault(file, index)
        stored = StoredFile(self._table, file, name)
        if self._add_data(index, stored, None if first == index else first):
            self._whole[file] = index

    def _add_data(self, index: int, stored: StoredFile, link: int | None) -> bool:
        """Place a file with its data; whether it stands in one part as a whole."""
        whole = stored.room(0, stored.size)
        if whole <= self._size:
            item = Item(index, 0, stored.size, link=link)
            self._put(item, whole, stored.bytes(0, stored.size))
            return True
        ends = self._cuts(stored)
        for number, (begin, end) in enumerate(zip([0, *ends], ends, strict=False), 1):
            piece = Piece(number=number, count=len(ends), offset=begin)
            item = Item(index, begin, end - begin, piece, link)
            self._put(item, stored.room(begin, end), stored.bytes(begin, end))
        return False

    def _cuts(self, stored: StoredFile) -> list[int]:
        """Where each piece ends. The first fills the part that is open, if that is worth it."""
        if self._left < self._size // 8:
            self.close_part()
        ends = [stored.cut(0, self._left, self._step)]
        if ends == [0]:
            self.close_part()
            ends.clear()
        while not ends or ends[-1] < stored.size:
            begin = ends[-1] if ends else 0
            end = stored.cut(begin, self._size, self._step)
            # One step always fits, unless it is so fragmented that its map alone is a part.
            ends.append(end if end > begin else min(begin + self._step, stored.size))
        return ends

    def _put(self, item: Item, room: int, stored: int) -> None:
        if room > self._left:
            self.close_part()
        self._items += Items.of((item,)).packed
        self._left -= room
        self._stored += stored

    def close_part(self) -> None:
        """The next item begins a new part. Nothing in it yet: harmless."""
        if self._items:
            number, items = len(self.parts) + 1, Items(bytes(self._items))
            room = self._size - self._left
            self.parts.append(Part(number=number, items=items, stored=self._stored, room=room))
        self._items, self._left, self._stored = bytearray(), self._size, 0
        self._whole.clear()
