"""Changes to what the catalogue knows of volumes, each inside a transaction of `store`.

A volume is written anew in an order that no crash can turn into a loss (docs/adr/0021): its sets
count as incomplete from the moment that is intended, the medium follows, and only then are they
forgotten here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, exists, func, not_, select, update
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from splitmirror.catalog import rows
from splitmirror.catalog.schema import MEMBERS, PARTS, SETS, VOLUMES
from splitmirror.errors import NoSuchVolume, VolumeKept
from splitmirror.media.shelf import VolumeRecord, VolumeState
from splitmirror.model import WARNING

Change = Callable[[VolumeRecord], VolumeRecord]


def add(connection: Connection, record: VolumeRecord) -> None:
    """Nothing is changed when it is known already."""
    new = sqlite_insert(VOLUMES).values(rows.volume_columns(record))
    connection.execute(new.on_conflict_do_nothing())


def change(connection: Connection, serial: str, by: Change) -> VolumeRecord:
    """Raises NoSuchVolume."""
    here = VOLUMES.c.label == serial
    row = connection.execute(select(VOLUMES).where(here)).one_or_none()
    if row is None:
        raise NoSuchVolume(
            f"the catalogue knows no volume {serial}",
            hint="'splitmirror media list' shows those that it knows.",
            serial=serial,
        )
    changed = by(rows.as_volume(row._asdict()))
    connection.execute(update(VOLUMES).where(here).values(rows.volume_columns(changed)))
    return changed


def hold(connection: Connection, serials: Iterable[str], why: str) -> None:
    """Those that are held already keep their own reason."""
    these = VOLUMES.c.label.in_(list(serials)) & (VOLUMES.c.held == "")
    connection.execute(update(VOLUMES).where(these).values(held=why))


def of_set(connection: Connection, set_id: str) -> set[str]:
    """The serials of the volumes that hold some of a set."""
    this = SETS.c.set_id == set_id
    parts = select(PARTS.c.volume).join(SETS, SETS.c.number == PARTS.c.set_number).where(this)
    uses = connection.execute(select(SETS.c.volumes).where(this)).scalar_one_or_none() or "[]"
    return {*connection.execute(parts).scalars(), *(use["volume"] for use in json.loads(uses))}


def count_in(connection: Connection, serial: str, written: datetime) -> None:
    """A set that began at `written` has been recorded with parts on the volume."""
    length = select(func.sum(PARTS.c.length)).where(PARTS.c.volume == serial)
    known = int(connection.execute(length).scalar_one() or 0)

    def by(record: VolumeRecord) -> VolumeRecord:
        times = [moment for moment in (record.first_written, record.last_written) if moment]
        return replace(
            record,
            first_written=min([*times, written]),
            last_written=max([*times, written]),
            bytes=max(record.bytes, known),
        )

    change(connection, serial, by)


def intend_recycling(connection: Connection, serial: str, at: datetime) -> None:
    """From now on the sets on it are incomplete. Raises VolumeKept, NoSuchVolume."""

    def by(record: VolumeRecord) -> VolumeRecord:
        if record.held or record.state is VolumeState.RETIRED or record.write_once:
            why = f"it is held: {record.held}" if record.held else "it is retired or write-once"
            raise VolumeKept(
                f"volume {serial} is not written anew: {why}",
                hint="Take another volume; 'splitmirror media list' tells of each what keeps it.",
                serial=serial,
            )
        return replace(record, recycling=record.recycling or at)

    change(connection, serial, by)
    _mark_incomplete(connection, _sets_on(connection, serial), f"volume {serial} is written anew")


def mark_incomplete(connection: Connection, set_ids: Collection[str], why: str) -> None:
    """These sets are not whole any more."""
    query = select(SETS.c.number).where(SETS.c.set_id.in_(list(set_ids)))
    _mark_incomplete(connection, connection.execute(query).scalars().all(), why)


def emptied(connection: Connection, serial: str) -> None:
    """Nothing of what was recorded on the volume is there any more. Of a set that has something on
    other volumes only that stays; any other is forgotten. The recycling, if one was intended, has
    been done."""
    touched = _sets_on(connection, serial)
    _mark_incomplete(connection, touched, f"volume {serial}, on which a part of it was, is gone")
    for number in touched:
        of_set = (PARTS.c.set_number == number) & (PARTS.c.volume == serial)
        gone = select(PARTS.c.number).where(of_set)
        members = (MEMBERS.c.set_number == number) & MEMBERS.c.part.in_(gone)
        connection.execute(delete(MEMBERS).where(members))
        connection.execute(delete(PARTS).where(of_set))
        sums = [func.coalesce(func.sum(column), 0) for column in (PARTS.c.members, PARTS.c.stored)]
        files, stored = connection.execute(select(*sums).where(PARTS.c.set_number == number)).one()
        this = SETS.c.number == number
        uses = json.loads(connection.execute(select(SETS.c.volumes).where(this)).scalar_one())
        left = json.dumps([use for use in uses if use["volume"] != serial])
        changed = update(SETS).where(this).values(files=files, stored_bytes=stored, volumes=left)
        connection.execute(changed)
    no_part = not_(exists().where(PARTS.c.set_number == SETS.c.number)) & (SETS.c.volumes == "[]")
    connection.execute(delete(SETS).where(SETS.c.number.in_(touched) & no_part))
    change(connection, serial, _as_new)


def forget(connection: Connection, serial: str) -> None:
    """The volume itself; what was on it goes before (`emptied`)."""
    connection.execute(delete(VOLUMES).where(VOLUMES.c.label == serial))


def _as_new(record: VolumeRecord) -> VolumeRecord:
    anew = record.recycling is not None and record.first_written is not None
    return replace(
        record,
        state=VolumeState.APPENDABLE,
        first_written=None,
        last_written=None,
        bytes=0,
        recycled=record.recycled + anew,
        recycling=None,
    )


def _sets_on(connection: Connection, serial: str) -> list[int]:
    parts = select(PARTS.c.set_number).where(PARTS.c.volume == serial).distinct()
    uses = connection.execute(select(SETS.c.number, SETS.c.volumes))
    found = {*connection.execute(parts).scalars()}
    found |= {number for number, of in uses if any(u["volume"] == serial for u in json.loads(of))}
    return sorted(found)


def _mark_incomplete(connection: Connection, numbers: Iterable[int], why: str) -> None:
    for number in numbers:
        this = SETS.c.number == number
        facts: dict[str, Any] = json.loads(
            connection.execute(select(SETS.c.facts).where(this)).scalar_one()
        )
        changed = json.dumps({**facts, WARNING: why})
        connection.execute(update(SETS).where(this).values(complete=False, facts=changed))
