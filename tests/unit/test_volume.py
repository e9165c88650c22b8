"""Volumes: labelled, appended to, told from their labels; what a crash or a fault leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitmirror.errors import (
    Busy,
    ConfigError,
    EndOfMedium,
    MediumDamaged,
    MediumError,
    WrongMedium,
)
from splitmirror.media import FILEMARK, Limits, Mark, Medium
from splitmirror.media.labels import FormatLabel, VolumeLabel
from splitmirror.media.memory import Cartridge, Memory
from splitmirror.media.virtualtape import Settings, VirtualTape, open_medium
from splitmirror.media.volume import (
    TapeFile,
    TapeFileKind,
    VolumeReader,
    VolumeWriter,
    label_volume,
    open_for_append,
)
from splitmirror.testing.faulty_media import Fault, FaultKind, FaultyMedium
from splitmirror.testing.media import contents, record

BLOCK = 4096
PART, CATALOGUE = TapeFileKind.PART, TapeFileKind.CATALOGUE


@pytest.fixture
def medium() -> Memory:
    return Memory(Cartridge())


def append(writer: VolumeWriter, set_id: str, number: int, blocks: int) -> TapeFile:
    writer.begin_file(PART, set_id, number, BLOCK)
    writer.write([record(number * 100 + block, BLOCK) for block in range(blocks)])
    return writer.end_file()


def append_set(writer: VolumeWriter, set_id: str, parts: int) -> None:
    for number in range(1, parts + 1):
        append(writer, set_id, number, number)
    writer.begin_file(CATALOGUE, set_id, parts + 1, BLOCK)
    writer.write([record(99, BLOCK)])
    writer.end_file()
    writer.finish_set()


def with_sets(medium: Medium, *set_ids: str) -> None:
    with open_for_append(medium, label_blank="SM0001") as writer:
        for set_id in set_ids:
            append_set(writer, set_id, 2)


def shape(medium: Medium) -> str:
    """The volume in letters: the labels' names, `.` for a record, `*` for a filemark."""
    names = []
    for thing in contents(medium):
        if isinstance(thing, Mark):
            names.append("*")
        else:
            names.append(f" {thing[:4].decode()} " if len(thing) == 80 else ".")
    return "".join(names).replace("  ", " ").strip()


def reader_of(medium: Medium) -> VolumeReader:
    medium.load(writable=False)
    return VolumeReader(medium)


# --- labelling


def test_a_labelled_volume_is_vol1_and_two_filemarks(medium: Memory) -> None:
    label_volume(medium, "SM0001")
    assert shape(medium) == "VOL1 **"
    reader = reader_of(medium)
    assert (reader.serial, list(reader.files()), reader.end().closed) == ("SM0001", [], True)


def test_a_volume_that_is_not_blank_is_not_labelled(medium: Memory) -> None:
    with_sets(medium, "set-1")
    before = list(medium.cartridge.objects)
    with pytest.raises(WrongMedium, match="not blank"):
        label_volume(medium, "SM0002")
    assert medium.cartridge.objects == before


def test_what_is_named_may_be_lost_and_nothing_else(medium: Memory) -> None:
    with_sets(medium, "set-1")
    before = list(medium.cartridge.objects)
    for other in ("SM0002", "unlabelled", ""):
        with pytest.raises(WrongMedium, match="it is SM0001"):
            label_volume(medium, "SM0002", losing=other)
        assert medium.cartridge.objects == before
    label_volume(medium, "SM0002", losing="SM0001")
    assert shape(medium) == "VOL1 **"
    assert reader_of(medium).serial == "SM0002"


