"""Where volumes end: the early warning in a part, and volumes that can be written once only."""

from __future__ import annotations

from itertools import pairwise

import pytest

from splitmirror.errors import EndOfMedium, MediumError
from splitmirror.media import Capacity, Mark, Medium
from splitmirror.media.labels import TapeFileKind
from splitmirror.media.memory import Cartridge, Memory
from splitmirror.media.volume import TapeFile, VolumeReader, VolumeWriter, open_for_append
from splitmirror.media.writeonce import close_unfinished
from splitmirror.testing.faulty_media import Fault, FaultKind, FaultyMedium
from splitmirror.testing.media import contents, record
from splitmirror.testing.write_once import WriteOnceMedium

BLOCK = 4096
PART, CATALOGUE = TapeFileKind.PART, TapeFileKind.CATALOGUE


class Unsure(Memory):
    """A drive that does not know how much room is left."""

    @property
    def capacity(self) -> Capacity:
        return Capacity(total=None, left=None)

    @property
    def _early(self) -> bool:
        return super().capacity.left == 0


def limited(blocks: int, early: int, kind: type[Memory] = Memory) -> Memory:
    return kind(Cartridge(), capacity=blocks * BLOCK, early_warning=early * BLOCK)


def begun(medium: Medium, most: int | None, least: int = 0) -> VolumeWriter:
    writer = open_for_append(medium, label_blank="SM0001")
    writer.begin_file(
        PART, "set-1", 1, BLOCK,
        least=least * BLOCK, most=None if most is None else most * BLOCK,
    )  # fmt: skip
    return writer


def one() -> list[bytes]:
    return [record(1, BLOCK)]


# --- the early warning


def test_a_part_that_surely_fits_is_brought_to_its_end_behind_the_early_warning() -> None:
    writer = begun(limited(40, 20), most=30)
    early = [writer.write(one()) for _ in range(30)]
    assert early[0] is False and early[-1] is True
    assert writer.end_file().blocks == 30
    writer.finish_set()


def test_a_part_that_may_not_fit_is_given_up_at_the_early_warning() -> None:
    medium = limited(40, 20)
    writer = begun(medium, most=45)
    written = 0
    with pytest.raises(EndOfMedium, match="volume SM0001 is full: the early warning") as caught:
        while written < 45:
            writer.write(one())
            written += 1
    assert 15 < written < 25, "neither before the warning nor much later"
    assert caught.value.facts["volume"] == "SM0001"
    writer.abandon_file()
    writer.finish_set()
    assert len(contents(medium)) == 3


def test_a_drive_that_knows_no_room_gives_a_part_up_at_the_early_warning() -> None:
    writer = begun(limited(40, 20, Unsure), most=22)
    with pytest.raises(EndOfMedium, match="early warning"):
        for _ in range(22):
            writer.write(one())


def test_a_part_that_became_larger_than_it_was_said_to_be_is_not_sure() -> None:
    writer = begun(limited(60, 40), most=10)
    with pytest.raises(EndOfMedium, match="early warning"):
        for _ in range(30):
            writer.write(one())


def test_without_a_size_the_caller_decides() -> None:
    writer = begun(limited(40, 20), most=None)
    for _ in range(30):
        early = writer.write(one())
    assert early
    writer.end_file()


def test_what_surely_does_not_fit_is_not_begun() -> None:
    medium = limited(40, 5)
    writer = open_for_append(medium, label_blank="SM0001")
    with pytest.raises(EndOfMedium, match="at least"):
        writer.begin_file(PART, "set-1", 1, BLOCK, least=41 * BLOCK, most=41 * BLOCK)
    writer.abandon_file()
    writer.begin_file(PART, "set-1", 1, BLOCK, least=30 * BLOCK, most=31 * BLOCK)
    writer.write(one() * 30)
    writer.end_file()
    writer.finish_set()
    medium.load(writable=False)
    assert [file.blocks for file in VolumeReader(medium).files()] == [30]


def test_what_an_abandoned_part_took_is_room_for_the_next() -> None:
    medium = limited(40, 0)
    writer = begun(medium, most=None)
    writer.write(one() * 30)
    writer.abandon_file()
    writer.begin_file(PART, "set-1", 1, BLOCK, least=35 * BLOCK, most=36 * BLOCK)
    writer.write(one() * 35)
    assert writer.end_file().blocks == 35


