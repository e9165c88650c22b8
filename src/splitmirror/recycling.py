"""How a volume is written anew, and labelled at all: never at the cost of what must be kept.

`recycle` believes nobody. The catalogue must say that nothing keeps the volume; then its label is
read, and must be the expected one; then all its labels, and each set on it must be known and have
expired. Only then, in this order (docs/adr/0021):

1. the catalogue: recycling is intended, and what is on the volume counts as incomplete,
2. the medium: VOL1 and two filemarks over everything, synced, read back,
3. the catalogue: what was on it is forgotten.

A crash in between leaves the intent. The next call asks the medium how far it had come. A blank
volume is labelled with an intent, too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from splitmirror.catalog import Catalog, Lookup
from splitmirror.errors import MediumDamaged, VolumeKept, WrongMedium
from splitmirror.media import Medium
from splitmirror.media.pools import Pool
from splitmirror.media.shelf import Stock, VolumeRecord
from splitmirror.media.volume import is_write_once, label_volume, require_lost, require_serial
from splitmirror.media.walking import VolumeReader, beginning


def stock_of(
    catalog: Lookup,
    pools: Mapping[str, Pool],
    *,
    unfinished: Collection[str] = (),
    now: datetime | None = None,
) -> Stock:
    """What the catalogue knows, judged now. `unfinished`: sets that a run still needs."""
    return Stock(
        pools=pools,
        volumes=catalog.volumes(),
        sets=catalog.dated(),
        now=now or datetime.now(UTC),
        unfinished=unfinished,
    )


def recycle(medium: Medium, catalog: Catalog, serial: str, stock: Stock) -> None:
    """Make a volume of ours an empty one of the same serial. The medium is left loaded, also when
    it fails.

    A second call is harmless; after a crash it goes on. Raises VolumeKept, WrongMedium,
    MediumDamaged, Busy, with nothing written; MediumError, with the volume still to be recycled.
    """
    if keeps := stock.keeps(serial):
        raise _kept(serial, "; ".join(keeps))
    medium.load(writable=True)
    there = beginning(medium)
    begun = stock.volumes[serial].recycling is not None
    expected = there.ours and there.serial == serial
    if not expected and not (there.blank and begun):
        loaded = "a blank one" if there.blank else there.name
        raise WrongMedium(
            f"volume {serial} is to be written anew, but {loaded} is loaded",
            hint=f"Load volume {serial}. Nothing was written.",
            serial=there.serial,
        )
    _require_rewritable(medium, catalog, serial)
    if not there.blank:
        _require_expired(VolumeReader(medium), stock)
    catalog.intend_recycling(serial, datetime.now(UTC))
    _write_anew(medium, serial, losing=serial)
    catalog.emptied(serial)


def label(
    medium: Medium,
    catalog: Catalog,
    new: VolumeRecord,
    stock: Stock,
    *,
    losing: str | None = None,
) -> VolumeRecord:
    """Make the loaded volume ours, as `new` describes it, and know it from now on.

    It must be blank, or be that volume already with nothing on it that must be kept; or `losing`
    names what it is (`walking.Beginning.name`): then everything on it is lost, whatever that is,
    unless it is held, retired or write-once. Raises VolumeKept, WrongMedium, ConfigError, Busy.
    """
    require_serial(new.serial)
    known = new.serial in stock.volumes
    medium.load(writable=True)
    there = beginning(medium)
    if losing is not None and not there.blank:
        _lose(medium, catalog, new.serial, stock, losing)
    elif known:
        recycle(medium, catalog, new.serial, stock)
    elif there.ours and there.serial == new.serial:
        _require_expired(VolumeReader(medium), stock)
    else:
        require_lost(there, new.serial, None)
        _label_blank(medium, catalog, new)
    once = is_write_once(medium)
    catalog.add_volume(replace(new, write_once=once))
    return catalog.change_volume(
        new.serial, lambda old: replace(old, pool=new.pool, barcode=new.barcode or old.barcode)
    )


def _label_blank(medium: Medium, catalog: Catalog, new: VolumeRecord) -> None:
    """With the intent first here too, so that what a crash leaves is known and gone on with. Only a
    write-once one is known when it is labelled: it could not be written anew."""
    if is_write_once(medium):
        label_volume(medium, new.serial)
        return
    catalog.add_volume(replace(new, recycling=datetime.now(UTC)))
    label_volume(medium, new.serial)
    catalog.emptied(new.serial)


def _lose(medium: Medium, catalog: Catalog, serial: str, stock: Stock, losing: str) -> None:
    """Write the volume `losing` anew as `serial`, whatever is on it."""
    there = beginning(medium)
    require_lost(there, serial, losing)
    if serial in stock.volumes and serial != losing:
        raise VolumeKept(
            f"there is another volume {serial}",
            hint="Take another serial. ('splitmirror media list' shows those that are taken; one "
            f"that is gone for good: 'splitmirror media retire {serial} --lost'.)",
            serial=serial,
        )
    _require_rewritable(medium, catalog, losing)
    known = there.ours and losing in stock.volumes
    if known:
        catalog.intend_recycling(losing, datetime.now(UTC))
    _write_anew(medium, serial, losing=losing)
    if known:
        catalog.emptied(losing, forget=losing != serial)


def _write_anew(medium: Medium, serial: str, *, losing: str) -> None:
    """Label the volume, and see that it has become an empty one."""
    label_volume(medium, serial, losing=losing)
    volume = VolumeReader(medium)
    if volume.serial != serial or volume.end().tape_file:
        raise MediumDamaged(
            f"volume {serial} was labelled, but {volume.serial} with {volume.end().tape_file} tape "
            "files was read back",
            hint="The drive does not write what it is told to. Retire the volume, and look at the "
            "drive.",
            serial=serial,
        )


def _require_expired(volume: VolumeReader, stock: Stock) -> None:
    """By the volume's own labels nothing that must be kept is on it."""
    for found in volume.sets():
        if stock.kept(found.set_id):
            raise _kept(volume.serial, f"the set {found.set_id} on it has not expired")
        if not stock.expired(found.set_id):
            raise VolumeKept(
                f"volume {volume.serial} is not written anew: the catalogue does not know the set "
                f"{found.set_id} on it",
                hint="Read the volume in with 'splitmirror media scan'; it is held then, until "
                "'splitmirror media release'.",
                serial=volume.serial,
                set_id=found.set_id,
            )
    cut_off = volume.end().unfinished
    if cut_off is not None and stock.kept(cut_off.set_id):
        raise _kept(volume.serial, f"the set {cut_off.set_id} is being written to it")


def _require_rewritable(medium: Medium, catalog: Catalog, serial: str) -> None:
    if not is_write_once(medium):
        return
    if serial in {known.serial for known in catalog.volumes()}:
        catalog.change_volume(serial, lambda record: replace(record, write_once=True))
    raise _kept(serial, "it is write-once")


def _kept(serial: str, why: str) -> VolumeKept:
    return VolumeKept(
        f"volume {serial} is not written anew: {why}",
        hint="Take another volume; 'splitmirror media list' tells of each what keeps it.",
        serial=serial,
    )
