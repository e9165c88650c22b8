"""Where the volumes of a configuration come from: one volume in one drive, or those that a library
brings; one of them by name, or the pool's, chosen by what the catalogue knows.

A volume that turns out not to be what the catalogue thinks is held, so that nobody writes to it
before an operator has looked, and the next one is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.errors import (
    Busy,
    EndOfMedium,
    MediumDamaged,
    VolumeKept,
    WrongMedium,
)
from splitmirror.media import librarycheck
from splitmirror.media.changer import serial_of
from splitmirror.media.library import Bay, Library
from splitmirror.media.librarysupply import LibraryVolumes
from splitmirror.media.pools import Pool
from splitmirror.media.shelf import How, Shelf, Stock, VolumeRecord, VolumeState
from splitmirror.media.supply import OneVolume, Supply
from splitmirror.media.volume import VolumeWriter, open_for_append
from splitmirror.model import Finding, VolumeUse
from splitmirror.preflight import stop_at_first
from splitmirror.recycling import label, recycle, stock_of
from splitmirror.volumes import needed_by_runs


def supply_of(config: Config, catalog: Catalog) -> Supply:
    """Volumes to write to, and to read. Close it. Raises ChangerError, CatalogError."""
    library = config.open_bringing()
    if library is None:
        return OneVolume(config.open_medium(), config.volume)
    if not config.pool:
        return NamedVolume(library, config.volume)
    return PoolVolumes(
        library,
        catalog,
        pool=config.pool,
        pools=config.pools,
        driver=str(config.medium["driver"]),
        streams=config.backup.streams,
        unfinished=needed_by_runs(config),
    )


def examine_pool(library: Library, pool: str, stock: Stock) -> Iterator[Finding]:
    """What would keep a backup from the volumes of a pool. Nothing is moved."""
    if not library.has_changer:
        yield Finding(what=f"pool {pool}: its volumes are asked for")
        return
    may_be = [serial for serial, _ in Shelf(pool, stock).choices()]
    yield from librarycheck.examine(library, may_be, stock.volumes.keys())


class _Drives(LibraryVolumes):
    """What both supplies that write have alike: a drive for each stream, leased until `close`."""

    def __init__(self, library: Library, streams: int) -> None:
        super().__init__(library)
        self._wanted = streams
        self._leases = ExitStack()
        self._bays: Sequence[Bay] = ()

    @property
    def streams(self) -> int:
        return len(self._bays) or min(self._wanted, len(self._library.bays))

    @property
    def left(self) -> int | None:
        return None  # a library has more volumes

    def take(self) -> None:
        if not self._bays:
            self._bays = self._leases.enter_context(self._library.lease(self._wanted))

    def again(self, stream: int, serial: str) -> VolumeWriter:
        return self._appendable(self._bays[stream], serial)

    def close(self) -> None:
        self._bays = ()
        self._leases.close()
        super().close()

    def _appendable(self, bay: Bay, serial: str) -> VolumeWriter:
        self._library.bring(bay, serial, writable=True)
        return open_for_append(bay.medium, serial)


class NamedVolume(_Drives):
    """A Supply of one volume, in a library."""

    def __init__(self, library: Library, serial: str) -> None:
        super().__init__(library, 1)
        self._serial = serial

    def look(self) -> None:
        stop_at_first(librarycheck.examine(self._library, [self._serial]))

    def next_volume(self, stream: int, passed: Collection[str]) -> VolumeWriter:
        if self._serial in passed:
            raise EndOfMedium(
                f"volume {self._serial} is full, and no other may be written",
                hint="Name another `volume` in the configuration, or a pool of volumes.",
                volume=self._serial,
            )
        return self._appendable(self._bays[stream], self._serial)

    def noted(self, use: VolumeUse) -> None:
        pass  # there is no choice of volumes that it could matter to


class PoolVolumes(_Drives):
    """A Supply of the volumes of a pool.

    `unfinished`: sets that a run still needs, whatever the pool's rules say.
    """

    def __init__(
        self,
        library: Library,
        catalog: Catalog,
        *,
        pool: str,
        pools: Mapping[str, Pool],
        driver: str,
        streams: int,
        unfinished: Collection[str],
    ) -> None:
        super().__init__(library, streams)
        self._catalog = catalog
        self._pool, self._pools, self._driver = pool, pools, driver
        self._unfinished = frozenset(unfinished)

    def look(self) -> None:
        stop_at_first(examine_pool(self._library, self._pool, self._stock()))

    def next_volume(self, stream: int, passed: Collection[str]) -> VolumeWriter:
        bay = self._bays[stream]
        shelf = Shelf(self._pool, self._stock())
        for serial, how in shelf.choices({*passed, *self._absent()}):
            try:
                return self._ready(bay, serial, how)
            except (WrongMedium, MediumDamaged, VolumeKept) as error:
                self._hold(serial, str(error))
            except Busy:
                continue  # another run of the pool is writing to it
        return self._labelled(bay)

    def noted(self, use: VolumeUse) -> None:
        def learnt(known: VolumeRecord) -> VolumeRecord:
            full = use.full and known.state is VolumeState.APPENDABLE
            return replace(
                known,
                state=VolumeState.FULL if full else known.state,
                stalls=known.stalls + use.stalls,
            )

        self._catalog.change_volume(use.volume, learnt)

    # --- inside

    def _stock(self) -> Stock:
        return stock_of(self._catalog, self._pools, unfinished=self._unfinished)

    def _absent(self) -> set[str]:
        """Volumes that are known and not in the library: the next one is taken rather than asked
        for."""
        if not self._library.has_changer:
            return set()
        there = {serial_of(slot.barcode) for slot in self._library.inventory() if slot.full}
        return set(self._stock().volumes) - there

    def _ready(self, bay: Bay, serial: str, how: How) -> VolumeWriter:
        if how is not How.RECYCLE:
            return self._appendable(bay, serial)
        begun = self._catalog.volume(serial).recycling is not None
        self._library.bring_anew(bay, serial, begun=begun)
        recycle(bay.medium, self._catalog, serial, self._stock())
        return open_for_append(bay.medium, serial)

    def _labelled(self, bay: Bay) -> VolumeWriter:
        """A blank volume, made one of the pool's."""
        stock = self._stock()
        serial = self._library.bring_blank(bay, stock.volumes.keys())
        slot = self._library.slot_of(bay)
        new = VolumeRecord(
            serial=serial,
            medium=self._driver,
            pool=self._pool,
            barcode="" if slot is None else slot.barcode,
        )
        label(bay.medium, self._catalog, new, stock)
        return open_for_append(bay.medium, serial)

    def _hold(self, serial: str, why: str) -> None:
        self._catalog.change_volume(serial, lambda known: replace(known, held=known.held or why))
