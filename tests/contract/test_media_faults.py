"""The media that cannot fail by themselves, made to fail, against the claims about faults; the
claims against media that are broken on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
from tests.contract.test_media import BENCHES, MemoryBench

from splitmirror.errors import EndOfMedium, MediumDamaged, MediumError
from splitmirror.media import Block, Mark, Medium
from splitmirror.testing.faulty_media import Fault, FaultKind, FaultyMedium
from splitmirror.testing.media import Bench
from splitmirror.testing.media_faults import CLAIMS, FaultClaim, Trouble
from splitmirror.testing.write_once import WriteOnceMedium

KINDS: Final = {
    Trouble.UNREADABLE: FaultKind.READ_ERROR,
    Trouble.UNWRITABLE: FaultKind.WRITE_ERROR,
    Trouble.RESET: FaultKind.RESET,
    Trouble.SLIPPED: FaultKind.RESET,
    Trouble.PROTECTED: FaultKind.PROTECTED,
    Trouble.RESERVED: FaultKind.RESERVED,
}


class FaultyBench:
    """Any bench's media, each in a FaultyMedium. A reset strikes once: from then on nothing is
    known."""

    def __init__(
        self,
        bench: Bench,
        kind: type[FaultyMedium] = FaultyMedium,
        write_once: type[WriteOnceMedium] = WriteOnceMedium,
    ) -> None:
        self._bench = bench
        self._kind = kind
        self._write_once = write_once

    def blank(self) -> Medium:
        return self._kind(self._bench.blank())

    def limited(self, size: int) -> Medium:
        return self._kind(self._bench.limited(size))

    def second(self, medium: Medium) -> Medium:
        assert isinstance(medium, FaultyMedium)
        return self._kind(self._bench.second(medium.inner))

    def make(self, medium: Medium, trouble: Trouble, object_: int = 0) -> None:
        assert isinstance(medium, FaultyMedium)
        if trouble is Trouble.WRITE_ONCE:
            medium.inner = self._write_once(medium.inner)
            return
        kind = KINDS[trouble]
        times = 1 if kind is FaultKind.RESET else None
        medium.switch_on(Fault(kind=kind, object=object_, times=times))

    def end(self, medium: Medium) -> None:
        assert isinstance(medium, FaultyMedium)
        medium.switch_off()


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
@pytest.mark.parametrize("driver", BENCHES)
def test_the_driver_holds(driver: str, claim: FaultClaim, tmp_path: Path) -> None:
    claim(FaultyBench(BENCHES[driver](tmp_path)))


# --- every claim has been seen to fail


class TellsDamageWithoutItsNumber(FaultyMedium):
    def read(self, buffer: memoryview) -> int | Mark:
        try:
            return super().read(buffer)
        except MediumDamaged as error:
            raise MediumDamaged("damaged", hint="None.") from error


class StopsAtDamage(FaultyMedium):
    damaged = False

    def read(self, buffer: memoryview) -> int | Mark:
        if self.damaged:
            raise MediumDamaged("damaged for ever", hint="None.")
        try:
            return super().read(buffer)
        except MediumDamaged:
            self.damaged = True
            raise


class IsFullWhereItFails(FaultyMedium):
    def write(self, blocks: Sequence[Block]) -> bool:
        try:
            return super().write(blocks)
        except MediumError as error:
            raise EndOfMedium("full", hint="None.") from error


class LosesTheLastMarkWithAFailure(FaultyMedium):
    """What fails takes the last filemark before it along."""

    def write(self, blocks: Sequence[Block]) -> bool:
        try:
            return super().write(blocks)
        except MediumError:
            self.switch_off()
            self.inner.locate(2)
            self.inner.write([b"lost"])
            raise


class FailsSilently(FaultyMedium):
    def write_filemarks(self, count: int, *, sync: bool) -> bool:
        try:
            return super().write_filemarks(count, sync=sync)
        except MediumError:
            return False


class ForgetsThatItWasReset(FaultyMedium):
    """One error, and all goes on."""

    def _check_position(self) -> None:
        self._lost = False
        super()._check_position()


class RewindsWithAReset(FaultyMedium):
    """As a drive does that nobody asks where it stands."""

    def _check_position(self) -> None:
        if self._strikes(FaultKind.RESET, 0, reached=True):
            self.inner.locate(0)
        super()._check_position()


class MarksTheEndWhenUnloaded(FaultyMedium):
    """As Linux's st does, wherever the tape stands."""

    def unload(self) -> None:
        self.inner.locate(0)
        self.inner.write_filemarks(1, sync=True)
        super().unload()


class MarksTheEndAfterARead(RewindsWithAReset):
    def read(self, buffer: memoryview) -> int | Mark:
        found = super().read(buffer)
        self.inner.locate(0)
        return found


class WritesProtectedVolumes(FaultyMedium):
    def load(self, *, writable: bool) -> None:
        kept, self._left = self._left, {}
        super().load(writable=writable)
        self._left = kept


class WritesOver(WriteOnceMedium):
    def _require_end(self) -> None:
        pass


class DoesNotSayThatItIsWriteOnce(WriteOnceMedium):
    write_once = False


BROKEN: dict[str, type[FaultyMedium] | type[WriteOnceMedium]] = {
    "a_damaged_record_is_told_by_its_number": TellsDamageWithoutItsNumber,
    "what_lies_behind_damage_can_be_read": StopsAtDamage,
    "a_record_that_cannot_be_written_is_no_end_of_medium": IsFullWhereItFails,
    "a_failed_write_damages_nothing_before_it": LosesTheLastMarkWithAFailure,
    "a_filemark_that_cannot_be_written_is_told": FailsSilently,
    "after_a_reset_nothing_is_done_before_the_next_load": ForgetsThatItWasReset,
    "a_reset_damages_nothing_that_was_synced": RewindsWithAReset,
    "a_reset_damages_nothing_when_a_filemark_finds_it": RewindsWithAReset,
    "a_reset_damages_nothing_when_the_unload_finds_it": MarksTheEndWhenUnloaded,
    "a_reset_damages_nothing_when_a_read_finds_it": MarksTheEndAfterARead,
    "a_drive_that_stands_elsewhere_writes_no_record": RewindsWithAReset,
    "a_drive_that_stands_elsewhere_writes_no_filemark": RewindsWithAReset,
    "a_protected_volume_is_read_and_not_written": WritesProtectedVolumes,
    "a_drive_that_another_host_has_reserved_is_busy": WritesProtectedVolumes,
    "a_reservation_while_writing_stops_it": ForgetsThatItWasReset,
    "what_was_written_once_is_not_written_over": WritesOver,
    "a_write_once_volume_is_appended_to": DoesNotSayThatItIsWriteOnce,
}


def broken_bench(kind: type[FaultyMedium] | type[WriteOnceMedium]) -> FaultyBench:
    if issubclass(kind, WriteOnceMedium):
        return FaultyBench(MemoryBench(), write_once=kind)
    return FaultyBench(MemoryBench(), kind)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_the_claim_fails_on_a_medium_that_breaks_it(claim: FaultClaim) -> None:
    with pytest.raises((AssertionError, MediumError)):
        claim(broken_bench(BROKEN[claim.__name__]))


def test_the_broken_media_are_one_for_each_claim() -> None:
    assert set(BROKEN) == {claim.__name__ for claim in CLAIMS}
