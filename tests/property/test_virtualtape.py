"""Virtual tape: what a crash, a lost index or damage leaves is never read as what it is not."""

from __future__ import annotations

import os
import random
import resource
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitmirror.errors import EndOfMedium, MediumDamaged, MediumError, WrongMedium
from splitmirror.media import FILEMARK, Mark, Medium
from splitmirror.media.memory import Cartridge, Memory
from splitmirror.media.simh import sidecar_of
from splitmirror.media.virtualtape import VirtualTape
from splitmirror.media.volume import TapeFileKind, VolumeReader, VolumeWriter, open_for_append
from splitmirror.testing.media import contents, record

LABEL = record(0, 80)  # every volume of ours begins with a record of this size
Things = list[bytes | Mark]


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    return tmp_path / "volume.tap"


def drive(path: Path) -> VirtualTape:
    return VirtualTape(path, capacity=None, early_warning=0)


def put(medium: Medium, things: Things, *, sync: bool) -> None:
    for thing in things:
        if isinstance(thing, Mark):
            medium.write_filemarks(1, sync=sync)
        else:
            medium.write([thing])


def found_on(path: Path, index: bytes | None = None) -> Things:
    """The contents as a reader sees them, with this sidecar (None: lost)."""
    sidecar_of(path).unlink(missing_ok=True)
    if index is not None:
        sidecar_of(path).write_bytes(index)
    medium = drive(path)
    medium.load(writable=False)
    try:
        return contents(medium)
    finally:
        medium.unload()


def sample() -> Things:
    """Records of odd and even lengths, of zeros and of ones, with filemarks between them."""
    rng = random.Random(4)
    sizes = [1, 80, 77, 4]
    bodies: Things = [rng.randbytes(size) for size in sizes]
    bodies += [bytes(12), b"\xff" * 13, b"\xff" * 8]
    return [LABEL, *(thing for body in bodies for thing in (body, body, FILEMARK))]


# --- torn tails


@pytest.mark.parametrize("synced", [False, True])
@pytest.mark.parametrize("index", ["lost", "early", "late"])
def test_a_tape_cut_at_any_byte_is_a_prefix_and_can_be_appended_to(
    tape: Path, synced: bool, index: str
) -> None:
    things = sample()
    medium = drive(tape)
    medium.load(writable=True)
    put(medium, things[:10], sync=True)
    early = sidecar_of(tape).read_bytes()
    put(medium, things[10:], sync=synced)
    medium.unload()
    whole = tape.read_bytes()
    kept = {"lost": None, "early": early, "late": sidecar_of(tape).read_bytes()}[index]
    ends = _ends(things)
    for cut in range(len(whole) + 1):
        tape.write_bytes(whole[:cut])
        found = found_on(tape, kept)
        assert found == things[: len(found)]
        assert len(found) >= _last_whole_record(things, ends, cut)
        if cut % 23 == 0:
            _append(tape, found)


def _ends(things: Things) -> list[int]:
    """The byte behind each object."""
    lengths = [0 if isinstance(thing, Mark) else len(thing) for thing in things]
    return list(accumulate(4 if not size else 8 + size + size % 2 for size in lengths))


def _last_whole_record(things: Things, ends: list[int], cut: int) -> int:
    """How many objects there are up to the last record that the cut left whole."""
    whole = [number for number, end in enumerate(ends, 1) if end <= cut]
    return max((number for number in whole if things[number - 1] is not FILEMARK), default=0)


def _append(tape: Path, before: Things) -> None:
    medium = drive(tape)
    medium.load(writable=True)
    medium.locate(len(before))
    medium.write([record(7)])
    medium.unload()
    assert found_on(tape) == [*before, record(7)]


