"""What every medium must do: claims that a driver's test runs, shipped for outside drivers too.

    from splitmirror.testing.media import CLAIMS, Bench

    @pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
    def test_my_medium(claim, tmp_path):
        claim(MyBench(tmp_path))

A `Bench` gives blank volumes and puts a volume into a second drive. A claim raises AssertionError,
with what was expected, when the medium does not hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

from splitmirror.errors import Busy, EndOfMedium, MediumError
from splitmirror.media import END_OF_DATA, FILEMARK, Mark, Medium
from splitmirror.testing.claiming import raised, same

MIB: Final = 1 << 20
BLOCK: Final = 8192  # a size that every drive in variable mode takes
EARLY: Final = 4 * BLOCK  # room that is left at the early warning, in volumes of `limited`


class Bench(Protocol):
    """Where volumes come from."""

    def blank(self) -> Medium:
        """A drive with a blank volume, not loaded, with room for a few MiB."""
        ...

    def limited(self, size: int) -> Medium:
        """The same with room for about `size` bytes of records (an eighth more at the most), of
        which the last EARLY come after the early warning."""
        ...

    def second(self, medium: Medium) -> Medium:
        """Another drive with the same volume, not loaded."""
        ...


Claim = Callable[[Bench], None]
CLAIMS: Final[list[Claim]] = []


def _claim(claim: Claim) -> Claim:
    CLAIMS.append(claim)
    return claim


def record(number: int, size: int = BLOCK) -> bytes:
    """Contents that tell one record from another."""
    return (b"record %d;" % number * (size // 9 + 1))[:size]


def contents(medium: Medium) -> list[bytes | Mark]:
    """Every object from the beginning of the volume on."""
    medium.locate(0)
    found: list[bytes | Mark] = []
    while (thing := next_object(medium)) is not END_OF_DATA:
        found.append(thing)
    return found


def next_object(medium: Medium) -> bytes | Mark:
    """What is read next."""
    buffer = memoryview(bytearray(min(medium.limits.largest, MIB)))
    length = medium.read(buffer)
    return length if isinstance(length, Mark) else bytes(buffer[:length])


def written(bench: Bench) -> tuple[Medium, list[bytes | Mark]]:
    """A loaded volume: two records, a filemark, three records, two filemarks."""
    medium = bench.blank()
    medium.load(writable=True)
    medium.write([record(0), record(1)])
    medium.write_filemarks(1, sync=False)
    medium.write([record(3), record(4), record(5)])
    medium.write_filemarks(2, sync=True)
    records: list[bytes | Mark] = [record(0), record(1), FILEMARK, record(3), record(4), record(5)]
    return medium, [*records, FILEMARK, FILEMARK]


# --- writing and reading


@_claim
def a_blank_volume_has_no_data(bench: Bench) -> None:
    medium = bench.blank()
    medium.load(writable=True)
    same(next_object(medium), END_OF_DATA, "first read of a blank volume")
    same(medium.tell(), 0, "position on a blank volume")


@_claim
def what_was_written_is_read_in_order(bench: Bench) -> None:
    medium, wanted = written(bench)
    same(contents(medium), wanted, "contents")


@_claim
def the_end_of_data_is_not_passed(bench: Bench) -> None:
    medium, wanted = written(bench)
    medium.locate(len(wanted))
    for _ in range(3):
        same(next_object(medium), END_OF_DATA, "read at the end")
        same(medium.tell(), len(wanted), "position at the end")


@_claim
def records_keep_their_own_length(bench: Bench) -> None:
    medium = bench.blank()
    medium.load(writable=True)
    sizes = [80, BLOCK, 1001, medium.limits.smallest, 512]
    medium.write([record(number, size) for number, size in enumerate(sizes)])
    wanted = [record(number, size) for number, size in enumerate(sizes)]
    same(contents(medium), wanted, "records of different lengths")


@_claim
def a_large_batch_is_written_whole(bench: Bench) -> None:
    medium = bench.blank()
    medium.load(writable=True)
    wanted = [record(number, 80) for number in range(1200)]  # more than one system call takes
    medium.write(wanted)
    same(medium.tell(), len(wanted), "position behind a batch of 1200")
    same(contents(medium), wanted, "a batch of 1200 records")


@_claim
def the_callers_buffer_is_free_after_the_write(bench: Bench) -> None:
    medium = bench.blank()
    medium.load(writable=True)
    buffer = bytearray(record(0))
    medium.write([memoryview(buffer)])
    buffer[:] = record(1)
    medium.write([buffer])
    same(contents(medium), [record(0), record(1)], "records from one reused buffer")


@_claim
def a_write_leaves_nothing_behind_it(bench: Bench) -> None:
    medium, wanted = written(bench)
    medium.locate(4)
    medium.write([record(99)])
    same(contents(medium), [*wanted[:4], record(99)], "contents after an overwrite")


@_claim
def filemarks_leave_nothing_behind_them(bench: Bench) -> None:
    medium, wanted = written(bench)
    medium.locate(3)
    medium.write_filemarks(1, sync=True)
    same(contents(medium), [*wanted[:3], FILEMARK], "contents after an overwriting filemark")


@_claim
def a_sync_alone_writes_and_cuts_nothing(bench: Bench) -> None:
    medium, wanted = written(bench)
    medium.locate(2)
    medium.write_filemarks(0, sync=True)
    same(medium.tell(), 2, "position after a sync")
    same(contents(medium), wanted, "contents after a sync in the middle")


@_claim
def a_record_longer_than_the_buffer_is_refused_and_kept(bench: Bench) -> None:
    medium, wanted = written(bench)
    medium.locate(3)
    small = memoryview(bytearray(BLOCK // 2))
    raised(MediumError, lambda: medium.read(small), "read into too small a buffer")
    medium.locate(3)
    same(next_object(medium), wanted[3], "the record after a refused read")


@_claim
def a_refused_read_stands_before_the_record(bench: Bench) -> None:
    medium, _ = written(bench)
    medium.locate(3)
    small = memoryview(bytearray(BLOCK // 2))
    raised(MediumError, lambda: medium.read(small), "read into too small a buffer")
    same(medium.tell(), 3, "position after a refused read")


@_claim
def records_outside_the_limits_are_refused(bench: Bench) -> None:
    medium = bench.blank()
    medium.load(writable=True)
    large = bytes(medium.limits.largest + 1)
    raised(MediumError, lambda: medium.write([large]), "a record above the largest")
    raised(MediumError, lambda: medium.write([b""]), "a record without a byte")
    same(contents(medium), [], "contents after refused writes")


# --- positions


@_claim
def positions_count_records_and_filemarks(bench: Bench) -> None:
    medium, wanted = written(bench)
    same(medium.tell(), len(wanted), "position behind what was written")
    medium.locate(0)
    for number in range(len(wanted)):
        same(medium.tell(), number, "position before an object")
        next_object(medium)


@_claim
def locate_stands_before_the_object(bench: Bench) -> None:
    medium, wanted = written(bench)
    for number in [5, 0, 2, 7, 3, 6]:
        medium.locate(number)
        same(medium.tell(), number, "position after locate")
        same(next_object(medium), wanted[number], f"object {number}")


@_claim
def there_is_no_object_beyond_the_end(bench: Bench) -> None:
    medium, wanted = written(bench)
    medium.locate(len(wanted))
    raised(MediumError, lambda: medium.locate(len(wanted) + 1), "locate beyond the end of data")


@_claim
def spacing_forward_stands_behind_the_filemark(bench: Bench) -> None:
    medium, _ = written(bench)
    for begin, count, wanted in [(0, 1, 3), (0, 2, 7), (0, 3, 8), (2, 1, 3), (4, 2, 8), (4, 0, 4)]:
        medium.locate(begin)
        medium.space_filemarks(count)
        same(medium.tell(), wanted, f"{count} filemarks forward from {begin}")


@_claim
def spacing_backward_stands_before_the_filemark(bench: Bench) -> None:
    medium, _ = written(bench)
    for begin, count, wanted in [(8, 1, 7), (8, 2, 6), (8, 3, 2), (3, 1, 2), (6, 1, 2)]:
        medium.locate(begin)
        medium.space_filemarks(-count)
        same(medium.tell(), wanted, f"{count} filemarks backward from {begin}")


@_claim
def spacing_over_too_many_filemarks_stops_at_the_end(bench: Bench) -> None:
    medium, wanted = written(bench)
    medium.locate(0)
    raised(MediumError, lambda: medium.space_filemarks(4), "4 filemarks forward of 3")
    same(next_object(medium), END_OF_DATA, "read after spacing too far")
    same(medium.tell(), len(wanted), "position after spacing too far")


@_claim
def spacing_back_over_too_many_filemarks_stops_at_the_beginning(bench: Bench) -> None:
    medium, _ = written(bench)
    raised(MediumError, lambda: medium.space_filemarks(-4), "4 filemarks backward of 3")
    same(medium.tell(), 0, "position after spacing back too far")


# --- loading


@_claim
def nothing_works_before_the_load(bench: Bench) -> None:
    medium = bench.blank()
    buffer = memoryview(bytearray(BLOCK))
    acts: Iterable[Callable[[], object]] = (
        lambda: medium.write([record(0)]),
        lambda: medium.write_filemarks(1, sync=True),
        lambda: medium.read(buffer),
        lambda: medium.locate(0),
        lambda: medium.tell(),
    )
    for act in acts:
        raised(MediumError, act, "use of a medium that is not loaded")


@_claim
def loading_again_rewinds(bench: Bench) -> None:
    medium, wanted = written(bench)
    medium.load(writable=True)
    same(medium.tell(), 0, "position after a second load")
    same(contents(medium), wanted, "contents after a second load")


@_claim
def what_was_written_is_there_in_another_drive(bench: Bench) -> None:
    medium, wanted = written(bench)
    medium.unload()
    other = bench.second(medium)
    other.load(writable=False)
    same(contents(other), wanted, "contents in a second drive")


@_claim
def unloading_keeps_what_was_not_synced(bench: Bench) -> None:
    medium, wanted = written(bench)
    medium.write([record(8)])
    medium.write_filemarks(2, sync=False)
    medium.unload()
    other = bench.second(medium)
    other.load(writable=False)
    same(contents(other), [*wanted, record(8), FILEMARK, FILEMARK], "contents after unload")


@_claim
def appending_in_another_drive_keeps_what_was_there(bench: Bench) -> None:
    medium, wanted = written(bench)
    medium.unload()
    other = bench.second(medium)
    other.load(writable=True)
    other.locate(7)
    other.write([record(7)])
    same(contents(other), [*wanted[:7], record(7)], "contents after an append")


@_claim
def unloading_twice_is_harmless(bench: Bench) -> None:
    medium, wanted = written(bench)
    medium.unload()
    medium.unload()
    medium.load(writable=False)
    same(contents(medium), wanted, "contents after two unloads")


@_claim
def a_volume_loaded_read_only_cannot_be_written(bench: Bench) -> None:
    medium, wanted = written(bench)
    medium.unload()
    medium.load(writable=False)
    raised(MediumError, lambda: medium.write([record(99)]), "write to a read-only volume")
    raised(MediumError, lambda: medium.write_filemarks(1, sync=True), "filemark on a read-only")
    same(contents(medium), wanted, "contents after refused writes")


@_claim
def a_second_writer_is_refused(bench: Bench) -> None:
    medium, wanted = written(bench)
    raised(Busy, lambda: bench.second(medium).load(writable=True), "load for a second writer")
    medium.unload()
    second = bench.second(medium)
    second.load(writable=True)
    same(contents(second), wanted, "contents for the second writer once the first is gone")


# --- the end of the medium


@_claim
def the_early_warning_comes_before_the_end(bench: Bench) -> None:
    medium = bench.limited(16 * BLOCK)
    medium.load(writable=True)
    records = 0
    while not medium.write([record(records)]):
        records += 1
        if records > 64:
            raise AssertionError("no early warning after four times the capacity")
    if records < 8:
        raise AssertionError(f"early warning after only {records} of 16 records")
    medium.write([record(98, 80), record(99, 80)])  # the trailer still fits
    if not medium.write_filemarks(2, sync=True):
        raise AssertionError("the early warning did not last")


@_claim
def a_batch_over_the_early_warning_is_written_whole(bench: Bench) -> None:
    medium = bench.limited(16 * BLOCK)
    medium.load(writable=True)
    wanted: list[bytes | Mark] = [record(number) for number in range(14)]
    if not medium.write([record(number) for number in range(14)]):
        raise AssertionError("no early warning with 14 of 16 records")
    same(medium.tell(), 14, "position behind a batch over the early warning")
    medium.write([record(14, 80), record(15, 80)])
    medium.write_filemarks(1, sync=True)
    same(medium.tell(), 17, "position behind what was written after the early warning")
    wanted += [record(14, 80), record(15, 80), FILEMARK]
    same(contents(medium), wanted, "contents of a volume beyond the early warning")


@_claim
def the_early_warning_is_over_where_the_volume_is_shortened(bench: Bench) -> None:
    medium = bench.limited(16 * BLOCK)
    medium.load(writable=True)
    if not medium.write([record(number) for number in range(14)]):
        raise AssertionError("no early warning with 14 of 16 records")
    medium.locate(4)
    if medium.write([record(99)]):
        raise AssertionError("an early warning with 5 of 16 records")


@_claim
def the_room_left_shrinks_to_the_early_warning(bench: Bench) -> None:
    medium = bench.limited(16 * BLOCK)
    medium.load(writable=True)
    before = medium.capacity.left
    early = medium.write([record(0), record(1)])
    after = medium.capacity.left
    if medium.capacity.total is None or before is None or after is None:
        return  # a drive need not know
    to_the_mib = before % MIB == after % MIB == 0
    if early or after > before or not (to_the_mib or 0 < after <= before - 2 * BLOCK):
        raise AssertionError(f"{before} bytes left before two records, {after} after")


@_claim
def the_end_of_the_medium_keeps_whole_records(bench: Bench) -> None:
    medium = bench.limited(16 * BLOCK)
    medium.load(writable=True)
    wanted = [record(number) for number in range(64)]
    raised(EndOfMedium, lambda: medium.write(wanted), "64 records onto a volume for 16")
    fitted = medium.tell()
    if not 8 <= fitted <= 18:
        raise AssertionError(f"{fitted} records on a volume for 16")
    same(next_object(medium), END_OF_DATA, "read behind the last record that fitted")
    same(contents(medium), wanted[:fitted], "records that fitted")


@_claim
def a_full_volume_can_be_shortened_and_closed(bench: Bench) -> None:
    medium = bench.limited(16 * BLOCK)
    medium.load(writable=True)
    wanted = [record(number) for number in range(64)]
    raised(EndOfMedium, lambda: medium.write(wanted), "64 records onto a volume for 16")
    medium.locate(4)
    medium.write([record(99)])
    medium.write_filemarks(2, sync=True)
    same(contents(medium), [*wanted[:4], record(99), FILEMARK, FILEMARK], "contents once closed")
