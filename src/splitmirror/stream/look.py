"""The last look at a file before its bytes are read: what the leg itself says it is.

A map is good only if the leg agrees with it (docs/adr/0005). So each file is opened in the mounted
leg, and its attributes, extended attributes, size and extents are taken from there; where map or
size differ from the plan, that is counted. A table that was taken from this leg (`of_leg`) is what
the leg says already, and no file of it is looked at twice. Where the leg cannot be mounted the
table is believed: it was then checked on the frozen primary.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Final, NamedTuple, Protocol

from splitmirror.errors import LegError
from splitmirror.extents.scan import map_file
from splitmirror.extents.table import FileTable, Row, Xattrs
from splitmirror.model import (
    NOT_PLAIN,
    Attributes,
    ExtentFlag,
    ExtentMap,
    Kind,
    Tree,
)
from splitmirror.stream.leg_runs import LegRuns, Span
from splitmirror.stream.plan import Item, Items, Packed
from splitmirror.system import xattrs as system_xattrs
from splitmirror.system.fiemap import data_ranges
from splitmirror.system.opening import FILE_FLAGS

# Files are looked at in the order of their inodes, this many at a time, for inodes lie in tables.
BATCH = 512
# Up to this size a file is handled as an ordinary small one: copied once, never cut.
SMALL = 128 << 10

Ranges = tuple[tuple[int, int], ...]

_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARDEV,
    stat.S_IFBLK: Kind.BLOCKDEV,
    stat.S_IFIFO: Kind.FIFO,
}
_KIND_OF: Final = {ord(kind): kind for kind in Kind}
_NOT_PLAIN: Final = int(NOT_PLAIN)  # plain integers, for enum's are ten times as slow
_UNWRITTEN: Final = int(ExtentFlag.UNWRITTEN)
_DEVICES: Final = (Kind.CHARDEV, Kind.BLOCKDEV)


class TreeOpener(Protocol):
    """What is needed of extents.views.LegView: a descriptor of a tree's root, the caller's own."""

    def open_tree(self, tree: Tree) -> int: ...


@dataclass(slots=True, kw_only=True)
class ReadCounts:
    """What reading came to. `renewed`: files whose map or size on the leg was not the plan's.
    `bytes_read` counts gaps and whole blocks, so it is more than what was stored. `through`: files
    read through the mounted leg. `look_s`: looking at files and laying out windows; `waited_s`:
    what whoever takes the windows waited for them."""

    renewed: int = 0
    through: int = 0
    reads: int = 0
    bytes_read: int = 0
    look_s: float = 0.0
    waited_s: float = 0.0

    def take(self, other: ReadCounts, waited_s: float) -> None:
        """Stand where `other` stands, which counts in another process, but for the waiting: that is
        done here."""
        waited_s += self.waited_s
        for each in fields(other):
            setattr(self, each.name, getattr(other, each.name))
        self.waited_s = waited_s


@dataclass(frozen=True, slots=True)
class Look:
    """A member that is ready to be read: `ranges` as in Member, and `spans`, the same bytes in the
    same order where they lie. `through`: the spans are offsets in the file itself."""

    item: Item
    name: bytes
    attributes: Attributes
    size: int = 0
    ranges: Ranges = ()
    spans: Sequence[Span] = ()
    through: bool = False


class PlainLook(NamedTuple):
    """An ordinary file that is ready to be read (see PlainFile); `span` None: it is empty."""

    name: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Xattrs
    size: int
    span: Span | None


class Looker:
    """Looks at the files of a plan, on the leg where it is mounted (`view`). Used by one thread;
    `close` lets the trees go."""

    def __init__(
        self,
        table: FileTable,
        trees: Sequence[Tree],
        runs: LegRuns,
        view: TreeOpener | None,
        counts: ReadCounts,
    ) -> None:
        self._table, self._trees, self._runs = table, trees, runs
        self._view, self._counts = view, counts
        self._roots: dict[int, int] = {}
        self._believes = view is None or table.of_leg
        self._bases = [self._base(tree) for tree in trees]

    def open_trees(self) -> list[int]:
        """Open all trees now rather than when they are needed: their descriptors, still ours."""
        return [] if self._view is None else [self._root(tree) for tree in range(len(self._trees))]

    def close(self) -> None:
        """Close the trees. A second call is harmless."""
        while self._roots:
            os.close(self._roots.popitem()[1])

    def look(self, items: Iterable[Packed]) -> Iterator[Look | PlainLook]:
        """Each item in turn. Raises LegError, by name, for what the leg does not have."""
        return self._known(items) if self._believes else self._seen(items)

    def _known(self, items: Iterable[Packed]) -> Iterator[Look | PlainLook]:
        """As the table has them. The inner loop of a set of small files."""
        names, plain, bases = self._table.names, self._table.plain, self._bases
        for values in items:
            entry = values[0]
            if Items.is_plain(values) and (row := plain(entry)) is not None:
                tree, mode, uid, gid, mtime_ns, xattrs, size, physical = row
                if not size:
                    yield PlainLook(names[entry], mode, uid, gid, mtime_ns, xattrs, 0, None)
                    continue
                if size <= SMALL and (base := bases[tree]) is not None:
                    source, begin, end = base
                    if begin + physical + size > end:
                        raise _beyond(names[entry], f"{size} bytes at {physical}")
                    span = Span(source, begin + physical, size)
                    yield PlainLook(names[entry], mode, uid, gid, mtime_ns, xattrs, size, span)
                    continue
            yield self._look(Items.item(values))

    def _seen(self, items: Iterable[Packed]) -> Iterator[Look | PlainLook]:
        """As the leg has them."""
        remaining = map(Items.item, items)
        seen = self._table.seen
        while batch := list(islice(remaining, BATCH)):
            looks: dict[int, Look | PlainLook] = {}
            for at in sorted(range(len(batch)), key=lambda at: seen(batch[at].entry)[3]):
                looks[at] = self._look(batch[at])
            for at in range(len(batch)):
                yield looks.pop(at)

    def _base(self, tree: Tree) -> tuple[int, int, int] | None:
        """Where a tree's filesystem lies on the leg in one piece: the source, the address of its
        beginning, and that of the volume's end; None: it does not."""
        filesystem = tree.filesystem
        return self._runs.in_one_piece(filesystem.volume, filesystem.offset)

    def open(self, look: Look) -> int:
        """The file itself in the mounted leg, for what is read through it."""
        row = self._table.row(look.item.entry)
        return self._open(look.name, row.tree)

    # --- one file

    def _look(self, item: Item) -> Look | PlainLook:
        name, row = self._table.names[item.entry], self._table.row(item.entry)
        kind = _KIND_OF[row.kind]
        if kind is Kind.FILE or kind is Kind.HARDLINK:
            if item.link is not None and not item.stored:
                return self._link(item, name, row.tree, self._table.names[item.link])
            if self._believes:
                return self._believed(item, name, row.tree)
            return self._file(item, name, row)
        if self._believes:
            return Look(item, name, self._table[item.entry].attributes)
        return Look(item, name, self._attributes_of(name, row.tree, kind))

    def _link(self, item: Item, name: bytes, tree: int, target: bytes) -> Look:
        """A hard link to a member that has its data."""
        if self._believes:
            attributes = self._table[item.entry].attributes
        else:
            attributes = self._attributes_of(name, tree, Kind.FILE)
        linked = replace(attributes, kind=Kind.HARDLINK, size=0, link=target, xattrs=())
        return Look(item, name, linked)

    def _believed(self, item: Item, name: bytes, tree: int) -> Look:
        """A file whose data are to be read, by what the table says of it."""
        entry = self._table[self._planned(item.entry)]
        attributes = replace(entry.attributes, kind=Kind.FILE, link=self._repeated(item))
        look = self._by_extents(item, name, attributes, entry.extents, tree)
        if look is None and self._view is not None:
            fd = self._open(name, tree)
            try:
                return self._through(fd, item, name, attributes)
            finally:
                os.close(fd)
        if look is None:
            raise LegError(
                f"{os.fsdecode(name)} cannot be read by extents, and the leg is not mounted",
                hint="Keep the database on ext4 or xfs without inline or encrypted data.",
                name=name,
            )
        return look

    def _file(self, item: Item, name: bytes, row: Row) -> Look | PlainLook:
        """A file whose data are to be read."""
        fd = self._open(name, row.tree)
        try:
            found = system_xattrs.of(fd)
            status = os.fstat(fd)
            extents = map_file(fd, status.st_size, self._trees[row.tree].filesystem)
            self._compare(item, row, status.st_size, extents)
            if plain := self._plain(item, name, row.tree, status, found, extents):
                return plain
            attributes = _attributes(name, status, Kind.FILE, self._repeated(item), found)
            look = self._by_extents(item, name, attributes, extents, row.tree)
            return look or self._through(fd, item, name, attributes)
        except OSError as error:
            raise _cannot_look(name, error) from error
        finally:
            os.close(fd)

    def _plain(
        self,
        item: Item,
        name: bytes,
        tree: int,
        status: os.stat_result,
        found: Xattrs,
        extents: ExtentMap,
    ) -> PlainLook | None:
        """The file as an ordinary one; None when it is not."""
        size = status.st_size
        regular = stat.S_ISREG(status.st_mode)
        if item.piece is not None or item.link is not None or not regular or size > SMALL:
            return None
        span = None
        if size:
            base = self._bases[tree]
            if len(extents) != 1 or base is None:
                return None
            ((logical, physical, length, flags),) = ExtentMap.RECORD.iter_unpack(extents.packed)
            source, begin, end = base
            if logical or length != size or flags & (_NOT_PLAIN | _UNWRITTEN):
                return None
            if begin + physical + size > end:
                raise _beyond(name, f"{size} bytes at {physical}")
            span = Span(source, begin + physical, size)
        return PlainLook(
            name=name,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            xattrs=found,
            size=size,
            span=span,
        )

    def _compare(self, item: Item, row: Row, size: int, extents: ExtentMap) -> None:
        """Count what the plan has otherwise; a file in pieces once."""
        if item.piece is not None and item.piece.number > 1:
            return
        planned = self._planned(item.entry)
        if planned != item.entry:
            row = self._table.row(planned)
        same = size == row.size and extents.packed == self._table.packed_extents(planned)
        self._counts.renewed += not same

    def _planned(self, entry: int) -> int:
        """The entry that has the map of this one's file: its own, or that of a link's target."""
        target = self._table.link(entry)  # of a file's entry b""
        found = self._table.find(target) if target else entry
        return entry if found is None else found

    def _repeated(self, item: Item) -> bytes:
        """The member whose data this one's are once more."""
        return b"" if item.link is None else self._table.names[item.link]

    def _by_extents(
        self, item: Item, name: bytes, attributes: Attributes, extents: ExtentMap, tree: int
    ) -> Look | None:
        """None when not every byte can be read off the raw leg."""
        begin, end = _stretch(item, attributes.size)
        data = _plain_data(extents, begin, end)
        if data is None:
            return None
        filesystem, spans = self._trees[tree].filesystem, []
        try:
            for _, physical, length in data:
                at = filesystem.offset + physical
                spans += self._runs.spans(filesystem.volume, at, length)
        except (ValueError, KeyError) as error:
            raise _beyond(name, str(error)) from error
        ranges = _within([(logical, length) for logical, _, length in data], begin, end)
        return Look(item, name, attributes, end - begin, ranges, spans)

    def _through(self, fd: int, item: Item, name: bytes, attributes: Attributes) -> Look:
        begin, end = _stretch(item, attributes.size)
        ranges = _within(data_ranges(fd, attributes.size), begin, end)
        spans = [Span(-1, begin + offset, length) for offset, length in ranges]
        self._counts.through += 1
        return Look(item, name, attributes, end - begin, ranges, spans, through=True)

    # --- the mounted leg

    def _attributes_of(self, name: bytes, tree: int, kind: Kind) -> Attributes:
        """What is known of something that has no data of its own."""
        root, inside = self._root(tree), name[len(self._trees[tree].name) + 1 :]
        try:
            if not inside:
                return _attributes(name, os.fstat(root), kind, b"", system_xattrs.of(root))
            status = os.stat(inside, dir_fd=root, follow_symlinks=False)
            link = os.readlink(inside, dir_fd=root) if kind is Kind.SYMLINK else b""
            # Through the descriptor, for there is no getxattrat(2) before Linux 6.13.
            found = system_xattrs.of(b"/proc/self/fd/%d/%b" % (root, inside))
        except OSError as error:
            raise _cannot_look(name, error) from error
        return _attributes(name, status, kind, link, found)

    def _open(self, name: bytes, tree: int) -> int:
        root, inside = self._root(tree), name[len(self._trees[tree].name) + 1 :]
        try:
            if inside:
                return os.open(inside, FILE_FLAGS, dir_fd=root)
            flags = FILE_FLAGS & ~os.O_NOFOLLOW
            return os.open(f"/proc/self/fd/{root}", flags)  # one file is the tree
        except OSError as error:
            raise _cannot_look(name, error) from error

    def _root(self, tree: int) -> int:
        root = self._roots.get(tree)
        if root is None:
            assert self._view is not None
            root = self._roots[tree] = self._view.open_tree(self._trees[tree])
        return root


