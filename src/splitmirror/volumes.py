"""What operators do with volumes, beside writing sets to them.

The order of truth is medium, journal, catalogue: `scan` makes the catalogue say what the volumes'
labels say, and holds a volume about which it learnt something, for what the catalogue knew of holds
and retention may have been lost with what it knew of the volume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from splitmirror import recycling
from splitmirror.catalog import Catalog, Lookup
from splitmirror.catalog.rebuild import Walked, record_sets
from splitmirror.config import Config
from splitmirror.errors import ConfigError, MediumDamaged, VolumeKept, WrongMedium
from splitmirror.media import Medium
from splitmirror.media.shelf import Stock, VolumeRecord, VolumeState
from splitmirror.media.supply import ReadSupply
from splitmirror.model import BackupSet
from splitmirror.progress import Progress, silent
from splitmirror.run import unfinished


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """What volumes were found to hold, as the catalogue has it now. `missing`: sets that the
    catalogue had there and that are not; they count as incomplete now. `damage`: where labels could
    not be read further, after what came before was recorded."""

    volumes: tuple[VolumeRecord, ...]
    sets: tuple[BackupSet, ...]
    missing: tuple[str, ...] = ()
    damage: MediumDamaged | None = None


def scan(
    supply: ReadSupply,
    catalog: Catalog,
    serials: Sequence[str],
    *,
    driver: str,
    pool: str | None = None,
    new_pool: str = "",
    progress: Progress = silent,
) -> Scanned:
    """Read the labels of these volumes, and their sets' own catalogues (or lacking one, the parts),
    into the catalogue. A second call is harmless.

    A volume that was not known, or on which something is that was not known, is held. `pool`: the
    pool that they belong to from now on; None: where they were, or `new_pool` if not known before.
    `progress` counts volumes. Raises NoSuchVolume, WrongMedium, MediumError.
    """
    known, walked = {volume.serial for volume in catalog.volumes()}, Walked()
    why = (
        f"read in from the medium on {datetime.now(UTC):%Y-%m-%d}: "
        "what was held, or kept until when, may have been lost"
    )
    try:
        sets = record_sets(
            supply, catalog, serials=serials, held=why, walked=walked, progress=progress
        )
    except MediumDamaged as error:
        if error is not walked.damage:
            raise
        sets = [one for one in catalog.sets() if one.set_id in walked.ids]
    found = [
        _amend(catalog, serial, walked, driver, why, pool if serial in known else pool or new_pool)
        for serial in walked.bytes
    ]
    missing = [set_id for serial in walked.files for set_id in _missing(catalog, serial, walked)]
    catalog.mark_incomplete(missing, "it is not where the catalogue had it on its volume")
    again = {one.set_id: one for one in catalog.sets()}
    return Scanned(
        volumes=tuple(found),
        sets=tuple(again[one.set_id] for one in sets),
        missing=tuple(missing),
        damage=walked.damage,
    )


def _amend(
    catalog: Catalog, serial: str, walked: Walked, driver: str, held: str, pool: str | None
) -> VolumeRecord:
    """What is known of a volume that was walked."""
    catalog.add_volume(VolumeRecord(serial=serial, medium=driver, held=held))
    there, to_the_end = walked.bytes[serial], serial in walked.files
    return catalog.change_volume(
        serial,
        lambda record: replace(
            record,
            pool=record.pool if pool is None else pool,
            bytes=there if to_the_end else max(there, record.bytes),
        ),
    )


def _missing(catalog: Catalog, serial: str, walked: Walked) -> list[str]:
    """The sets of which the catalogue has a part on the volume that is not there."""
    found = []
    for known in catalog.dated():
        places = {
            (part.set_id, part.position)
            for part in (catalog.parts(known.set_id) if serial in known.volumes else ())
            if part.position is not None and part.position.volume == serial
        }
        if not places <= walked.files[serial]:
            found.append(known.set_id)
    return found


# --- volumes by the configuration


def needed_by_runs(config: Config) -> frozenset[str]:
    """The sets that runs of any source have not ended with: these go on, or wait for `recover`."""
    return frozenset(directory.name for directory in unfinished(config.state))


def stock(config: Config, catalog: Lookup | None) -> Stock:
    """All volumes and sets that the catalogue knows, judged now by the configured pools; none where
    there is no catalogue yet."""
    if catalog is None:
        return Stock(pools=config.pools, volumes=(), sets=(), now=datetime.now(UTC))
    return recycling.stock_of(catalog, config.pools, unfinished=needed_by_runs(config))


def require_pool(config: Config, name: str) -> str:
    """Raises ConfigError when there is no such pool."""
    if name and name not in config.pools:
        known = ", ".join(sorted(config.pools)) or "there is none"
        raise ConfigError(
            f"there is no pool {name!r}",
            hint=f"Pools are tables [pools.NAME] of the configuration: {known}.",
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class InDrive:
    """A cartridge in a drive; `barcode`: "" where none was read."""

    medium: Medium
    barcode: str = ""


@contextmanager
def in_drive(config: Config, name: str | None, *, labelled: bool = True) -> Iterator[InDrive]:
    """The volume of that serial in a drive that nobody else uses, its label proven; with None
    whatever is in the first such drive. It is unloaded in the end.

    Not `labelled`: the cartridge of that serial, barcode or slot, whatever is on it; without a
    changer the one that is in the drive. Raises NoSuchVolume, WrongMedium, ChangerError, Busy.
    """
    rather = [] if name is None else [name]
    with config.open_library() as library, library.lease(rather=rather) as (bay,):
        if name is not None and labelled:
            library.bring(bay, name, writable=False)
        elif name is not None and library.has_changer:
            library.fetch(bay, name)
        slot = library.slot_of(bay)
        yield InDrive(medium=bay.medium, barcode="" if slot is None else slot.barcode)


def label(
    config: Config,
    catalog: Catalog,
    serial: str,
    *,
    cartridge: str | None = None,
    pool: str = "",
    losing: str | None = None,
) -> VolumeRecord:
    """Make the cartridge of that barcode or slot (None: the one whose barcode has the serial), or
    without a changer what is in the drive, a volume of ours. See `recycling.label`.

    Raises WrongMedium also when its barcode says another serial.
    """
    with in_drive(config, cartridge or serial, labelled=False) as found:
        if found.barcode and not found.barcode.startswith(serial):
            raise WrongMedium(
                f"the cartridge with the barcode {found.barcode} cannot be volume {serial}",
                hint="Give it the serial that its barcode begins with, so that the changer finds "
                "it.",
                serial=serial,
                barcode=found.barcode,
            )
        new = VolumeRecord(
            serial=serial, medium=config.medium["driver"], pool=pool, barcode=found.barcode
        )
        return recycling.label(found.medium, catalog, new, stock(config, catalog), losing=losing)


def require_destination(config: Config, catalog: Lookup) -> None:
    """What the configuration names may be written to: a pool that there is, or the one volume.
    Raises ConfigError, and VolumeKept when the volume is retired."""
    if config.pool:
        require_pool(config, config.pool)
        return
    known = {volume.serial: volume for volume in catalog.volumes()}
    record = known.get(config.volume)
    if record is not None and record.state is VolumeState.RETIRED:
        raise VolumeKept(
            f"volume {config.volume} is retired",
            hint="Name another `volume` in the configuration, or take it back: `splitmirror media "
            f"retire {config.volume} --undo`.",
            serial=config.volume,
        )


def require_streams(config: Config, drives: int) -> None:
    """Raises ConfigError when there are fewer drives than streams are wanted."""
    if config.backup.streams > drives:
        raise ConfigError(
            f"[backup] streams is {config.backup.streams}, but {drives} volumes can be "
            "written at once",
            hint="Take fewer streams, or give the medium more drives.",
        )
