"""What a medium must do when its drive or its volume fails: claims beside those of `media`.

    @pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
    def test_my_medium_under_faults(claim, tmp_path):
        claim(MyFaultyBench(tmp_path))

All come to this: an error says what is the matter, and nothing that was whole on a volume before is
damaged by what failed after it. A driver whose medium cannot fail by itself is put into a
`faulty_media.FaultyMedium`.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable
from typing import Final, Protocol

from splitmirror.errors import (
    Busy,
    DriveLost,
    EndOfMedium,
    MediumDamaged,
    MediumError,
    WrongMedium,
)
from splitmirror.media import END_OF_DATA, FILEMARK, Mark, Medium, WriteOnce
from splitmirror.testing.claiming import raised, same
from splitmirror.testing.media import BLOCK, Bench, contents, next_object, record, written


class Trouble(enum.Enum):
    """What a bench lets go wrong with a medium."""

    UNREADABLE = "the object cannot be read"
    UNWRITABLE = "the object cannot be written"
    RESET = "the drive loses its power, what it has not synced, and its position"
    SLIPPED = "the tape stands some objects before where the drive was told to go"
    PROTECTED = "the volume in the drive is write-protected"
    RESERVED = "another host has the drive for itself"
    WRITE_ONCE = "what was written on the volume stays"


class FaultyBench(Bench, Protocol):
    """Where media come from that fail when they are to."""

    def make(self, medium: Medium, trouble: Trouble, object_: int = 0) -> None:
        """From now on. For a medium that is loaded; PROTECTED and RESERVED for one that is not,
        too; what is WRITE_ONCE is so from the next load on."""
        ...

    def end(self, medium: Medium) -> None:
        """All trouble is over. What it has done stays done."""
        ...


FaultClaim = Callable[[FaultyBench], None]
CLAIMS: Final[list[FaultClaim]] = []


def _claim(claim: FaultClaim) -> FaultClaim:
    CLAIMS.append(claim)
    return claim


def _given_up(medium: Medium) -> None:
    """As a run does that failed: whatever unloading says, the first error is the one to tell."""
    with contextlib.suppress(MediumError):
        medium.unload()


def _is_still(bench: FaultyBench, medium: Medium, wanted: list[bytes | Mark], what: str) -> None:
    """The volume, in a second drive, holds that and no more."""
    _given_up(medium)
    bench.end(medium)
    other = bench.second(medium)
    other.load(writable=False)
    found = contents(other)
    other.unload()
    same(found, wanted, what)


def _appending(bench: FaultyBench) -> tuple[Medium, list[bytes | Mark]]:
    """A volume to which something was written behind what is synced on it: the medium, and what is
    synced. The second of two filemarks was written over."""
    medium, there = written(bench)
    medium.locate(len(there) - 1)
    medium.write([record(7)])
    return medium, there[:-1]


def _holds_synced(bench: FaultyBench, medium: Medium, synced: list[bytes | Mark]) -> None:
    """What was synced is there; what was not may be."""
    _given_up(medium)
    bench.end(medium)
    other = bench.second(medium)
    other.load(writable=False)
    found = contents(other)
    other.unload()
    same(found[: len(synced)], synced, "what was synced before")
    if found[len(synced) :] not in ([], [record(7)]):
        raise AssertionError(f"{len(found) - len(synced)} objects behind what was synced")


# --- reading


@_claim
def a_damaged_record_is_told_by_its_number(bench: FaultyBench) -> None:
    medium, there = written(bench)
    bench.make(medium, Trouble.UNREADABLE, 4)
    medium.locate(3)
    same(next_object(medium), there[3], "the record before the damaged one")
    error = raised(MediumDamaged, lambda: next_object(medium), "read of a damaged record")
    same(error.facts.get("object"), 4, "the number in the error")


@_claim
def what_lies_behind_damage_can_be_read(bench: FaultyBench) -> None:
    medium, there = written(bench)
    bench.make(medium, Trouble.UNREADABLE, 4)
    medium.locate(4)
    raised(MediumDamaged, lambda: next_object(medium), "read of a damaged record")
    medium.locate(5)
    found = [next_object(medium) for _ in there[5:]]
    same(found, there[5:], "what lies behind the damage")
    same(next_object(medium), END_OF_DATA, "the end of data behind the damage")


# --- writing


@_claim
def a_record_that_cannot_be_written_is_no_end_of_medium(bench: FaultyBench) -> None:
    medium, synced = _appending(bench)
    bench.make(medium, Trouble.UNWRITABLE, len(synced) + 1)
    error = raised(MediumError, lambda: medium.write([record(8), record(9)]), "a failing write")
    if isinstance(error, EndOfMedium):
        raise AssertionError("a failing write is told as the end of the medium")


@_claim
def a_failed_write_damages_nothing_before_it(bench: FaultyBench) -> None:
    medium, synced = _appending(bench)
    bench.make(medium, Trouble.UNWRITABLE, len(synced) + 1)
    raised(MediumError, lambda: medium.write([record(8), record(9)]), "a failing write")
    _holds_synced(bench, medium, synced)


@_claim
def a_filemark_that_cannot_be_written_is_told(bench: FaultyBench) -> None:
    medium, synced = _appending(bench)
    bench.make(medium, Trouble.UNWRITABLE, len(synced) + 1)
    raised(MediumError, lambda: medium.write_filemarks(1, sync=True), "a failing filemark")
    _holds_synced(bench, medium, synced)


# --- a drive that was reset, or is elsewhere


@_claim
def after_a_reset_nothing_is_done_before_the_next_load(bench: FaultyBench) -> None:
    medium, _ = _appending(bench)
    bench.make(medium, Trouble.RESET)
    buffer = memoryview(bytearray(BLOCK))
    acts: list[Callable[[], object]] = [
        lambda: medium.write([record(8)]),
        lambda: medium.write([record(9)]),
        lambda: medium.write_filemarks(1, sync=True),
        lambda: medium.write_filemarks(0, sync=True),
        lambda: medium.read(buffer),
        lambda: medium.locate(0),
        lambda: medium.space_filemarks(1),
        lambda: medium.tell(),
    ]
    for number, act in enumerate(acts):
        raised(DriveLost, act, f"act {number} after a reset")
    medium.load(writable=True)
    same(medium.tell(), 0, "position after the next load")


@_claim
def a_reset_damages_nothing_that_was_synced(bench: FaultyBench) -> None:
    medium, synced = _appending(bench)
    bench.make(medium, Trouble.RESET)
    raised(DriveLost, lambda: medium.write([record(8)]), "write after a reset")
    _holds_synced(bench, medium, synced)


@_claim
def a_reset_damages_nothing_when_a_filemark_finds_it(bench: FaultyBench) -> None:
    medium, synced = _appending(bench)
    bench.make(medium, Trouble.RESET)
    raised(DriveLost, lambda: medium.write_filemarks(1, sync=True), "filemark after a reset")
    _holds_synced(bench, medium, synced)


@_claim
def a_reset_damages_nothing_when_the_unload_finds_it(bench: FaultyBench) -> None:
    medium, synced = _appending(bench)
    bench.make(medium, Trouble.RESET)
    _holds_synced(bench, medium, synced)


@_claim
def a_reset_damages_nothing_when_a_read_finds_it(bench: FaultyBench) -> None:
    medium, there = written(bench)
    medium.locate(2)
    bench.make(medium, Trouble.RESET)
    raised(DriveLost, lambda: next_object(medium), "read after a reset")
    raised(DriveLost, lambda: medium.write([record(9)]), "write after a failed read")
    _is_still(bench, medium, there, "contents after a reset")


@_claim
def a_drive_that_stands_elsewhere_writes_no_record(bench: FaultyBench) -> None:
    medium, there = written(bench)
    bench.make(medium, Trouble.SLIPPED)
    raised(DriveLost, lambda: medium.write([record(9)]), "write elsewhere")
    raised(DriveLost, lambda: medium.write([record(9)]), "the next write")
    _is_still(bench, medium, there, "contents of a volume that stood elsewhere")


@_claim
def a_drive_that_stands_elsewhere_writes_no_filemark(bench: FaultyBench) -> None:
    medium, there = written(bench)
    bench.make(medium, Trouble.SLIPPED)
    raised(DriveLost, lambda: medium.write_filemarks(1, sync=True), "filemark elsewhere")
    raised(DriveLost, lambda: medium.write_filemarks(1, sync=True), "the next filemark")
    _is_still(bench, medium, there, "contents of a volume that stood elsewhere")


# --- a volume or a drive that is not to be had


@_claim
def a_protected_volume_is_read_and_not_written(bench: FaultyBench) -> None:
    medium, there = written(bench)
    medium.unload()
    bench.make(medium, Trouble.PROTECTED)
    raised(WrongMedium, lambda: medium.load(writable=True), "writable load of a protected volume")
    medium.load(writable=False)
    same(contents(medium), there, "contents of a protected volume")


@_claim
def a_drive_that_another_host_has_reserved_is_busy(bench: FaultyBench) -> None:
    medium, there = written(bench)
    medium.unload()
    bench.make(medium, Trouble.RESERVED)
    raised(Busy, lambda: medium.load(writable=True), "load of a reserved drive")
    bench.end(medium)
    medium.load(writable=True)
    same(contents(medium), there, "contents once the drive is free")


@_claim
def a_reservation_while_writing_stops_it(bench: FaultyBench) -> None:
    medium, synced = _appending(bench)
    bench.make(medium, Trouble.RESERVED)
    raised(MediumError, lambda: medium.write([record(8)]), "write to a reserved drive")
    bench.end(medium)
    raised(MediumError, lambda: medium.write([record(8)]), "write before the next load")
    _holds_synced(bench, medium, synced)


# --- write-once volumes


@_claim
def what_was_written_once_is_not_written_over(bench: FaultyBench) -> None:
    medium, there = written(bench)
    bench.make(medium, Trouble.WRITE_ONCE)
    medium.load(writable=True)
    medium.locate(4)
    raised(MediumError, lambda: medium.write([record(99)]), "record over a write-once volume")
    medium.locate(4)
    raised(MediumError, lambda: medium.write_filemarks(1, sync=True), "filemark over it")
    medium.locate(0)
    raised(MediumError, lambda: medium.write([record(99)]), "record at the beginning")
    same(contents(medium), there, "contents of a write-once volume")


@_claim
def a_write_once_volume_is_appended_to(bench: FaultyBench) -> None:
    medium, there = written(bench)
    bench.make(medium, Trouble.WRITE_ONCE)
    medium.load(writable=True)
    if not isinstance(medium, WriteOnce) or not medium.write_once:
        raise AssertionError("the medium does not say that its volume is write-once")
    medium.locate(len(there))
    medium.write([record(8)])
    medium.write([record(9)])
    medium.write_filemarks(1, sync=True)
    wanted = [*there, record(8), record(9), FILEMARK]
    same(contents(medium), wanted, "contents of a write-once volume after an append")
