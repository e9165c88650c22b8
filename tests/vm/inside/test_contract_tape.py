"""Tape drives pass the contract of media, faults included, by the kernel's own st driver; drives
that cannot tell where they stand pass it, too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.vm.inside.tape_lab import TapeBench
from tests.vm.vtl.library import Library

from splitmirror.testing.media import CLAIMS, Claim
from splitmirror.testing.media_faults import CLAIMS as FAULT_CLAIMS
from splitmirror.testing.media_faults import FaultClaim

pytest_plugins = ["tests.vm.inside.tape_fixtures"]

# A drive that does not tell where it stands does not tell damage from a reset, nor that it slipped.
NOT_WITHOUT_POSITIONS = {
    "a_damaged_record_is_told_by_its_number",
    "what_lies_behind_damage_can_be_read",
    "a_drive_that_stands_elsewhere_writes_no_record",
    "a_drive_that_stands_elsewhere_writes_no_filemark",
}


@pytest.fixture
def without_positions(made: Library) -> Iterator[TapeBench]:
    bench = TapeBench(made, no_positioning=True)
    yield bench
    bench.close()


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_tape(claim: Claim, bench: TapeBench) -> None:
    claim(bench)


@pytest.mark.parametrize("claim", FAULT_CLAIMS, ids=lambda claim: claim.__name__)
def test_tape_under_faults(claim: FaultClaim, bench: TapeBench) -> None:
    claim(bench)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_tape_that_tells_no_positions(claim: Claim, without_positions: TapeBench) -> None:
    claim(without_positions)


@pytest.mark.parametrize(
    "claim",
    [claim for claim in FAULT_CLAIMS if claim.__name__ not in NOT_WITHOUT_POSITIONS],
    ids=lambda claim: claim.__name__,
)
def test_tape_that_tells_no_positions_under_faults(
    claim: FaultClaim, without_positions: TapeBench
) -> None:
    claim(without_positions)


def test_the_claims_left_out_are_claims() -> None:
    assert {claim.__name__ for claim in FAULT_CLAIMS} >= NOT_WITHOUT_POSITIONS
