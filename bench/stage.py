"""What a run is given: how large everything is, where it lies, and who is told.

At scale 1 the sizes are those of the goals. Another scale multiplies sizes, counts and pairs; the
figures of such a run are orientation only, and the output says so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.rows import Row
from splitmirror.errors import NoRoom
from splitmirror.units import show_size

MIB = 1 << 20
GIB = 1 << 30
RATE_PAIRS = 15  # against dd
PAIRS = 5  # against the rest
FEWEST_PAIRS = 2
# Numbers of files, and what they are at least, so that no two are the same.
_COUNTS = ((10, 1_000), (20, 10_000), (40, 100_000), (80, 1_000_000))
# Memory that is left to the machine when copies go to a filesystem in memory.
_LEFT_FREE = 6 * GIB
MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes and counts of a run."""

    scale: float
    rate_pairs: int
    pairs: int
    large: int  # the set of large files, and
    large_file: int  # one of them
    small: int  # how many small files the mixed set has
    mixed_large: int  # and the bytes of its large ones
    cluster: int  # the database
    watched_s: float  # how long its clients are watched before each backup
    counts: tuple[int, ...]  # numbers of files for the pause
    changed: int  # how many of them change between map and split
    one_set: int  # the set that one file is restored from

    @classmethod
    def of(cls, scale: float, pairs: int | None = None) -> Sizes:
        """`pairs` for every row; None: as the goals say, times the scale."""
        large = int(4 * GIB * scale)
        return cls(
            scale=scale,
            rate_pairs=pairs or max(FEWEST_PAIRS, round(RATE_PAIRS * min(scale, 1))),
            pairs=pairs or max(FEWEST_PAIRS, round(PAIRS * min(scale, 1))),
            large=large,
            large_file=min(64 * MIB, large),
            small=max(100, int(100_000 * scale)),
            mixed_large=int(2 * GIB * scale),
            cluster=int(4 * GIB * scale),
            watched_s=max(2.0, 8 * min(scale, 1)),
            counts=tuple(max(least, int(number * scale)) for least, number in _COUNTS),
            changed=max(1, int(100 * scale)),
            one_set=max(64 * MIB, int(10 * GIB * scale)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Bytes on the scratch disk and in the place for copies, and about how many seconds."""

    scratch: int
    media: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """`scratch`: a directory on the disk that is measured; `media`: where backups and the rivals'
    copies go, `media_is` in words; `peaks` gathers the peak resident bytes of every backup."""

    sizes: Sizes
    scratch: Path
    media: Path
    media_is: str
    profile: bool
    tell: Callable[[str], None]
    peaks: list[int]


class Scene(Protocol):
    """Rows that share what must be made for them."""

    @property
    def rows(self) -> Sequence[str]:
        """The names of its rows, in their order."""
        ...

    def needs(self, sizes: Sizes) -> Needs: ...

    def run(self, stage: Stage, wanted: frozenset[str]) -> Iterator[Row]:
        """Make what is needed, measure the rows that are wanted, take all of it away."""
        ...


def choose_media(scratch: Path, wanted: Path | None, needs: Needs) -> tuple[Path, str]:
    """Where copies go: where the user says; in memory if there is room; else beside the scratch.

    Raises NoRoom where scratch or copies do not fit.
    """
    in_memory = not wanted and _room_in_memory() >= needs.media
    place = wanted or (MEMORY if in_memory else scratch)
    same = os.stat(place).st_dev == os.stat(scratch).st_dev
    _check_room(scratch, needs.scratch + (needs.media if same else 0))
    if not same:
        _check_room(place, needs.media)
    if in_memory:
        return place, "in memory (tmpfs)"
    return place, "on the same disk as the leg" if same else "on another device than the leg"


def _room_in_memory() -> int:
    """Bytes that a filesystem in memory may take here; 0: there is none."""
    if not MEMORY.is_dir() or MEMORY.stat().st_dev == MEMORY.parent.stat().st_dev:
        return 0
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return min(shutil.disk_usage(MEMORY).free, available * 1024 - _LEFT_FREE)


def _check_room(place: Path, needed: int) -> None:
    free = shutil.disk_usage(place).free
    if free < needed:
        raise NoRoom(
            f"this run needs {show_size(needed)} in {place}, {show_size(free)} are free",
            hint="Choose another place with --directory or --media, a smaller --scale, or some of "
            "the rows with --only.",
        )
