"""How a set is divided into streams, and in which order its volumes are read, whatever they are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from splitmirror.archive.manifest import PartRecord
from splitmirror.bringing import on_volumes
from splitmirror.model import MediaPosition
from splitmirror.stream.plan import divide


@dataclass(frozen=True)
class Sized:
    room: int


@given(st.lists(st.integers(0, 1 << 40)), st.integers(1, 9))
def test_stretches_are_all_parts_in_their_order_and_of_about_the_same_room(
    rooms: list[int], count: int
) -> None:
    parts = [Sized(room) for room in rooms]
    stretches = divide(parts, count)
    assert list(chain.from_iterable(stretches)) == parts
    assert len(stretches) <= count and all(stretches)
    assert divide(parts, count) == stretches
    fair = sum(rooms) / count
    largest = max(rooms, default=0)
    assert all(sum(one.room for one in stretch) <= fair + largest for stretch in stretches)


@st.composite
def placed(draw: st.DrawFn) -> list[PartRecord]:
    """Parts anywhere on up to four volumes."""
    count = draw(st.integers(1, 20))
    serials = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    objects = draw(st.permutations(range(count)))
    return [
        PartRecord(
            set_id="s", number=number, members=1, stored=1, length=1, block_size=1, manifest=0,
            digest=b"",
            position=MediaPosition(volume=f"SM000{serial}", tape_file=0, object=at),
        )
        for number, (serial, at) in enumerate(zip(serials, objects, strict=True), 1)
    ]  # fmt: skip


@given(placed(), st.sets(st.integers(1, 20), min_size=1))
def test_each_volume_comes_once_and_its_parts_in_the_order_in_which_they_lie(
    parts: list[PartRecord], wanted: set[int]
) -> None:
    volumes = on_volumes(parts, wanted)
    serials = [one.serial for one in volumes]
    assert len(set(serials)) == len(serials)
    lowest = [min(part.number for part in one.parts) for one in volumes]
    assert lowest == sorted(lowest)
    known = {part.number: part for part in parts}
    assert sorted(p.number for one in volumes for p in one.parts) == sorted(wanted & known.keys())
    for one in volumes:
        positions = [part.position.object for part in one.parts if part.position]
        assert positions == sorted(positions)
        # what the ranges make of the members is exactly the wanted parts of this volume, in order
        read = [number for numbers in one.numbers for number in numbers if number in wanted]
        assert [number for number in read if number in known] == [p.number for p in one.parts]
