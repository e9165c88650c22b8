"""Sets made by hand on a volume, for tests: sound ones, malicious ones, damaged ones."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from splitmirror.archive.manifest import MemberRecord, PartRecord, member_line
from splitmirror.archive.part import PartWriter
from splitmirror.archive.set_catalogue import write_set_catalogue
from splitmirror.media import Block, Mark, Medium
from splitmirror.media.labels import TapeFileKind
from splitmirror.media.memory import Cartridge, Memory
from splitmirror.media.volume import VolumeWriter, open_for_append
from splitmirror.model import Attributes, BackupSet, Check, Kind, Mode
from splitmirror.stream.member import Member, Piece

SERIAL = "SM0001"
BLOCK_SIZE = 4096
TIME_NS = 1_700_000_000_123_456_789


def attributes(kind: Kind = Kind.FILE, **changed: object) -> Attributes:
    values: dict[str, object] = {
        "kind": kind,
        "mode": 0o755 if kind is Kind.DIRECTORY else 0o640,
        "uid": os.geteuid(),
        "gid": os.getegid(),
        "size": 0,
        "mtime_ns": TIME_NS,
    }
    return Attributes(**(values | changed))  # type: ignore[arg-type]


def file(name: bytes, content: bytes = b"", **changed: Any) -> Member:
    return Member(
        name=name,
        attributes=attributes(size=len(content), **changed),
        size=len(content),
        ranges=((0, len(content)),) if content else (),
        chunks=[memoryview(content)],
    )


def directory(name: bytes, **changed: object) -> Member:
    return other(name, Kind.DIRECTORY, **changed)


def other(name: bytes, kind: Kind, **changed: object) -> Member:
    """A link, a device, a directory: what has no content."""
    return Member(name=name, attributes=attributes(kind, **changed), size=0, ranges=(), chunks=())


def pieces(name: bytes, content: bytes, size: int) -> list[Member]:
    """A file cut into pieces of `size`."""
    count = -(-len(content) // size)
    return [
        replace(
            file(name, content[at : at + size]),
            attributes=attributes(size=len(content)),
            piece=Piece(number=number, count=count, offset=at),
        )
        for number, at in enumerate(range(0, len(content), size), 1)
    ]


def tree(root: Path, name: bytes) -> list[Member]:
    """Everything below a directory as it lies on the disk, as a backup would read it."""
    seen: dict[tuple[int, int], bytes] = {}
    paths = [os.fsencode(root)]
    for path, directories, files in os.walk(os.fsencode(root)):
        directories.sort()
        paths += [os.path.join(path, base) for base in sorted([*directories, *files])]
    return [_member(path, name + path[len(os.fsencode(root)) :], seen) for path in sorted(paths)]


def _member(path: bytes, name: bytes, seen: dict[tuple[int, int], bytes]) -> Member:
    found = os.lstat(path)
    kinds = {
        stat.S_IFREG: Kind.FILE,
        stat.S_IFDIR: Kind.DIRECTORY,
        stat.S_IFLNK: Kind.SYMLINK,
        stat.S_IFIFO: Kind.FIFO,
        stat.S_IFCHR: Kind.CHARDEV,
        stat.S_IFBLK: Kind.BLOCKDEV,
    }
    kind = kinds[stat.S_IFMT(found.st_mode)]
    link = os.readlink(path) if kind is Kind.SYMLINK else b""
    if kind is Kind.FILE and found.st_nlink > 1:
        first = seen.setdefault((found.st_dev, found.st_ino), name)
        kind, link = (Kind.HARDLINK, first) if first != name else (kind, link)
    content = kind is Kind.FILE
    values = Attributes(
        kind=kind,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        size=found.st_size if content else 0,
        mtime_ns=found.st_mtime_ns,
        link=link,
        rdev=found.st_rdev if kind in (Kind.CHARDEV, Kind.BLOCKDEV) else 0,
        xattrs=tuple(
            sorted(
                (os.fsencode(key), os.getxattr(path, key, follow_symlinks=False))
                for key in os.listxattr(path, follow_symlinks=False)
            )
        ),
    )
    ranges = _data(path, found.st_size) if content else ()
    data = Path(os.fsdecode(path)).read_bytes() if content else b""
    return Member(
        name=name,
        attributes=values,
        size=values.size,
        ranges=ranges,
        chunks=[memoryview(data)[at : at + length] for at, length in ranges],
    )


def _data(path: bytes, size: int) -> tuple[tuple[int, int], ...]:
    ranges, at = [], 0
    fd = os.open(path, os.O_RDONLY)
    try:
        while at < size:
            try:
                begin = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(fd, begin, os.SEEK_HOLE)
            ranges.append((begin, at - begin))
    finally:
        os.close(fd)
    return tuple(ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What was written, as a backup would record it."""

    backup_set: BackupSet
    parts: list[PartRecord]
    members: list[tuple[int, MemberRecord]]

    @property
    def set_id(self) -> str:
        return self.backup_set.set_id


