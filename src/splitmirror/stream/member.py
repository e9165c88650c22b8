"""What travels from the leg to the medium: a member with its bytes still to come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from splitmirror.model import Attributes, Kind, Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One of the pieces a large file is cut into; `cat` of all of them in order is the file."""

    number: int  # from 1
    count: int
    offset: int  # of the piece in the file


class PlainFile(NamedTuple):
    """An ordinary small file, as most files of most sets are: a regular file off the leg, whole,
    without holes and links, its bytes in one piece in memory.

    It says in a tenth of the time what a Member would. `data` is valid until the next stretch of
    members is taken.
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    title: str
    data: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file, directory, link or piece on its way into a part.

    `size` is the length of this member's content as a file (of the piece, where it is one).
    `ranges` are the (offset, length) that hold data, in order, relative to the member's beginning;
    what lies between reads as zeros. `chunks` yields exactly the bytes of the ranges, in order, cut
    anywhere; they are valid until the next member is taken, and where a medium writes behind, until
    it is done with them. It can be iterated once. `attributes` are those of the whole file. The
    bytes are of the file's state at the split.

    Hard links. Kind.HARDLINK: `attributes.link` names a member that stands, whole and earlier, in
    the same part; there are no bytes. Kind.FILE with `attributes.link` set: the file is a hard link
    to the member of that name, which stands in another part (or in pieces), and its data are
    repeated here; in the tar it is an ordinary file, and the manifest records the link.
    """

    name: bytes
    attributes: Attributes
    size: int
    ranges: tuple[tuple[int, int], ...]
    chunks: Iterable[memoryview]
    origin: Origin = Origin.LEG
    piece: Piece | None = None
    title: str = ""  # the database's own name for it

    @property
    def stored(self) -> int:
        """Bytes that the chunks will yield."""
        return sum(length for _, length in self.ranges)

    @property
    def repeats(self) -> bytes:
        """The name of the file whose data these are once more; b"" for a file of its own."""
        return self.attributes.link if self.attributes.kind is Kind.FILE else b""
