"""Every supply of volumes does what writing and restoring rely on; broken ones are found out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.unit.library_lab import LibraryLab, Operator

from splitmirror import supplying
from splitmirror.catalog import Catalog
from splitmirror.errors import MediumError, SplitmirrorError
from splitmirror.media import supply as media_supply
from splitmirror.media.library import Library
from splitmirror.media.memory import Cartridge, Memory
from splitmirror.media.pools import Pool
from splitmirror.media.supply import Loaded, OneVolume, Supply
from splitmirror.media.volume import VolumeWriter, label_volume
from splitmirror.supplying import NamedVolume, PoolVolumes
from splitmirror.testing.supplies import TapeShelf
from splitmirror.testing.supply_claims import CLAIMS, Claim


class One:
    volumes, asks = 1, False

    def __init__(self) -> None:
        self._cartridge = Cartridge()

    def supply(self) -> Supply:
        return OneVolume(Memory(self._cartridge), "SM0001")


class Shelf:
    volumes, asks = 3, False

    def __init__(self, directory: Path, made: Callable[..., TapeShelf] = TapeShelf) -> None:
        self._directory, self._made = directory, made

    def supply(self) -> Supply:
        return self._made(self._directory, ["SM0001", "SM0002", "SM0003"], drives=2)


class Named:
    """One volume in a library, beside another one that is none of its business."""

    volumes, asks = 1, False

    def __init__(self, directory: Path) -> None:
        self._lab = LibraryLab(directory, labelled=1)

    def supply(self) -> Supply:
        return NamedVolume(self._lab.library(), "SM0001")


class Pooled:
    """A pool in a library with blank cartridges and a cleaning one."""

    volumes, asks = 3, False

    def __init__(self, directory: Path, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lab = LibraryLab(directory, labelled=0, blank=self.volumes)

    def library(self) -> Library:
        return self._lab.library()

    def supply(self) -> Supply:
        return PoolVolumes(
            self.library(),
            self._catalog,
            pool="daily",
            pools={"daily": Pool()},
            driver="virtualtape",
            streams=2,
            unfinished=(),
        )


class PooledByHand(Pooled):
    """A pool without a changer: an operator puts the one blank cartridge that there is into the
    drive when a blank one is asked for first."""

    volumes, asks = 1, True

    def library(self) -> Library:
        cartridge, drive = self._lab.directory / "SM0001L8", self._lab.directory / "drive"
        acts = [partial(cartridge.rename, drive)] if cartridge.exists() else []
        medium = LibraryLab.tape(drive)
        return Library([medium], None, leases=self._lab.leases, ask=Operator(*acts))


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.db") as opened:
        yield opened


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_one_volume(claim: Claim) -> None:
    claim(One())


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_a_shelf_of_tapes(claim: Claim, tmp_path: Path) -> None:
    claim(Shelf(tmp_path))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_one_volume_of_a_library(claim: Claim, tmp_path: Path) -> None:
    claim(Named(tmp_path))


@pytest.mark.parametrize("bench", [Pooled, PooledByHand], ids=["changer", "by hand"])
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_the_volumes_of_a_pool(
    claim: Claim, bench: type[Pooled], tmp_path: Path, catalog: Catalog
) -> None:
    claim(bench(tmp_path, catalog))


def test_every_supply_is_held_to_the_contract_here() -> None:
    made = {
        found
        for module in (media_supply, supplying)
        for found in vars(module).values()
        if isinstance(found, type) and hasattr(found, "next_volume") and found is not Supply
    }
    assert made == {OneVolume, NamedVolume, PoolVolumes}


# --- broken ones


class AlwaysTheFirst(TapeShelf):
    def next_volume(self, stream: int, passed: Collection[str]) -> VolumeWriter:
        return super().next_volume(stream, ())


class NeverEnds(TapeShelf):
    def next_volume(self, stream: int, passed: Collection[str]) -> VolumeWriter:
        return super().next_volume(stream, passed if len(passed) < len(self.serials) else ())


class LabelsAgain(TapeShelf):
    def again(self, stream: int, serial: str) -> VolumeWriter:
        self._let_go(stream)
        medium = self.drive(serial)
        label_volume(medium, serial, losing=serial)
        medium.unload()
        return self._loaded(stream, serial)


class NeverLetsGo(TapeShelf):
    def close(self) -> None:
        pass


class KnowsNothing(TapeShelf):
    def at_hand(self) -> Sequence[str]:
        return []

    def require(self, serials: Sequence[str]) -> None:
        pass


class NamesNothing(TapeShelf):
    @contextmanager
    def to_read(self, serial: str) -> Iterator[Loaded]:
        if serial not in self.at_hand():
            raise MediumError("it is not there")
        with super().to_read(serial) as loaded:
            yield loaded


class OneAfterTheOther(TapeShelf):
    """Says that it has two drives, and has one."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **(more | {"drives": 1}))
        self._drives = self.streams
        self.streams = self.readers = 2

    def _loaded(self, stream: int, serial: str, label_blank: str | None = None) -> VolumeWriter:
        for other in [*self._written]:
            self._let_go(other)
        return super()._loaded(stream, serial, label_blank)


class TakesOnlyOnce(TapeShelf):
    taken = False

    def take(self) -> None:
        if self.taken:
            raise MediumError("it is taken")
        self.taken = True


BROKEN = (
    AlwaysTheFirst,
    NeverEnds,
    LabelsAgain,
    NeverLetsGo,
    KnowsNothing,
    NamesNothing,
    OneAfterTheOther,
    TakesOnlyOnce,
)


def failed(broken: type[TapeShelf], place: Path) -> set[str]:
    """The claims that a supply does not hold."""
    found = set()
    for claim in CLAIMS:
        directory = place / broken.__name__ / claim.__name__
        directory.mkdir(parents=True)
        try:
            claim(Shelf(directory, broken))
        except (AssertionError, SplitmirrorError):
            found.add(claim.__name__)
    return found


def test_broken_supplies_are_found_out_and_every_claim_can_fail(tmp_path: Path) -> None:
    found = {broken: failed(broken, tmp_path) for broken in BROKEN}
    assert [broken.__name__ for broken, claims in found.items() if not claims] == []
    assert {claim.__name__ for claim in CLAIMS} - set().union(*found.values()) == set()