@pytest.mark.parametrize("zeros", [1, 3, 4, 8, 12, 4096, 3 << 20])
@pytest.mark.parametrize("index", ["lost", "kept"])
def test_zeros_behind_an_unsynced_record_are_no_filemarks(
    tape: Path, zeros: int, index: str
) -> None:
    things = sample()
    medium = drive(tape)
    medium.load(writable=True)
    put(medium, things, sync=True)
    kept = sidecar_of(tape).read_bytes()
    put(medium, [record(1), record(2)], sync=False)
    medium.unload()
    tape.write_bytes(tape.read_bytes()[:-4] + bytes(zeros))  # without the end mark
    found = found_on(tape, kept if index == "kept" else None)
    assert found == [*things, record(1), record(2)]


@pytest.mark.parametrize("zeros", [4, 8, 4096])
def test_synced_filemarks_are_kept_when_zeros_follow_them_and_the_index_is_there(
    tape: Path, zeros: int
) -> None:
    things: Things = [LABEL, FILEMARK, FILEMARK, FILEMARK]
    medium = drive(tape)
    medium.load(writable=True)
    put(medium, things, sync=True)
    medium.unload()
    kept = sidecar_of(tape).read_bytes()
    tape.write_bytes(tape.read_bytes()[:-4] + bytes(zeros))
    assert found_on(tape, kept) == things


# --- the index


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.lists(st.integers(1, 700), min_size=1, max_size=4)),
        st.tuples(st.just("filemarks"), st.tuples(st.integers(0, 3), st.booleans())),
        st.tuples(st.just("locate"), st.integers(0, 40)),
        st.tuples(st.just("space"), st.integers(-3, 3)),
        st.tuples(st.just("read"), st.integers(1, 700)),
        st.tuples(st.just("reload"), st.booleans()),
        st.tuples(st.just("lose the index"), st.none()),
    ),
    max_size=25,
)


