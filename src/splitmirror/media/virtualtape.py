"""Virtual tape: a volume in one file, in the SIMH .tap framing that other programs read too.

What makes it safe to append (docs/adr/0006-virtual-tape.md tells why):

- A synced filemark is followed by the end mark, written after all before it was synced, and synced
  itself. So the tape alone proves its end; the sidecar index may be lost.
- Before anything is overwritten the end mark is put at the new end and synced; only then is the
  file cut. A crash in between leaves the shorter tape, never a filemark less.
- The end mark is never on the disk without what lies before it, and last filemarks that it does not
  prove do not count. So labels are not found closed without the data they close.
- A tail that a crash tore ends the tape at its last whole object. Damage before a sound end is told
  from a torn tail, and is never appended to.

Source: pwritev(2), posix_fadvise(2); `simh` for the framing, `tapfile` for the file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from itertools import accumulate, groupby
from pathlib import Path

from splitmirror.errors import (
    ConfigError,
    EndOfMedium,
    MediumDamaged,
    MediumError,
    WrongMedium,
)
from splitmirror.media import (
    END_OF_DATA,
    FILEMARK,
    Block,
    Capacity,
    Limits,
    Mark,
    Medium,
    Place,
    simh,
    tapfile,
)
from splitmirror.media.bulk import ALIGNED, BulkReader
from splitmirror.media.simh import END_WORD, LARGEST, WORD, Index, Stop, stride
from splitmirror.media.virtualshelf import ShelfDrive, ShelfSettings, VirtualShelf
from splitmirror.units import parse_size, show_size

_WRITE_BEHIND = 16 << 20  # bytes after which the disk is set to work and the page cache relieved
_FIRST_RECORD = 80  # bytes of the label that every volume of ours begins with


class Settings(ShelfSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: str = ""  # the one volume; or `shelf`, a library of them

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.path) == bool(self.shelf):
            raise ConfigError(
                "[medium] of a virtual tape has either a `path` or a `shelf`",
                hint="Give it the path of one volume's file, or the directory of a library.",
            )
        if self.path and not Path(self.path).is_absolute():
            raise ConfigError(
                f"[medium] path = {self.path!r} is not absolute", hint="Begin it with a slash."
            )

    def tape(self, path: Path) -> VirtualTape:
        """The virtual tape in a file, which is not touched before `load`."""
        return VirtualTape(
            path,
            capacity=None if self.capacity is None else parse_size(self.capacity),
            early_warning=parse_size(self.early_warning),
        )


def open_medium(settings: Settings) -> Medium:
    """The virtual tape of these settings, or the library's first drive."""
    return open_drives(settings)[0]


def open_drives(settings: Settings) -> list[Medium]:
    """The one virtual tape, or the drives of the library."""
    if settings.path:
        return [settings.tape(Path(settings.path))]
    shelf = settings.open_shelf()
    return [ShelfDrive(shelf, at, VirtualTape.limits, settings.tape) for at in shelf.drives]


def open_changer(settings: Settings) -> VirtualShelf | None:
    """The library; None: there is one volume only."""
    return settings.open_shelf() if settings.shelf else None


