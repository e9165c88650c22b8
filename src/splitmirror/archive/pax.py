"""Tar headers: POSIX ustar with pax extended headers (IEEE Std 1003.1, pax), packed by hand.

A member is a pax extended header where it needs one (nearly always, for nanoseconds) and a ustar
header. Beyond POSIX stand only what GNU tar and bsdtar both read: GNU.sparse.* (the sparse format
1.0 of GNU tar's manual), SCHILY.xattr.* and SCHILY.acl.* (star). What tar has no word for goes into
`comment`, which every reader keeps silent about. Packing is the inner loop of a set of small files:
the usual header takes two to three microseconds. docs/format.md describes every byte.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache

from splitmirror.archive import acl
from splitmirror.model import Attributes, Kind

BLOCK = 512  # bytes; headers are one block, contents are padded to whole blocks
END = bytes(2 * BLOCK)  # two zero blocks end an archive
EXTENDED = b"x"  # type flag of a pax extended header

_NAME = 100  # bytes of the ustar name and linkname fields
_ID_LIMIT = 8**7  # uid, gid, devmajor and devminor have seven octal digits
_SIZE_LIMIT = 8**11  # size and mtime have eleven
SECOND = 10**9
_EXTENDED_NAME = b"././@PaxHeader"  # as Python's tarfile and bsdtar know it
_SPARSE_PREFIX = b"GNUSparseFile.0/"  # where a reader without sparse files puts the raw member
ACL_KEYS = {
    b"system.posix_acl_access": b"SCHILY.acl.access",
    b"system.posix_acl_default": b"SCHILY.acl.default",
}
XATTR = b"SCHILY.xattr."
FLAGS = {kind: kind.value.encode() for kind in Kind}
_TAIL = struct.Struct("c100s8s32s32s8s8s155s12s")  # from the type flag to the end
MAGIC = b"ustar\x0000"
_ASCII = bytes(range(128)) + b"_" * 128  # for fields that a pax record overrides


def header(
    name: bytes,
    attributes: Attributes,
    *,
    size: int,
    archived: int | None = None,
    comment: bytes = b"",
) -> bytes:
    """The blocks in front of a member's content.

    `size` is the content's length as a file (the size in `attributes` is not looked at);
    `archived`, for a file with holes only, the length of what is stored instead: the sparse map
    and the data. Raises ValueError for a name that no file has.
    """
    if not name or b"\0" in name:
        raise ValueError(f"no name for a member: {name!r}")
    kind = attributes.kind
    if kind is _DIRECTORY:
        name += b"/"
    ids, records = _owner(attributes.mode, attributes.uid, attributes.gid)
    seconds, ns = divmod(attributes.mtime_ns, SECOND)
    if ns or not 0 <= seconds < _SIZE_LIMIT:
        records += _mtime(attributes.mtime_ns, seconds, ns)
        seconds = min(max(seconds, 0), _SIZE_LIMIT - 1)
    short = len(name) <= _NAME and name.isascii()
    if attributes.link or attributes.xattrs or comment or archived is not None or not short:
        records = _unusual(name, attributes, size, archived, comment) + records
    field, stored = name, size
    if archived is not None:
        field, stored = _SPARSE_PREFIX + name, archived
    if stored >= _SIZE_LIMIT:
        records += _record(b"size", b"%d" % stored)
        stored = 0
    if not short or archived is not None:
        field = field[:_NAME].translate(_ASCII)
    head = field.ljust(_NAME, b"\0") + ids + b"%011o\0%011o\0" % (stored, seconds)
    tail = _FILE_TAIL if kind is _FILE else _tail(kind, _link(attributes), attributes.rdev)
    return (_extended(records) if records else b"") + _sealed(head, tail)


FileValues = tuple[bytes, int, int, int, int, tuple[tuple[bytes, bytes], ...], int]
"""An ordinary regular file: name, mode, uid, gid, mtime_ns, xattrs, size. A tuple, for making an
Attributes takes as long as packing the header."""


def attributes_of(values: FileValues) -> Attributes:
    """The same as Attributes."""
    _, mode, uid, gid, mtime_ns, xattrs, size = values
    return Attributes(
        kind=_FILE, mode=mode, uid=uid, gid=gid, size=size, mtime_ns=mtime_ns, xattrs=xattrs
    )


def file_header(values: FileValues) -> bytes:
    """`header` of a regular file without holes, link or comment, the same bytes in a third of the
    time: this is the inner loop of a set of small files."""
    name, mode, uid, gid, mtime_ns, xattrs, size = values
    seconds, ns = divmod(mtime_ns, SECOND)
    ids, records = _owner(mode, uid, gid)
    usual = ns and SECOND <= seconds < 10 * SECOND and size < _SIZE_LIMIT
    usual = usual and not (records or xattrs)
    if not usual or len(name) > _NAME or not name.isascii() or not name or b"\0" in name:
        return header(name, attributes_of(values), size=size)
    head = b"%b%b%011o\0%011o\0" % (name.ljust(_NAME, b"\0"), ids, size, seconds)
    return b"%b30 mtime=%d.%09d\n%b%b%06o\0 %b" % (
        _TIME_BLOCK, seconds, ns, _TIME_PADDING,
        head, (zlib.adler32(head, _FILE_TAIL_SUM) & 0xFFFF) + 8 * 0x20, _FILE_TAIL,
    )  # fmt: skip


def _link(attributes: Attributes) -> bytes:
    """What the ustar header links to. A FILE with a link is a hard link whose data stand here."""
    return b"" if attributes.kind is Kind.FILE else attributes.link


def _sealed(head: bytes, tail: bytes) -> bytes:
    """The header with its checksum, which counts its own field as eight spaces.

    The sum of up to 65520 is the lower half of an Adler-32 begun at 0 (RFC 1950), at a tenth of
    the time of sum(); our headers, nearly all ASCII and zeros, do not come near it.
    """
    total = zlib.adler32(tail, zlib.adler32(head, 0)) & 0xFFFF
    return b"%b%06o\0 %b" % (head, total + 8 * 0x20, tail)


@lru_cache(maxsize=1024)
def _owner(mode: int, uid: int, gid: int) -> tuple[bytes, bytes]:
    """The three fields, and pax records for ids that do not fit."""
    records = b""
    if uid >= _ID_LIMIT:
        records, uid = _record(b"uid", b"%d" % uid), 0
    if gid >= _ID_LIMIT:
        records, gid = records + _record(b"gid", b"%d" % gid), 0
    return b"%07o\0%07o\0%07o\0" % (mode, uid, gid), records


@lru_cache(maxsize=1024)
def _tail(kind: Kind, link: bytes, rdev: int) -> bytes:
    """All that follows the checksum. User and group have no names here, only ids."""
    major = minor = b"%07o\0" % 0
    if kind in (Kind.CHARDEV, Kind.BLOCKDEV):
        major, minor = b"%07o\0" % os.major(rdev), b"%07o\0" % os.minor(rdev)
    field = link[:_NAME].translate(_ASCII)
    return _TAIL.pack(FLAGS[kind], field, MAGIC, b"", b"", major, minor, b"", b"")


_FILE, _DIRECTORY = Kind.FILE, Kind.DIRECTORY
_FILE_TAIL = _tail(Kind.FILE, b"", 0)


@lru_cache(maxsize=256)
def _extended_block(length: int) -> tuple[bytes, bytes]:
    """The header block of a pax extended header of that length, and the padding behind it."""
    head = _EXTENDED_NAME.ljust(_NAME, b"\0") + b"%07o\0%07o\0%07o\0" % (0o644, 0, 0)
    head += b"%011o\0%011o\0" % (length, 0)
    tail = _TAIL.pack(EXTENDED, b"", MAGIC, b"", b"", b"", b"", b"", b"")
    return _sealed(head, tail), bytes(-length % BLOCK)


# The extended header that nearly every file has: one record with a time of ten digits.
_TIME_BLOCK, _TIME_PADDING = _extended_block(30)
_FILE_TAIL_SUM = zlib.adler32(_FILE_TAIL, 0)


def _extended(records: bytes) -> bytes:
    block, padding = _extended_block(len(records))
    return block + records + padding


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE\\n`, where the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(b"%d" % rest)
    length = rest + len(b"%d" % length)
    return b"%d %b=%b\n" % (length, key, value)


def _mtime(mtime_ns: int, seconds: int, ns: int) -> bytes:
    if SECOND <= seconds < 10 * SECOND:  # 2001 to 2286: ten digits, so the length is known
        return b"30 mtime=%d.%09d\n" % (seconds, ns)
    return _record(b"mtime", decimal(mtime_ns))


def decimal(time_ns: int) -> bytes:
    """Nanoseconds as seconds in decimal: -1500000000 is -1.500000000."""
    seconds, ns = divmod(abs(time_ns), SECOND)
    return b"%b%d.%09d" % (b"-" if time_ns < 0 else b"", seconds, ns)


def _unusual(
    name: bytes, attributes: Attributes, size: int, archived: int | None, comment: bytes
) -> bytes:
    """The records of a member that the ustar header alone cannot describe."""
    link = _link(attributes)
    records = [] if _is_utf8(name) and _is_utf8(link) else [_record(b"hdrcharset", b"BINARY")]
    if archived is not None:
        records += _sparse(name, size)
    elif len(name) > _NAME or not name.isascii():
        records.append(_record(b"path", name))
    if len(link) > _NAME or not link.isascii():
        records.append(_record(b"linkpath", link))
    records += [_record(*_xattr(*xattr)) for xattr in attributes.xattrs]
    if comment:
        records.append(_record(b"comment", comment))
    return b"".join(records)


def _sparse(name: bytes, size: int) -> Iterator[bytes]:
    yield _record(b"GNU.sparse.major", b"1")
    yield _record(b"GNU.sparse.minor", b"0")
    yield _record(b"GNU.sparse.name", name)
    yield _record(b"GNU.sparse.realsize", b"%d" % size)


def _is_utf8(value: bytes) -> bool:
    if value.isascii():
        return True
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _xattr(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Key and value of an extended attribute; ACLs as text where that keeps every bit."""
    if key := ACL_KEYS.get(name):
        try:
            return key, acl.to_text(value)
        except ValueError:
            pass  # kept as it is
    return XATTR + name.replace(b"%", b"%25").replace(b"=", b"%3D"), value
