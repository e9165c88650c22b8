"""Sets over several volumes and in several streams: written, cut off, read back, found again."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import pytest
from tests.real.spanning_lab import (
    BLOCK,
    KIB,
    PART,
    Content,
    Scene,
    Unsure,
    all_files,
    content_at,
    files_on,
    recorded,
    same_as,
    shelf_at,
)

from splitmirror import journal
from splitmirror.catalog import Catalog
from splitmirror.catalog.rebuild import record_sets
from splitmirror.errors import (
    EndOfMedium,
    MediumError,
    NoRoom,
    NoSuchSet,
    NoSuchVolume,
    VerifyFailed,
    WrongMedium,
)
from splitmirror.media import Block, Mark, Medium, Pace
from splitmirror.media.labels import TapeFileKind
from splitmirror.media.volume import label_volume
from splitmirror.model import WARNING
from splitmirror.restore import restore
from splitmirror.stretches import volume_of
from splitmirror.testing.faulty_media import Fault, FaultKind, FaultyMedium
from splitmirror.testing.supplies import TapeShelf
from splitmirror.testing.write_once import WriteOnceMedium
from splitmirror.verify import verify

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def content() -> Iterator[Content]:
    with (
        tempfile.TemporaryDirectory(prefix="sm-spanning-") as directory,
        content_at(Path(directory) / "disk") as made,
    ):
        yield made


@pytest.fixture
def scene(content: Content, tmp_path: Path) -> Scene:
    return Scene(content=content, directory=tmp_path / "run")


@pytest.fixture
def shelf(tmp_path: Path) -> TapeShelf:
    return shelf_at(tmp_path / "shelf")


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.db") as made:
        yield made


def numbers_on(shelf: TapeShelf) -> dict[str, list[int]]:
    """The parts on each volume that was written; the catalogue's number among them."""
    return {
        serial: [file.part_number for file in files] for serial, files in all_files(shelf).items()
    }


# --- one stream, several volumes


def test_a_set_goes_on_on_the_next_volume_and_no_part_is_divided(
    scene: Scene, shelf: TapeShelf
) -> None:
    written = scene.write(shelf)
    found = numbers_on(shelf)
    assert len(found) >= 3
    parts = len(written.parts)
    assert [number for numbers in found.values() for number in numbers] == [*range(1, parts + 2)]
    for part in written.parts:
        assert part.position is not None
        assert part.number in found[part.position.volume]
    assert written.backup_set.complete
    assert [use.volume for use in written.backup_set.volumes] == list(found)
    assert [use.full for use in written.backup_set.volumes] == [True] * (len(found) - 1) + [False]
    assert sum(use.parts for use in written.backup_set.volumes) == parts
    full = [facts["volume"] for facts in scene.journalled("volume full")]
    assert full == list(found)[:-1]
    assert {facts["volume"] for facts in scene.journalled("part")} <= set(found)


def test_each_volume_alone_is_read_by_gnu_tar(
    content: Content, scene: Scene, shelf: TapeShelf, tmp_path: Path
) -> None:
    scene.write(shelf)
    program = tmp_path / "unpack.py"
    program.write_text(documented_program())
    target = tmp_path / "target"
    target.mkdir()
    for serial in shelf.at_hand():
        apart = tmp_path / serial
        subprocess.run([sys.executable, program, shelf.path(serial), apart], check=True, timeout=60)
        for part in sorted(apart.glob("set-*/PART-*.tar")):
            subprocess.run(
                ["tar", "--warning=no-unknown-keyword", "-xpf", part, "-C", target],
                check=True,
                timeout=60,
            )
    for pieces in (target / ".splitmirror/pieces").glob("data/*/*"):
        whole = target / pieces.relative_to(target / ".splitmirror/pieces")
        whole.write_bytes(b"".join(piece.read_bytes() for piece in sorted(pieces.iterdir())))
    subprocess.run(["rm", "-r", target / ".splitmirror"], check=True)
    assert same_as(content, target)


def documented_program() -> str:
    page = Path(__file__).parents[2] / "docs" / "format.md"
    return page.read_text().split("```python\n", 1)[1].split("```", 1)[0]