def _beyond(name: bytes, why: str) -> LegError:
    return LegError(
        f"{os.fsdecode(name)} lies beyond the leg: {why}",
        hint="The leg is smaller than the filesystem: synchronize the mirror anew.",
        name=name,
    )


def _cannot_look(name: bytes, error: OSError) -> LegError:
    shown = os.fsdecode(name)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return LegError(
            f"the leg does not have {shown}",
            hint="The plan is not this split's: throw the run away and back up anew.",
            name=name,
        )
    return LegError(
        f"{shown} cannot be opened on the leg: {error.strerror}",
        hint="Check the mirror disk (kernel log); the next backup must synchronize it in full.",
        name=name,
    )


def _attributes(
    name: bytes,
    status: os.stat_result,
    kind: Kind,
    link: bytes,
    xattrs: Xattrs,
) -> Attributes:
    if _KINDS.get(stat.S_IFMT(status.st_mode)) is not kind:
        raise LegError(
            f"{os.fsdecode(name)} is of another kind on the leg than in the plan",
            hint="The plan is not this split's: throw the run away and back up anew.",
            name=name,
        )
    return Attributes(
        kind=kind,
        mode=status.st_mode & 0o7777,
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if kind is Kind.FILE else 0,
        mtime_ns=status.st_mtime_ns,
        link=link,
        rdev=status.st_rdev if kind in _DEVICES else 0,
        xattrs=xattrs,
    )


