"""Tar headers read back: the reverse of pax.py, and no more than what pax.py writes.

Whatever else a medium may hold is damage or not ours, and raises ValueError; reading.py adds where.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from splitmirror.archive import acl
from splitmirror.archive.pax import ACL_KEYS, EXTENDED, FLAGS, MAGIC, SECOND, XATTR
from splitmirror.model import Attributes, Kind

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")
_KINDS = {flag: kind for kind, flag in FLAGS.items()}
_DEVICES = (Kind.CHARDEV, Kind.BLOCKDEV)
_ACL_XATTRS = {key: name for name, key in ACL_KEYS.items()}
_DECIMAL = re.compile(rb"(-?)([0-9]{1,18})(?:\.([0-9]{1,9})[0-9]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the headers of a member say. The size in `attributes` is the content's as a file.

    `archived` bytes follow in the archive; `sparse`: they begin with a map.
    """

    name: bytes
    attributes: Attributes
    archived: int
    sparse: bool
    comment: bytes


def extended_length(block: bytes) -> int | None:
    """How long the pax records are which this header block announces; None: it is a member's.

    Raises ValueError for a block that is no header.
    """
    fields = _fields(block)
    return _octal(fields[4]) if fields[7] == EXTENDED else None


def records_of(payload: bytes) -> dict[bytes, bytes]:
    """The records of a pax extended header. Raises ValueError."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(payload):
        digits = payload[at : payload.find(b" ", at, at + 20)]
        if not digits.isdigit():
            raise ValueError("a pax record without its length")
        end = at + int(digits)
        key, equals, value = payload[at + len(digits) + 1 : end].partition(b"=")
        if not equals or not value.endswith(b"\n") or end > len(payload):
            raise ValueError("a pax record of the wrong length")
        records[key] = value[:-1]
        at = end
    return records


def unpack(block: bytes, records: Mapping[bytes, bytes]) -> Header:
    """The header block of a member, with the pax records that came before it. Raises ValueError
    for what this format does not have."""
    fields = _fields(block)
    kind = _KINDS.get(fields[7])
    if kind is None:
        raise ValueError(f"unknown type flag {fields[7]!r}")
    sparse = _is_sparse(records)
    archived = _number(records, b"size", fields[4])
    name = records.get(b"GNU.sparse.name") if sparse else records.get(b"path")
    name = _text(fields[0]) if name is None else name
    attributes = Attributes(
        kind=kind,
        mode=_octal(fields[1]) & 0o7777,
        uid=_number(records, b"uid", fields[2]),
        gid=_number(records, b"gid", fields[3]),
        size=_integer(records.get(b"GNU.sparse.realsize", b"")) if sparse else archived,
        mtime_ns=_time(records, fields[5]),
        link=records.get(b"linkpath", _text(fields[8])),
        rdev=os.makedev(_octal(fields[12]), _octal(fields[13])) if kind in _DEVICES else 0,
        xattrs=_xattrs(records),
    )
    return Header(
        name=name.removesuffix(b"/") if kind is Kind.DIRECTORY else name,
        attributes=attributes,
        archived=archived,
        sparse=sparse,
        comment=records.get(b"comment", b""),
    )


def _fields(block: bytes) -> tuple[bytes, ...]:
    fields: tuple[bytes, ...] = _HEADER.unpack(block)
    own = zlib.adler32(fields[6], 0) & 0xFFFF
    expected = (zlib.adler32(block, 0) & 0xFFFF) - own + 8 * 0x20
    if fields[9] != MAGIC or fields[14].strip(b"\0") or _octal(fields[6]) != expected:
        raise ValueError("not a tar header of this format, or its checksum is wrong")
    return fields


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _octal(field: bytes) -> int:
    digits = field.rstrip(b"\0 ")
    if not digits:
        return 0
    if digits.translate(None, b"01234567"):
        raise ValueError(f"not an octal number: {field!r}")
    return int(digits, 8)


def _integer(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise ValueError(f"not a number: {digits[:40]!r}")
    return int(digits)


def _number(records: Mapping[bytes, bytes], key: bytes, field: bytes) -> int:
    value = records.get(key)
    return _octal(field) if value is None else _integer(value)


def _time(records: Mapping[bytes, bytes], field: bytes) -> int:
    value = records.get(b"mtime")
    return _octal(field) * SECOND if value is None else nanoseconds(value)


def nanoseconds(text: bytes) -> int:
    """The reverse of `decimal`. Raises ValueError."""
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise ValueError(f"not a time: {text[:40]!r}")
    sign, seconds, fraction = match.groups(b"")
    ns = int(seconds) * SECOND + int(fraction.ljust(9, b"0"))
    return -ns if sign else ns


def _is_sparse(records: Mapping[bytes, bytes]) -> bool:
    version = (records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor"))
    if version not in ((None, None), (b"1", b"0")):
        raise ValueError("a sparse format other than 1.0")
    return version != (None, None)


def _xattrs(records: Mapping[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    found = []
    for key, value in records.items():
        if key in _ACL_XATTRS:
            found.append((_ACL_XATTRS[key], acl.from_text(value)))
        elif key.startswith(XATTR):
            name = key[len(XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%")
            found.append((name, value))
    return tuple(sorted(found))