# --- written once


def once(cartridge: Cartridge) -> WriteOnceMedium:
    return WriteOnceMedium(Memory(cartridge))


def append(writer: VolumeWriter, set_id: str, number: int, blocks: int) -> TapeFile:
    writer.begin_file(PART, set_id, number, BLOCK)
    writer.write([record(number * 100 + block, BLOCK) for block in range(blocks)])
    return writer.end_file()


def append_set(writer: VolumeWriter, set_id: str) -> None:
    append(writer, set_id, 1, 1)
    append(writer, set_id, 2, 2)
    writer.begin_file(CATALOGUE, set_id, 3, BLOCK)
    writer.write(one())
    writer.end_file()
    writer.finish_set()


def files_of(cartridge: Cartridge) -> list[TapeFile]:
    medium = Memory(cartridge)
    medium.load(writable=False)
    return list(VolumeReader(medium).files())


def test_on_a_write_once_volume_nothing_stands_where_the_next_file_goes() -> None:
    cartridge = Cartridge()
    for set_id in ("set-1", "set-2"):
        with open_for_append(once(cartridge), "SM0001", label_blank="SM0001") as writer:
            assert writer.write_once
            append_set(writer, set_id)
    assert [file.set_id for file in files_of(cartridge)] == ["set-1"] * 3 + ["set-2"] * 3
    marks = [thing is None for thing in cartridge.objects]
    assert not any(first and second for first, second in pairwise(marks))


def test_an_abandoned_file_is_closed_on_a_write_once_volume() -> None:
    cartridge = Cartridge()
    with open_for_append(once(cartridge), label_blank="SM0001") as writer:
        append(writer, "set-1", 1, 1)
        writer.begin_file(PART, "set-1", 2, BLOCK)
        writer.write(one() * 7)
        writer.abandon_file()
        before = list(cartridge.objects)
        append(writer, "set-1", 2, 2)
    assert cartridge.objects[: len(before)] == before
    assert [(file.part_number, file.position.tape_file) for file in files_of(cartridge)] == [
        (1, 0),
        (2, 2),
    ]
    assert b"EOF3" + b"01PA" in [(thing or b"")[:8] for thing in before]


def test_a_run_cut_off_at_any_object_of_a_write_once_volume_is_closed_and_goes_on() -> None:
    whole = Cartridge()
    with open_for_append(once(whole), label_blank="SM0001") as writer:
        append_set(writer, "set-1")
        append_set(writer, "set-2")
    for cut in range(1, len(whole.objects) + 1):
        cartridge = Cartridge()
        cartridge.objects = whole.objects[:cut]
        with open_for_append(once(cartridge), "SM0001") as writer:
            complete = list(writer.files)
            assert cartridge.objects == whole.objects[:cut], "opening wrote something"
            append_set(writer, "set-3")
        assert cartridge.objects[:cut] == whole.objects[:cut], "something was written over"
        found = files_of(cartridge)
        assert found[: len(complete)] == complete
        assert [file.set_id for file in found[-3:]] == ["set-3"] * 3
        # of what was cut off nothing counts, unless all but the last filemark was there
        assert len(found) - len(complete) in (3, 4)


def test_a_filemark_that_a_tape_driver_put_behind_a_crash_is_no_hindrance() -> None:
    """Linux's st does, behind the last record, also of a write-once volume."""
    whole = Cartridge()
    with open_for_append(once(whole), label_blank="SM0001") as writer:
        append_set(writer, "set-1")
        append_set(writer, "set-2")
    for cut in range(1, len(whole.objects) + 1):
        if whole.objects[cut - 1] is None:
            continue
        cartridge = Cartridge()
        cartridge.objects = [*whole.objects[:cut], None]
        with open_for_append(once(cartridge), "SM0001") as writer:
            complete = list(writer.files)
            append_set(writer, "set-3")
        assert cartridge.objects[:cut] == whole.objects[:cut], "a record was written over"
        found = files_of(cartridge)
        assert found[: len(complete)] == complete
        assert [file.set_id for file in found[-3:]] == ["set-3"] * 3


