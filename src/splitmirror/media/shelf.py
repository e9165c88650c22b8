"""Which volume is written next, and which may be written anew: logic over records, nothing else.

`Stock` is what is known of all volumes and sets at one moment, judged by the pools' rules. What it
says is by the records alone: whoever writes a volume anew reads the volume's own labels first
(`recycling`).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from splitmirror.media.pools import Dated, Pool, kept, with_needs

_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)
_NONE: Final = ""  # no pool


class VolumeState(enum.StrEnum):
    """What may still be written to a volume. Whether it is held stands apart."""

    APPENDABLE = "appendable"
    FULL = "full"
    RETIRED = "retired"  # never written again; what is on it can be read


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """What is known of a volume beside what stands on it.

    `pool` is "" when it belongs to none. `held`: why it must not be written to; "" when it is not.
    `bytes`: data on it when it was last looked at. `stalls`: how often its drive had to wait for
    data. `recycled`: how often what was on it was written over. `recycling`: since when it is to be
    written anew, or labelled, where that was not brought to its end.
    """

    serial: str
    medium: str
    pool: str = ""
    barcode: str = ""
    state: VolumeState = VolumeState.APPENDABLE
    held: str = ""
    write_once: bool = False
    first_written: datetime | None = None
    last_written: datetime | None = None
    bytes: int = 0
    stalls: int = 0
    recycled: int = 0
    recycling: datetime | None = None


class How(enum.Enum):
    """What is done with the volume that is written next."""

    APPEND = "go on at its end"
    RECYCLE = "write it anew: everything on it has expired"
    BLANK = "label a blank one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """`serial` is None for a blank volume: any will do."""

    serial: str | None
    how: How


class Stock:
    """All volumes and sets that are known, judged at one moment.

    A set that lies in several pools is kept as long as one of them keeps it, and one with a part
    outside any pool that is configured always. `unfinished`: sets that a run still needs.
    """

    def __init__(
        self,
        *,
        pools: Mapping[str, Pool],
        volumes: Iterable[VolumeRecord],
        sets: Iterable[Dated],
        now: datetime,
        unfinished: Collection[str] = (),
    ) -> None:
        self._pools = pools
        self.volumes = {volume.serial: volume for volume in volumes}
        self.sets = {one.set_id: one for one in sets}
        self._kept = self._judged(now) | with_needs(unfinished, self.sets.values())

    def kept(self, set_id: str) -> bool:
        """Whether a set must not be lost; False for one that is not known."""
        return set_id in self._kept

    def expired(self, set_id: str) -> bool:
        """Whether a set may be lost; False for one that is not known."""
        return set_id in self.sets and not self.kept(set_id)

    def on(self, serial: str) -> list[Dated]:
        """The sets that have a part on the volume, the oldest first."""
        found = (one for one in self.sets.values() if serial in one.volumes)
        return sorted(found, key=lambda one: (one.started, one.set_id))

    def write_once(self, serial: str) -> bool:
        """Whether the volume, or its pool, is never written anew."""
        volume = self.volumes[serial]
        pool = self._pools.get(volume.pool)
        return volume.write_once or (pool is not None and pool.write_once)

    def keeps(self, serial: str) -> list[str]:
        """What keeps a volume from being written anew, in words; nothing: it may be."""
        volume = self.volumes.get(serial)
        if volume is None:
            return ["the catalogue does not know it"]
        found = []
        if volume.held:
            found.append(f"it is held: {volume.held}")
        if volume.state is VolumeState.RETIRED:
            found.append("it is retired")
        if self.write_once(serial):
            found.append("it is write-once")
        if needed := [one.set_id for one in self.on(serial) if not self.expired(one.set_id)]:
            more = f" and {len(needed) - 1} more" if len(needed) > 1 else ""
            found.append(f"the set {needed[-1]}{more} on it has not expired")
        return found

    def _judged(self, now: datetime) -> frozenset[str]:
        pools_of = {one.set_id: self._pools_of(one) for one in self.sets.values()}
        found = {set_id for set_id, names in pools_of.items() if not names or _NONE in names}
        for name, pool in self._pools.items():
            there = [self.sets[set_id] for set_id, names in pools_of.items() if name in names]
            found |= kept(pool, there, now)
        return with_needs(found, self.sets.values())

    def _pools_of(self, one: Dated) -> set[str]:
        """The configured pools that a set lies in; _NONE among them: a part of it is in none."""
        known = (self.volumes.get(serial) for serial in one.volumes)
        names = (_NONE if volume is None else volume.pool for volume in known)
        return {name if name in self._pools else _NONE for name in names}


class Shelf:
    """The volumes of one pool, as whoever writes takes them off it."""

    def __init__(self, pool: str, stock: Stock) -> None:
        self._stock = stock
        self._volumes = [v for v in stock.volumes.values() if v.pool == pool]

    def next(self, passed: Collection[str] = ()) -> Choice:
        """The volume to write next, none of `passed`: the one written last that has room, so that
        volumes fill up one after the other; then the one that was left longest of those that may be
        written anew (first of all one with which that was begun); then a blank one."""
        open_ = [volume for volume in self._volumes if volume.serial not in passed]
        if room := [volume for volume in open_ if self._has_room(volume)]:
            latest = max(room, key=lambda v: (v.last_written or _LONG_AGO, _backwards(v.serial)))
            return Choice(serial=latest.serial, how=How.APPEND)
        if again := [volume for volume in open_ if not self._stock.keeps(volume.serial)]:
            first = min(
                again,
                key=lambda v: (v.recycling is None, v.last_written or _LONG_AGO, v.serial),
            )
            return Choice(serial=first.serial, how=How.RECYCLE)
        return Choice(serial=None, how=How.BLANK)

    def choices(self, passed: Collection[str] = ()) -> Iterator[tuple[str, How]]:
        """The volumes that may be written next, one after the other as `next` has them; behind them
        all comes a blank one."""
        tried = set(passed)
        while (choice := self.next(tried)).serial is not None:
            yield choice.serial, choice.how
            tried.add(choice.serial)

    @staticmethod
    def _has_room(volume: VolumeRecord) -> bool:
        appendable = volume.state is VolumeState.APPENDABLE
        return appendable and not volume.held and volume.recycling is None


def _backwards(serial: str) -> tuple[int, ...]:
    """So that the largest is the first by the alphabet."""
    return tuple(-ord(character) for character in serial)
