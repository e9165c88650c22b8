"""The kernel's notes of changes, taken apart."""

from __future__ import annotations

import struct

import pytest

from splitmirror.system import fanotify
from splitmirror.system.fanotify import Note, NotUnderstood, Place, parse

MODIFY, MOVED_TO, OVERFLOW = 0x2, 0x80, 0x4000
HANDLE = struct.pack("<Ii", 8, 1) + b"inodegen"


def information(kind: int, name: bytes | None, fsid: int = 7) -> bytes:
    """struct fanotify_event_info_fid, its name padded as the kernel does."""
    rest = HANDLE + (b"" if name is None else name + b"\0")
    rest += bytes(-len(rest) % 4)
    return struct.pack("<BxHQ", kind, 12 + len(rest), fsid) + rest


def note(mask: int, *informations: bytes, version: int = 3) -> bytes:
    """struct fanotify_event_metadata with what follows it."""
    body = b"".join(informations)
    return struct.pack("<IBxHQii", 24 + len(body), version, 24, mask, -1, 1) + body


def test_directory_and_name_are_told_and_whether_the_name_came_or_went() -> None:
    notes = note(MODIFY, information(2, b"f"), information(1, None)) + note(
        MOVED_TO | MODIFY, information(2, b"\xff\n", fsid=1 << 63)
    )

    assert list(parse(notes)) == [
        Note(Place(7, HANDLE), b"f", False),
        Note(Place(1 << 63, HANDLE), b"\xff\n", True),
    ]


def test_no_notes_tell_nothing() -> None:
    assert list(parse(b"")) == []


@pytest.mark.parametrize(
    ("notes", "why"),
    [
        (note(OVERFLOW), "overflowed"),
        (note(MODIFY, information(2, b"f"), version=4), "version 4"),
        (note(MODIFY, information(1, None)), "no name"),
        (note(MODIFY), "no name"),
    ],
    ids=["overflow", "another version", "a file without a name", "nothing at all"],
)
def test_a_note_that_names_nothing_is_not_passed_over(notes: bytes, why: str) -> None:
    first = note(MODIFY, information(2, b"f"))

    with pytest.raises(NotUnderstood, match=why):
        list(parse(first + notes))


def test_the_constants_are_those_of_the_header() -> None:
    """linux/fanotify.h: what is asked for in one call must not drift apart from its parts."""
    assert fanotify._INIT == 0x1 | 0x2 | 0x20 | 0x200 | 0xC00
    assert fanotify._MASK == 0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x40000000