class Told(FaultyMedium):
    """A drive that notes what became of writing: early warnings, hard ends."""

    def __init__(self, inner: Medium, told: list[str]) -> None:
        super().__init__(inner, [])
        self._told = told

    def write(self, blocks: Sequence[Block]) -> bool:
        try:
            early = super().write(blocks)
        except EndOfMedium:
            self._told.append("end")
            raise
        if early:
            self._told.append("early")
        return early


def test_at_the_early_warning_a_part_that_may_not_fit_is_given_up(
    content: Content, scene: Scene, tmp_path: Path
) -> None:
    told: list[str] = []
    shelf = shelf_at(
        tmp_path / "shelf",
        early_warning=PART + 64 * KIB,  # a part of small files is written in one go
        wrap=lambda _, inner: Told(Unsure(inner), told),
    )
    scene.write(shelf)
    assert "early" in told and "end" not in told
    for serial in shelf.at_hand()[:-1]:
        last = files_on(shelf, serial)[-1]
        medium = shelf.drive(serial)
        medium.load(writable=False)
        medium.locate(last.behind)
        buffer = memoryview(bytearray(BLOCK))
        assert isinstance(medium.read(buffer), Mark), "the part that was given up is still there"
        medium.unload()
    assert verify(shelf, scene.set_id).sound


def test_a_part_that_surely_does_not_fit_is_not_even_begun(scene: Scene, tmp_path: Path) -> None:
    told: list[str] = []
    shelf = shelf_at(tmp_path / "shelf", wrap=lambda _, inner: Told(inner, told))
    scene.write(shelf)
    assert len(shelf.at_hand()) >= 3
    assert told == [], "something was written for nothing"


def test_behind_the_early_warning_a_part_that_surely_fits_is_finished(
    scene: Scene, tmp_path: Path
) -> None:
    shelf = shelf_at(tmp_path / "shelf", early_warning=2 * PART)
    scene.write(shelf)
    ended_behind = 0
    for serial in shelf.at_hand()[:-1]:
        end = files_on(shelf, serial)[-1].behind * BLOCK  # a little more than its bytes
        ended_behind += end > 1024 * KIB - 2 * PART
    assert ended_behind > 0
    assert verify(shelf, scene.set_id).sound


def test_a_hard_end_without_any_warning_costs_the_part_and_nothing_else(
    content: Content, scene: Scene, catalog: Catalog, tmp_path: Path
) -> None:
    told: list[str] = []
    shelf = shelf_at(
        tmp_path / "shelf",
        early_warning=0,
        wrap=lambda _, inner: Told(Unsure(inner, blind=True), told),
    )
    written = scene.write(shelf)
    assert "end" in told
    assert len(shelf.at_hand()) >= 3
    recorded(catalog, written)
    restore(shelf, catalog, scene.set_id, (), tmp_path / "target")
    assert same_as(content, tmp_path / "target")


def test_a_second_set_goes_on_where_the_first_one_ended(scene: Scene, shelf: TapeShelf) -> None:
    scene.write(shelf)
    before = all_files(shelf)
    second = Scene(
        content=scene.content, directory=scene.directory.with_name("second"), set_id="orders-2"
    )
    second.write(shelf)
    after = all_files(shelf)
    for serial, files in before.items():
        assert after[serial][: len(files)] == files
    for set_id in ("orders-1", "orders-2"):
        assert verify(shelf, set_id).sound