FOREIGN = VolumeLabel(serial="PAY001").pack().replace(b"SPLITMIRROR", b"SOMEOTHER  ")


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (FOREIGN, "PAY001"),
        (FOREIGN.decode("ascii").encode("cp037"), "PAY001"),
        (FOREIGN + bytes(432), "PAY001"),  # padded by a drive with fixed blocks
        (b"a tar" * 100, "unlabelled"),
        (b"\xff" * 80, "unlabelled"),
        (None, "unlabelled"),
    ],
)
def test_a_volume_of_another_program_is_lost_only_by_its_name(
    medium: Memory, first: bytes | None, name: str
) -> None:
    medium.cartridge.objects = [first, None, b"their data"]
    for losing in (None, "SM0001"):
        with pytest.raises(WrongMedium, match=f"it is {name}"):
            label_volume(medium, "SM0001", losing=losing)
    assert medium.cartridge.objects == [first, None, b"their data"]
    label_volume(medium, "SM0001", losing=name)
    assert shape(medium) == "VOL1 **"


def test_a_serial_that_is_none_is_refused_with_what_to_take(medium: Memory) -> None:
    with pytest.raises(ConfigError, match="serial") as caught:
        label_volume(medium, "tape-1")
    assert "six" in caught.value.hint
    assert medium.cartridge.objects == []


# --- the layout


def test_the_layout_on_the_volume_is_the_documented_one(medium: Memory) -> None:
    with_sets(medium, "set-1")
    medium.load(writable=False)
    part = "HDR1 HDR2 HDR3 *{}* EOF1 EOF2 EOF3 *"
    files = " ".join(part.format(data) for data in (".", "..", "."))
    assert shape(medium) == f"VOL1 {files}*"


def test_the_data_of_tape_file_n_are_3n_and_1_filemarks_from_the_beginning(medium: Memory) -> None:
    with_sets(medium, "set-1", "set-2")
    reader = reader_of(medium)
    files = list(reader.files())
    assert [file.position.tape_file for file in files] == list(range(6))
    for file in files:
        medium.locate(0)
        medium.space_filemarks(3 * file.position.tape_file + 1)
        assert medium.tell() == file.data


def test_sets_are_told_from_labels_alone(medium: Memory) -> None:
    with_sets(medium, "set-1", "set-2")
    sets = reader_of(medium).sets()
    assert [found.set_id for found in sets] == ["set-1", "set-2"]
    assert all(found.complete for found in sets)
    assert [(file.kind, file.part_number, file.blocks) for file in sets[1].files] == [
        (PART, 1, 1),
        (PART, 2, 2),
        (CATALOGUE, 3, 1),
    ]


def test_a_set_without_its_catalogue_is_not_complete(medium: Memory) -> None:
    with open_for_append(medium, label_blank="SM0001") as writer:
        append(writer, "set-1", 1, 3)
    assert [found.complete for found in reader_of(medium).sets()] == [False]


def test_records_are_read_from_any_number_on(medium: Memory) -> None:
    with open_for_append(medium, label_blank="SM0001") as writer:
        file = append(writer, "set-1", 1, 5)
    reader = reader_of(medium)
    assert list(reader.files()) == [file]
    found = [bytes(block) for block in reader.records(file, 2)]
    assert found == [record(100 + number, BLOCK) for number in (2, 3, 4)]


def test_a_tape_file_of_another_volume_is_not_read(medium: Memory) -> None:
    with open_for_append(medium, label_blank="SM0001") as writer:
        file = append(writer, "set-1", 1, 1)
    label_volume(medium, "SM0002", losing="SM0001")
    with pytest.raises(WrongMedium, match="SM0001 is needed, SM0002"):
        reader_of(medium).open(file)


# --- whose volume


def test_a_blank_volume_is_labelled_only_when_asked(medium: Memory) -> None:
    with pytest.raises(WrongMedium, match="blank"):
        open_for_append(medium)
    assert medium.cartridge.objects == []
    with open_for_append(medium, "SM0001", label_blank="SM0001") as writer:
        assert writer.serial == "SM0001"


