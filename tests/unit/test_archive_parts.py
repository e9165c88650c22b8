"""Parts and set catalogues, written to a volume in memory and read back."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from blake3 import blake3
from tests.unit.made_sets import a_set
from tests.unit.part_checking import verify_part

from splitmirror.archive import naming
from splitmirror.archive.manifest import MemberRecord, PartRecord, member_line
from splitmirror.archive.part import PartWriter, member_lines, member_text
from splitmirror.archive.reading import read_manifest, read_members
from splitmirror.archive.records import RecordWriter
from splitmirror.archive.set_catalogue import SetCatalogue, write_set_catalogue
from splitmirror.errors import EndOfMedium, LegError, MediumDamaged, WrongMedium
from splitmirror.media import Block
from splitmirror.media.memory import Cartridge, Memory
from splitmirror.model import (
    Attributes,
    Check,
    Kind,
    MapCounts,
    MediaPosition,
    Mode,
    Origin,
    Phase,
)
from splitmirror.stream.behind import Sink
from splitmirror.stream.member import Member, Piece, PlainFile

BLOCK_SIZE = 8192
FILE = Attributes(
    kind=Kind.FILE, mode=0o640, uid=105, gid=113, size=0, mtime_ns=1_700_000_000_123_456_789
)
DIRECTORY = replace(FILE, kind=Kind.DIRECTORY, mode=0o750)


def volume() -> Memory:
    medium = Memory(Cartridge())
    medium.load(writable=True)
    return medium


def member(
    name: bytes,
    data: bytes = b"",
    *,
    ranges: tuple[tuple[int, int], ...] | None = None,
    size: int | None = None,
    chunk: int = 1000,
    **more: object,
) -> Member:
    """A file; `data` are its stored bytes, which come in chunks."""
    size = len(data) if size is None else size
    ranges = (((0, size),) if size else ()) if ranges is None else ranges
    attributes = replace(FILE, size=size)
    return Member(
        **{  # type: ignore[arg-type]
            "name": name,
            "attributes": attributes,
            "size": size,
            "ranges": ranges,
            "chunks": (memoryview(data)[at : at + chunk] for at in range(0, len(data), chunk)),
            **more,
        }
    )


def bare(name: bytes, attributes: Attributes) -> Member:
    """What has no content."""
    return Member(name=name, attributes=attributes, size=0, ranges=(), chunks=())


def some_members() -> list[Member]:
    """One of everything that a part can hold."""
    link = replace(FILE, kind=Kind.SYMLINK, link=b"\xff/nowhere")
    xattrs = ((b"user.a", b"\0\xff"), (b"user.empty", b""))
    return [
        bare(b"data", DIRECTORY),
        member(b"data/small", b"s" * 777),
        member(b"data/empty"),
        member(b"data/large", bytes(range(256)) * 400, chunk=60_000),
        member(b"data/holed", b"ab" * 3000, size=1 << 40, ranges=((4096, 4096), (1 << 39, 1904))),
        member(b"data/all-hole", size=1 << 30, ranges=()),
        member(b"data/\xff\n" + b"n" * 300, b"x", title="public.t"),
        bare(b"data/link", link),
        bare(b"data/hard", replace(FILE, kind=Kind.HARDLINK, link=b"data/small")),
        member(b"data/hard2", b"s" * 777, attributes=replace(FILE, size=777, link=b"data/small")),
        bare(b"data/fifo", replace(FILE, kind=Kind.FIFO, mtime_ns=-1_500_000_000)),
        member(
            b"data/cut",
            b"p" * 5000,
            attributes=replace(FILE, size=1_005_000, xattrs=xattrs),
            piece=Piece(number=2, count=2, offset=1_000_000),
        ),
        member(b"wal/000000010000000000000001", b"w" * 3000, origin=Origin.PRIMARY),
    ]


def part_writer(sink: Sink, *, number: int = 1, block_size: int = BLOCK_SIZE) -> PartWriter:
    return PartWriter(sink, io.BytesIO(), number=number, set_id="S1", block_size=block_size)


def write(
    medium: Memory, members: Sequence[Member], *, number: int = 3
) -> tuple[PartRecord, list[MemberRecord]]:
    part = part_writer(medium.write, number=number)
    records = [part.add(member) for member in members]
    whole = part.close()
    medium.write_filemarks(1, sync=True)
    medium.locate(0)
    return whole, records


def tar_of(medium: Memory) -> bytes:
    return b"".join(record for record in medium.cartridge.objects if record is not None)


def with_tar(tar: bytes) -> Memory:
    """A volume whose one tape file is this tar."""
    medium = volume()
    medium.write([tar[at : at + BLOCK_SIZE] for at in range(0, len(tar), BLOCK_SIZE)])
    medium.write_filemarks(1, sync=True)
    medium.locate(0)
    return medium


# --- records


def test_every_record_has_the_block_size_whatever_the_chunks_are() -> None:
    data = bytes(range(251)) * 4000
    for step in (1, 511, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 5_000_000):
        medium = volume()
        writer = RecordWriter(medium.write, BLOCK_SIZE)
        source = data if step > 1 else data[:30_000]
        for at in range(0, len(source), step):
            writer.put(source[at : at + step])
        writer.close()
        written = tar_of(medium)
        assert written == source + bytes(-len(source) % BLOCK_SIZE)
        assert {len(block or b"") for block in medium.cartridge.objects} == {BLOCK_SIZE}


def test_whole_records_of_a_large_chunk_reach_the_sink_uncopied() -> None:
    seen: list[Block] = []

    def sink(blocks: Sequence[Block]) -> bool:
        seen.extend(blocks)
        return False

    data = memoryview(bytes(10 * BLOCK_SIZE))
    RecordWriter(sink, BLOCK_SIZE).put(data)
    assert len(seen) == 10
    assert all(isinstance(block, memoryview) and block.obj is data.obj for block in seen)


def test_early_warning_is_remembered() -> None:
    warnings = iter([False, True, False])
    writer = RecordWriter(lambda blocks: next(warnings), BLOCK_SIZE)
    for expected in (False, True, True):
        writer.put(bytes(2 * BLOCK_SIZE))
        assert writer.early_warning is expected


@pytest.mark.parametrize("size", [0, 511, 1000, (1 << 20) + 512])
def test_a_record_size_that_the_format_does_not_have_is_refused(size: int) -> None:
    with pytest.raises(ValueError):
        part_writer(lambda blocks: False, block_size=size)


# --- parts


def test_members_come_back_with_attributes_ranges_and_bytes() -> None:
    medium = volume()
    write(medium, some_members())
    originals = some_members()
    found: list[bytes] = []
    for got in read_members(medium.read):
        original = originals[len(found)]
        expected = b"".join(map(bytes, original.chunks))
        assert b"".join(map(bytes, got.chunks)) == expected
        assert (got.name, got.attributes, got.size, got.ranges, got.piece) == (
            original.name,
            original.attributes,
            original.size,
            original.ranges,
            original.piece,
        )
        found.append(got.name)
    assert len(found) == len(originals)
    assert medium.tell() == len(medium.cartridge.objects), "the filemark was passed"


def test_chunks_are_placed_between_the_holes() -> None:
    medium = volume()
    write(medium, [some_members()[4]])
    (got,) = ([(at, bytes(chunk)) for at, chunk in m.placed()] for m in read_members(medium.read))
    assert sum(len(chunk) for _, chunk in got) == 6000
    rebuilt = {at + i: byte for at, chunk in got for i, byte in enumerate(chunk)}
    assert sorted(rebuilt) == [*range(4096, 8192), *range(1 << 39, (1 << 39) + 1904)]
    assert bytes(rebuilt[at] for at in sorted(rebuilt)) == b"ab" * 3000


def test_members_that_nobody_reads_are_passed_over() -> None:
    medium = volume()
    write(medium, some_members())
    assert [m.name for m in read_members(medium.read)] == [m.name for m in some_members()]


def test_a_part_can_be_read_from_any_member_on() -> None:
    medium = volume()
    _, records = write(medium, some_members())
    for index, record in enumerate(records):
        medium.locate(record.offset // BLOCK_SIZE)
        rest = list(read_members(medium.read, start=record.offset))
        assert [(m.name, m.offset) for m in rest] == [(r.name, r.offset) for r in records[index:]]


def test_the_manifest_gives_back_every_record_and_the_part() -> None:
    medium = volume()
    part, records = write(medium, some_members())
    manifest = read_manifest(medium.read)
    assert list(manifest) == records
    assert manifest.part == part
    assert part.length == len(medium.cartridge.objects[:-1]) * BLOCK_SIZE
    assert (part.members, part.stored) == (len(records), sum(r.stored for r in records))


def test_the_manifest_is_found_by_its_offset_alone() -> None:
    medium = volume()
    part, records = write(medium, some_members())
    medium.locate(part.manifest // BLOCK_SIZE)
    assert list(read_manifest(medium.read, start=part.manifest)) == records


def test_hashes_are_over_the_stored_bytes_in_order() -> None:
    records = {r.name: r for r in write(volume(), some_members())[1]}
    assert records[b"data/holed"].blake3 == blake3(b"ab" * 3000).digest()
    assert records[b"data/empty"].blake3 == records[b"data/all-hole"].blake3 == blake3().digest()
    assert records[b"data"].blake3 == records[b"data/link"].blake3 == b""
    assert records[b"data/all-hole"].map != records[b"data/holed"].map != b""
    assert records[b"data/small"].map == b""


def test_a_part_of_a_set_without_files_is_whole_too() -> None:
    medium = volume()
    part, _ = write(medium, [])
    assert verify_part(medium.read).part == part


@pytest.mark.parametrize("given", [b"x" * 99, b"x" * 101, b""])
def test_a_member_that_is_not_as_long_as_its_ranges_stops_the_part(given: bytes) -> None:
    part = part_writer(volume().write)
    wrong = replace(member(b"data/a", b"x" * 100), chunks=[memoryview(given)])
    with pytest.raises(LegError, match="data/a"):
        part.add(wrong)
    with pytest.raises(LegError, match="broken off"):
        part.add(member(b"data/b"))
    with pytest.raises(LegError, match="broken off"):
        part.close()


def test_a_full_medium_leaves_a_part_that_cannot_be_closed() -> None:
    medium = Memory(Cartridge(), capacity=3 * BLOCK_SIZE)
    medium.load(writable=True)
    part = part_writer(medium.write)
    with pytest.raises(EndOfMedium):
        part.add(member(b"data/a", bytes(10 * BLOCK_SIZE), chunk=10 * BLOCK_SIZE))
    with pytest.raises(LegError, match="broken off"):
        part.close()


@pytest.mark.parametrize(
    "wrong",
    [
        bare(b".splitmirror/part-0001.jsonl", DIRECTORY),
        member(b"data/a", b"ab", size=10, ranges=((4, 1), (3, 1))),
        member(b"data/a", b"ab", size=10, ranges=((9, 2),)),
        member(b"data/a", b"", size=10, ranges=((4, 0),)),
        member(b"data/a", b"ab", size=9000, ranges=((4096, 1), (8192, 1))),
        member(b"data/a", b"ab", attributes=DIRECTORY),
        member(b"data/\0", b"ab"),
        member(b"", b"ab"),
    ],
)
def test_a_member_that_cannot_be_is_refused(wrong: Member) -> None:
    part = part_writer(volume().write)
    with pytest.raises(ValueError):
        part.add(wrong)


# --- damage


def test_verify_finds_nothing_wrong_with_a_sound_part() -> None:
    medium = volume()
    part, _ = write(medium, some_members())
    check = verify_part(medium.read)
    assert check.problems == ()
    assert check.part == part


def test_verify_names_the_file_whose_bytes_changed() -> None:
    medium = volume()
    write(medium, some_members())
    tar = tar_of(medium)
    at = tar.index(b"w" * 3000) + 1500
    (problem,) = verify_part(with_tar(tar[:at] + b"W" + tar[at + 1 :]).read).problems
    assert problem.name == b"wal/000000010000000000000001"
    assert "other bytes" in problem.what


def resealed(tar: bytes, at: int, mode: bytes) -> bytes:
    """The tar with another mode in the header at `at`, and a checksum that fits it."""
    block = bytearray(tar[at : at + 512])
    block[100:108] = mode
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return tar[:at] + bytes(block) + tar[at + 512 :]


def test_verify_names_the_file_whose_attributes_changed() -> None:
    medium = volume()
    _, records = write(medium, some_members())
    tar = resealed(tar_of(medium), records[1].offset + 1024, b"0004777\0")
    (problem,) = verify_part(with_tar(tar).read).problems
    assert problem.name == b"data/small"
    assert "attributes" in problem.what


def test_verify_names_the_file_whose_holes_moved() -> None:
    medium = volume()
    write(medium, some_members())
    tar = tar_of(medium).replace(b"\n4096\n4096\n", b"\n4097\n4096\n")
    (problem,) = verify_part(with_tar(tar).read).problems
    assert problem.name == b"data/holed"


def cuts(tar: bytes) -> Iterator[tuple[str, bytes]]:
    end = tar.rindex(b"\n", 0, len(tar)) + 1
    yield "shorter by a record", tar[: -BLOCK_SIZE * (1 + (len(tar) - end) // BLOCK_SIZE)]
    yield "zeros from the middle on", tar[:20_480] + bytes(len(tar) - 20_480)
    yield "a wrong checksum", tar[:512] + b"X" + tar[513:]
    yield "data behind the end", tar + b"x" * BLOCK_SIZE
    yield "a manifest that was changed", tar.replace(b'"uid":105', b'"uid":106', 1)
    yield "a manifest of another member count", tar.replace(b'{"members":13', b'{"members":12')
    yield "a misnamed piece", tar.replace(b"/0002", b"/0003")


def test_damage_is_told_with_its_position() -> None:
    medium = volume()
    write(medium, some_members())
    for what, tar in cuts(tar_of(medium)):
        with pytest.raises(MediumDamaged, match="at byte") as caught:
            verify_part(with_tar(tar).read)
        assert caught.value.hint, what


def test_a_recording_without_its_filemark_is_damage() -> None:
    medium = volume()
    write(medium, some_members())
    torn = volume()
    torn.write([record for record in medium.cartridge.objects if record is not None][:2])
    torn.locate(0)
    with pytest.raises(MediumDamaged, match="before the filemark"):
        list(read_members(torn.read))


def test_records_of_two_sizes_are_damage() -> None:
    medium = volume()
    write(medium, some_members())
    torn = volume()
    torn.write([record or b"" for record in medium.cartridge.objects[:1]])
    torn.write([b"x" * 512])
    torn.locate(0)
    with pytest.raises(MediumDamaged, match="a record of 512 bytes"):
        list(read_members(torn.read))


def test_any_tar_that_is_not_a_part_is_damage() -> None:
    text = io.BytesIO()
    with tarfile.open(fileobj=text, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("a"))
    medium = with_tar(text.getvalue().ljust(2 * BLOCK_SIZE, b"\0")[: 2 * BLOCK_SIZE])
    with pytest.raises(MediumDamaged):
        list(read_members(medium.read))


def test_a_part_of_a_later_major_version_is_refused_as_such() -> None:
    medium = volume()
    write(medium, [])
    with pytest.raises(WrongMedium, match=r"version 2\.0"):
        verify_part(with_tar(tar_of(medium).replace(b'"1.0"', b'"2.0"')).read)


# --- the set's catalogue

SET = a_set(
    "20240102T030405-abcd",
    source="shop",
    database="postgresql",
    mode=Mode.HOT,
    check=Check.RELEASED,
    mirror="qsd",
    medium="virtualtape",
    started=datetime(2024, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    ended=datetime(2024, 1, 2, 3, 5, 5, tzinfo=UTC),
    files=2,
    stored_bytes=123,
    write_pause_s=0.042,
    phases=(Phase(name="split", began_s=1.5, seconds=0.01),),
    maps=MapCounts(early=2, renewed=1),
    trees=((b"data", b"/var/lib/\xff\n"),),
    facts={"version": "15.4"},
)


def write_catalogue(medium: Memory) -> tuple[list[PartRecord], list[MemberRecord]]:
    part, records = write(volume(), some_members())
    position = MediaPosition(volume="ABC123", tape_file=2, object=7)
    parts = [part, replace(part, number=4, position=position)]
    lines = (member_line(record, number) for number in (3, 4) for record in records)
    length = write_set_catalogue(
        medium.write, backup_set=SET, parts=parts, files=lines, block_size=BLOCK_SIZE
    )
    assert length == len(tar_of(medium))
    medium.write_filemarks(1, sync=True)
    medium.locate(0)
    return parts, records


def test_a_set_s_catalogue_gives_back_set_parts_and_members() -> None:
    medium = volume()
    parts, records = write_catalogue(medium)
    catalogue = SetCatalogue(medium.read)
    assert catalogue.backup_set == SET
    assert list(catalogue.parts) == parts
    assert list(catalogue) == [(number, record) for number in (3, 4) for record in records]
    assert medium.tell() == len(medium.cartridge.objects)


@pytest.mark.parametrize(
    "what",
    [
        (b'"shop"', b'"shap"'),
        (b'"part":4', b'"part":5'),
        (b'"object":7', b'"object":8'),
        (b'"started":"2024', b'"started":"soon'),
        (b'"splitmirror set"', b'"splitmirror sex"'),
        (b'"tape_file":2', b'"tape_file":x'),
        (b'{"members":26', b'{"members":27'),
    ],
)
def test_a_changed_catalogue_is_damage(what: tuple[bytes, bytes]) -> None:
    medium = volume()
    write_catalogue(medium)
    tar = tar_of(medium)
    assert what[0] in tar
    with pytest.raises(MediumDamaged):
        list(SetCatalogue(with_tar(tar.replace(*what)).read))


def test_a_part_is_no_catalogue() -> None:
    medium = volume()
    write(medium, some_members())
    with pytest.raises(MediumDamaged, match=r"set\.json is missing"):
        SetCatalogue(medium.read)


def test_a_catalogue_line_is_plain_ascii_json_of_known_keys() -> None:
    _, records = write(volume(), some_members())
    lines = [naming.parse_line(member_line(record, 3)) for record in records]
    assert set().union(*lines) == {
        *("part", "name", "kind", "offset", "mode", "uid", "gid", "mtime", "size", "blake3"),
        *("stored", "map", "origin", "piece", "link", "xattrs", "title"),
    }
    assert lines[11]["piece"] == [2, 2, 1_000_000, 1_005_000]
    assert lines[6]["name"].startswith("data/\udcff\n")


def test_a_stretch_of_ordinary_files_is_written_as_its_members_would_be_one_by_one() -> None:
    """Byte for byte, the manifest included: the quick way must not be another format."""
    label = ((b"security.selinux", b"system_u:object_r:x_t:s0\0"),)
    files = [
        plain(b"data/a", 0o600, 26, 26, 1_700_000_000_123_456_789, (), "", b"x" * 700),
        plain(b"data/b", 0o600, 26, 26, 1_700_000_001_000_000_000, (), "shop.orders", b""),
        plain(b"data/c", 0o4755, 1 << 22, 26, -5, (), "", b"y" * 512),
        plain(b"data/d", 0o600, 26, 1 << 30, 1, label, "", b"z"),
        plain("data/\u00e9".encode(), 0o600, 0, 0, 1_700_000_002_000_000_001, (), "", b"q" * 9),
        plain(b"data/\xff", 0o600, 0, 0, 1_700_000_002_000_000_001, (), "", b"q" * 9),
        plain(b"d/" * 60 + b"e", 0o600, 0, 0, 1_700_000_002_000_000_001, (), "", b"q" * 9),
        plain(b"data/f", 0o600, 0, 0, 1_700_000_002_000_000_001, (), "", b"w" * 300_000),
        plain(b"data/g", 0o600, 0, 0, 1_700_000_002_000_000_001, (), "", b"w" * 70_000),
    ]
    quick, slow = volume(), volume()
    texts = []
    for medium, together in ((quick, True), (slow, False)):
        lines = io.BytesIO()
        part = PartWriter(medium.write, lines, number=3, set_id="S1", block_size=BLOCK_SIZE)
        if together:
            part.add_plain(files)
        else:
            for file in files:
                part.add(member_of_plain(file))
        texts.append((lines.getvalue(), part.length, part.stored))
    assert texts[0] == texts[1]
    assert quick.cartridge.objects == slow.cartridge.objects


def plain(
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    mtime_ns: int,
    xattrs: tuple[tuple[bytes, bytes], ...],
    title: str,
    data: bytes,
) -> PlainFile:
    return PlainFile(name, mode, uid, gid, mtime_ns, xattrs, title, memoryview(data))


def member_of_plain(file: PlainFile) -> Member:
    size = len(file.data)
    return Member(
        name=file.name,
        attributes=Attributes(
            kind=Kind.FILE,
            mode=file.mode,
            uid=file.uid,
            gid=file.gid,
            size=size,
            mtime_ns=file.mtime_ns,
            xattrs=file.xattrs,
        ),
        size=size,
        ranges=((0, size),) if size else (),
        chunks=[file.data],
        title=file.title,
    )


def test_a_reserved_name_is_refused_in_a_stretch_too() -> None:
    part = part_writer(volume().write)
    with pytest.raises(ValueError, match="kept for the format"):
        part.add_plain([PlainFile(b".splitmirror/x", 0o600, 0, 0, 1, (), "", memoryview(b""))])


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_a_manifest_gives_its_members_lines_and_no_others(tmp_path: Path, count: int) -> None:
    with (tmp_path / "manifest").open("w+b") as manifest:
        part = PartWriter(volume().write, manifest, number=1, set_id="S1", block_size=BLOCK_SIZE)
        for number in range(count):
            part.add(member(b"data/%d" % number, b"x"))
        part.close()
        manifest.flush()
        manifest.seek(0)
        all_lines = manifest.read().splitlines(keepends=True)
        manifest.seek(0)
        assert list(member_lines(manifest)) == all_lines[1:-1]
        manifest.seek(0)
        assert b"".join(member_text(manifest)) == b"".join(all_lines[1:-1])
    assert len(all_lines) == count + 2
