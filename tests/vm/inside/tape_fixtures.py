"""The library and its bench, as fixtures of the scenarios of media/tape.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.vm.inside.tape_lab import TapeBench, library
from tests.vm.vtl.library import Library, cartridges


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    cleaning = cartridges("CLN001L1", cleaning=True)
    with library(tmp_path_factory.mktemp("vtl"), cleaning) as made:
        yield made


@pytest.fixture
def bench(made: Library) -> Iterator[TapeBench]:
    bench = TapeBench(made)
    yield bench
    bench.close()
