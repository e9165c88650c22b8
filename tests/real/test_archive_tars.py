"""GNU tar, bsdtar and Python's tarfile extract our parts as what was put in."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from splitmirror.archive import acl, pax
from splitmirror.archive.part import PartWriter
from splitmirror.archive.reading import read_manifest
from splitmirror.media.memory import Cartridge, Memory
from splitmirror.model import Attributes, Kind
from splitmirror.stream.member import Member, Piece

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root"),
]

Extract = Callable[[Path, Path], str]
"""Unpacks a tar into a directory and gives what the program printed."""

ACCESS = b"user::rw-,user:1000:r--,user:3000000:rw-,group::r--,mask::rw-,other::---"
DEFAULT = b"user::rwx,group::r-x,group:77:rwx,mask::rwx,other::r-x"
XATTRS = (
    (b"security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)),
    (b"system.posix_acl_access", acl.from_text(ACCESS)),
    (b"trusted.t", b"\0\n\xff="),
    (b"user.plain", b"value"),
)
FILE = Attributes(
    kind=Kind.FILE, mode=0o640, uid=105, gid=113, size=0, mtime_ns=1_600_000_000 * 10**9 + 7
)


def _run(argv: Sequence[str], target: Path) -> str:
    target.mkdir()
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(argv, capture_output=True, cwd=target, env=environment, timeout=60)
    text = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, text
    return text


def gnu_tar(tar: Path, target: Path) -> str:
    options = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--same-owner"]
    return _run(["tar", *options, "-xpf", str(tar)], target)


def bsdtar(tar: Path, target: Path) -> str:
    return _run(["bsdtar", "--xattrs", "--acls", "--numeric-owner", "-xpf", str(tar)], target)


def python_tarfile(tar: Path, target: Path) -> str:
    """Which knows no extended attributes."""
    program = (
        "import sys, tarfile\n"
        "with tarfile.open(sys.argv[1]) as archive:\n"
        "    archive.extraction_filter = lambda member, path: member\n"
        "    archive.extractall('.', numeric_owner=True)\n"
    )
    return _run([sys.executable, "-W", "error", "-c", program, str(tar)], target)


READERS = pytest.mark.parametrize("extract", [gnu_tar, bsdtar, python_tarfile])
TARS = pytest.mark.parametrize("extract", [gnu_tar, bsdtar])


def member(name: bytes, data: bytes = b"", **changes: object) -> Member:
    attributes = replace(FILE, size=len(data), **changes)  # type: ignore[arg-type]
    if attributes.kind is not Kind.FILE:
        attributes = replace(attributes, size=0)
    ranges = ((0, len(data)),) if data else ()
    return Member(
        name=name, attributes=attributes, size=len(data), ranges=ranges, chunks=[memoryview(data)]
    )


def write_part(path: Path, members: Sequence[Member], *, block_size: int = 65536) -> None:
    with path.open("wb") as file:
        part = PartWriter(
            lambda blocks: bool(sum(map(file.write, blocks))) and False,
            io.BytesIO(),
            number=1,
            set_id="S1",
            block_size=block_size,
        )
        for one in members:
            part.add(one)
        part.close()


def attributes_of(path: bytes) -> tuple[Any, ...]:
    """Everything about a file but its bytes and xattrs."""
    status = os.lstat(path)
    link = os.readlink(path) if os.path.islink(path) else b""
    return (
        *(status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime_ns),
        *(status.st_rdev, link),
    )


def expected_of(attributes: Attributes) -> tuple[Any, ...]:
    mode = 0o777 if attributes.kind is Kind.SYMLINK else attributes.mode
    link = attributes.link if attributes.kind is Kind.SYMLINK else b""
    return mode, attributes.uid, attributes.gid, attributes.mtime_ns, attributes.rdev, link


def common_set() -> list[Member]:
    """What a database has, and what sits beside it."""
    return [
        member(b"data", kind=Kind.DIRECTORY, mode=0o700),
        member(b"data/base", kind=Kind.DIRECTORY, mode=0o2750),
        member(b"data/base/1259", b"page" * 2048),
        member(b"data/base/empty"),
        member(b"data/setuid", b"x", mode=0o4755, uid=3_000_000, gid=4_000_000_000),
        member(b"data/epoch", b"x", mtime_ns=10**9),
        member(b"data/link", kind=Kind.SYMLINK, link=b"/srv/" + b"l" * 200),
        member(b"data/fifo", kind=Kind.FIFO),
        member(b"data/disk", kind=Kind.BLOCKDEV, rdev=os.makedev(259, 1_048_575)),
        member(b"data/tty", kind=Kind.CHARDEV, rdev=os.makedev(4, 64)),
        member(b"data/" + b"n" * 120, b"a name above 100 bytes"),
        member(b"/".join([b"data", *[b"d" * 90] * 4]), b"a path above 255 bytes"),
        member(b"data/new\nline", b"x"),
        member("data/größe".encode(), b"UTF-8"),
        member("data/größe-link".encode(), kind=Kind.SYMLINK, link="größe".encode()),
        member(b"data/a" * 1 + b"'\\ %=", b"x"),
    ]


def binary_set() -> list[Member]:
    """Names that are not UTF-8."""
    return [
        member(b"data", kind=Kind.DIRECTORY),
        member(b"data/\xff\xfe", b"x"),
        member(b"data/gr\xf6\xdfe-link", kind=Kind.SYMLINK, link=b"gr\xf6\xdfe"),
        member(b"data/" + b"\xe9" * 150, b"x"),
    ]


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return tmp_path / "part.tar"


def beyond_known(printed: str) -> str:
    """What was printed but GNU tar's note that it does not know the POSIX keyword for names that
    are not UTF-8."""
    note = "tar: Ignoring unknown extended header keyword 'hdrcharset'\n"
    return printed.replace(note, "")


def check(target: Path, members: Sequence[Member], *, extract: Extract) -> None:
    for one in members:
        path = os.fsencode(target) + b"/" + one.name
        found, expected = attributes_of(path), expected_of(one.attributes)
        assert found[:3] + found[4:] == expected[:3] + expected[4:], one.name
        if extract is python_tarfile:  # has times as floats, and none for symbolic links
            off_ns = 10**18 if one.attributes.kind is Kind.SYMLINK else 1000
            assert abs(found[3] - expected[3]) <= off_ns, one.name
        else:
            assert found[3] == expected[3], one.name
        if one.attributes.kind is Kind.FILE and one.chunks:
            data = b"".join(map(bytes, one.chunks))
            assert Path(os.fsdecode(path)).read_bytes() == data, one.name


@READERS
def test_names_and_attributes_survive_and_nothing_is_printed(
    extract: Extract, tar: Path, tmp_path: Path
) -> None:
    write_part(tar, common_set())
    assert extract(tar, tmp_path / "out") == ""
    check(tmp_path / "out", common_set(), extract=extract)


@READERS
def test_names_that_are_not_utf_8_survive(extract: Extract, tar: Path, tmp_path: Path) -> None:
    write_part(tar, binary_set())
    assert beyond_known(extract(tar, tmp_path / "out")) == ""
    check(tmp_path / "out", binary_set(), extract=extract)


@TARS
def test_xattrs_and_acls_survive(extract: Extract, tar: Path, tmp_path: Path) -> None:
    defaults = ((b"system.posix_acl_default", acl.from_text(DEFAULT)),)
    odd = ((b"user.empty", b""), (b"user.percent%=equals", b"1"))
    write_part(
        tar,
        [
            member(b"data", kind=Kind.DIRECTORY, mode=0o755, xattrs=defaults),
            member(b"data/file", b"x", mode=0o660, xattrs=XATTRS),
            # libarchive takes an xattr's name as it stands, so '=' in names is GNU tar's alone
            member(b"data/odd", b"x", xattrs=odd if extract is gnu_tar else odd[:1]),
        ],
    )
    assert extract(tar, tmp_path / "out") == ""
    data = tmp_path / "out" / "data"
    for path, expected in ((data, defaults), (data / "file", XATTRS)):
        assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == {
            os.fsdecode(name): value for name, value in expected
        }
    assert os.getxattr(data / "odd", "user.empty") == b""
    if extract is gnu_tar:
        assert os.getxattr(data / "odd", "user.percent%=equals") == b"1"


@READERS
def test_hard_links_are_links_again(extract: Extract, tar: Path, tmp_path: Path) -> None:
    name = b"data/" + b"\xff" * 120
    write_part(
        tar,
        [
            member(name, b"shared"),
            member(b"data/linked", kind=Kind.HARDLINK, link=name),
            member(b"data/repeated", b"shared", link=b"data/elsewhere"),
        ],
    )
    assert beyond_known(extract(tar, tmp_path / "out")) == ""
    out = os.fsencode(tmp_path / "out") + b"/"
    assert os.stat(out + name).st_ino == os.stat(out + b"data/linked").st_ino
    assert os.stat(out + b"data/repeated").st_nlink == 1


def holed(name: bytes, size: int, ranges: tuple[tuple[int, int], ...]) -> Member:
    stored = b"".join(bytes([65 + i % 26]) * length for i, (_, length) in enumerate(ranges))
    attributes = replace(FILE, size=size)
    chunks = [memoryview(stored)]
    return Member(name=name, attributes=attributes, size=size, ranges=ranges, chunks=chunks)


@READERS
def test_holes_are_holes_again(extract: Extract, tar: Path, tmp_path: Path) -> None:
    many = tuple((i << 20, 4096) for i in range(300))
    members = [
        holed(b"data/end", 1 << 40, ((0, 4096), ((1 << 40) - 4096, 4096))),
        holed(b"data/hole-at-end", 100_000_000, ((8192, 5000),)),
        holed(b"data/ragged-end", 100_000, ((0, 512), (4096, 1536), (98_304, 1696))),
        holed(b"data/many", 400 << 20, many),
        holed(b"data/nothing", 1 << 30, ()),
        holed(b"data/\xff" + b"n" * 150, 10_000_000, ((4096, 4096),)),
    ]
    write_part(tar, members)
    assert beyond_known(extract(tar, tmp_path / "out")) == ""
    for one in members:
        path = os.fsencode(tmp_path / "out") + b"/" + one.name
        status = os.stat(path)
        assert status.st_size == one.size
        assert status.st_blocks * 512 <= one.stored + (64 << 10), "the holes were filled"
        with Path(os.fsdecode(path)).open("rb") as file:
            for i, (offset, length) in enumerate(one.ranges):
                file.seek(offset)
                assert file.read(length) == bytes([65 + i % 26]) * length
    check(tmp_path / "out", [replace(one, chunks=()) for one in members], extract=extract)


@READERS
def test_pieces_joined_by_cat_are_the_file(extract: Extract, tar: Path, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    cuts = [0, 100_000, 200_000, len(data)]
    pieces = [
        Member(
            name=b"data/large",
            attributes=replace(FILE, size=len(data)),
            size=end - begin,
            ranges=((0, end - begin),),
            chunks=[memoryview(data)[begin:end]],
            piece=Piece(number=number, count=3, offset=begin),
        )
        for number, (begin, end) in enumerate(pairwise(cuts), 1)
    ]
    write_part(tar, pieces)
    assert extract(tar, tmp_path / "out") == ""
    where = tmp_path / "out/.splitmirror/pieces/data/large"
    joined = subprocess.run(f"cat {where}/*", shell=True, capture_output=True, check=True).stdout  # noqa: S602
    assert joined == data


@pytest.mark.parametrize("seconds", [-(2**31), -1_000_000_000, -1, 2**33])
@READERS
def test_times_of_other_centuries_survive(
    extract: Extract, seconds: int, tar: Path, tmp_path: Path
) -> None:
    write_part(tar, [member(b"old", b"x", mtime_ns=seconds * 10**9)])
    extract(tar, tmp_path / "out")  # GNU tar says that they are implausible
    assert os.stat(tmp_path / "out/old").st_mtime == seconds


def test_gnu_tar_restores_nanoseconds_before_1970(tar: Path, tmp_path: Path) -> None:
    write_part(tar, [member(b"old", b"x", mtime_ns=-1_500_000_001)])
    gnu_tar(tar, tmp_path / "out")
    assert os.stat(tmp_path / "out/old").st_mtime_ns == -1_500_000_001


def test_tarfile_lists_a_part_without_a_warning(tar: Path) -> None:
    members = [*common_set(), *binary_set()[1:]]
    write_part(tar, members)
    with warnings.catch_warnings(), tarfile.open(tar) as archive:
        warnings.simplefilter("error")
        names = [os.fsencode(info.name) for info in archive]
    assert names == [*(one.name for one in members), b".splitmirror/part-0001.jsonl"]


def test_a_file_above_8_gib_is_listed_with_its_size(tar: Path) -> None:
    size = (8 << 30) + 12345
    header = pax.header(b"data/large", replace(FILE, size=size), size=size)
    for listing in (["tar", "-tvf", "-"], ["bsdtar", "-tvf", "-"]):
        program = subprocess.run(listing, input=header, capture_output=True, timeout=60)
        assert str(size).encode() in program.stdout, program.stderr
    with tarfile.open(fileobj=io.BytesIO(header)) as archive:
        info = archive.next()
        assert info is not None and info.size == size


def test_the_manifest_stands_in_the_part_as_an_ordinary_file(tar: Path, tmp_path: Path) -> None:
    write_part(tar, common_set())
    gnu_tar(tar, tmp_path / "out")
    lines = (tmp_path / "out/.splitmirror/part-0001.jsonl").read_bytes().splitlines()
    assert len(lines) == len(common_set()) + 2
    medium = Memory(Cartridge())
    medium.load(writable=True)
    text = tar.read_bytes()
    medium.write([text[at : at + 65536] for at in range(0, len(text), 65536)])
    medium.write_filemarks(1, sync=True)
    medium.locate(0)
    by_name = {record.name: record.blake3 for record in read_manifest(medium.read)}
    assert by_name[b"data/base/1259"] == blake3(b"page" * 2048).digest()
