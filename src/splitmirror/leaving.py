"""What a run that fails leaves behind.

Where its drive was lost it stays open for `recover`: what it wrote is whole, and its leg can be
read again. Else it leaves a set that lacks parts, and the catalogue must know that one: a volume
that names a set which nobody knows is held for an operator to look at, and not written anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from splitmirror import journal
from splitmirror.archive.manifest import PartRecord
from splitmirror.catalog import Catalog
from splitmirror.errors import DriveLost, SplitmirrorError
from splitmirror.model import WARNING, BackupSet, VolumeUse
from splitmirror.notes import Notes, Trusted
from splitmirror.run import Run
from splitmirror.stretches import volume_of
from splitmirror.writing import whole_set


def enter_incomplete(run: Run, catalog: Catalog, why: str) -> BackupSet | None:
    """Record the parts that are whole on the media as an incomplete set; None: there are none, or
    all are. The run must not have been cleared. A second call is harmless. Raises CatalogError,
    OSError, and JournalDamaged when it is not known any more what they are part of.
    """
    records = journal.read(run.directory, lenient=True)
    if any(record.kind == "written" for record in records):
        return None  # it is whole
    digest = next((r.facts["digest"] for r in records if r.kind == "trusted"), None)
    notes = Notes(run.directory, run.journal)
    parts = notes.parts()
    if digest is None or not parts:
        return None
    backup_set = Trusted.load(run.directory / "trusted", digest).backup_set
    written = whole_set(replace(backup_set, volumes=_uses(parts)), notes)
    facts = {**backup_set.facts, WARNING: f"given up behind {len(parts)} parts: {why}"}
    left = replace(written.backup_set, complete=False, facts=facts)
    catalog.record(left, written.parts, written.members())
    return left


def _uses(parts: Sequence[PartRecord]) -> tuple[VolumeUse, ...]:
    uses = dict[str, VolumeUse]()
    for part in parts:
        use = uses.get(volume_of(part), VolumeUse(volume=volume_of(part)))
        uses[use.volume] = replace(use, parts=use.parts + 1, bytes=use.bytes + part.length)
    return tuple(uses.values())


@contextmanager
def kept_when_the_drive_is_lost(run: Run) -> Iterator[None]:
    """What the run has written is whole, and its leg can be read again: it stays open."""
    try:
        yield
    except DriveLost:  # its hint says how to go on
        run.keep_open = True
        raise


@contextmanager
def said_to_be_whole(set_id: str) -> Iterator[None]:
    """An error in here comes when the set is already safe: say so with it."""
    try:
        yield
    except SplitmirrorError as error:
        error.add_note(
            f"The set {set_id} is whole on its volume. When what failed is put right, run "
            "`splitmirror recover`: it enters the set into the catalogue and ends the run."
        )
        raise


def left_in_words(run: Run, catalog: Catalog, why: str) -> str:
    """`enter_incomplete`, told; "" when nothing is left. Raises nothing: something else went wrong
    before."""
    try:
        left = enter_incomplete(run, catalog, why)
    except (SplitmirrorError, OSError) as error:
        return (
            f"What was written of the set is not in the catalogue: {error} `splitmirror media "
            "scan` enters it."
        )
    if left is None:
        return ""
    count, serials = sum(use.parts for use in left.volumes), [use.volume for use in left.volumes]
    return (
        f"Of the set {left.set_id} {count} parts are whole, on {', '.join(serials)}. The catalogue "
        "has it as incomplete; it expires with the next complete one."
    )
