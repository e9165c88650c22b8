"""The two holds of a backup on a real filesystem: what a phase's deadline may cut short in them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.real.loopfs import LoopFs, loop_filesystems

from splitmirror import databases
from splitmirror.databases import NoHold, none
from splitmirror.errors import DeadlineExceeded
from splitmirror.freeze import Freeze
from splitmirror.guard import Guard, read_record
from splitmirror.hold import Hold
from splitmirror.journal import Journal
from splitmirror.mirrors import memory
from splitmirror.mirrors.memory import MemoryMirror, MemoryVolume
from splitmirror.model import Mode
from splitmirror.system import filesystems
from splitmirror.system.deadline import deadline

pytestmark = pytest.mark.real

SHORT_S = 0.2
LONG_S = 30.0


def wait_out_the_alarm() -> None:
    """Return once the deadline has passed; where there is none any more, at once."""
    while signal.getitimer(signal.ITIMER_REAL)[0]:
        threading.Event().wait(0.001)


class Files(none.Files):
    """Plain files that take long to release."""

    def __init__(self) -> None:
        super().__init__({b"set": Path("/")})
        self.released = 0

    @contextmanager
    def quiesce(self, mode: Mode, deadline_s: float) -> Iterator[databases.Hold]:
        try:
            yield NoHold()
        finally:
            wait_out_the_alarm()
            self.released += 1


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopFs]:
    with loop_filesystems(tmp_path, "ext4") as (made,):
        yield made


@pytest.fixture
def mirror(tmp_path: Path) -> MemoryMirror:
    settings = memory.Settings(volumes=(MemoryVolume(name="v", size="1MiB"),))
    made = memory.open_mirror(settings, tmp_path)
    made.synchronize(lambda done, total: None)
    return made


@contextmanager
def held(disk: LoopFs, folder: Path, mode: Mode) -> Iterator[tuple[Hold, Files]]:
    """A hold that is quiesced. Whether the guard had to act is known when it is left."""
    with ExitStack() as stack:
        files = Files()
        journal = Journal(folder)
        stack.callback(journal.close)
        guard = stack.enter_context(Guard([disk.mountpoint], folder / "guard.json"))
        freeze = stack.enter_context(Freeze([disk.mountpoint], guard))
        hold = stack.enter_context(
            Hold(
                database=files, freeze=freeze, guard=guard, journal=journal, mode=mode,
                deadline_s=LONG_S,
            )
        )  # fmt: skip
        hold.quiesce()
        yield hold, files


def stepped_in(folder: Path) -> bool:
    return read_record(folder / "guard.json") is not None


@pytest.mark.parametrize("mode", [Mode.FREEZE, Mode.HOT])
def test_a_deadline_that_comes_in_the_release_waits_until_all_is_released(
    disk: LoopFs, mirror: MemoryMirror, tmp_path: Path, mode: Mode
) -> None:
    with pytest.raises(DeadlineExceeded), held(disk, tmp_path, mode) as (hold, files):
        hold.split(mirror, "s", thaw=False)
        with deadline(SHORT_S, "release"):
            hold.release(tmp_path)

    assert files.released == 1
    assert disk.writable_within(5)
    assert not stepped_in(tmp_path), "the guard was left to release it"


def test_a_deadline_that_comes_in_the_thaw_waits_until_all_is_thawed(
    disk: LoopFs, mirror: MemoryMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thaw = filesystems.thaw

    def slowly(fd: int) -> bool:
        wait_out_the_alarm()
        return thaw(fd)

    with pytest.raises(DeadlineExceeded), held(disk, tmp_path, Mode.HOT) as (hold, files):
        monkeypatch.setattr(filesystems, "thaw", slowly)
        with deadline(SHORT_S, "split"):
            hold.split(mirror, "s", thaw=False)

    assert files.released == 1
    assert disk.writable_within(5)
    assert not stepped_in(tmp_path), "the guard was left to thaw it"


def test_the_error_that_ends_a_hold_is_not_replaced_by_a_deadline_in_its_undoing(
    disk: LoopFs, tmp_path: Path
) -> None:
    with (
        pytest.raises(KeyError),
        deadline(SHORT_S, "quiesce"),
        held(disk, tmp_path, Mode.FREEZE) as (_, files),
    ):
        raise KeyError

    assert files.released == 1
    assert disk.writable_within(5)
    assert not stepped_in(tmp_path)
