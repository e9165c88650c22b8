"""Values that travel between the rooms. All are immutable and check themselves.

Names and paths inside a set are `bytes`, for a file's name may be any bytes but NUL.
Sizes and offsets are bytes, times are nanoseconds since the epoch unless they end in `_s`.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from splitmirror.errors import SplitmirrorError

WARNING: Final = "warning"  # the fact of a set that is not whole, which says why


class Mode(enum.StrEnum):
    """How the database is quiesced: standing still, or going on with its redo log kept."""

    FREEZE = "freeze"
    HOT = "hot"


class Check(enum.StrEnum):
    """When stale maps are found: before the database is released, or after."""

    QUIESCED = "quiesced"
    RELEASED = "released"


class Cleanup(enum.StrEnum):
    """What becomes of the leg after the backup."""

    REJOIN = "rejoin"
    LEAVE_SPLIT = "leave-split"


# --- extents


class ExtentFlag(enum.IntFlag):
    """linux/fiemap.h, FIEMAP_EXTENT_*."""

    LAST = 0x1
    UNKNOWN = 0x2
    DELALLOC = 0x4
    ENCODED = 0x8
    DATA_ENCRYPTED = 0x80
    NOT_ALIGNED = 0x100
    DATA_INLINE = 0x200
    DATA_TAIL = 0x400
    UNWRITTEN = 0x800
    MERGED = 0x1000
    SHARED = 0x2000


NOT_PLAIN = (
    ExtentFlag.UNKNOWN
    | ExtentFlag.DELALLOC
    | ExtentFlag.ENCODED
    | ExtentFlag.DATA_ENCRYPTED
    | ExtentFlag.NOT_ALIGNED
    | ExtentFlag.DATA_INLINE
    | ExtentFlag.DATA_TAIL
)


class Extent(NamedTuple):
    """`length` bytes of a file from `logical`, lying at `physical` of the filesystem's device."""

    logical: int
    physical: int
    length: int
    flags: int


@dataclass(frozen=True, slots=True)
class ExtentMap:
    """A file's extents in logical order, 28 bytes each: u64 logical, physical, length; u32 flags.

    Equal maps are equal byte for byte: it is clipped to the file's size, neighbours that
    continue one another are merged, LAST, MERGED and SHARED are dropped. A hole is what no extent
    covers.
    """

    packed: bytes = b""

    RECORD = struct.Struct("<QQQI")

    @classmethod
    def of(cls, extents: Iterable[Extent]) -> ExtentMap:
        return cls(b"".join(cls.RECORD.pack(*extent) for extent in extents))

    def __iter__(self) -> Iterator[Extent]:
        return map(Extent._make, self.RECORD.iter_unpack(self.packed))

    def __len__(self) -> int:
        return len(self.packed) // self.RECORD.size

    @property
    def plain(self) -> bool:
        """Whether every byte can be read off the raw device (or is a hole or unwritten)."""
        return not any(extent.flags & NOT_PLAIN for extent in self)

    def data_ranges(self) -> list[tuple[int, int]]:
        """(offset, length) of the ranges that hold data, in order, adjacent ones joined.

        Holes and unwritten extents read as zeros and are not stored.
        """
        ranges: list[tuple[int, int]] = []
        for extent in self:
            if extent.flags & ExtentFlag.UNWRITTEN:
                continue
            if ranges and sum(ranges[-1]) == extent.logical:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + extent.length)
            else:
                ranges.append((extent.logical, extent.length))
        return ranges


# --- files


class Kind(enum.StrEnum):
    """What a member is. The values are the tar type flags (POSIX ustar)."""

    FILE = "0"
    HARDLINK = "1"
    SYMLINK = "2"
    CHARDEV = "3"
    BLOCKDEV = "4"
    DIRECTORY = "5"
    FIFO = "6"


