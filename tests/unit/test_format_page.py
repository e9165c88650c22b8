"""docs/format.md is enough to read a volume: its program and tar give back every file."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3
from tests.unit.made_sets import a_set

from splitmirror.archive.manifest import MemberRecord, PartRecord
from splitmirror.archive.part import PartWriter, member_lines
from splitmirror.archive.reading import read_members
from splitmirror.archive.set_catalogue import write_set_catalogue
from splitmirror.media.labels import TapeFileKind
from splitmirror.media.virtualtape import Settings, open_medium
from splitmirror.media.volume import VolumeWriter, open_for_append
from splitmirror.model import Attributes, BackupSet, Kind
from splitmirror.stream.member import Member, Piece

PAGE = Path(__file__).parents[2] / "docs/format.md"
BLOCK_SIZE = 64 << 10
FILE = Attributes(
    kind=Kind.FILE,
    mode=0o640,
    uid=os.getuid(),
    gid=os.getgid(),
    size=0,
    mtime_ns=1_700_000_000_123_456_789,
)
LARGE = bytes(range(256)) * 1500  # cut into two pieces, which lie in two parts
HOLED = ((4096, 4608), (1 << 30, 100))


def file(name: bytes, data: bytes) -> Member:
    size = len(data)
    ranges = ((0, size),) if size else ()
    chunks = [memoryview(data)]
    return Member(
        name=name, attributes=replace(FILE, size=size), size=size, ranges=ranges, chunks=chunks
    )


def piece(number: int, begin: int, end: int) -> Member:
    whole = file(b"data/large", LARGE)
    return replace(
        whole,
        size=end - begin,
        ranges=((0, end - begin),),
        chunks=[memoryview(LARGE)[begin:end]],
        piece=Piece(number=number, count=2, offset=begin),
    )


def holed() -> Member:
    size = 2 << 30
    data = memoryview(b"h" * sum(length for _, length in HOLED))
    attributes = replace(FILE, size=size)
    return Member(name=b"data/holed", attributes=attributes, size=size, ranges=HOLED, chunks=[data])


def parts(salt: bytes) -> list[list[Member]]:
    directory = replace(FILE, kind=Kind.DIRECTORY, mode=0o750)
    link = replace(FILE, kind=Kind.HARDLINK, link=b"data/one")
    return [
        [
            Member(name=b"data", attributes=directory, size=0, ranges=(), chunks=()),
            file(b"data/one", b"1" * 100_000 + salt),
            Member(name=b"data/hard", attributes=link, size=0, ranges=(), chunks=()),
            piece(1, 0, 200_000),
        ],
        [
            piece(2, 200_000, len(LARGE)),
            file(b"data/\xff\n" + b"n" * 150, b"odd" + salt),
            file(b"data/empty", b""),
            holed(),
        ],
    ]


def write_part(
    volume: VolumeWriter, set_id: str, number: int, members: Sequence[Member]
) -> tuple[PartRecord, list[MemberRecord], list[bytes]]:
    volume.begin_file(TapeFileKind.PART, set_id, number, BLOCK_SIZE)
    manifest = io.BytesIO()
    part = PartWriter(volume.write, manifest, number=number, set_id=set_id, block_size=BLOCK_SIZE)
    records = [part.add(member) for member in members]
    whole = part.close()
    file = volume.end_file()
    manifest.seek(0)
    lines = list(member_lines(manifest))
    return replace(whole, position=replace(file.position, object=file.data)), records, lines


def write_set(volume: VolumeWriter, backup_set: BackupSet, salt: bytes) -> list[MemberRecord]:
    written = [
        write_part(volume, backup_set.set_id, number, members)
        for number, members in enumerate(parts(salt), 1)
    ]
    volume.begin_file(TapeFileKind.CATALOGUE, backup_set.set_id, len(written) + 1, BLOCK_SIZE)
    write_set_catalogue(
        volume.write,
        backup_set=backup_set,
        parts=[part for part, _, _ in written],
        files=(line for _, _, lines in written for line in lines),
        block_size=BLOCK_SIZE,
    )
    volume.end_file()
    volume.finish_set()
    return [record for _, records, _ in written for record in records]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[MemberRecord]]]:
    """Two sets and what a crash left on one volume, unpacked by the page's program."""
    directory = tmp_path_factory.mktemp("page")
    tape = directory / "VOL001.tap"
    for set_id in ("20240102-a", "20240103-b"):  # the second is appended
        with open_for_append(open_medium(Settings(path=str(tape))), label_blank="VOL001") as volume:
            records = write_set(volume, a_set(set_id), set_id.encode())
            volume.begin_file(TapeFileKind.PART, "cut-off", 1, BLOCK_SIZE)
            volume.write([bytes(BLOCK_SIZE)])
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (directory / "unpack.py").write_text(program)
    subprocess.run(
        [sys.executable, "-I", "-S", "unpack.py", tape.name, "out"],
        cwd=directory,
        check=True,
        timeout=60,
    )
    yield directory / "out", records


