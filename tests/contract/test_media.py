"""Every medium against the contract; the contract against media that are broken on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from splitmirror.drivers import drivers
from splitmirror.errors import EndOfMedium, MediumError
from splitmirror.media import END_OF_DATA, FILEMARK, Block, Capacity, Limits, Mark, Medium
from splitmirror.media.memory import Cartridge, Memory
from splitmirror.media.virtualtape import VirtualTape
from splitmirror.testing.media import CLAIMS, EARLY, Bench, Claim


class MemoryBench:
    def __init__(self, kind: type[Memory] = Memory) -> None:
        self._kind = kind

    def blank(self) -> Medium:
        return self._kind(Cartridge())

    def limited(self, size: int) -> Medium:
        return self._kind(Cartridge(), capacity=size, early_warning=EARLY)

    def second(self, medium: Medium) -> Medium:
        assert isinstance(medium, Memory)
        return self._kind(medium.cartridge)


class VirtualTapeBench:
    def __init__(self, directory: Path) -> None:
        self._path = directory / "volume.tap"

    def blank(self) -> Medium:
        return VirtualTape(self._path, capacity=None, early_warning=0)

    def limited(self, size: int) -> Medium:
        framing = 18 * 8
        return VirtualTape(self._path, capacity=size + framing, early_warning=EARLY)

    def second(self, medium: Medium) -> Medium:
        return VirtualTape(self._path, capacity=None, early_warning=0)


BENCHES: dict[str, Callable[[Path], Bench]] = {
    "memory": lambda directory: MemoryBench(),
    "virtualtape": VirtualTapeBench,
}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
@pytest.mark.parametrize("driver", BENCHES)
def test_the_driver_holds(driver: str, claim: Claim, tmp_path: Path) -> None:
    claim(BENCHES[driver](tmp_path))


def test_every_driver_of_media_is_held_to_the_contract_here_or_in_the_guest() -> None:
    guest = Path(__file__).parents[1] / "vm" / "inside"
    there = {"tape"} if (guest / "test_contract_tape.py").exists() else set()
    assert set(drivers("media", for_tests=True)) == set(BENCHES) | there


# --- every claim has been seen to fail: against one of these, each broken in one way


class KeepsWhatLiesBehind(Memory):
    def write(self, blocks: Sequence[Block]) -> bool:
        behind = self.cartridge.objects[self.tell() + len(blocks) :]
        early = super().write(blocks)
        self.cartridge.objects += behind
        return early


class FilemarksKeepWhatLiesBehind(Memory):
    def write_filemarks(self, count: int, *, sync: bool) -> bool:
        behind = self.cartridge.objects[self.tell() + count :]
        early = super().write_filemarks(count, sync=sync)
        self.cartridge.objects += behind
        return early


class SyncCuts(Memory):
    def write_filemarks(self, count: int, *, sync: bool) -> bool:
        del self.cartridge.objects[self.tell() :]
        return super().write_filemarks(count, sync=sync)


class FindsAFilemarkOnABlank(Memory):
    def read(self, buffer: memoryview) -> int | Mark:
        found = super().read(buffer)
        return FILEMARK if found is END_OF_DATA and self.tell() == 0 else found


class PassesTheEnd(Memory):
    def read(self, buffer: memoryview) -> int | Mark:
        found = super().read(buffer)
        self._position += found is END_OF_DATA
        return found

    def locate(self, position: int) -> None:
        self._position = position


class PadsToEven(Memory):
    def write(self, blocks: Sequence[Block]) -> bool:
        return super().write([bytes(block) + bytes(len(block) % 2) for block in blocks])


class DropsTheEndOfLargeBatches(Memory):
    def write(self, blocks: Sequence[Block]) -> bool:
        return super().write(blocks[:1024])


class KeepsTheCallersBuffer(Memory):
    def _append(self, record: bytes | None) -> None:
        super()._append(record)
        self._late: list[Block]

    def write(self, blocks: Sequence[Block]) -> bool:
        self._late = [*getattr(self, "_late", []), *blocks]
        return super().write(blocks)

    def read(self, buffer: memoryview) -> int | Mark:
        for number, block in enumerate(self._late):
            self.cartridge.objects[number] = bytes(block)
        return super().read(buffer)


class ReordersABatch(Memory):
    def write(self, blocks: Sequence[Block]) -> bool:
        return super().write([*blocks][::-1])


class CutsLongRecordsShort(Memory):
    def read(self, buffer: memoryview) -> int | Mark:
        whole = memoryview(bytearray(1 << 20))
        found = super().read(whole)
        if isinstance(found, Mark):
            return found
        found = min(found, len(buffer))
        buffer[:found] = whole[:found]
        return found


class PassesARefusedRecord(Memory):
    def read(self, buffer: memoryview) -> int | Mark:
        try:
            return super().read(buffer)
        except MediumError:
            self._position += 1
            raise


class TakesAnyLength(Memory):
    limits = Limits(smallest=0, largest=1 << 30)

    def __init__(self, cartridge: Cartridge, **room: int) -> None:
        super().__init__(cartridge, **room)
        self.limits = Limits(smallest=1, largest=(1 << 24) - 1)

    def write(self, blocks: Sequence[Block]) -> bool:
        self.limits, told = TakesAnyLength.limits, self.limits
        try:
            return super().write(blocks)
        finally:
            self.limits = told


class CountsRecordsOnly(Memory):
    def tell(self) -> int:
        objects = self.cartridge.objects[: super().tell()]
        return sum(1 for found in objects if found is not None)


class LocatesOneTooFar(Memory):
    def locate(self, position: int) -> None:
        super().locate(min(position + (position > 4), len(self.cartridge.objects)))


class LocatesAnywhere(Memory):
    def locate(self, position: int) -> None:
        super().locate(min(position, len(self.cartridge.objects)))


class SpacesBeforeTheFilemark(Memory):
    def space_filemarks(self, count: int) -> None:
        super().space_filemarks(count)
        self._position -= count > 0


class SpacesBackBehindTheFilemark(Memory):
    def space_filemarks(self, count: int) -> None:
        super().space_filemarks(count)
        self._position += count < 0


class StaysWhenSpacingTooFar(Memory):
    def space_filemarks(self, count: int) -> None:
        begin = self.tell()
        try:
            super().space_filemarks(count)
        except MediumError:
            self._position = begin
            raise


class LoadsItself(Memory):
    def _check(self, *, writable: bool = False) -> None:
        self._loaded = self._writable = True


class DoesNotRewind(Memory):
    def load(self, *, writable: bool) -> None:
        position = self._position
        super().load(writable=writable)
        self._position = position


class ForgetsOnUnload(Memory):
    def unload(self) -> None:
        super().unload()
        self.cartridge.objects.clear()


class LosesWhatWasNotSynced(Memory):
    def write_filemarks(self, count: int, *, sync: bool) -> bool:
        early = super().write_filemarks(count, sync=sync)
        if sync:
            self._synced = self.tell()
        return early

    def unload(self) -> None:
        super().unload()
        del self.cartridge.objects[self._synced :]


class StartsOverOnWritableLoad(Memory):
    def load(self, *, writable: bool) -> None:
        super().load(writable=writable)
        if writable:
            self.cartridge.objects.clear()


class CannotBeUnloadedTwice(Memory):
    def unload(self) -> None:
        self._check()
        super().unload()


class WritesWhenReadOnly(Memory):
    def _check(self, *, writable: bool = False) -> None:
        super()._check()


class SharesTheVolume(Memory):
    def load(self, *, writable: bool) -> None:
        self.cartridge.writer = None
        super().load(writable=writable)


class WarnsTooLate(Memory):
    def write(self, blocks: Sequence[Block]) -> bool:
        super().write(blocks)
        return False


class TellsNoRoomUsed(Memory):
    @property
    def capacity(self) -> Capacity:
        return Capacity(total=self._capacity, left=self._capacity)


class NeverFull(Memory):
    def write(self, blocks: Sequence[Block]) -> bool:
        room, self._capacity = self._capacity, None
        try:
            return super().write(blocks)
        finally:
            self._capacity = room


class LosesTheBatchThatDidNotFit(Memory):
    def write(self, blocks: Sequence[Block]) -> bool:
        begin = self.tell()
        try:
            return super().write(blocks)
        except EndOfMedium:
            del self.cartridge.objects[begin:]
            self._position = begin
            raise


class StaysFull(Memory):
    full = False

    def write(self, blocks: Sequence[Block]) -> bool:
        if self.full:
            raise EndOfMedium("full for ever", hint="None.")
        try:
            return super().write(blocks)
        except EndOfMedium:
            self.full = True
            raise


class StaysEarly(Memory):
    early = False

    @property
    def _early(self) -> bool:
        self.early |= super()._early
        return self.early


class CountsTwiceBehindTheWarning(Memory):
    def tell(self) -> int:
        return super().tell() + self._early


BROKEN: dict[str, type[Memory]] = {
    "a_blank_volume_has_no_data": FindsAFilemarkOnABlank,
    "what_was_written_is_read_in_order": ReordersABatch,
    "the_end_of_data_is_not_passed": PassesTheEnd,
    "records_keep_their_own_length": PadsToEven,
    "a_large_batch_is_written_whole": DropsTheEndOfLargeBatches,
    "the_callers_buffer_is_free_after_the_write": KeepsTheCallersBuffer,
    "a_write_leaves_nothing_behind_it": KeepsWhatLiesBehind,
    "filemarks_leave_nothing_behind_them": FilemarksKeepWhatLiesBehind,
    "a_sync_alone_writes_and_cuts_nothing": SyncCuts,
    "a_record_longer_than_the_buffer_is_refused_and_kept": CutsLongRecordsShort,
    "a_refused_read_stands_before_the_record": PassesARefusedRecord,
    "records_outside_the_limits_are_refused": TakesAnyLength,
    "positions_count_records_and_filemarks": CountsRecordsOnly,
    "locate_stands_before_the_object": LocatesOneTooFar,
    "there_is_no_object_beyond_the_end": LocatesAnywhere,
    "spacing_forward_stands_behind_the_filemark": SpacesBeforeTheFilemark,
    "spacing_backward_stands_before_the_filemark": SpacesBackBehindTheFilemark,
    "spacing_over_too_many_filemarks_stops_at_the_end": StaysWhenSpacingTooFar,
    "spacing_back_over_too_many_filemarks_stops_at_the_beginning": StaysWhenSpacingTooFar,
    "nothing_works_before_the_load": LoadsItself,
    "loading_again_rewinds": DoesNotRewind,
    "what_was_written_is_there_in_another_drive": ForgetsOnUnload,
    "unloading_keeps_what_was_not_synced": LosesWhatWasNotSynced,
    "appending_in_another_drive_keeps_what_was_there": StartsOverOnWritableLoad,
    "unloading_twice_is_harmless": CannotBeUnloadedTwice,
    "a_volume_loaded_read_only_cannot_be_written": WritesWhenReadOnly,
    "a_second_writer_is_refused": SharesTheVolume,
    "the_early_warning_comes_before_the_end": WarnsTooLate,
    "a_batch_over_the_early_warning_is_written_whole": CountsTwiceBehindTheWarning,
    "the_early_warning_is_over_where_the_volume_is_shortened": StaysEarly,
    "the_room_left_shrinks_to_the_early_warning": TellsNoRoomUsed,
    "the_end_of_the_medium_keeps_whole_records": LosesTheBatchThatDidNotFit,
    "a_full_volume_can_be_shortened_and_closed": StaysFull,
}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_the_claim_fails_on_a_medium_that_breaks_it(claim: Claim) -> None:
    with pytest.raises((AssertionError, MediumError)):
        claim(MemoryBench(BROKEN[claim.__name__]))


def test_the_broken_media_are_one_for_each_claim() -> None:
    assert set(BROKEN) == {claim.__name__ for claim in CLAIMS}


def test_a_volume_that_never_fills_breaks_the_claims_about_the_end() -> None:
    for claim in CLAIMS:
        if "full" in claim.__name__ or "end_of_the_medium" in claim.__name__:
            with pytest.raises(AssertionError):
                claim(MemoryBench(NeverFull))
