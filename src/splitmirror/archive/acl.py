"""POSIX ACLs as text with numeric ids, the form that star, GNU tar and bsdtar put into archives.

The kernel gives an ACL as the extended attribute system.posix_acl_access or
system.posix_acl_default (linux/posix_acl_xattr.h: a version, then eight bytes an entry); the text
is the long form of acl(5) with commas: `user::rw-,user:1000:r--,group::r--,mask::r--,other::---`.
"""

from __future__ import annotations

import re
import struct

_VERSION = struct.pack("<I", 2)  # POSIX_ACL_XATTR_VERSION
_ENTRY = struct.Struct("<HHI")  # e_tag, e_perm, e_id
_NO_ID = 0xFFFFFFFF  # ACL_UNDEFINED_ID, of the entries that name nobody
_NAMED = {0x02: "user", 0x08: "group"}  # ACL_USER, ACL_GROUP
_PLAIN = {0x01: "user", 0x04: "group", 0x10: "mask", 0x20: "other"}  # ACL_USER_OBJ, ...
_NAMED_TAGS = {word: tag for tag, word in _NAMED.items()}
_PLAIN_TAGS = {word: tag for tag, word in _PLAIN.items()}
_TEXT = re.compile(r"(user|group|mask|other):([0-9]*):([r-])([w-])([x-])")


def to_text(binary: bytes) -> bytes:
    """The text of a kernel ACL. `from_text` of it gives the same bytes.

    Raises ValueError for an ACL that the text cannot hold exactly (another version, an unknown tag
    or permission).
    """
    if not binary.startswith(_VERSION) or (len(binary) - len(_VERSION)) % _ENTRY.size:
        raise ValueError("not an ACL of version 2")
    entries = _ENTRY.iter_unpack(binary[len(_VERSION) :])
    return ",".join(_entry_text(*entry) for entry in entries).encode()


def _entry_text(tag: int, perm: int, ident: int) -> str:
    if perm > 7:
        raise ValueError(f"unknown permission in an ACL: {perm:#x}")
    rwx = "".join(
        letter if perm & bit else "-" for letter, bit in zip("rwx", (4, 2, 1), strict=True)
    )
    if tag in _NAMED and ident != _NO_ID:
        return f"{_NAMED[tag]}:{ident}:{rwx}"
    if tag in _PLAIN and ident == _NO_ID:
        return f"{_PLAIN[tag]}::{rwx}"
    raise ValueError(f"unknown entry in an ACL: tag {tag:#x}, id {ident}")


def from_text(text: bytes) -> bytes:
    """The kernel's form of an ACL's text. Raises ValueError for any text but `to_text`'s."""
    if not text:
        return _VERSION
    return _VERSION + b"".join(map(_entry_binary, text.decode("ascii").split(",")))


def _entry_binary(entry: str) -> bytes:
    match = _TEXT.fullmatch(entry)
    if match is None:
        raise ValueError(f"not an entry of an ACL: {entry!r}")
    word, ident, *rwx = match.groups()
    tag = (_NAMED_TAGS if ident else _PLAIN_TAGS).get(word)
    if tag is None or (ident and int(ident) >= _NO_ID):
        raise ValueError(f"not an entry of an ACL: {entry!r}")
    perm = sum(bit for letter, bit in zip(rwx, (4, 2, 1), strict=True) if letter != "-")
    return _ENTRY.pack(tag, perm, int(ident) if ident else _NO_ID)