@pytest.mark.parametrize(
    "objects",
    [
        [b"tar data" * 64],
        [None],
        [VolumeLabel(serial="PAY001").pack().replace(b"SPLITMIRROR", b"SOMEOTHER  "), None, None],
        [VolumeLabel(serial="SM0009").pack(), None, None],
    ],
)
def test_a_volume_that_is_not_the_wanted_one_is_left_as_it_is(objects: list[bytes | None]) -> None:
    medium = Memory(Cartridge())
    medium.cartridge.objects = list(objects)
    with pytest.raises(WrongMedium) as caught:
        open_for_append(medium, "SM0001", label_blank="SM0001")
    assert caught.value.hint
    assert medium.cartridge.objects == objects
    Memory(medium.cartridge).load(writable=True)  # it was let go


def test_a_volume_that_someone_writes_is_busy(medium: Memory) -> None:
    with open_for_append(medium, label_blank="SM0001"), pytest.raises(Busy):
        open_for_append(Memory(medium.cartridge))


# --- appending


def test_opening_for_append_writes_nothing(medium: Memory) -> None:
    with_sets(medium, "set-1")
    before = list(medium.cartridge.objects)
    with open_for_append(medium, "SM0001"):
        pass
    assert medium.cartridge.objects == before


def test_a_new_set_goes_over_the_second_filemark(medium: Memory) -> None:
    with_sets(medium, "set-1")
    before = list(medium.cartridge.objects)
    with open_for_append(medium, "SM0001") as writer:
        assert writer.end.closed
        append_set(writer, "set-2", 1)
    assert medium.cartridge.objects[: len(before) - 1] == before[:-1]
    assert "**" not in shape_of(medium)[:-2]


def shape_of(medium: Memory) -> str:
    medium.load(writable=False)
    return shape(medium)


def test_an_ended_part_is_there_though_the_writer_never_came_back(medium: Memory) -> None:
    writer = open_for_append(medium, label_blank="SM0001")
    file = append(writer, "set-1", 1, 2)
    writer.begin_file(PART, "set-1", 2, BLOCK)
    writer.write([record(1, BLOCK)])
    medium.cartridge.writer = None  # the process died
    again = open_for_append(Memory(medium.cartridge), "SM0001")
    assert again.resume("set-1") == file
    assert again.end.unfinished is not None
    assert again.end.unfinished.part_number == 2


def test_a_run_cut_off_at_any_object_goes_on_after_its_last_complete_part() -> None:
    whole = Memory(Cartridge())
    with_sets(whole, "set-1", "set-2")
    objects = whole.cartridge.objects
    files = list(reader_of(whole).files())
    for cut in range(1, len(objects) + 1):
        medium = Memory(Cartridge())
        medium.cartridge.objects = objects[:cut]
        with open_for_append(medium, "SM0001") as writer:
            complete = [file for file in files if file.behind <= cut]
            assert list(writer.files) == complete
            assert writer.resume("set-2") == next(
                (file for file in reversed(complete) if file.set_id == "set-2"), None
            )
            append_set(writer, "set-3", 1)
        reader = reader_of(medium)
        assert [*reader.files()][: len(complete)] == complete
        assert reader.sets()[-1].set_id == "set-3"
        assert reader.sets()[-1].complete


def test_a_run_cut_off_where_a_tape_driver_puts_a_filemark_goes_on_as_well() -> None:
    """Linux's st does, behind records that a process wrote which then died."""
    whole = Memory(Cartridge())
    with_sets(whole, "set-1", "set-2")
    objects = whole.cartridge.objects
    files = list(reader_of(whole).files())
    for cut in range(1, len(objects) + 1):
        if objects[cut - 1] is None:
            continue
        medium = Memory(Cartridge())
        medium.cartridge.objects = [*objects[:cut], None]
        complete = [file for file in files if file.behind <= cut + 1]
        with open_for_append(medium, "SM0001") as writer:
            assert list(writer.files) == complete
            append_set(writer, "set-3", 1)
        assert [*reader_of(medium).files()][: len(complete)] == complete


