"""What every supply of volumes must do: claims that a supply's test runs, as in `testing.media`.

A `Bench` gives supplies of blank volumes and says how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, Protocol

from splitmirror.errors import EndOfMedium, MediumError, NoSuchVolume, WrongMedium
from splitmirror.media.labels import TapeFileKind
from splitmirror.media.supply import Supply
from splitmirror.media.volume import VolumeWriter
from splitmirror.testing.claiming import raised, same

BLOCK: Final = 4096
NO_SUCH: Final = "ZZ9999"  # the serial of no volume


class Bench(Protocol):
    """Where supplies come from."""

    volumes: int  # how many there are, 1 at least
    asks: bool  # for a volume that is not there, so that none is surely missing

    def supply(self) -> Supply:
        """A new one over the same volumes, as another run would open it."""
        ...


Claim = Callable[[Bench], None]
CLAIMS: Final[list[Claim]] = []


def _claim(claim: Claim) -> Claim:
    CLAIMS.append(claim)
    return claim


def _append(volume: VolumeWriter, number: int) -> None:
    volume.begin_file(TapeFileKind.PART, "set-1", number, BLOCK)
    volume.write([bytes(BLOCK)])
    volume.end_file()


def _filled(bench: Bench) -> list[str]:
    """Every volume with one part on it, and the supply closed; their serials."""
    supply, serials = bench.supply(), list[str]()
    supply.take()
    for number in range(1, bench.volumes + 1):
        volume = supply.next_volume(0, serials)
        _append(volume, number)
        volume.finish_set()
        serials.append(volume.serial)
    supply.close()
    return serials


@_claim
def a_volume_comes_ready_to_be_written(bench: Bench) -> None:
    supply = bench.supply()
    supply.look()
    supply.take()
    supply.take()
    _append(supply.next_volume(0, ()), 1)
    supply.close()
    supply.close()


@_claim
def each_next_volume_is_another(bench: Bench) -> None:
    serials = _filled(bench)
    same(len(set(serials)), bench.volumes, "different volumes")


@_claim
def when_all_are_passed_there_is_none(bench: Bench) -> None:
    serials = _filled(bench)
    supply = bench.supply()
    supply.take()
    none = (EndOfMedium, NoSuchVolume)
    raised(none, lambda: supply.next_volume(0, serials), "a volume behind the last")
    supply.close()


@_claim
def streams_have_their_volumes_at_once(bench: Bench) -> None:
    supply = bench.supply()
    supply.take()
    volumes: list[VolumeWriter] = []
    for stream in range(min(supply.streams, bench.volumes)):
        volumes.append(supply.next_volume(stream, [volume.serial for volume in volumes]))
    for number, volume in enumerate(volumes, 1):
        _append(volume, number)
    same(len({volume.serial for volume in volumes}), len(volumes), "volumes of all streams")
    supply.close()


@_claim
def a_volume_is_had_again_with_what_is_on_it(bench: Bench) -> None:
    for number, serial in enumerate(_filled(bench), 1):
        supply = bench.supply()
        supply.take()
        volume = supply.again(0, serial)
        same(volume.serial, serial, "the volume to go on with")
        same([file.part_number for file in volume.files], [number], "parts on it")
        _append(volume, number)
        supply.close()


@_claim
def a_volume_that_is_not_there_is_not_had_again(bench: Bench) -> None:
    _filled(bench)
    supply = bench.supply()
    supply.take()
    raised((MediumError,), lambda: supply.again(0, NO_SUCH), "go on with none", NO_SUCH)
    supply.close()


@_claim
def what_was_written_is_at_hand_and_read_by_its_serial(bench: Bench) -> None:
    serials = _filled(bench)
    supply = bench.supply()
    same(sorted(supply.at_hand()), sorted(serials), "volumes at hand")
    supply.require(serials)
    for number, serial in enumerate(serials, 1):
        with supply.to_read(serial) as (_, volume):
            same(volume.serial, serial, "the volume to read")
            same([file.part_number for file in volume.files()], [number], "parts on it")
    supply.close()


@_claim
def as_many_are_read_at_once_as_it_says(bench: Bench) -> None:
    serials = _filled(bench)
    supply = bench.supply()
    _read_at_once(supply, serials[: supply.readers])
    supply.close()


def _read_at_once(supply: Supply, serials: Collection[str]) -> None:
    first, *others = serials
    with supply.to_read(first) as (_, volume):
        if others:
            _read_at_once(supply, others)
        same(volume.serial, first, "the volume to read")
        same(len(list(volume.files())), 1, "parts on it")


@_claim
def a_missing_volume_is_named(bench: Bench) -> None:
    serials = _filled(bench)
    supply = bench.supply()
    missing = (NoSuchVolume, WrongMedium)
    if not bench.asks:
        raised(missing, lambda: supply.require([*serials, NO_SUCH]), "one among others", NO_SUCH)
    raised(missing, lambda: supply.to_read(NO_SUCH).__enter__(), "a missing volume", NO_SUCH)
    supply.close()


@_claim
def once_closed_all_is_free_for_others(bench: Bench) -> None:
    (serial, *_) = _filled(bench)
    first = bench.supply()
    first.take()
    first.again(0, serial)
    first.close()
    second = bench.supply()
    second.take()
    second.again(0, serial)
    second.close()