@settings(max_examples=80, deadline=None)
@given(steps=steps)
def test_virtual_tape_does_what_memory_does(steps: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "volume.tap"
        media: list[Medium] = [drive(path), Memory(Cartridge())]
        for medium in media:
            medium.load(writable=True)
            medium.write([LABEL])
        for number, (step, value) in enumerate(steps):
            if step == "lose the index":
                sidecar_of(path).unlink(missing_ok=True)
                continue
            results = [_do(medium, step, value, number) for medium in media]
            assert results[0] == results[1]
        assert contents(media[0]) == contents(media[1])
        media[0].unload()
        assert found_on(path) == contents(media[1])


def _do(medium: Medium, step: str, value: Any, number: int) -> tuple[object, ...]:
    """What a step gives, and where the medium then stands."""
    buffer = memoryview(bytearray(700))
    result: object = None
    try:
        if step == "write":
            medium.write([record(number * 10 + turn, size) for turn, size in enumerate(value)])
        elif step == "filemarks":
            medium.write_filemarks(value[0], sync=value[1])
        elif step == "locate":
            medium.locate(value)
        elif step == "space":
            medium.space_filemarks(value)
        elif step == "reload":
            medium.unload()
            medium.load(writable=True)
        else:
            result = medium.read(buffer[:value])
    except MediumError as error:
        result = type(error)
    return result, medium.tell(), bytes(buffer)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_stale_index_changes_nothing(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "volume.tap"
        medium = drive(path)
        medium.load(writable=True)
        medium.write([LABEL])
        kept: list[bytes] = [b"", b"rubbish", b"0 {}\n"]
        for number in range(data.draw(st.integers(1, 6))):
            medium.locate(data.draw(st.integers(0, medium.tell())))
            sizes = data.draw(st.lists(st.sampled_from([0, 40, 80, 9000]), min_size=1))
            for turn, size in enumerate(sizes):
                if size:
                    medium.write([record(number * 100 + turn, size)])
                else:
                    medium.write_filemarks(1, sync=False)
            medium.write_filemarks(0, sync=True)
            kept.append(sidecar_of(path).read_bytes())
        wanted = contents(medium)
        medium.unload()
        for index in [None, *kept, kept[-1][:-10], kept[-1].replace(b"0", b"1", 1)]:
            assert found_on(path, index) == wanted


# --- damage


def test_damage_in_a_length_word_is_named_and_the_rest_can_be_read(tape: Path) -> None:
    offset = _damaged_tape(tape)
    medium = drive(tape)
    medium.load(writable=False)
    buffer = memoryview(bytearray(1000))
    medium.locate(2)
    with pytest.raises(MediumDamaged, match=f"object 2 of .* byte {offset}") as caught:
        medium.read(buffer)
    assert caught.value.facts["object"] == 2
    medium.locate(3)
    assert medium.read(buffer) == 500
    medium.unload()


def test_damage_is_no_end_of_data_when_the_index_is_lost(tape: Path) -> None:
    _damaged_tape(tape)
    sidecar_of(tape).unlink()
    medium = drive(tape)
    medium.load(writable=True)
    before = tape.read_bytes()
    medium.locate(2)
    with pytest.raises(MediumDamaged):
        medium.read(memoryview(bytearray(1000)))
    with pytest.raises(MediumDamaged):
        medium.write([record(9)])
    with pytest.raises(MediumDamaged):
        medium.write_filemarks(1, sync=True)
    medium.unload()
    assert tape.read_bytes() == before


@pytest.mark.parametrize("where", ["word", "second word"])
def test_damage_in_either_word_is_seen(tape: Path, where: str) -> None:
    _damaged_tape(tape, second=where == "second word")
    medium = drive(tape)
    medium.load(writable=False)
    medium.locate(2)
    with pytest.raises(MediumDamaged):
        medium.read(memoryview(bytearray(1000)))
    medium.unload()


def _damaged_tape(tape: Path, *, second: bool = False) -> int:
    medium = drive(tape)
    medium.load(writable=True)
    put(medium, [LABEL, FILEMARK, record(2, 500), record(3, 500), FILEMARK], sync=True)
    medium.unload()
    whole = bytearray(tape.read_bytes())
    offset = 88 + 4
    whole[offset + (504 if second else 0)] ^= 0x41
    tape.write_bytes(whole)
    return offset


@pytest.mark.parametrize(
    "other", [b"plain text, no tape\n", bytes(4096), b"\x7fELF" + bytes(900), b"\x1f\x8b\x08\0" * 9]
)
def test_a_file_that_is_no_tape_is_refused_and_left_as_it_is(tape: Path, other: bytes) -> None:
    tape.write_bytes(other)
    for writable in (True, False):
        with pytest.raises(WrongMedium):
            drive(tape).load(writable=writable)
    assert tape.read_bytes() == other
    assert not sidecar_of(tape).exists()


# --- a power cut


@dataclass
class Disk:
    """What the system calls on the tape's file do to a disk that holds unsynced pages back."""

    durable: bytes = b""
    cached: bytearray = field(default_factory=bytearray)
    sizes: list[int] = field(default_factory=lambda: [0])  # since the last sync
    before_sync: Callable[[], None] = lambda: None

    def write(self, buffers: Sequence[Any], offset: int) -> None:
        data = b"".join(map(bytes, buffers))
        self.cached.extend(bytes(max(0, offset + len(data) - len(self.cached))))
        self.cached[offset : offset + len(data)] = data
        self.sizes.append(len(self.cached))

    def truncate(self, size: int) -> None:
        del self.cached[size:]
        self.sizes.append(len(self.cached))

    def sync(self) -> None:
        self.before_sync()
        self.durable, self.sizes = bytes(self.cached), [len(self.cached)]

    def after_power_cut(self, rng: random.Random) -> bytes:
        """Each page since the last sync is old or new, whatever the order; the size is any that
        the file had since."""
        size = rng.choice(self.sizes)
        old = self.durable[:size].ljust(size, b"\0")
        new = bytes(self.cached[:size]).ljust(size, b"\0")
        share = rng.choice([0.1, 0.5, 0.9])
        pages = range(0, size, 512)
        return b"".join((new if rng.random() < share else old)[page : page + 512] for page in pages)


@contextmanager
def recorded(disk: Disk, patch: pytest.MonkeyPatch) -> Iterator[None]:
    pwritev, ftruncate, fdatasync = os.pwritev, os.ftruncate, os.fdatasync

    def write(fd: int, buffers: Sequence[Any], offset: int) -> int:
        done = pwritev(fd, buffers, offset)
        disk.write(buffers, offset)
        return done

    def truncate(fd: int, size: int) -> None:
        ftruncate(fd, size)
        disk.truncate(size)

    def sync(fd: int) -> None:
        disk.sync()
        fdatasync(fd)

    with patch.context() as patched:
        patched.setattr(os, "pwritev", write)
        patched.setattr(os, "ftruncate", truncate)
        patched.setattr(os, "fdatasync", sync)
        yield


def test_a_power_cut_loses_no_ended_tape_file_and_shows_none_without_its_data(
    tape: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every turn of a run that appends, abandons and closes: without the sidecar, from any mix
    of old and new sectors since the last sync."""
    rng, after = random.Random(1), tmp_path / "after.tap"
    begun: dict[int, bytes] = {}
    ended: set[int] = set()

    def cut_power() -> None:
        for _ in range(4 if ended else 0):
            after.write_bytes(disk.after_power_cut(rng))
            found = _files_after(after)
            assert ended <= set(found), "an ended part was lost"
            assert all(begun[number] == data for number, data in found.items())

    disk = Disk(before_sync=cut_power)
    with recorded(disk, monkeypatch):
        for run in range(3):
            with open_for_append(drive(tape), label_blank="SM0001") as writer:
                for number in range(3 * run, 3 * run + 3):
                    begun[number] = rng.randbytes(4096 * rng.randint(2, 6))
                    if number % 3 == 1:
                        _write_part(writer, number, begun[number])
                        writer.abandon_file()
                    _write_part(writer, number, begun[number])
                    cut_power()
                    writer.end_file()
                    ended.add(number)
                    cut_power()
                writer.finish_set()
    assert len(ended) == 9


def _write_part(writer: VolumeWriter, number: int, data: bytes) -> None:
    writer.begin_file(TapeFileKind.PART, "set", number + 1, 4096)
    for at in range(0, len(data), 4096):
        writer.write([data[at : at + 4096]])


def test_after_a_power_cut_nothing_old_lies_behind_something_new(
    tape: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, after, disk = random.Random(2), tmp_path / "after.tap", Disk()
    old: Things = [LABEL, *(record(number, 600) for number in range(1, 12)), FILEMARK]

    def cut_power() -> None:
        for _ in range(10):
            after.write_bytes(disk.after_power_cut(rng))
            found = found_on(after)
            assert found[:3] == old[:3]
            assert found == old or not set(found[3:]) & set(old[4:])

    with recorded(disk, monkeypatch):
        medium = drive(tape)
        medium.load(writable=True)
        put(medium, old, sync=True)
        disk.before_sync = cut_power
        medium.locate(3)
        for number in range(20, 30):
            medium.write([record(number, 600)])
            cut_power()
        medium.unload()


def _files_after(path: Path) -> dict[int, bytes]:
    sidecar_of(path).unlink(missing_ok=True)
    medium = drive(path)
    medium.load(writable=False)
    try:
        reader = VolumeReader(medium)
        return {
            file.part_number - 1: b"".join(map(bytes, reader.records(file)))
            for file in list(reader.files())
        }
    finally:
        medium.unload()


# --- a disk that takes no more


def test_of_what_a_full_disk_cuts_short_only_whole_records_stay(tape: Path) -> None:
    """The process's file size limit stands for the disk: it gives a short write, then an error."""
    medium = drive(tape)
    medium.load(writable=True)
    put(medium, [LABEL, FILEMARK], sync=True)
    batch = [record(number, 1000) for number in range(40)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (92 + 10_500, hard))
    try:
        with pytest.raises(EndOfMedium, match=r"filesystem of .* is full") as caught:
            medium.write(batch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tape.parent) in caught.value.hint
    assert medium.tell() == 2 + 10
    assert contents(medium) == [LABEL, FILEMARK, *batch[:10]]
    medium.locate(5)
    medium.write_filemarks(2, sync=True)
    medium.unload()
    assert found_on(tape) == [LABEL, FILEMARK, *batch[:3], FILEMARK, FILEMARK]
