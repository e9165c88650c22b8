"""Whatever a file is called and carries, its headers give it back: to us, and to tarfile."""

from __future__ import annotations

import io
import os
import struct
import tarfile
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitmirror.archive import acl, naming, pax, sparse, unpax
from splitmirror.model import Attributes, Kind
from splitmirror.stream.member import Piece

NAMES = st.lists(
    st.binary(min_size=1, max_size=300).map(lambda part: part.translate(None, b"\0/") or b"x"),
    min_size=1,
    max_size=4,
).map(b"/".join)
XATTR_NAMES = st.sampled_from(
    [b"user.a", b"user.%3D", b"user.=%", b"security.capability", b"trusted.\xff", b"user.\n="]
)


@st.composite
def acls(draw: st.DrawFn) -> bytes:
    """ACLs as the kernel gives them, and some that it would not."""
    plain = st.tuples(st.sampled_from([1, 4, 16, 32]), st.integers(0, 7), st.just(0xFFFFFFFF))
    named = st.tuples(st.sampled_from([2, 8]), st.integers(0, 7), st.integers(0, 0xFFFFFFFE))
    wild = st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF))
    entries = draw(st.lists(st.one_of(plain, named, wild), max_size=6))
    return struct.pack("<I", draw(st.sampled_from([2, 2, 2, 1]))) + b"".join(
        struct.pack("<HHI", *entry) for entry in entries
    )


@st.composite
def attributes(draw: st.DrawFn) -> Attributes:
    kind = draw(st.sampled_from(list(Kind)))
    xattrs = draw(st.dictionaries(XATTR_NAMES, st.binary(max_size=600), max_size=3))
    if draw(st.booleans()):
        xattrs[b"system.posix_acl_access"] = draw(st.one_of(acls(), st.binary(max_size=40)))
    device = kind in (Kind.CHARDEV, Kind.BLOCKDEV)
    return Attributes(
        kind=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, 2**32 - 2)),
        gid=draw(st.integers(0, 2**32 - 2)),
        size=draw(st.integers(0, 2**63 - 1)) if kind is Kind.FILE else 0,
        mtime_ns=draw(st.integers(-(2**63), 2**63 - 1)),
        link=draw(NAMES) if kind in (Kind.HARDLINK, Kind.SYMLINK) else b"",
        rdev=os.makedev(draw(st.integers(0, 4095)), draw(st.integers(0, 2**20 - 1)))
        if device
        else 0,
        xattrs=tuple(sorted(xattrs.items())),
    )


def unpacked(blocks: bytes) -> unpax.Header:
    """Read headers that begin a tar."""
    assert len(blocks) % pax.BLOCK == 0
    length = unpax.extended_length(blocks[: pax.BLOCK])
    if length is None:
        assert len(blocks) == pax.BLOCK
        return unpax.unpack(blocks, {})
    records = unpax.records_of(blocks[pax.BLOCK : pax.BLOCK + length])
    return unpax.unpack(blocks[-pax.BLOCK :], records)


def listed(blocks: bytes) -> tarfile.TarInfo:
    """What Python's tarfile makes of them."""
    with tarfile.open(fileobj=io.BytesIO(blocks + pax.END)) as archive:
        info = archive.next()
    assert info is not None
    return info


@given(NAMES, attributes())
def test_headers_give_back_name_and_attributes(name: bytes, attributes: Attributes) -> None:
    header = unpacked(pax.header(name, attributes, size=attributes.size))
    assert (header.name, header.attributes) == (name, attributes)
    assert (header.archived, header.sparse) == (attributes.size, False)


@given(NAMES, attributes(), st.integers(0, 2**63 - 1), st.binary(max_size=50))
def test_headers_of_a_file_with_holes_give_back_both_sizes(
    name: bytes, attributes: Attributes, archived: int, comment: bytes
) -> None:
    if attributes.kind is not Kind.FILE:
        return
    header = unpacked(
        pax.header(name, attributes, size=attributes.size, archived=archived, comment=comment)
    )
    assert (header.name, header.attributes) == (name, attributes)
    assert (header.archived, header.sparse, header.comment) == (archived, True, comment)


@given(NAMES, attributes())
def test_tarfile_reads_the_same_name_owner_and_size(name: bytes, attributes: Attributes) -> None:
    info = listed(pax.header(name, attributes, size=attributes.size))
    assert os.fsencode(info.name) == name
    assert (info.mode, info.uid, info.gid) == (attributes.mode, attributes.uid, attributes.gid)
    assert (info.size, info.type) == (attributes.size, attributes.kind.value.encode())
    assert os.fsencode(info.linkname) == attributes.link
    assert info.mtime == pytest.approx(attributes.mtime_ns / 1e9)


@given(acls())
def test_an_acl_comes_back_from_its_text_or_has_none(binary: bytes) -> None:
    try:
        text = acl.to_text(binary)
    except ValueError:
        return
    assert acl.from_text(text) == binary


@given(st.binary(max_size=60))
def test_a_damaged_acl_text_is_refused_or_means_what_it_says(text: bytes) -> None:
    try:
        binary = acl.from_text(text)
    except ValueError:
        return
    assert acl.from_text(acl.to_text(binary)) == binary


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_time_comes_back_from_its_decimal(time_ns: int) -> None:
    assert unpax.nanoseconds(pax.decimal(time_ns)) == time_ns


@given(
    st.lists(st.tuples(st.integers(1, 2**40), st.integers(1, 2**31)), max_size=200),
    st.sampled_from([0, 1, 2**44]),
)
def test_a_sparse_map_gives_back_its_ranges(gaps: Sequence[tuple[int, int]], tail: int) -> None:
    ranges, end = [], 0
    for hole, blocks in gaps:
        length = blocks * pax.BLOCK
        ranges.append((end + hole, length))
        end += hole + length
    packed = sparse.pack(ranges, end + tail)
    parser = sparse.MapParser()
    cut = [packed[at : at + pax.BLOCK] for at in range(0, len(packed), pax.BLOCK)]
    assert [parser.feed(block) for block in cut] == [False] * (len(cut) - 1) + [True]
    assert parser.ranges(end + tail) == tuple(ranges)


@given(st.binary(max_size=300))
def test_any_bytes_come_back_from_json(value: bytes) -> None:
    line = naming.json_line({"name": naming.to_text(value)})
    assert line.isascii()
    assert naming.to_bytes(naming.parse_line(line)["name"]) == value


@given(NAMES, st.integers(1, 20_000))
def test_pieces_sort_by_name_in_their_order(name: bytes, count: int) -> None:
    numbers = sorted({1, count // 2 or 1, count - 1 or 1, count})
    names = [
        naming.piece_name(name, Piece(number=number, count=count, offset=0)) for number in numbers
    ]
    assert names == sorted(names)


@given(NAMES, attributes(), st.data())
def test_one_wrong_bit_in_a_member_s_header_is_noticed(
    name: bytes, attributes: Attributes, data: st.DataObject
) -> None:
    blocks = bytearray(pax.header(name, attributes, size=attributes.size)[-pax.BLOCK :])
    # beyond the checksum's own padding, which is not counted
    at = data.draw(st.integers(0, len(blocks) - 1).filter(lambda at: at not in (154, 155)))
    blocks[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError):
        unpax.unpack(bytes(blocks), {})