def test_a_part_larger_than_a_volume_is_refused_before_anything_is_written(
    scene: Scene, tmp_path: Path
) -> None:
    shelf = shelf_at(tmp_path / "shelf", capacity=PART // 2, early_warning=16 * KIB)
    with pytest.raises(NoRoom, match="does not fit on volume SM0001") as caught:
        scene.write(shelf)
    assert "part_size" in caught.value.hint
    assert all_files(shelf) == {"SM0001": []}


def test_a_part_larger_than_a_volume_of_unknown_size_ends_the_run_and_not_the_shelf(
    scene: Scene, tmp_path: Path
) -> None:
    shelf = shelf_at(
        tmp_path / "shelf",
        capacity=PART // 2,
        early_warning=0,
        wrap=lambda _, inner: Unsure(inner, blind=True),
    )
    with pytest.raises(NoRoom, match="though it was empty"):
        scene.write(shelf)
    assert shelf.at_hand() == ["SM0001"]


def test_without_another_volume_the_run_says_so_and_goes_on_once_there_is_one(
    content: Content, scene: Scene, tmp_path: Path
) -> None:
    shelf = shelf_at(tmp_path / "shelf")
    shelf.serials = ["SM0001", "SM0002"]
    with pytest.raises(EndOfMedium, match="no volume is left"):
        scene.write(shelf)
    noted = len(scene.journalled("part"))
    assert noted > 4
    more = shelf_at(tmp_path / "shelf")
    written = scene.write(more)
    assert numbers_on(more)["SM0003"][0] == noted + 1
    assert [use.full for use in written.backup_set.volumes][:2] == [True, True]
    assert verify(more, scene.set_id).sound


def test_a_volume_from_which_a_noted_part_is_gone_is_not_gone_on_with(
    scene: Scene, tmp_path: Path
) -> None:
    shelf = shelf_at(tmp_path / "shelf")
    shelf.serials = ["SM0001"]
    with pytest.raises(EndOfMedium):
        scene.write(shelf)
    journal_path = scene.directory / "journal"
    lines = journal_path.read_bytes().splitlines(keepends=True)
    journal_path.write_bytes(b"".join(line for line in lines if b"volume full" not in line))
    for path in (shelf.path("SM0001"), shelf.path("SM0001").with_suffix(".tap.idx")):
        path.unlink(missing_ok=True)
    medium = shelf.drive("SM0001")
    label_volume(medium, "SM0001")
    medium.unload()
    before = shelf.path("SM0001").read_bytes()
    with pytest.raises(WrongMedium, match="is not on volume SM0001 any more"):
        scene.write(shelf_at(tmp_path / "shelf"))
    assert shelf.path("SM0001").read_bytes() == before


# --- volumes that can be written once


def once(serial: str, inner: Medium) -> Medium:
    return WriteOnceMedium(inner)


def test_on_write_once_volumes_a_part_that_was_given_up_is_closed_and_passed_over(
    content: Content, scene: Scene, catalog: Catalog, tmp_path: Path
) -> None:
    shelf = shelf_at(
        tmp_path / "shelf",
        early_warning=PART + 64 * KIB,
        wrap=lambda _, inner: WriteOnceMedium(Unsure(inner)),
    )
    written = scene.write(shelf)
    found = numbers_on(shelf)
    assert len(found) >= 3
    given_up = 0
    for serial in list(found)[:-1]:
        assert "**" not in shape(shelf, serial)
        given_up += abandoned(shelf, serial)
    assert given_up > 0
    recorded(catalog, written)
    restore(shelf, catalog, scene.set_id, (), tmp_path / "target")
    assert same_as(content, tmp_path / "target")
    assert verify(shelf, scene.set_id).sound


def objects(shelf: TapeShelf, serial: str) -> Iterator[bytes | Mark]:
    medium = shelf.drive(serial)
    medium.load(writable=False)
    buffer = memoryview(bytearray(BLOCK))
    while (found := medium.read(buffer)) is not Mark.END_OF_DATA:
        yield found if isinstance(found, Mark) else bytes(buffer[:found])
    medium.unload()


def shape(shelf: TapeShelf, serial: str) -> str:
    return "".join("*" if isinstance(thing, Mark) else "." for thing in objects(shelf, serial))


def abandoned(shelf: TapeShelf, serial: str) -> int:
    """How many tape files are closed as abandoned."""
    return sum(
        isinstance(thing, bytes) and thing.startswith(b"EOF3") and thing[7:8] == b"A"
        for thing in objects(shelf, serial)
    )


# --- restoring


class Counting(FaultyMedium):
    """A drive that notes what is read of which volume, and where it is located."""

    def __init__(self, serial: str, inner: Medium, read: Counter[str], located: list[int]) -> None:
        super().__init__(inner, [])
        self._serial, self._count, self._located = serial, read, located

    def read(self, buffer: memoryview) -> int | Mark:
        found = super().read(buffer)
        self._count[self._serial] += 0 if isinstance(found, Mark) else found
        return found

    def locate(self, position: int) -> None:
        self._located.append(position)
        super().locate(position)


def test_a_whole_restore_brings_each_volume_once_and_reads_it_in_one_direction(
    content: Content, scene: Scene, shelf: TapeShelf, catalog: Catalog, tmp_path: Path
) -> None:
    recorded(catalog, scene.write(shelf))
    read: Counter[str] = Counter()
    located: dict[str, list[int]] = {}

    def counted(serial: str, inner: Medium) -> Medium:
        return Counting(serial, inner, read, located.setdefault(serial, []))

    counting = shelf_at(tmp_path / "shelf", wrap=counted)
    restore(counting, catalog, scene.set_id, (), tmp_path / "target")
    assert same_as(content, tmp_path / "target")
    assert counting.brought == counting.at_hand()
    for positions in located.values():
        assert positions == sorted(positions)
    linked = tmp_path / "target/data/0/004"
    assert linked.samefile(tmp_path / "target/data/0/linked")
    assert linked.samefile(tmp_path / "target/data/3/linked")


def test_the_requests_of_one_restore_are_sorted_by_volume_and_position(
    content: Content, scene: Scene, shelf: TapeShelf, catalog: Catalog, tmp_path: Path
) -> None:
    recorded(catalog, scene.write(shelf))
    names = [name for name in content.files if b"linked" not in name][::3]
    located: dict[str, list[int]] = {}
    counting = shelf_at(
        tmp_path / "shelf",
        wrap=lambda serial, inner: Counting(
            serial, inner, Counter(), located.setdefault(serial, [])
        ),
    )
    restore(counting, catalog, scene.set_id, names[::-1], tmp_path / "target")
    found = {name: tmp_path / "target" / os.fsdecode(name) for name in names}
    assert {name: path.read_bytes() for name, path in found.items()} == {
        name: content.files[name] for name in names
    }
    wanted = {catalog.find(scene.set_id, name)[0].part for name in names}
    serials = [volume_of(part) for part in catalog.parts(scene.set_id) if part.number in wanted]
    assert len(set(serials)) > 2
    assert counting.brought == list(dict.fromkeys(serials)), "each once, in the set's order"
    for positions in located.values():
        assert positions == sorted(positions)


def test_one_file_costs_its_own_records_on_its_own_volume(
    content: Content, scene: Scene, shelf: TapeShelf, catalog: Catalog, tmp_path: Path
) -> None:
    written = scene.write(shelf)
    recorded(catalog, written)
    (found,) = catalog.find(scene.set_id, b"data/3/027")
    position = written.parts[found.part - 1].position
    assert position is not None
    read: Counter[str] = Counter()
    counting = shelf_at(
        tmp_path / "shelf", wrap=lambda serial, inner: Counting(serial, inner, read, [])
    )
    restore(counting, catalog, scene.set_id, [b"data/3/027"], tmp_path / "target")
    assert (tmp_path / "target/data/3/027").read_bytes() == content.files[b"data/3/027"]
    assert counting.brought == [position.volume]
    assert set(read) == {position.volume}
    assert read[position.volume] <= PART, "more was read than the part in which it lies"


def test_a_missing_volume_is_named_before_anything_is_written(
    scene: Scene, shelf: TapeShelf, catalog: Catalog, tmp_path: Path
) -> None:
    recorded(catalog, scene.write(shelf))
    shelf.path("SM0002").rename(tmp_path / "aside")
    with pytest.raises(NoSuchVolume, match="volume SM0002"):
        restore(shelf, catalog, scene.set_id, (), tmp_path / "target")
    assert not (tmp_path / "target").exists()
    first = {
        part.number
        for part in catalog.parts(scene.set_id)
        if part.position is not None and part.position.volume == "SM0001"
    }
    one = next(
        found
        for found in catalog.members(scene.set_id)
        if found.part in first and found.record.stored == 700
    )
    restore(shelf, catalog, scene.set_id, [one.name], tmp_path / "one")  # it is not asked for


def test_another_volume_under_the_same_serial_is_not_believed(
    scene: Scene, shelf: TapeShelf, catalog: Catalog, tmp_path: Path
) -> None:
    recorded(catalog, scene.write(shelf))
    shelf.path("SM0002").unlink()
    shelf.path("SM0002").with_suffix(".idx").unlink(missing_ok=True)
    medium = shelf.drive("SM0002")
    label_volume(medium, "SM0002")
    medium.unload()
    with pytest.raises(WrongMedium, match="where the catalogue says"):
        restore(shelf, catalog, scene.set_id, (), tmp_path / "target")


# --- verify


def test_verify_reads_each_volume_once_and_finds_damage_on_any(
    scene: Scene, shelf: TapeShelf
) -> None:
    written = scene.write(shelf)
    volumes = [use.volume for use in written.backup_set.volumes]
    report = verify(shelf, scene.set_id, among=volumes)
    assert report.sound and report.parts == len(written.parts)
    assert sorted(shelf.brought) == volumes
    damage(shelf, "SM0002", written.parts)
    report = verify(shelf, scene.set_id, among=volumes)
    assert len(report.damage) == 1
    with pytest.raises(VerifyFailed):
        report.require_sound()


def damage(shelf: TapeShelf, serial: str, parts: Sequence[object]) -> None:
    """Flip a bit in the middle of the first part of a volume."""
    tape = bytearray(shelf.path(serial).read_bytes())
    tape[8 * BLOCK] ^= 1
    shelf.path(serial).write_bytes(tape)


# --- the catalogue made anew


def test_the_catalogue_is_rebuilt_from_the_volumes_in_any_order(
    scene: Scene, shelf: TapeShelf, catalog: Catalog, tmp_path: Path
) -> None:
    written = scene.write(shelf)
    recorded(catalog, written)
    wanted = catalog.parts(scene.set_id), list(catalog.members(scene.set_id))
    serials = list(shelf.at_hand())[-3:]
    first = list(shelf.at_hand())[:-3]
    for number, order in enumerate(permutations(serials)):
        with Catalog.open(tmp_path / f"together{number}.db") as rebuilt:
            (found,) = record_sets(shelf, rebuilt, serials=[*first, *order])
            assert found.complete and found.volumes == written.backup_set.volumes
            assert (rebuilt.parts(scene.set_id), list(rebuilt.members(scene.set_id))) == wanted
        with Catalog.open(tmp_path / f"apart{number}.db") as rebuilt:
            for serial in (*order, *first):
                record_sets(shelf, rebuilt, serials=[serial])
            assert rebuilt.get(scene.set_id).complete
            assert (rebuilt.parts(scene.set_id), list(rebuilt.members(scene.set_id))) == wanted


def lose_catalogue(shelf: TapeShelf) -> None:
    """The set's own, at the end of its last volume."""
    (last,) = (
        file
        for files in all_files(shelf).values()
        for file in files
        if file.kind is TapeFileKind.CATALOGUE
    )
    medium = shelf.drive(last.position.volume)
    medium.load(writable=True)
    medium.locate(last.position.object)
    medium.write_filemarks(1, sync=True)
    medium.unload()


def test_a_set_whose_catalogue_is_lost_is_put_together_from_all_its_volumes(
    content: Content, scene: Scene, shelf: TapeShelf, catalog: Catalog, tmp_path: Path
) -> None:
    written = scene.write(shelf)
    lose_catalogue(shelf)
    for order in (shelf.at_hand(), list(reversed(shelf.at_hand()))):
        with Catalog.open(tmp_path / f"{order[0]}.db") as rebuilt:
            for serial in order:
                record_sets(shelf, rebuilt, serials=[serial])
            found = rebuilt.get(scene.set_id)
            assert not found.complete and WARNING in found.facts
            assert rebuilt.parts(scene.set_id) == list(written.parts)
            assert list(rebuilt.members(scene.set_id)) == list(written.members())
            with pytest.raises(NoSuchSet, match="incomplete"):
                restore(shelf, rebuilt, scene.set_id, (), tmp_path / "none")
            restore(shelf, rebuilt, scene.set_id, [b"**"], tmp_path / f"all-{order[0]}")
            assert same_as(content, tmp_path / f"all-{order[0]}")


def test_a_set_that_lacks_a_part_on_one_of_its_volumes_is_not_complete(
    scene: Scene, shelf: TapeShelf, catalog: Catalog
) -> None:
    scene.write(shelf)
    last = files_on(shelf, "SM0002")[-1]
    medium = shelf.drive("SM0002")
    medium.load(writable=True)
    medium.locate(last.position.object)
    medium.write_filemarks(1, sync=True)
    medium.unload()
    (found,) = record_sets(shelf, catalog)
    assert not found.complete
    assert f"part {last.part_number} (volume SM0002)" in found.facts[WARNING]


def test_without_a_catalogue_a_restore_finds_the_sets_own_on_the_volumes(
    content: Content, scene: Scene, shelf: TapeShelf, tmp_path: Path
) -> None:
    scene.write(shelf)
    restore(shelf, None, "latest", (), tmp_path / "target")
    assert same_as(content, tmp_path / "target")


def test_with_neither_catalogue_a_restore_scans_the_parts_themselves(
    content: Content, scene: Scene, shelf: TapeShelf, tmp_path: Path
) -> None:
    scene.write(shelf)
    lose_catalogue(shelf)
    restore(shelf, None, scene.set_id, [b"data/3/027"], tmp_path / "one")
    assert (tmp_path / "one/data/3/027").read_bytes() == content.files[b"data/3/027"]
    restore(shelf, None, scene.set_id, [b"**"], tmp_path / "all")
    assert same_as(content, tmp_path / "all")


# --- several streams


def stretches_of(shelf: TapeShelf) -> list[list[int]]:
    return [numbers for numbers in numbers_on(shelf).values() if numbers]


@pytest.mark.parametrize("streams", [2, 3])
def test_streams_write_contiguous_stretches_and_are_restored_at_once(
    content: Content, scene: Scene, catalog: Catalog, tmp_path: Path, streams: int
) -> None:
    shelf = shelf_at(tmp_path / "shelf", drives=streams)
    several = Scene(content=content, directory=scene.directory, streams=streams)
    written = several.write(shelf)
    found = stretches_of(shelf)
    for numbers in found:
        assert all(second == first + 1 for first, second in pairwise(numbers[:-1]))
    parts = len(written.parts)
    assert sorted(number for numbers in found for number in numbers) == [*range(1, parts + 2)]
    begun = [facts for facts in several.journalled("writing") if facts["stream"] < streams]
    firsts = sorted(facts["from_part"] for facts in begun[:streams])
    assert firsts[0] == 1 and len(set(firsts)) == streams
    sizes = [sum(p.length for p in written.parts if a <= p.number < b)
             for a, b in pairwise([*firsts, parts + 1])]  # fmt: skip
    assert max(sizes) - min(sizes) <= 2 * PART
    assert written.backup_set.volumes[-1].volume == catalogue_on(shelf)
    recorded(catalog, written)
    shelf.brought.clear()
    restore(shelf, catalog, scene.set_id, (), tmp_path / "target")
    assert same_as(content, tmp_path / "target")
    assert sorted(shelf.brought) == shelf.at_hand()
    linked = tmp_path / "target/data/0/004"
    assert linked.samefile(tmp_path / "target/data/3/linked")
    assert verify(shelf, scene.set_id).sound


def catalogue_on(shelf: TapeShelf) -> str:
    (serial,) = (
        serial
        for serial, files in all_files(shelf).items()
        for file in files
        if file.kind is TapeFileKind.CATALOGUE
    )
    return serial


def test_when_one_stream_fails_the_others_stop_and_the_run_can_be_taken_up(
    content: Content, scene: Scene, catalog: Catalog, tmp_path: Path
) -> None:
    fault = Fault(kind=FaultKind.WRITE_ERROR, object=40, times=1)

    def faulty(serial: str, inner: Medium) -> Medium:
        return FaultyMedium(inner, [fault] if serial == "SM0002" else [])

    several = Scene(content=content, directory=scene.directory, streams=2)
    with pytest.raises(MediumError, match="object 40 cannot be written"):
        several.write(shelf_at(tmp_path / "shelf", drives=2, wrap=faulty))
    before = {facts["number"] for facts in several.journalled("part")}
    assert len(before) < len(content.plan.parts) + 1
    shelf = shelf_at(tmp_path / "shelf", drives=2)
    written = several.write(shelf)
    again = [facts["number"] for facts in several.journalled("part")]
    assert sorted(again) == [part.number for part in written.parts], "none was written twice"
    assert verify(shelf, scene.set_id).sound
    recorded(catalog, written)
    restore(shelf, catalog, scene.set_id, (), tmp_path / "target")
    assert same_as(content, tmp_path / "target")


def test_with_fewer_drives_than_streams_one_stretch_follows_another_on_the_same_volumes(
    content: Content, scene: Scene, tmp_path: Path
) -> None:
    shelf = shelf_at(tmp_path / "shelf", drives=1)
    several = Scene(content=content, directory=scene.directory, streams=3)
    written = several.write(shelf)
    uses = written.backup_set.volumes
    assert [use.full for use in uses] == [True] * (len(uses) - 1) + [False]
    assert verify(shelf, scene.set_id).sound


def test_a_run_of_several_streams_is_taken_up_with_fewer_drives(
    content: Content, scene: Scene, tmp_path: Path
) -> None:
    fault = Fault(kind=FaultKind.WRITE_ERROR, object=70, times=1)

    def faulty(serial: str, inner: Medium) -> Medium:
        return FaultyMedium(inner, [fault] if serial in ("SM0001", "SM0002", "SM0003") else [])

    several = Scene(content=content, directory=scene.directory, streams=3)
    with pytest.raises(MediumError):
        several.write(shelf_at(tmp_path / "shelf", drives=3, capacity=2048 * KIB, wrap=faulty))
    shelf = shelf_at(tmp_path / "shelf", drives=1, capacity=2048 * KIB)
    written = several.write(shelf)
    assert len(written.parts) == len(content.plan.parts) + 1
    assert verify(shelf, scene.set_id).sound


# --- streaming


class PacedDrive(FaultyMedium):
    """A drive that wants more than any leg gives, from a buffer smaller than a part."""

    pace = Pace(native=1 << 20, least=1 << 50, buffer_s=0.125, mark=0.5)


def test_stalls_are_counted_for_each_volume_and_a_slow_leg_is_told(
    content: Content, scene: Scene, catalog: Catalog, tmp_path: Path
) -> None:
    shelf = shelf_at(tmp_path / "shelf", wrap=lambda _, inner: PacedDrive(inner, []))
    written = recorded(catalog, scene.write(shelf))
    assert verify(shelf, scene.set_id).sound
    uses = [use for use in written.volumes if use.parts]
    assert sum(use.stalls for use in uses) > 0
    for use in uses:
        assert (use.stalled_s > 0) == (use.stalls > 0)
        assert any("the drive needs" in note for note in use.notes) == (use.stalls > 0)
    assert [use.volume for use in shelf.uses] == shelf.at_hand()
    told = {use.volume: use.stalls for use in shelf.uses}
    assert told == {use.volume: use.stalls for use in written.volumes}
    again = next(facts for facts in scene.journalled("volume full"))
    assert again["stalls"] == told[str(again["volume"])]


# --- cut off


def killed_at(scene: Scene, shelf: TapeShelf, number: int, *, after: bool) -> bool:
    """Write in a process that kills itself (SIGKILL) right before, or behind, that record of its
    journal; False when it ended before it came so far."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL)
        return code != 0
    record, numbers = journal.Journal.record, itertools.count(1)  # each stream's thread records

    def deadly(self: journal.Journal, kind: str, **facts: Any) -> None:
        now = next(numbers) == number
        if now and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        record(self, kind, **facts)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        journal.Journal.record = deadly
        scene.write(shelf)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("streams", "more", "step"),
    [(1, {}, 1), (2, {}, 2), (1, {"wrap": once}, 3)],
    ids=["one stream", "two streams", "write-once"],
)
def test_a_run_killed_around_any_record_is_taken_up_to_a_sound_set(
    content: Content, tmp_path: Path, streams: int, more: dict[str, object], step: int
) -> None:
    for number in range(1, 100, step):
        for after in (False, True):
            place = tmp_path / f"{number}{'after' if after else 'before'}"
            place.mkdir()
            scene = Scene(content=content, directory=place / "run", streams=streams)
            shelf = shelf_at(place / "shelf", drives=streams, **more)
            if not killed_at(scene, shelf, number, after=after):
                assert number > 20, "the sweep ended before it reached the second volume"
                assert len(shelf.at_hand()) >= 3
                return
            again = shelf_at(place / "shelf", drives=streams, **more)
            written = scene.write(again)
            assert len(written.parts) == len(content.plan.parts) + 1
            report = verify(again, scene.set_id)
            assert report.sound, report.damage
            assert report.files == len(list(written.members()))
            shutil.rmtree(place)
    raise AssertionError("a run of more than 100 records")
