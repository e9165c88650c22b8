"""The manifest: what a part holds, in JSON lines, as the part's last member.

The first line says which part of which set it is, then comes a line for each member, and the last
line counts and hashes those before it. The lines of the set's catalogue are the same, with the
part's number. docs/format.md lists the keys.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from splitmirror.archive import sparse
from splitmirror.archive.naming import (
    json_line,
    json_text,
    piece_document,
    piece_of,
    to_bytes,
    to_text,
)
from splitmirror.archive.naming import (
    parse_line as parse_line,
)
from splitmirror.archive.pax import SECOND, FileValues, attributes_of, decimal
from splitmirror.archive.unpax import nanoseconds
from splitmirror.errors import WrongMedium
from splitmirror.model import Attributes, Kind, MediaPosition, Origin
from splitmirror.stream.member import Piece

PART_FORMAT = "splitmirror part"
VERSION = "1.0"
_LINE_LIMIT = 256 << 20  # bytes; a line holds one member's names and extended attributes

_KIND_NAMES = {kind: kind.name.lower() for kind in Kind}
_KINDS = {name: kind for kind, name in _KIND_NAMES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRecord:
    """A member that is on the medium.

    `name` and `attributes` are the file's, also where the member is a piece of it; `size` is the
    member's content as a file, `stored` what of it is not hole. `offset` is where its headers begin
    in the part's tar. `blake3` is over the stored bytes in order (b"" unless it is a FILE), `map`
    over the sparse map's text (b"" without holes).
    """

    name: bytes
    attributes: Attributes
    offset: int
    size: int
    stored: int
    blake3: bytes = b""
    map: bytes = b""
    origin: Origin = Origin.LEG
    piece: Piece | None = None
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """A part that is whole. `position` is that of its first data record; None: not yet known.

    `length` is the tape file's in bytes, with padding: a number of whole records. `manifest` is
    where the manifest's headers begin in it. `digest` is the BLAKE3 of the manifest's lines but the
    last, which covers the hash of every member.
    """

    set_id: str
    number: int
    members: int
    stored: int
    length: int
    block_size: int
    manifest: int
    digest: bytes
    position: MediaPosition | None = None


def map_digest(ranges: sparse.Ranges, size: int) -> bytes:
    """What `MemberRecord.map` is of a file with holes."""
    return blake3(sparse.pack(ranges, size).rstrip(b"\0")).digest()


# --- lines


def member_line(record: MemberRecord, part: int) -> bytes:
    """The line of a member of that part, newline and all. What says nothing is left out."""
    text = f'{{"part":{part},{description(record)}'
    if record.blake3:
        text += f',"blake3":"{record.blake3.hex()}"'
    if record.origin is not Origin.LEG:
        text += f',"origin":{json_text(record.origin.value)}'
    if record.title:
        text += f',"title":{json_text(record.title)}'
    return text.encode("ascii") + b"}\n"


def file_line(part: int, offset: int, values: FileValues, digest: str, title: str) -> str:
    """`member_line` of a regular file without holes, link or pieces, off the leg; as text, and
    `digest` as hex. The inner loop of a set of small files."""
    name, mode, uid, gid, mtime_ns, xattrs, size = values
    if xattrs:
        record = MemberRecord(
            name=name,
            attributes=attributes_of(values),
            offset=offset,
            size=size,
            stored=size,
            blake3=bytes.fromhex(digest),
            title=title,
        )
        return member_line(record, part).decode("ascii")
    usual = _usual(name, "file", offset, mode, uid, gid, mtime_ns, size)
    ending = f',"title":{json_text(title)}}}\n' if title else "}\n"
    return f'{{"part":{part},{usual},"blake3":"{digest}"{ending}'


def description(record: MemberRecord) -> str:
    """What of the line can also be told from the tar, without its hash and without braces."""
    attributes = record.attributes
    text = _usual(
        record.name, _kind_name(attributes.kind), record.offset, attributes.mode, attributes.uid,
        attributes.gid, attributes.mtime_ns, record.size,
    )  # fmt: skip
    if record.stored != record.size:
        text += f',"stored":{record.stored},"map":"{record.map.hex()}"'
    if record.piece is None and not (attributes.link or attributes.rdev or attributes.xattrs):
        return text
    return text + "," + json_line(_rarely(record)).decode().strip("{}\n")


def _usual(
    name: bytes, kind: str, offset: int, mode: int, uid: int, gid: int, mtime_ns: int, size: int
) -> str:
    """What every line has. Written by hand: a third of the time of the json module."""
    if mtime_ns >= 0:
        seconds, ns = divmod(mtime_ns, SECOND)
        mtime = f"{seconds}.{ns:09d}"
    else:
        mtime = decimal(mtime_ns).decode()
    return (
        f'"name":{json_text(name.decode("utf-8", "surrogateescape"))},"kind":"{kind}",'
        f'"offset":{offset},"mode":"{mode:04o}","uid":{uid},"gid":{gid},"mtime":"{mtime}",'
        f'"size":{size}'
    )


def _kind_name(kind: Kind) -> str:
    return "file" if kind is Kind.FILE else _KIND_NAMES[kind]


def _rarely(record: MemberRecord) -> dict[str, object]:
    """What few members have."""
    attributes, document = record.attributes, dict[str, object]()
    if record.piece is not None:
        document["piece"] = piece_document(record.piece, attributes)
    if attributes.link:
        document["link"] = to_text(attributes.link)
    if attributes.rdev:
        document["rdev"] = attributes.rdev
    if attributes.xattrs:
        document["xattrs"] = [
            [to_text(name), base64.b64encode(value).decode()] for name, value in attributes.xattrs
        ]
    return document


def member_of(document: Mapping[str, Any]) -> MemberRecord:
    """The member of a line's document. Raises ValueError for one that lacks something."""
    try:
        return _member_of(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a member's line with a wrong or missing value: {error}") from error


def _member_of(document: Mapping[str, Any]) -> MemberRecord:
    size = whole = document["size"]
    piece = None
    if "piece" in document:
        piece, whole = piece_of(document["piece"])
    return MemberRecord(
        name=to_bytes(document["name"]),
        attributes=_attributes_of(document, whole),
        offset=document["offset"],
        size=size,
        stored=document.get("stored", size),
        blake3=bytes.fromhex(document.get("blake3", "")),
        map=bytes.fromhex(document.get("map", "")),
        origin=Origin(document.get("origin", Origin.LEG)),
        piece=piece,
        title=document.get("title", ""),
    )


def _attributes_of(document: Mapping[str, Any], size: int) -> Attributes:
    return Attributes(
        kind=_KINDS[document["kind"]],
        mode=int(document["mode"], 8),
        uid=document["uid"],
        gid=document["gid"],
        size=size,
        mtime_ns=nanoseconds(document["mtime"].encode()),
        link=to_bytes(document.get("link", "")),
        rdev=document.get("rdev", 0),
        xattrs=tuple(
            (to_bytes(name), base64.b64decode(value, validate=True))
            for name, value in document.get("xattrs", ())
        ),
    )


def lines_of(chunks: Iterable[memoryview]) -> Iterator[bytes]:
    """The lines of a text that comes in chunks, without their newlines. Raises ValueError for an
    unfinished or endless one."""
    rest = b""
    for chunk in chunks:
        *lines, last = bytes(chunk).split(b"\n")
        if not lines:
            rest += last
        else:
            yield rest + lines[0]
            yield from lines[1:]
            rest = last
        if len(rest) > _LINE_LIMIT:
            raise ValueError("a line without end")
    if rest:
        raise ValueError("the last line is cut off")


class ManifestReader:
    """A manifest as it comes. Iterate it once, to its end; every ValueError means damage.

    `set_id`, `number` and `block_size` are known at once; `members`, `stored` and `digest` at the
    end, when the last line was found to be true.
    """

    def __init__(self, chunks: Iterable[memoryview]) -> None:
        self.members = self.stored = 0
        self.digest = b""
        self._lines = lines_of(chunks)
        first = next(self._lines, b"{}")
        self._hash = blake3(first + b"\n")
        document = parse_line(first)
        expect_format(document, PART_FORMAT)
        try:
            self.set_id = str(document["set"])
            self.number = int(document["part"])
            self.block_size = int(document["block_size"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"a manifest whose first line lacks something: {error}") from error

    def __iter__(self) -> Iterator[MemberRecord]:
        for line in self._lines:
            document = parse_line(line)
            if "members" in document:
                self._end(document)
                return
            self._hash.update(line + b"\n")
            record = member_of(document)
            self.members += 1
            self.stored += record.stored
            yield record
        raise ValueError("a manifest without its last line")

    def _end(self, document: Mapping[str, Any]) -> None:
        digest = self._hash.digest()
        found = {"members": self.members, "stored": self.stored, "blake3": digest.hex()}
        if document != found or next(self._lines, None) is not None:
            raise ValueError("a manifest whose last line does not fit the lines before it")
        self.digest = digest


def expect_format(document: Mapping[str, Any], name: str) -> None:
    """Raises ValueError unless the document is of this format, WrongMedium for a later version."""
    if document.get("format") != name:
        raise ValueError(f"not a {name}")
    version = str(document.get("version"))
    if version.partition(".")[0] != VERSION.partition(".")[0]:
        raise WrongMedium(
            f"a {name} of version {version}; this program reads {VERSION}",
            hint="Use the version of splitmirror that wrote it, or a later one.",
        )