class VirtualTape:
    """A Medium in a .tap file. Loaded writable it is locked for one, read-only for many."""

    limits = Limits(smallest=1, largest=LARGEST)
    device = ""  # it has no serial number

    def __init__(self, path: Path, *, capacity: int | None, early_warning: int) -> None:
        self._path = path
        self._capacity = capacity
        self._early_warning = early_warning
        self._handle: int | None = None
        self._bulk: BulkReader | None = None
        self._writable = False
        self._index = Index()
        self._position = 0
        self._sealed_end: int | None = None  # the end mark is there, everything before it synced
        self._synced_end = 0
        self._ragged = False  # more lies behind the end than the end mark
        self._dirty = False  # written since the last seal
        self._relieved = 0  # up to here the page cache was relieved
        self._damage = ""  # why nothing behind the last whole object can be read or written
        self._failed = False  # a sync failed: what is on the disk is unknown until loaded anew

    # --- loading

    @property
    def name(self) -> str:
        return str(self._path)

    def load(self, *, writable: bool) -> None:
        if self._handle is not None and (self._writable, self._failed) == (writable, False):
            self._position = 0
            return
        self.unload()
        self._handle = fd = tapfile.opened(self._path, writable=writable)
        try:
            self._read_index(fd, writable)
        except BaseException:
            self._let_go()
            raise
        self._writable = writable

    def _read_index(self, fd: int, writable: bool) -> None:
        size = os.fstat(fd).st_size
        try:
            index = simh.load(self._path, fd, size) or Index()
            known = index.end
            stop = simh.walk(fd, index, size)
            damaged = stop in (Stop.TORN, Stop.BROKEN) and simh.ends_cleanly(fd, index.end, size)
            if damaged and (beyond := simh.load_beyond_damage(self._path, fd, size)):
                index, known, stop, damaged = beyond, beyond.end, Stop.END_MARK, False
            if index.objects == 0 and stop is not Stop.END_MARK and not _blank(fd, size):
                raise WrongMedium(
                    f"{self._path} is no virtual tape: it does not begin with a whole record",
                    hint="Nothing was changed. Name another path, or move the file away.",
                    path=str(self._path),
                )
            if writable and stop is Stop.END_MARK and index.end != known:
                simh.save(self._path, fd, index)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except OSError as error:
            raise tapfile.trouble(self._path, "cannot be read", error) from error
        proven = stop is Stop.END_MARK
        self._index, self._position = index, 0
        self._sealed_end = index.end if proven else None
        self._synced_end = index.end if proven else known
        self._ragged = size > index.end + (WORD.size if proven else 0)
        self._damage = "it is followed by no whole object" if damaged else ""

    def unload(self) -> None:
        try:
            if self._dirty and not self._failed:
                self._seal()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        handle, self._handle = self._handle, None
        self._writable = self._failed = self._dirty = False
        self._relieved = 0
        if self._bulk is not None:
            self._bulk.close()
            self._bulk = None
        if handle is not None:
            os.close(handle)

    # --- writing

    def write(self, blocks: Sequence[Block]) -> bool:
        fd = self._ready_to_write()
        sizes = [memoryview(block).nbytes for block in blocks]
        for size in sizes:
            if not 1 <= size <= LARGEST:
                raise MediumError(
                    f"a record of {size} bytes does not go onto a virtual tape",
                    hint=f"Take a block size from 1 byte to {LARGEST} bytes.",
                )
        self._end_here(fd)
        fitting = self._fitting(sizes)
        for begin, end in simh.batches(sizes[:fitting]):
            self._put(fd, simh.framed(blocks[begin:end], sizes[begin:end]), sizes[begin:end])
            self._relieve(fd)
        if fitting < len(sizes):
            raise self._full()
        return self._early

    def write_filemarks(self, count: int, *, sync: bool) -> bool:
        fd = self._ready_to_write()
        if count:
            self._end_here(fd)
            fitting = self._fitting([0] * count)
            if self._sealed_end == self._index.end:
                # Zeros over the end mark would leave filemarks before it without their proof.
                self._mark_end(fd, self._index.end + WORD.size * fitting)
            self._put(fd, [bytes(WORD.size * fitting)], [0] * fitting)
            if fitting < count:
                raise self._full()
        if sync:
            self._seal()
        return self._early

    def _ready_to_write(self) -> int:
        fd = self._loaded()
        if not self._writable:
            raise MediumError(
                f"the virtual tape {self._path} is loaded read-only", hint="Load it writable."
            )
        if self._failed:
            raise MediumError(
                f"an earlier sync of {self._path} failed: what is on the disk is not known",
                hint="Check the disk's log (dmesg), then load the volume anew.",
                path=str(self._path),
            )
        if self._damage and self._position >= self._index.objects:
            raise self._damaged(self._index.objects, self._index.end, self._damage)
        return fd

    def _end_here(self, fd: int) -> None:
        """Let the tape end at the position: durably first, then for good."""
        if self._position == self._index.objects and not self._ragged:
            return
        if self._index.end != self._synced_end:
            self._sync(fd)
        self._index.cut(self._position)
        self._synced_end = self._index.end
        self._seal()
        try:
            os.ftruncate(fd, self._index.end + WORD.size)
        except OSError as error:
            raise tapfile.trouble(self._path, "cannot be cut", error) from error
        self._sync(fd)  # or the old objects could come back behind new ones
        self._ragged, self._damage = False, ""

    def _fitting(self, sizes: Sequence[int]) -> int:
        """How many of these objects the capacity has room for."""
        if self._capacity is None:
            return len(sizes)
        room = self._capacity - self._index.end
        return sum(1 for end in accumulate(map(stride, sizes)) if end <= room)

    def _put(self, fd: int, buffers: list[Block], sizes: Sequence[int]) -> None:
        """Write objects behind the end. Of what does not get onto the disk whole, nothing stays."""
        begin = self._index.end
        done, error = simh.write_all(fd, buffers, begin)
        whole = sum(1 for end in accumulate(map(stride, sizes)) if end <= done)
        for size, group in groupby(sizes[:whole]):
            self._index.append(size, len(list(group)))
        self._position += whole
        if done:
            self._dirty, self._sealed_end = True, None
        if error is None:
            return
        with contextlib.suppress(OSError, MediumError):  # the first error is the one to tell
            os.ftruncate(fd, self._index.end)
            self._seal()
        raise tapfile.not_written(self._path, error) from error

    def _sync(self, fd: int) -> None:
        try:
            os.fdatasync(fd)
        except OSError as error:
            self._failed = True
            raise tapfile.trouble(self._path, "cannot be synced", error) from error
        self._synced_end = self._index.end

    def _seal(self) -> None:
        """Sync all, then put the end mark behind it and sync that. Harmless when sealed."""
        fd = self._loaded()
        if self._sealed_end == self._index.end:
            return
        if self._synced_end != self._index.end:
            self._sync(fd)
        self._mark_end(fd, self._index.end)
        self._dirty, self._sealed_end = False, self._index.end
        simh.save(self._path, fd, self._index)

    def _mark_end(self, fd: int, offset: int) -> None:
        """Put the end mark at `offset`, durably."""
        _, error = simh.write_all(fd, [WORD.pack(END_WORD)], offset)
        if error is not None:
            raise tapfile.not_written(self._path, error) from error
        self._sync(fd)

    def _relieve(self, fd: int) -> None:
        """Set the disk to work on what was just written, and drop what it has done from the page
        cache, which belongs to the database. POSIX_FADV_DONTNEED starts the write-back of dirty
        pages without waiting for it, and drops clean ones."""
        begin = self._index.end - self._index.end % _WRITE_BEHIND
        if begin > self._relieved:
            os.posix_fadvise(fd, max(0, self._relieved - _WRITE_BEHIND), 0, os.POSIX_FADV_DONTNEED)
        self._relieved = begin

    # --- reading and standing

    def read(self, buffer: memoryview) -> int | Mark:
        fd = self._loaded()
        if self._position >= self._index.objects:
            if self._damage:
                raise self._damaged(self._position, self._index.end, self._damage)
            return END_OF_DATA
        offset, size = self._index.find(self._position)
        if size > len(buffer):
            raise MediumError(
                f"object {self._position} of {self._path} is a record of {size} bytes, the buffer "
                f"has {len(buffer)}",
                hint="Read with the block size that the volume was written with.",
                size=size,
            )
        self._read_object(fd, offset, size, buffer)
        self._position += 1
        return size or FILEMARK

    def read_many(self, buffer: memoryview, most: int) -> tuple[list[Place], Mark | None]:
        """See ManyAtOnce. Past the page cache: a volume is read once, and drives nothing out."""
        fd = self._loaded()
        if self._position < self._index.objects:
            offset, size = self._index.find(self._position)
            begin = offset % ALIGNED
            fitting = (len(buffer) - len(buffer) % ALIGNED - begin) // stride(size)
            wanted = min(most, fitting, self._index.alike(self._position))
            if size and wanted > 1:
                self._bulk = self._bulk or BulkReader(fd)
                got = self._bulk.read(buffer, offset - begin, begin + wanted * stride(size))
                if found := simh.records_in(buffer[:got], begin, size):
                    self._position += len(found)
                    return found, None
        # The last of its kind, a mark, or something that only an error can tell of
        read = self.read(buffer)
        return ([], read) if isinstance(read, Mark) else ([(0, read)], None)

    def _read_object(self, fd: int, offset: int, size: int, buffer: memoryview) -> None:
        head, tail = bytearray(WORD.size), bytearray(WORD.size + (size & 1))
        parts: list[bytearray | memoryview] = [head, buffer[:size], tail] if size else [head]
        try:
            got = os.preadv(fd, parts, offset)
        except OSError as error:
            raise self._damaged(self._position, offset, str(error.strerror)) from error
        word = WORD.pack(size)
        if got != stride(size) or head != word or (size and tail[size & 1 :] != word):
            raise self._damaged(self._position, offset, "its length words are not what they were")

    def locate(self, position: int) -> None:
        self._loaded()
        if not 0 <= position <= self._index.objects:
            raise MediumError(
                f"{self._path} has {self._index.objects} objects; there is no object {position}",
                hint="The catalogue may be of another volume, or the volume was cut short.",
                position=position,
            )
        self._position = position

    def space_filemarks(self, count: int) -> None:
        self._loaded()
        if count >= 0:
            found = self._index.after_filemarks(self._position, count) if count else self._position
            end = self._index.objects
        else:
            found, end = self._index.before_filemarks(self._position, -count), 0
        self._position = end if found is None else found
        if found is None:
            raise MediumError(
                f"fewer than {abs(count)} filemarks on {self._path} in this direction",
                hint="The volume ends here.",
            )

    def tell(self) -> int:
        self._loaded()
        return self._position

    # --- room

    @property
    def capacity(self) -> Capacity:
        fd = self._loaded()
        rest = self._host_room(fd)
        if self._capacity is not None:
            rest = min(rest, self._capacity - self._index.end)
        left = max(0, rest - self._early_warning)
        return Capacity(total=self._capacity, left=left, rest=rest)

    @property
    def _early(self) -> bool:
        return self.capacity.left == 0

    def _host_room(self, fd: int) -> int:
        try:
            host = os.fstatvfs(fd)
        except OSError as error:
            raise tapfile.trouble(self._path, "cannot be asked for room", error) from error
        return host.f_bavail * host.f_frsize

    # --- errors

    def _loaded(self) -> int:
        if self._handle is None:
            raise MediumError(f"the virtual tape {self._path} is not loaded", hint="Load it first.")
        return self._handle

    def _full(self) -> EndOfMedium:
        return EndOfMedium(
            f"the virtual tape {self._path} is full: it may have {show_size(self._capacity or 0)}",
            hint="Raise [medium] capacity, or go on with another volume.",
            path=str(self._path),
        )

    def _damaged(self, number: int, offset: int, why: str) -> MediumDamaged:
        return MediumDamaged(
            f"object {number} of {self._path} is damaged at byte {offset}: {why}",
            hint="Nothing is appended to a damaged volume. Read what else is on it, check the "
            "disk, and go on with another volume.",
            object=number,
            offset=offset,
            path=str(self._path),
        )


def _blank(fd: int, size: int) -> bool:
    """Whether a file without a whole record is nothing, or the torn first label of ours."""
    begin = os.pread(fd, WORD.size, 0)
    return size < stride(_FIRST_RECORD) and WORD.pack(_FIRST_RECORD).startswith(begin)