def a_set(set_id: str, **changed: object) -> BackupSet:
    record = BackupSet(
        set_id=set_id,
        source="orders",
        host="db1",
        database="none",
        mode=Mode.FREEZE,
        check=Check.QUIESCED,
        mirror="memory",
        medium="memory",
        started=datetime(2024, 5, 17, 3, 0, tzinfo=UTC),
        complete=True,
    )
    return replace(record, **changed)  # type: ignore[arg-type]


def write_set(
    medium: Medium,
    parts: Sequence[Iterable[Member]],
    *,
    set_id: str = "orders-1",
    trees: Sequence[tuple[bytes, bytes]] = ((b"data", b"/nowhere/data"),),
    complete: bool = True,
    block_size: int = BLOCK_SIZE,
    serial: str = SERIAL,
    first: int = 1,
    **changed: object,
) -> Made:
    """Append a set of these parts to the volume; without its catalogue when not complete. `first`:
    the number of the first of them, where others lie on other volumes."""
    written: list[PartRecord] = []
    members: list[tuple[int, MemberRecord]] = []
    with open_for_append(medium, label_blank=serial) as volume:
        for number, part in enumerate(parts, first):
            written.append(_part(volume, set_id, number, part, members, block_size))
        record = a_set(
            set_id,
            complete=complete,
            trees=tuple(trees),
            files=len(members),
            stored_bytes=sum(part.stored for part in written),
            **changed,
        )
        made = Made(backup_set=record, parts=written, members=members)
        if complete:
            _catalogue(volume, made, block_size)
    return made


def write_catalogue(medium: Medium, made: Made) -> None:
    """Append the catalogue of a set whose parts are whole, here or on other volumes."""
    with open_for_append(medium) as volume:
        _catalogue(volume, made, BLOCK_SIZE)


def _catalogue(volume: VolumeWriter, made: Made, block_size: int) -> None:
    volume.begin_file(TapeFileKind.CATALOGUE, made.set_id, len(made.parts) + 1, block_size)
    write_set_catalogue(
        volume.write,
        backup_set=made.backup_set,
        parts=made.parts,
        files=(member_line(found, number) for number, found in made.members),
        block_size=block_size,
    )
    volume.end_file()
    volume.finish_set()


def _part(
    volume: VolumeWriter,
    set_id: str,
    number: int,
    part: Iterable[Member],
    members: list[tuple[int, MemberRecord]],
    block_size: int,
) -> PartRecord:
    volume.begin_file(TapeFileKind.PART, set_id, number, block_size)
    writer = PartWriter(
        volume.write, io.BytesIO(), number=number, set_id=set_id, block_size=block_size
    )
    members.extend((number, writer.add(member)) for member in part)
    record = writer.close()
    tape_file = volume.end_file()
    return replace(record, position=replace(tape_file.position, object=tape_file.data))


@dataclass(slots=True)
class Counting:
    """A drive that counts what is asked of it."""

    drive: Medium
    read_records: int = 0
    located: list[int] = field(default_factory=list)

    def load(self, *, writable: bool) -> None:
        self.drive.load(writable=writable)

    def unload(self) -> None:
        self.drive.unload()

    def write(self, blocks: Sequence[Block]) -> bool:
        return self.drive.write(blocks)

    def write_filemarks(self, count: int, *, sync: bool) -> bool:
        return self.drive.write_filemarks(count, sync=sync)

    def read(self, buffer: memoryview) -> int | Mark:
        self.read_records += 1
        return self.drive.read(buffer)

    def locate(self, position: int) -> None:
        self.located.append(position)
        self.drive.locate(position)

    def space_filemarks(self, count: int) -> None:
        self.drive.space_filemarks(count)

    def tell(self) -> int:
        return self.drive.tell()

    @property
    def limits(self):  # type: ignore[no-untyped-def]
        return self.drive.limits

    @property
    def capacity(self):  # type: ignore[no-untyped-def]
        return self.drive.capacity


def blank() -> Memory:
    return Memory(Cartridge())


def damage(drive: Memory, needle: bytes, *, count: int = 1) -> None:
    """Flip a bit of the first `count` records that hold these bytes."""
    objects = drive.cartridge.objects
    hit = [i for i, found in enumerate(objects) if found is not None and needle in found][:count]
    assert len(hit) == count, f"{needle!r} stands in {len(hit)} records"
    for i in hit:
        record = bytearray(objects[i] or b"")
        record[record.index(needle)] ^= 1
        objects[i] = bytes(record)