def _stretch(item: Item, size: int) -> tuple[int, int]:
    """What of a file of this size the item is; the last piece takes what the file grew by."""
    if item.piece is None:
        return 0, size
    last = item.piece.number == item.piece.count
    return min(item.offset, size), size if last else min(item.offset + item.length, size)


def _plain_data(extents: ExtentMap, begin: int, end: int) -> list[tuple[int, int, int]] | None:
    """(logical, physical, length) of what holds data between `begin` and `end`; None when some of
    the map is not plain."""
    data = []
    for logical, physical, length, flags in ExtentMap.RECORD.iter_unpack(extents.packed):
        if flags & _NOT_PLAIN:
            return None
        first, last = max(logical, begin), min(logical + length, end)
        if first < last and not flags & _UNWRITTEN:
            data.append((first, physical + first - logical, last - first))
    return data


def _within(ranges: Iterable[tuple[int, int]], begin: int, end: int) -> Ranges:
    """What of the ranges is between `begin` and `end`, counted from `begin`; adjacent ones as
    one."""
    found: list[tuple[int, int]] = []
    for at, length in ranges:
        first, last = max(at, begin) - begin, min(at + length, end) - begin
        if found and sum(found[-1]) == first:
            found[-1] = (found[-1][0], last - found[-1][0])
        elif first < last:
            found.append((first, last - first))
    return tuple(found)