def test_the_program_is_a_page() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(program.splitlines()) <= 60
    assert set(re.findall(r"^import (\w+)", program, flags=re.MULTILINE)) == {"os", "sys"}


def test_every_complete_tape_file_of_every_set_is_unpacked(
    unpacked: tuple[Path, list[MemberRecord]],
) -> None:
    out, _ = unpacked
    names = ["CATALOGUE.tar", "PART-000001.tar", "PART-000002.tar"]
    for set_id in ("20240102-a", "20240103-b"):
        assert sorted(path.name for path in (out / f"set-{set_id}").iterdir()) == names
    assert not list(out.glob("set-cut-off/*.tar"))


@pytest.mark.parametrize(
    "program",
    [["tar", "--warning=no-unknown-keyword", "-xpf"], ["bsdtar", "-xpf"]],
    ids=["GNU tar", "bsdtar"],
)
def test_what_tar_extracts_has_the_hashes_of_the_manifests(
    unpacked: tuple[Path, list[MemberRecord]], program: list[str], tmp_path: Path
) -> None:
    if shutil.which(program[0]) is None:
        pytest.skip(f"{program[0]} is not installed")
    out, records = unpacked
    for tar in sorted((out / "set-20240103-b").glob("PART-*.tar")):
        done = subprocess.run(
            [*program, str(tar)], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
    lines = [
        json.loads(line)
        for manifest in sorted((tmp_path / ".splitmirror").glob("part-*.jsonl"))
        for line in manifest.read_text().splitlines()
    ]
    members = [line for line in lines if "name" in line]
    assert len(members) == len(records) == 8
    for line in members:
        if line["kind"] == "file":
            assert stored_hash(tmp_path, line).hex() == line["blake3"], line["name"]
    pieces = sorted((tmp_path / ".splitmirror/pieces/data/large").iterdir())
    assert b"".join(path.read_bytes() for path in pieces) == LARGE
    assert (tmp_path / "data/hard").samefile(tmp_path / "data/one")


def stored_hash(root: Path, line: dict[str, object]) -> bytes:
    """The hash of what was extracted of a member, over its ranges where it has holes."""
    name = str(line["name"])
    if "piece" in line:
        name = f".splitmirror/pieces/{name}/{line['piece'][0]:04d}"  # type: ignore[index]
    path = os.fsencode(root) + b"/" + name.encode("utf-8", "surrogateescape")
    status = os.stat(path)
    assert status.st_mtime_ns == FILE.mtime_ns
    with Path(os.fsdecode(path)).open("rb") as file:
        if "map" not in line:
            return blake3(file.read()).digest()
        assert status.st_size == line["size"]
        assert status.st_blocks * 512 < 1 << 20
        return blake3(b"".join(os.pread(file.fileno(), n, at) for at, n in HOLED)).digest()


def test_the_catalogue_is_plain_json_lines_that_tell_where_the_parts_lie(
    unpacked: tuple[Path, list[MemberRecord]], tmp_path: Path
) -> None:
    out, records = unpacked
    tar = out / "set-20240103-b/CATALOGUE.tar"
    subprocess.run(["tar", "-xf", str(tar)], cwd=tmp_path, check=True, timeout=60)
    ours = tmp_path / ".splitmirror"
    assert json.loads((ours / "set.json").read_text())["set_id"] == "20240103-b"
    parts = [json.loads(line) for line in (ours / "parts.jsonl").read_text().splitlines()]
    *files, last = [json.loads(line) for line in (ours / "files.jsonl").read_text().splitlines()]
    assert [part["position"]["tape_file"] for part in parts] == [3, 4]
    tape = open_medium(Settings(path=str(out.parent / "VOL001.tap")))
    tape.load(writable=False)
    for part in parts:
        tape.locate(part["position"]["object"])
        assert [member.offset for member in read_members(tape.read)] == [
            file["offset"] for file in files if file["part"] == part["number"]
        ]
    tape.unload()
    assert [file["offset"] for file in files] == [record.offset for record in records]
    text = b"".join((ours / name).read_bytes() for name in ("set.json", "parts.jsonl"))
    lines = (ours / "files.jsonl").read_bytes().splitlines(keepends=True)[:-1]
    assert last == {"members": 8, "blake3": blake3(text + b"".join(lines)).hexdigest()}
