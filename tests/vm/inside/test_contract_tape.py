"""Tape drives pass the contract of media, faults included, by the kernel's own st driver; drives
that cannot tell where they stand pass it, too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.vm.inside.tape_lab import TapeBench, library
from tests.vm.vtl.library import Library

from splitmirror.testing.media import CLAIMS, Claim
from splitmirror.testing.media_faults import CLAIMS as FAULT_CLAIMS
from splitmirror.testing.media_faults import FaultClaim


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    with library(tmp_path_factory.mktemp("vtl")) as made:
        yield made


@pytest.fixture
def bench(made: Library) -> Iterator[TapeBench]:
    bench = TapeBench(made)
    yield bench
    bench.close()


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