def test_closing_what_is_closed_writes_nothing() -> None:
    cartridge = Cartridge()
    with open_for_append(once(cartridge), label_blank="SM0001") as writer:
        append(writer, "set-1", 1, 1)
        end = writer.end
    medium = once(cartridge)
    medium.load(writable=True)
    before = list(cartridge.objects)
    assert close_unfinished(medium, end) == end
    assert cartridge.objects == before


def test_a_write_once_volume_at_its_hard_end_is_readable_and_takes_nothing_more() -> None:
    cartridge = Cartridge()
    medium = WriteOnceMedium(Memory(cartridge, capacity=12 * BLOCK))
    with open_for_append(medium, label_blank="SM0001") as writer:
        file = append(writer, "set-1", 1, 4)
        writer.begin_file(PART, "set-1", 2, BLOCK)
        with pytest.raises(EndOfMedium):
            writer.write(one() * 20)
        cartridge.used = 12 * BLOCK  # not even a label fits
        writer.abandon_file()
        for _ in range(2):
            with pytest.raises(EndOfMedium, match="SM0001 is full"):
                writer.begin_file(PART, "set-1", 2, BLOCK)
            writer.abandon_file()
        writer.finish_set()
    assert files_of(cartridge) == [file]


def test_a_write_once_volume_that_was_closed_with_a_second_filemark_takes_nothing_more() -> None:
    cartridge = Cartridge()
    with open_for_append(Memory(cartridge), label_blank="SM0001") as writer:
        append_set(writer, "set-1")
    before = list(cartridge.objects)
    with open_for_append(once(cartridge), "SM0001") as writer:
        with pytest.raises(EndOfMedium, match="second filemark"):
            writer.begin_file(PART, "set-2", 1, BLOCK)
        writer.abandon_file()
    assert cartridge.objects == before


@pytest.mark.parametrize("kind", [FaultKind.WRITE_ERROR, FaultKind.LOST_POSITION])
def test_a_fault_at_any_object_of_a_write_once_volume_damages_nothing(kind: FaultKind) -> None:
    whole = Cartridge()
    with open_for_append(once(whole), label_blank="SM0001") as writer:
        append_set(writer, "set-1")
    for number in range(1, len(whole.objects)):
        cartridge = Cartridge()
        faulty = FaultyMedium(once(cartridge), [Fault(kind=kind, object=number, times=1)])
        ended: list[TapeFile] = []
        with pytest.raises(MediumError), open_for_append(faulty, label_blank="SM0001") as writer:
            try:
                for part in (1, 2, 3):
                    ended.append(append(writer, "set-1", part, part))
            except MediumError:
                writer.abandon_file()
                raise
        with open_for_append(once(cartridge), "SM0001") as writer:
            assert list(writer.files)[: len(ended)] == ended
            append_set(writer, "set-2")
        assert files_of(cartridge)[: len(ended)] == ended


def test_the_wrapper_for_these_tests_refuses_to_write_over_anything() -> None:
    cartridge = Cartridge()
    medium = once(cartridge)
    medium.load(writable=True)
    medium.write([b"first"])
    medium.locate(0)
    with pytest.raises(MediumError, match="stays"):
        medium.write([b"second"])
    with pytest.raises(MediumError, match="stays"):
        medium.write_filemarks(1, sync=True)
    assert cartridge.objects == [b"first"]


def test_contents_of_a_closed_abandoned_file_are_there_for_whoever_looks() -> None:
    cartridge = Cartridge()
    with open_for_append(once(cartridge), label_blank="SM0001") as writer:
        writer.begin_file(PART, "set-1", 1, BLOCK)
        writer.write(one() * 2)
        writer.abandon_file()
    medium = Memory(cartridge)
    medium.load(writable=False)
    things = ["*" if isinstance(thing, Mark) else thing[:4].decode("latin-1") for thing in
              contents(medium)]  # fmt: skip
    assert things == ["VOL1", "HDR1", "HDR2", "HDR3", "*", "reco", "reco", "*",
                      "EOF1", "EOF2", "EOF3", "*"]  # fmt: skip
