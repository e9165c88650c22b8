"""Whatever fails while a set is appended on tape: the set before it is whole, and the next one can
be written behind it, by the kernel's own st driver."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.unit import made_sets
from tests.vm.inside.tape_lab import ROOMY, TapeBench
from tests.vm.vtl.library import Library

from splitmirror.errors import EndOfMedium, MediumError
from splitmirror.media import Block
from splitmirror.media.tape import Settings, Tape
from splitmirror.media.volume import TapeFileKind, VolumeReader, open_for_append
from splitmirror.testing.media_faults import Trouble

pytest_plugins = ["tests.vm.inside.tape_fixtures"]

BLOCK_SIZE = 4096
# In front of which object of the failing tape file the trouble comes: its labels, the filemark
# behind them, its data, the filemark behind those, its last filemark.
PLACES = (0, 3, 6, 8, 12)
TROUBLES = (Trouble.UNWRITABLE, Trouble.RESET, Trouble.SLIPPED, Trouble.RESERVED)


class Troubled(Tape):
    """A drive that gets into trouble when it is to write an object, once it is told which."""

    def __init__(self, inner: Tape, bench: TapeBench) -> None:
        super().__init__(inner.name, Settings(drives=[inner.name]))
        self._bench = bench
        self._trouble: tuple[Trouble, int] | None = None

    def expect(self, trouble: Trouble, object_: int) -> None:
        self._trouble = trouble, object_

    def write(self, blocks: Sequence[Block]) -> bool:
        for block in blocks:
            self._before_writing()
            early = super().write([block])
        return early

    def write_filemarks(self, count: int, *, sync: bool) -> bool:
        self._before_writing()
        return super().write_filemarks(count, sync=sync)

    def _before_writing(self) -> None:
        if self._trouble is not None and self.tell() == self._trouble[1]:
            trouble, self._trouble = self._trouble, None
            self._bench.make(self, *trouble)


def a_set(tape: Tape, set_id: str) -> None:
    made_sets.write_set(tape, [[made_sets.file(b"data/file", set_id.encode())]], set_id=set_id)


def a_part(tape: Tape, bench: TapeBench, trouble: Trouble | None, place: int) -> None:
    """Append a tape file, with the trouble at its place."""
    troubled = Troubled(tape, bench)
    with open_for_append(troubled) as volume:
        if trouble is not None:
            troubled.expect(trouble, volume.end.object + place)
        volume.begin_file(TapeFileKind.PART, "failing", 1, BLOCK_SIZE)
        volume.write([bytes(BLOCK_SIZE)] * 4)
        volume.end_file()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_a_set_is_whole_whatever_fails_behind_it(
    trouble: Trouble, place: int, made: Library, bench: TapeBench
) -> None:
    tape = bench.blank()
    assert isinstance(tape, Tape)
    a_set(tape, "first")
    kept = made.digests(ROOMY)
    with pytest.raises(MediumError) as caught:
        a_part(tape, bench, trouble, place)
    assert not isinstance(caught.value, EndOfMedium)
    assert caught.value.hint
    bench.end(tape)
    assert made.digests(ROOMY)[: len(kept) - 1] == kept[:-1]
    a_set(tape, "second")
    assert made.digests(ROOMY)[: len(kept) - 1] == kept[:-1]
    tape.load(writable=False)
    sets = VolumeReader(tape).sets()
    assert [(found.set_id, found.complete) for found in sets] == [
        ("first", True),
        ("second", True),
    ]


def test_a_part_that_nothing_befalls_is_whole(made: Library, bench: TapeBench) -> None:
    """Or the test above would show nothing."""
    tape = bench.blank()
    assert isinstance(tape, Tape)
    a_set(tape, "first")
    a_part(tape, bench, None, 0)
    tape.load(writable=False)
    assert [file.set_id for file in VolumeReader(tape).files()] == ["first", "first", "failing"]