def test_a_filemark_in_a_labels_place_with_something_behind_it_is_damage(medium: Memory) -> None:
    with_sets(medium, "set-1", "set-2")
    second = list(reader_of(medium).files())[3]
    medium.cartridge.objects[second.position.object + 1] = None
    with pytest.raises(MediumDamaged, match="filemark stands where a label should"):
        open_for_append(medium, "SM0001")


def test_a_drive_with_fixed_blocks_gets_padded_labels(medium: Memory) -> None:
    medium.limits = Limits(smallest=BLOCK, largest=BLOCK, fixed=BLOCK)
    with_sets(medium, "set-1")
    assert {len(found) for found in medium.cartridge.objects if found is not None} == {BLOCK}
    layout = FormatLabel.parse(medium.cartridge.objects[2] or b"")
    assert (layout.record_format, layout.block_size) == ("F", BLOCK)
    with open_for_append(medium, "SM0001") as writer:
        append_set(writer, "set-2", 1)
    assert [found.complete for found in reader_of(medium).sets()] == [True, True]


def test_an_abandoned_file_is_written_over(medium: Memory) -> None:
    with open_for_append(medium, label_blank="SM0001") as writer:
        append(writer, "set-1", 1, 1)
        at = writer.begin_file(PART, "set-1", 2, BLOCK)
        writer.write([record(1, BLOCK)] * 7)
        writer.abandon_file()
        writer.abandon_file()
        assert writer.begin_file(PART, "set-1", 2, BLOCK) == at
        writer.write([record(2, BLOCK)])
        writer.end_file()
    assert [file.blocks for file in reader_of(medium).files()] == [1, 1]


def test_closing_after_an_abandoned_file_takes_it_away(medium: Memory) -> None:
    with open_for_append(medium, label_blank="SM0001") as writer:
        append(writer, "set-1", 1, 1)
        writer.begin_file(PART, "set-1", 2, BLOCK)
        writer.write([record(1, BLOCK)] * 7)
        writer.abandon_file()
        writer.finish_set()
        writer.finish_set()
    assert shape_of(medium) == "VOL1 HDR1 HDR2 HDR3 *.* EOF1 EOF2 EOF3 **"


def test_closing_a_volume_whose_only_file_was_abandoned_leaves_it_empty(medium: Memory) -> None:
    with open_for_append(medium, label_blank="SM0001") as writer:
        writer.begin_file(PART, "set-1", 1, BLOCK)
        writer.abandon_file()
        writer.finish_set()
    assert shape_of(medium) == "VOL1 **"


def test_a_record_of_another_size_is_not_written(medium: Memory) -> None:
    with open_for_append(medium, label_blank="SM0001") as writer:
        writer.begin_file(PART, "set-1", 1, BLOCK)
        with pytest.raises(ValueError):
            writer.write([record(1, BLOCK - 1)])


def test_steps_out_of_order_are_refused(medium: Memory) -> None:
    with open_for_append(medium, label_blank="SM0001") as writer:
        with pytest.raises(RuntimeError):
            writer.write([record(1, BLOCK)])
        with pytest.raises(RuntimeError):
            writer.end_file()
        writer.begin_file(PART, "set-1", 1, BLOCK)
        with pytest.raises(RuntimeError):
            writer.finish_set()
        with pytest.raises(RuntimeError):
            writer.begin_file(PART, "set-1", 2, BLOCK)


# --- damage and faults


def test_what_no_crash_leaves_is_never_written_over() -> None:
    whole = Memory(Cartridge())
    with_sets(whole, "set-1")
    for number in range(1, len(whole.cartridge.objects)):
        for other in (b"rubbish", None):
            medium = Memory(Cartridge())
            medium.cartridge.objects = list(whole.cartridge.objects)
            if medium.cartridge.objects[number] == other or _is_data(medium, number, other):
                continue
            medium.cartridge.objects[number] = other
            before = list(medium.cartridge.objects)
            with pytest.raises(MediumDamaged) as caught:
                open_for_append(medium, "SM0001")
            assert caught.value.hint
            assert medium.cartridge.objects == before


