"""A tape drive beyond the contract: what is in it, what it says, and stock tools on its tapes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit import made_sets
from tests.vm.inside.tape_lab import ROOMY, TapeBench
from tests.vm.vtl.cartridge import MIB
from tests.vm.vtl.library import Library

from splitmirror import config, doctor
from splitmirror.errors import Busy, ConfigError, MediumError, NoSuchVolume, WrongMedium
from splitmirror.media import FILEMARK
from splitmirror.media import tape as tape_driver
from splitmirror.media.tape import Settings, Tape
from splitmirror.media.volume import VolumeReader, open_for_append
from splitmirror.system import programs, st
from splitmirror.testing.media import contents, record

pytest_plugins = ["tests.vm.inside.tape_fixtures"]

READ = 0x08  # SCSI's opcode
LONG_S = 20.0  # st itself waits two minutes for a drive that does not get ready


@pytest.fixture
def tape(bench: TapeBench) -> Tape:
    medium = bench.blank()
    assert isinstance(medium, Tape)
    return medium


def run(*argv: str) -> str:
    return programs.run(argv, timeout_s=120)


# --- what is in the drive


def test_an_empty_drive_is_told_without_a_long_wait(made: Library, bench: TapeBench) -> None:
    began_s = time.monotonic()
    with pytest.raises(NoSuchVolume, match="no cartridge"):
        Tape(made.drives[1], Settings(drives=made.drives)).load(writable=True)
    assert time.monotonic() - began_s < LONG_S


def test_a_cleaning_cartridge_is_told_without_a_long_wait(made: Library, bench: TapeBench) -> None:
    made.move(made.slots[2], made.bays[1])
    began_s = time.monotonic()
    try:
        with pytest.raises(WrongMedium, match="cleaning cartridge"):
            Tape(made.drives[1], Settings(drives=made.drives)).load(writable=False)
    finally:
        made.move(made.bays[1], made.slots[2])
    assert time.monotonic() - began_s < LONG_S


def test_a_drive_is_called_by_its_name_that_lasts(made: Library, tape: Tape) -> None:
    name = "/dev/tape/by-id/scsi-VTLDRIVE0-nst"
    lasting = Tape(name, Settings(drives=[name]))
    lasting.load(writable=True)
    lasting.write([record(0)])
    assert (lasting.device, tape.device) == ("VTLDRIVE0", "VTLDRIVE0")
    with pytest.raises(Busy, match="in use"):
        tape.load(writable=False)
    lasting.unload()


def test_a_device_file_that_rewinds_is_refused_whatever_its_name(
    made: Library, tape: Tape, tmp_path: Path
) -> None:
    link = Path("/dev/a-drive-with-another-name")
    link.symlink_to(made.drives[0].replace("nst", "st"))
    try:
        with pytest.raises(ConfigError, match="leaves the tape where it is"):
            Tape(str(link), Settings(drives=[str(link)])).load(writable=False)
    finally:
        link.unlink()


def test_an_ejected_cartridge_can_be_taken_and_loaded_again(made: Library, tape: Tape) -> None:
    tape.load(writable=True)
    tape.write([record(0)])
    tape.eject()
    assert not made.state(0)["loaded"]
    assert made.lengths(ROOMY) == [len(record(0))]  # and no filemark of st's own
    tape.eject()
    tape.load(writable=False)
    assert contents(tape) == [record(0)]
    tape.eject()
    made.move(made.bays[0], made.slots[0])
    tape.eject()


def test_the_cartridge_is_kept_in_while_it_is_used(made: Library, tape: Tape) -> None:
    tape.load(writable=True)
    tape.write([record(0)])
    with pytest.raises(RuntimeError, match="83, 2"):  # 53h/02h: medium removal prevented
        made.remove(0)
    tape.unload()
    made.move(made.bays[0], made.slots[0])


# --- what the drive says


def test_capacity_is_told_in_whole_mib(tape: Tape) -> None:
    tape.load(writable=True)
    before = tape.capacity
    tape.write([bytes(MIB)] * 2)
    assert before.total == tape.capacity.total == 64 * MIB
    assert before.left is not None
    assert tape.capacity.left == before.left - 2 * MIB


def test_what_the_drive_says_of_itself_is_told_in_words(made: Library, tape: Tape) -> None:
    made.fault(0, alerts=[20, 4])
    assert [text[:30] for text in tape.alerts()] == [
        "the cartridge is worn or damag",
        "the drive must be cleaned now ",
    ]
    made.fault(0, alerts=[])
    tape.load(writable=False)
    assert tape.alerts() == []


def test_doctor_shows_what_the_drives_say(made: Library, tape: Tape, tmp_path: Path) -> None:
    path = tmp_path / "splitmirror.toml"
    path.write_text(
        f'source = "orders"\nstate_dir = "{tmp_path}"\n[database]\ndriver = "none"\n'
        f'[mirror]\ndriver = "memory"\n[medium]\ndriver = "tape"\ndrives = {made.drives}\n'
    )
    made.fault(1, alerts=[21])
    found = list(doctor._alerts(config.load(path, needed=["media"])))
    made.fault(1, alerts=[])
    assert [str(finding.problem) for finding in found] == [
        f"{made.drives[1]} says: the drive is due to be cleaned (TapeAlert 21)"
    ]
    assert found[0].warning


def test_compression_by_the_drive_is_switched_as_configured(made: Library, tape: Tape) -> None:
    for wanted in (False, True):
        drive = Tape(made.drives[0], Settings(drives=made.drives, compression=wanted))
        drive.load(writable=True)
        drive.unload()
        assert made.state(0)["compression"] is wanted
    tape.load(writable=True)
    assert made.state(0)["compression"] is True
    assert tape.pace.native == 360_000_000  # by its cartridge's density


def test_what_the_host_adapter_takes_limits_the_records(tape: Tape) -> None:
    """The drive takes 8 MiB, and says so."""
    tape.load(writable=True)
    most = tape.limits.largest
    assert MIB <= most < 8 * MIB
    tape.write([record(0), bytes(MIB)])
    with pytest.raises(MediumError, match=f"takes up to {most} bytes"):
        tape.write([bytes(most + 1)])
    assert contents(tape) == [record(0), bytes(MIB)]


def test_a_buffer_larger_than_the_host_adapter_takes_at_once_is_read_into(tape: Tape) -> None:
    tape.load(writable=True)
    tape.write([record(0), record(1)])
    tape.locate(1)
    assert tape.read(memoryview(bytearray(16 * MIB))) == len(record(1))
    assert tape.tell() == 2


def test_what_is_too_much_for_an_adapter_that_does_not_tell_is_told_and_loses_nothing(
    tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(st, "transfer_limit", lambda device: None)
    monkeypatch.setattr(tape_driver, "_LARGEST_READ", 16 * MIB)
    tape.load(writable=True)
    tape.write([record(0), record(1)])
    attempts: list[Callable[[], object]] = [
        lambda: tape.write([bytes(8 * MIB)]),
        lambda: tape.read(memoryview(bytearray(8 * MIB))),
    ]
    for too_much in attempts:
        with pytest.raises(MediumError, match="8388608 bytes at once do not go through"):
            too_much()
        tape.locate(1)
    assert contents(tape) == [record(0), record(1)]


def test_a_slow_drive_is_waited_for(made: Library, tape: Tape) -> None:
    tape.load(writable=True)
    made.fault(0, write_takes_s=0.2)
    began_s = time.monotonic()
    tape.write([record(number) for number in range(5)])
    assert time.monotonic() - began_s > 1
    made.fault(0, write_takes_s=0.0)
    assert contents(tape) == [record(number) for number in range(5)]


# --- a reset that nobody tells us of


def test_a_reset_that_another_program_was_told_of_is_noticed(made: Library, tape: Tape) -> None:
    """A unit attention is told once, to whoever asks first."""
    tape.load(writable=True)
    tape.write([record(0), record(1)])
    tape.write_filemarks(1, sync=True)
    made.power_cycle(0)
    subprocess.run(["sg_turs", made.generic[0]], check=False, timeout=60)
    with pytest.raises(MediumError, match="stands at object 0 instead of 3"):
        tape.write([record(2)])
    tape.unload()
    assert made.lengths(ROOMY) == [len(record(0)), len(record(1)), -1]


def test_another_cartridge_is_not_written_in_the_first_ones_place(
    made: Library, tape: Tape
) -> None:
    tape.load(writable=True)
    tape.write([record(0)])
    made.power_cycle(0)  # and with it the lock of the door is gone
    made.move(made.bays[0], made.slots[0])
    made.move(made.slots[1], made.bays[0])
    with pytest.raises(MediumError, match="not trusted any more"):
        tape.write([record(1)])
    with pytest.raises(MediumError, match="not trusted any more"):
        tape.write([record(1)])
    tape.unload()
    assert made.lengths("SMALL0L8") == []


# --- a set on a tape


def test_the_end_of_a_volume_is_proven_without_reading_its_data(made: Library, tape: Tape) -> None:
    content = bytes(400 * made_sets.BLOCK_SIZE)
    made_sets.write_set(tape, [[made_sets.file(b"data/file", content)]])
    before = made.counts(0)
    with open_for_append(tape) as volume:
        assert len(volume.files) == 2
    after = made.counts(0)
    assert after[READ] - before.get(READ, 0) < 30


def test_stock_mt_and_tar_read_a_part_that_we_wrote(
    made: Library, tape: Tape, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "large").write_bytes(os.urandom(3 * MIB + 17))
    (source / "deep/small").write_bytes(b"small")
    block_size = 256 << 10
    parts = [made_sets.tree(source, b"data"), [made_sets.file(b"data/other", b"second part")]]
    made_sets.write_set(tape, parts, block_size=block_size)
    for number, names in enumerate((["large", "deep/small"], ["other"])):
        run("mt", "-f", made.drives[0], "rewind")
        run("mt", "-f", made.drives[0], "fsf", str(3 * number + 1))
        into = tmp_path / f"restored{number}"
        into.mkdir()
        run("tar", "-C", str(into), "-b", str(block_size // 512), "-xf", made.drives[0])
        for name in names:
            there = (into / "data" / name).read_bytes()
            assert there == (b"second part" if name == "other" else (source / name).read_bytes())


def test_a_drive_that_knows_one_block_size_only_gets_padded_labels(
    made: Library, bench: TapeBench, tmp_path: Path
) -> None:
    content = os.urandom(100_000)
    made.fault(0, fixed_block=4096)
    tape = bench.blank()
    made_sets.write_set(tape, [[made_sets.file(b"data/file", content)]], block_size=4096)
    assert {length for length in made.lengths(ROOMY) if length >= 0} == {4096}
    with pytest.raises(MediumError, match="takes 4096 bytes only"), open_for_append(tape) as volume:
        volume._medium.write([bytes(8192)])
    tape.load(writable=False)
    assert [found.complete for found in VolumeReader(tape).sets()] == [True]
    tape.unload()
    run("mt", "-f", made.drives[0], "rewind")
    run("mt", "-f", made.drives[0], "fsf", "1")
    run("tar", "-C", str(tmp_path), "-b", "8", "-xf", made.drives[0])
    assert (tmp_path / "data/file").read_bytes() == content


def test_a_writer_that_is_killed_leaves_what_was_whole_and_can_be_followed(
    made: Library, tape: Tape
) -> None:
    """st closes the drive for it, and puts a filemark where it was."""
    made_sets.write_set(tape, [[made_sets.file(b"data/file", b"first set")]], set_id="first")
    kept = made.digests(ROOMY)
    for labels in range(1, 4):
        _killed_behind(made.drives[0], labels)
        assert made.lengths(ROOMY)[len(kept) - 1 :] == [80] * labels + [-1]
        with open_for_append(tape) as volume:
            assert [file.set_id for file in volume.files] == ["first", "first"]
            assert not volume.end.closed
    made_sets.write_set(tape, [[made_sets.file(b"data/file", b"second set")]], set_id="second")
    assert made.digests(ROOMY)[: len(kept) - 1] == kept[:-1]
    tape.load(writable=False)
    assert [found.complete for found in VolumeReader(tape).sets()] == [True, True]


def _killed_behind(device: str, labels: int) -> None:
    """A process writes so many labels behind the last set, and is killed."""
    script = f"""
import os, signal
from splitmirror.media.labels import LabelGroup, State, TapeFileKind
from splitmirror.media.tape import Settings, Tape
from splitmirror.media.volume import open_for_append

tape = Tape({device!r}, Settings(drives=[{device!r}]))
volume = open_for_append(tape)
end = volume.end
write = tape.write
def some(blocks):
    write(blocks[:{labels}])
    os.kill(os.getpid(), signal.SIGKILL)
tape.write = some
volume.begin_file(TapeFileKind.PART, "killed", 1, 4096)
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL


def test_marks_are_synced_or_not_as_asked(made: Library, tape: Tape) -> None:
    tape.load(writable=True)
    tape.write([record(0)])
    tape.write_filemarks(1, sync=True)
    tape.write([record(1)])
    tape.write_filemarks(1, sync=False)
    made.power_cycle(0)
    tape_lost = pytest.raises(MediumError, match="not trusted any more")
    with tape_lost:
        tape.write([record(2)])
    tape.load(writable=False)
    assert contents(tape) == [record(0), FILEMARK]