class Origin(enum.StrEnum):
    """Where a member's bytes were read."""

    LEG = "leg"
    PRIMARY = "primary"
    DATABASE = "database"  # made by the server for this backup, such as backup_label


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """Everything a file is beside its bytes."""

    kind: Kind
    mode: int  # permission bits, 0o7777 at most
    uid: int
    gid: int
    size: int  # 0 unless FILE
    mtime_ns: int
    link: bytes = b""  # SYMLINK: where it points; HARDLINK: the member it is linked to
    rdev: int = 0  # CHARDEV, BLOCKDEV: st_rdev
    xattrs: tuple[tuple[bytes, bytes], ...] = ()  # sorted by name; ACLs are among them

    def __post_init__(self) -> None:
        if self.mode & ~0o7777:
            raise ValueError(f"mode has more than permission bits: {self.mode:o}")
        if self.size < 0:
            raise ValueError(f"negative size: {self.size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file, directory or link of the set, as it was at one instant.

    `name` is its member name in the set: the tree's name, a slash, the path inside the tree (the
    tree's root itself has the tree's name). `tree` is the index into the run's trees.
    """

    name: bytes
    tree: int
    attributes: Attributes
    ino: int
    nlink: int
    ctime_ns: int
    extents: ExtentMap = ExtentMap()


# --- where things lie


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A directory `path`, which stands for what is at `inside` of a filesystem, counted from that
    one's own root (as Tree.inside is)."""

    path: str
    inside: bytes

    def way_to(self, inside: bytes) -> bytes | None:
        """The path below this directory to what is at another place of the filesystem, b"" for
        itself; None: that is not in it."""
        if inside == self.inside:
            return b""
        above = self.inside + b"/" if self.inside else b""
        return inside[len(above) :] if inside.startswith(above) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A block device that the mirror engine mirrors, as the primary sees it.

    `folders`: where the engine copies not the device but directories of the filesystem on it, these
    alone, and no subvolume in them.
    """

    name: str  # the engine's name for it, unique within the mirror
    device: str  # /dev/...
    size: int
    folders: tuple[Folder, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """A mounted filesystem and where it lies on the mirror.

    `offset` is where the filesystem begins inside the volume (a partition or LV on it).
    """

    mountpoint: str
    fstype: str
    options: frozenset[str]
    source: str  # the block device it is mounted from
    devno: int  # of the superblock; st_dev is another one on btrfs
    volume: str
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A directory tree, or one file, of the set on one filesystem.

    `inside` is its path from the filesystem's own root, the way to find it again on the leg
    (b"" for the root itself; no slash in front).
    """

    name: bytes
    path: bytes  # absolute, on the primary
    filesystem: Filesystem
    inside: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """`length` bytes of a leg in one piece: at `offset` of `path` (a device or an image file)."""

    path: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """A mirror half parted from its primary. Read it, never write it.

    For each volume its runs, in the order of the volume's addresses from 0 on. `folders`: of a
    volume of which directories are copied, the copies; they share their blocks with the originals,
    so their maps are of the volume's own device, which is its run. `inodes_differ`: they are other
    files than the originals.
    """

    split_id: str
    volumes: Mapping[str, tuple[Run, ...]]
    folders: Mapping[str, tuple[Folder, ...]] = field(default_factory=dict)
    inodes_differ: bool = False

    def locate(self, volume: str, address: int, length: int) -> list[Run]:
        """Where `length` bytes from `address` of a volume lie.

        Raises ValueError when they reach beyond the volume's end.
        """
        found: list[Run] = []
        begin = 0  # the volume's address at which the run begins
        for run in self.volumes[volume]:
            within = address - begin
            if length and 0 <= within < run.length:
                part = min(length, run.length - within)
                found.append(Run(path=run.path, offset=run.offset + within, length=part))
                address, length = address + part, length - part
            begin += run.length
        if length:
            raise ValueError(f"{length} bytes beyond the end of volume {volume}")
        return found


# --- what a run is made of


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A process that keeps the database quiesced and must be ended if the backup cannot.

    `start_ticks` (field 22 of /proc/PID/stat, proc(5)) tells it from a later one of the same pid.
    """

    what: str
    pid: int
    start_ticks: int
    signal: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at beforehand; `problem` is None when it is well."""

    what: str
    problem: SplitmirrorError | None = None
    warning: bool = False  # worth telling, but a backup can go on


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A step of the run. `began_s` counts from the start of the run (monotonic)."""

    name: str
    began_s: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaPosition:
    """Where something begins: the volume, the tape file (0 is the first after VOL1's group, counted
    by filemarks), the logical object (records and filemarks both count)."""

    volume: str
    tape_file: int
    object: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MapCounts:
    """What became of the early maps: how many there were, and what the check found; `renewed` also
    counts what was found only when it was read."""

    early: int = 0
    renewed: int = 0
    new: int = 0
    gone: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast the files went from the leg to the medium.

    `stages`: seconds in each, of all streams. They overlap, and several threads read at once;
    packing (hashing included) and the two kinds of waiting make up the whole time of each stream.
    `leg_rate`: bytes a second of the leg read by itself beforehand; None: not measured.
    """

    bytes: int
    seconds: float
    stages: Mapping[str, float]
    bottleneck: str
    leg_rate: float | None = None

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeUse:
    """What of a set lies on one volume, and how that was fed to its drive.

    `bytes`: of its parts, with headers and padding. `full`: the set goes on on another volume
    because nothing more fitted. `stalls`: how often the drive stopped because nothing was there for
    it to write, `stalled_s` for how long. `notes`: what a person should know, in words.
    """

    volume: str
    parts: int = 0
    bytes: int = 0
    full: bool = False
    stalls: int = 0
    stalled_s: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupSet:
    """One backup: what it is of, how it went, where it begins. `ended` is None while unfinished."""

    set_id: str
    source: str
    host: str
    database: str
    mode: Mode
    check: Check
    mirror: str
    medium: str
    started: datetime
    ended: datetime | None = None
    complete: bool = False
    files: int = 0
    stored_bytes: int = 0  # stored data, without holes, headers and padding
    write_pause_s: float = 0.0
    pause_parts: Mapping[str, float] = field(default_factory=dict)  # seconds, by step
    quiesce_window_s: float = 0.0
    phases: tuple[Phase, ...] = ()
    maps: MapCounts = MapCounts()
    watch: str = ""  # "armed", or why everything was looked at again in the hold
    trees: tuple[tuple[bytes, bytes], ...] = ()  # (name in the set, original path)
    facts: Mapping[str, str] = field(default_factory=dict)  # the database's own: version, ...
    speed: Speed | None = None  # of the part of the backup that ran to its end in one go
    volumes: tuple[VolumeUse, ...] = ()  # the one with the set's catalogue is the last