def _is_data(medium: Memory, number: int, other: bytes | None) -> bool:
    """A record of the data for another one: the labels do not tell."""
    found = medium.cartridge.objects[number]
    return other is not None and found is not None and len(found) == BLOCK


def test_a_full_volume_says_which_one_and_keeps_what_was_complete() -> None:
    medium = Memory(Cartridge(), capacity=40 * BLOCK, early_warning=8 * BLOCK)
    with open_for_append(medium, label_blank="SM0001") as writer:
        file = append(writer, "set-1", 1, 20)
        assert writer.left is not None
        writer.begin_file(PART, "set-1", 2, BLOCK)
        with pytest.raises(EndOfMedium, match="volume SM0001 is full") as caught:
            writer.write([record(1, BLOCK)] * 30)
        assert caught.value.facts["volume"] == "SM0001"
        assert "is safe" in caught.value.hint
        with pytest.raises(RuntimeError):
            writer.end_file()
        writer.abandon_file()
        writer.finish_set()
    assert list(reader_of(medium).files()) == [file]


def test_after_the_early_warning_the_part_can_be_ended() -> None:
    medium = Memory(Cartridge(), capacity=40 * BLOCK, early_warning=8 * BLOCK)
    with open_for_append(medium, label_blank="SM0001") as writer:
        writer.begin_file(PART, "set-1", 1, BLOCK)
        while not writer.write([record(1, BLOCK)]):
            pass
        file = writer.end_file()
        writer.finish_set()
    assert list(reader_of(medium).files()) == [file]


@pytest.mark.parametrize(
    "kind", [FaultKind.WRITE_ERROR, FaultKind.SHORT_END, FaultKind.LOST_POSITION]
)
def test_a_fault_at_any_object_damages_no_part_that_was_ended(kind: FaultKind) -> None:
    whole = Memory(Cartridge())
    with_sets(whole, "set-1")
    for number in range(3, len(whole.cartridge.objects)):
        cartridge = Cartridge()
        label_volume(Memory(cartridge), "SM0001")
        cartridge.writer = None
        ended: list[TapeFile] = []
        faulty = FaultyMedium(Memory(cartridge), [Fault(kind=kind, object=number, times=1)])
        with pytest.raises(MediumError), open_for_append(faulty, "SM0001") as writer:
            for part in (1, 2, 3):
                ended.append(append(writer, "set-1", part, part))
            writer.finish_set()
            writer.begin_file(PART, "set-2", 1, BLOCK)
        with open_for_append(Memory(cartridge), "SM0001") as writer:
            assert list(writer.files)[: len(ended)] == ended
            append_set(writer, "set-3", 1)


def test_a_drive_that_stands_elsewhere_ends_no_part(medium: Memory) -> None:
    label_volume(medium, "SM0001")
    faulty = FaultyMedium(medium, [Fault(kind=FaultKind.WRONG_POSITION, object=6)])
    with open_for_append(faulty, "SM0001") as writer:
        writer.begin_file(PART, "set-1", 1, BLOCK)
        writer.write([record(1, BLOCK)] * 3)
        with pytest.raises(MediumError, match=r"SM0001 stands at object \d+ instead"):
            writer.end_file()
        assert writer.files == ()


def test_a_failed_sync_ends_no_part(medium: Memory) -> None:
    label_volume(medium, "SM0001")
    faulty = FaultyMedium(medium, [Fault(kind=FaultKind.SYNC_ERROR, object=8)])
    with open_for_append(faulty, "SM0001") as writer:
        writer.begin_file(PART, "set-1", 1, BLOCK)
        writer.write([record(1, BLOCK)] * 3)
        with pytest.raises(MediumError):
            writer.end_file()
        assert writer.files == ()


