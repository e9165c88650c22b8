"""One run of a backup: its directory, its lock, its journal, its phases.

A run's directory is `STATE/runs/SET_ID` and holds the journal and what the run must still have
after a crash. The lock is on `STATE/locks/SOURCE` (flock(2), gone with the process).
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from splitmirror import journal
from splitmirror.errors import Busy, NeedsRecovery, NoRoom, PrivilegeError
from splitmirror.journal import Journal, Record
from splitmirror.model import Phase
from splitmirror.system.deadline import deadline
from splitmirror.system.process import start_ticks

KEPT_RUNS = 20  # ended runs whose journals are kept, for those who ask what happened


class Run:
    """A run in progress, holding the source's lock. A context manager: leaving ends it."""

    def __init__(self, directory: Path, lock_fd: int, *, recovering: bool = False) -> None:
        self.set_id = directory.name
        self.directory = directory
        self.journal = Journal(directory)
        self.phases: list[Phase] = []
        self.began = datetime.now(UTC)
        self._began_s = time.monotonic()
        self._lock_fd = lock_fd
        self.keep_open = recovering  # a run that fails with this set must be recovered
        if recovering:
            self._go_on()

    def _go_on(self) -> None:
        """Take up the clock and the phases of the run that was cut off."""
        records = journal.read(self.directory)
        if records:
            self.began = records[0].at
            self._began_s -= (datetime.now(UTC) - self.began).total_seconds()
        begins = {r.facts["name"]: r for r in records if r.kind == "phase begins"}
        for record in records:
            if record.kind == "phase done":
                name = record.facts["name"]
                began_s = (begins[name].at - self.began).total_seconds()
                seconds = record.facts["seconds"]
                self.phases.append(Phase(name=name, began_s=began_s, seconds=seconds))

    @classmethod
    def begin(cls, state: Path, source: str) -> Run:
        """A new run. Raises Busy while another one of the source goes on, NeedsRecovery when one
        was cut off, PrivilegeError when `state` cannot be written."""
        lock_fd = take_lock(state, source)
        try:
            if cut_off := unfinished(state, source):
                raise NeedsRecovery(
                    f"the backup {cut_off[0].name} of {source} was cut off",
                    hint="Run `splitmirror recover` first: it puts right what was left and goes "
                    "on with the backup where it can.",
                    run=str(cut_off[0]),
                )
            directory = state / "runs" / new_set_id()
            directory.mkdir(mode=0o700, parents=True)
            run = cls(directory, lock_fd)
            run.journal.record(
                "begin", source=source, pid=os.getpid(), start_ticks=start_ticks(os.getpid())
            )
        except OSError as error:
            os.close(lock_fd)
            raise NoRoom(
                f"no run can begin in {state}: {error.strerror}", hint="Make room there."
            ) from error
        except BaseException:
            os.close(lock_fd)
            raise
        return run

    @classmethod
    def again(cls, state: Path, source: str, directory: Path) -> Run:
        """The run in `directory`, which was cut off, to be put right. Raises Busy. Should putting
        it right fail, it stays one that was cut off."""
        lock_fd = take_lock(state, source)
        try:
            return cls(directory, lock_fd, recovering=True)
        except BaseException:
            os.close(lock_fd)
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self.journal.record("end", ok=True)
            elif not self.keep_open:
                self._end_failed(error)
        finally:
            self.journal.close()
            os.close(self._lock_fd)

    def _end_failed(self, error: BaseException) -> None:
        """A failed run that left nothing to put right ends too; the first error stays the first."""
        try:
            self.journal.record("end", ok=False, error=f"{type(error).__name__}: {error}")
            self.clear()
        except (NoRoom, OSError) as second:
            error.add_note(f"{self.directory} could not be cleared: {second}")

    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began_s

    @contextmanager
    def phase(self, name: str, limit_s: float | None = None) -> Iterator[None]:
        """A step of the recipe: timed, journalled, bounded (DeadlineExceeded at `limit_s`)."""
        began_s = self.elapsed_s()
        self.journal.record("phase begins", name=name)
        try:
            with deadline(limit_s, f"the phase {name}"):
                yield
        finally:
            seconds = self.elapsed_s() - began_s
            self.phases = [phase for phase in self.phases if phase.name != name]  # before a crash
            self.phases.append(Phase(name=name, began_s=began_s, seconds=seconds))
        self.journal.record("phase done", name=name, seconds=round(seconds, 6))

    def clear(self) -> None:
        """Take away everything of an ended run but its journal; forget the oldest runs."""
        for path in self.directory.iterdir():
            if path.name != journal.NAME:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        runs = sorted(self.directory.parent.iterdir())
        for old in runs[:-KEPT_RUNS]:
            records = journal.read(old, lenient=True)
            if not records or ended(records):
                shutil.rmtree(old)


def new_set_id() -> str:
    """Sorts by time; the random part tells two of the same second apart."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def take_lock(state: Path, source: str) -> int:
    """A descriptor that holds the source's lock. Raises Busy, naming the process that has it."""
    path = state / "locks" / source
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PrivilegeError(
            f"{path} cannot be written: {error.strerror}",
            hint="Run as root, or set state_dir to a directory that you may write.",
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 64, 0).decode().strip() or "?"
        os.close(fd)
        raise Busy(
            f"another run of {source} is going on (process {holder})",
            hint="Wait for it to end; `splitmirror release` ends it if it must not go on.",
            pid=holder,
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def ended(records: list[Record]) -> bool:
    """Whether the run came to an end by itself."""
    return any(record.kind == "end" for record in records)


def unfinished(state: Path, source: str | None = None) -> list[Path]:
    """The directories of the source's (None: of any source's) runs that were cut off, oldest first.
    With the lock held, or a run that is going on is among them. A damaged journal counts by what of
    it can be read."""
    found = []
    for directory in sorted((state / "runs").glob("*")):
        records = journal.read(directory, lenient=True)
        mine = records and source in (None, records[0].facts.get("source"))
        if mine and not ended(records):
            found.append(directory)
    return found
