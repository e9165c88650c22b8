"""What the format calls its own: names below `.splitmirror/`, pieces, comments, names in JSON.

Names are text in JSON, so bytes that are not UTF-8 stand as the lone surrogates U+DC80 to U+DCFF
(PEP 383), written as escapes; all output is ASCII.
"""

from __future__ import annotations

import json
import json.encoder
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from splitmirror.model import Attributes, Kind
from splitmirror.stream.member import Piece

OURS = b".splitmirror/"  # no member of a backup has a name below it
PIECES = OURS + b"pieces/"
_PART = OURS + b"part-"
_LINES = b".jsonl"
_COMMENT = b"splitmirror "

json_text = json.encoder.encode_basestring_ascii
"""A text as JSON, quoted and in ASCII."""

_encoder = json.JSONEncoder(separators=(",", ":"))  # ensure_ascii is the default


def manifest_name(number: int) -> bytes:
    """The name of the member that is a part's manifest."""
    return b"%b%04d%b" % (_PART, number, _LINES)


def is_manifest(name: bytes) -> bool:
    """Whether that is the name of a part's manifest."""
    return name.startswith(_PART) and name.endswith(_LINES)


def piece_name(name: bytes, piece: Piece) -> bytes:
    """The member name of a piece. Sorted by name, the pieces of a file are in order."""
    return b"%b%b/%0*d" % (PIECES, name, max(4, len(str(piece.count))), piece.number)


# --- JSON


def to_text(value: bytes) -> str:
    """Any bytes as text for JSON; `to_bytes` is the reverse."""
    return value.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    """Raises UnicodeEncodeError, a ValueError, for text that `to_text` cannot have given."""
    return text.encode("utf-8", "surrogateescape")


def json_line(document: Mapping[str, object]) -> bytes:
    """A document on a line of its own."""
    return _encoder.encode(document).encode("ascii") + b"\n"


def parse_line(line: bytes) -> dict[str, Any]:
    """A line's document. Raises ValueError."""
    try:
        document = msgspec.json.decode(line)
    except msgspec.DecodeError:  # of names that are not UTF-8, or of what is no JSON at all
        document = json.loads(line)
    if not isinstance(document, dict):
        raise ValueError("a line that is no JSON object")
    return document


# --- what tar has no word for: a comment in the pax header, so that no manifest is needed


def comment_of(attributes: Attributes, piece: Piece | None) -> bytes:
    """The comment of a member that is a piece or repeats the data of a hard link; else b""."""
    document: dict[str, object] = {}
    if piece is not None:
        document["piece"] = piece_document(piece, attributes)
    if attributes.kind is Kind.FILE and attributes.link:
        document["link"] = to_text(attributes.link)
    return _COMMENT + json_line(document).rstrip() if document else b""


def from_comment(comment: bytes, attributes: Attributes) -> tuple[Attributes, Piece | None]:
    """What the comment adds: the whole file's size and the piece, the link. Raises ValueError."""
    if not comment.startswith(_COMMENT):
        return attributes, None
    document = parse_line(comment.removeprefix(_COMMENT))
    link, piece = document.get("link"), document.get("piece")
    if isinstance(link, str):
        attributes = replace(attributes, link=to_bytes(link))
    if piece is None:
        return attributes, None
    piece, whole = piece_of(piece)
    if not 1 <= piece.number <= piece.count or piece.offset + attributes.size > whole:
        raise ValueError(f"not a piece of {whole} bytes: {piece}")
    return replace(attributes, size=whole), piece


def piece_document(piece: Piece, attributes: Attributes) -> list[int]:
    """Number, count, offset in the file, size of the whole file."""
    return [piece.number, piece.count, piece.offset, attributes.size]


def piece_of(document: object) -> tuple[Piece, int]:
    """The reverse: the piece, and the size of the whole file. Raises ValueError."""
    if not isinstance(document, list) or list(map(type, document)) != [int] * 4:
        raise ValueError(f"not a piece: {document!r}")
    number, count, offset, size = document
    return Piece(number=number, count=count, offset=offset), size