def test_an_unreadable_label_is_damage_and_an_unreadable_record_is_not_missed(
    medium: Memory,
) -> None:
    with_sets(medium, "set-1")
    medium.load(writable=False)
    file = next(VolumeReader(medium).files())
    label = FaultyMedium(medium, [Fault(kind=FaultKind.READ_ERROR, object=file.position.object)])
    with pytest.raises(MediumDamaged):
        list(VolumeReader(label).files())
    data = FaultyMedium(medium, [Fault(kind=FaultKind.READ_ERROR, object=file.data)])
    with pytest.raises(MediumDamaged):
        list(VolumeReader(data).records(file))


def test_a_part_with_fewer_records_than_its_labels_say_is_damage(medium: Memory) -> None:
    with open_for_append(medium, label_blank="SM0001") as writer:
        file = append(writer, "set-1", 1, 3)
    del medium.cartridge.objects[file.data]
    medium.load(writable=False)
    with pytest.raises(MediumDamaged, match="record 2 of 3"):
        list(VolumeReader(medium).records(file))
    with pytest.raises(MediumDamaged, match="do not agree"):
        list(VolumeReader(medium).files())


# --- on a virtual tape


def test_several_sets_on_one_tape_are_appended_and_read(tmp_path: Path) -> None:
    path = tmp_path / "volume.tap"
    for set_id in ("set-1", "set-2", "set-3"):
        with_sets(open_medium(Settings(path=str(path))), set_id)
    reader = reader_of(open_medium(Settings(path=str(path))))
    assert [found.set_id for found in reader.sets()] == ["set-1", "set-2", "set-3"]
    assert path.stat().st_mode & 0o777 == 0o600


def tape(path: Path) -> VirtualTape:
    return VirtualTape(path, capacity=None, early_warning=0)


def no_tape(path: Path) -> None:
    """There is none."""


def a_directory(path: Path) -> None:
    path.mkdir()


def a_text(path: Path) -> None:
    path.write_text("a letter\n" * 40)


def a_foreign_tape(path: Path) -> None:
    medium = tape(path)
    medium.load(writable=True)
    medium.write([b"x" * 512])
    medium.write_filemarks(2, sync=True)
    medium.unload()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (no_tape, MediumError, "there is no virtual tape"),
        (a_directory, WrongMedium, "is not a file"),
        (a_text, WrongMedium, "no virtual tape"),
        (a_foreign_tape, WrongMedium, "does not begin with a label"),
    ],
)
def test_what_is_no_volume_of_ours_is_refused_by_name(
    tmp_path: Path, make: Callable[[Path], None], error: type[MediumError], words: str
) -> None:
    path = tmp_path / "there" / "volume.tap"
    path.parent.mkdir()
    make(path)
    with pytest.raises(error, match=words) as caught:
        reader_of(tape(path))
    assert caught.value.hint


def test_a_tape_in_a_directory_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(MediumError, match="there is no virtual tape"):
        tape(tmp_path / "none" / "volume.tap").load(writable=True)
    assert list(tmp_path.iterdir()) == []


def test_a_fresh_tape_holds_nothing_but_the_label_and_its_end(tmp_path: Path) -> None:
    path = tmp_path / "volume.tap"
    medium = tape(path)
    label_volume(medium, "SM0001")
    medium.unload()
    assert path.stat().st_size == 4 + 80 + 4 + 2 * 4 + 4
    assert path.read_bytes().endswith(b"\0" * 8 + b"\xff" * 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"path": "volume.tap"},
        {"path": "/volume.tap", "capacity": "16MiB"},
        {"path": "/volume.tap", "capacity": "many"},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(**settings)
    assert caught.value.hint


def test_the_objects_of_a_volume_are_what_was_written(tmp_path: Path) -> None:
    medium = tape(tmp_path / "volume.tap")
    with_sets(medium, "set-1")
    other = Memory(Cartridge())
    with_sets(other, "set-1")
    medium.load(writable=False)
    other.load(writable=False)
    assert contents(medium) == contents(other)
    assert contents(medium)[-2:] == [FILEMARK, FILEMARK]
