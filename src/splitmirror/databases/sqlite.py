"""SQLite: one or several database files, held by a process of their own (_sqlite_hold).

Freeze: BEGIN IMMEDIATE on every database, so that no transaction is going on in any of them, over
one file or several, and none can begin. Hot: databases in WAL mode only; a read transaction keeps
the WAL from being reset, writers go on, and the database with its -wal from one split is the state
after the last commit. See docs/adr/0007-holds.md.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from splitmirror.databases import Hold, Layout, RedoFile, Root, RunningCopy, _sqlite_copy
from splitmirror.databases._sqlite_copy import PREFIX
from splitmirror.databases._sqlite_hold import Held, Look, Looks
from splitmirror.errors import (
    ConfigError,
    DatabaseError,
    DatabaseUnreachable,
    DatabaseUnsuitable,
    DeadlineExceeded,
    HoldBroken,
    SplitmirrorError,
)
from splitmirror.model import Finding, Mode, Session
from splitmirror.system import locks, programs
from splitmirror.system.companion import Companion, CompanionGone

_HOLD = "splitmirror.databases._sqlite_hold"
_ANSWER_S = 10.0  # the holder answers at once; beyond this it is stopped or the machine is

# Where SQLite's locks lie. os_unix.c: the reserved byte of the database file; wal.c and
# UNIX_SHM_BASE: the write lock and the five read marks in the -shm file.
_RESERVED_BYTE = 0x40000001
_WAL_WRITE_BYTE = 120
_WAL_READ_BYTES = range(123, 128)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`paths`: the database files."""

    paths: list[str]


def open_database(settings: Settings) -> Sqlite:
    """Raises ConfigError when no path is given, or one that is not absolute."""
    if not settings.paths:
        raise ConfigError(
            "no database file to back up", hint='Name one: paths = ["/srv/app/app.db"].'
        )
    for path in settings.paths:
        if not Path(path).is_absolute():
            raise ConfigError(f"not an absolute path: {path}", hint="Write it from / on.")
    return Sqlite(settings.paths)


class Sqlite:
    """The driver. Opens no database file in this process, ever."""

    modes = frozenset({Mode.FREEZE, Mode.HOT})
    mends_instants = False  # a database and its -wal belong together

    def __init__(self, paths: Sequence[str]) -> None:
        # SQLite, too, looks for -wal beside the file that a link leads to
        real = dict.fromkeys(os.path.realpath(path) for path in paths)
        self._files = _named(real)

    def preflight(self, mode: Mode) -> list[Finding]:
        """Whether each file is a database and can be held in this mode."""
        try:
            looks = self._looks()
        except SplitmirrorError as error:
            return [Finding(what="SQLite files", problem=error)]
        findings = [
            Finding(what=f"SQLite {path}", problem=_problem(path, look, mode))
            for path, look in zip(self._files.values(), looks, strict=True)
        ]
        if mode is Mode.HOT and len(self._files) > 1:
            findings.append(Finding(what="several files", warning=True, problem=_several()))
        return findings

    def _looks(self) -> list[Look]:
        argv = [sys.executable, "-m", _HOLD, "look", *self._files.values()]
        return msgspec.json.decode(programs.run(argv, timeout_s=_ANSWER_S), type=Looks).looks

    def facts(self) -> Mapping[str, str]:
        """The original places, and how each was journalled."""
        facts = {}
        for (name, path), look in zip(self._files.items(), self._looks(), strict=True):
            facts[f"path.{os.fsdecode(name)}"] = path
            facts[f"journal.{os.fsdecode(name)}"] = look.journal
        return facts

    def layout(self) -> Layout:
        """Each database and, if it is there, its -wal; as roots of one file each.

        Never -shm, which SQLite makes anew; never a rollback journal: under the hold there is none
        that is hot, and a stale one names another file's super-journal by its old path.
        """
        roots = []
        for name, path in self._files.items():
            roots.append(Root(name=name, path=os.fsencode(path)))
            if os.path.lexists(path + "-wal"):
                roots.append(Root(name=name + b"-wal", path=os.fsencode(path) + b"-wal"))
        return Layout(roots=tuple(roots))

    def titles(self, names: Iterable[bytes]) -> Mapping[bytes, str]:
        """A file holds all its tables; there are no other names."""
        return {}

    @contextmanager
    def quiesce(self, mode: Mode, deadline_s: float) -> Iterator[Hold]:
        """Hold every database. Raises DeadlineExceeded when someone else keeps one locked."""
        paths = tuple(self._files.values())
        arguments = [mode.value, str(deadline_s), *paths]
        with Companion("SQLite's hold", _HOLD, arguments) as companion:
            held = _decoded(companion.ask("", deadline_s + _ANSWER_S))
            if not held.held:
                raise _refusal(paths[held.index], held, deadline_s)
            yield _SqliteHold(companion, mode, paths, held)

    def make_ready(self, roots: Mapping[bytes, Path], facts: Mapping[str, str]) -> None:
        """Remove what an older database of that name left beside a restored one."""
        _sqlite_copy.make_ready(roots)

    def start_copy(
        self,
        roots: Mapping[bytes, Path],
        facts: Mapping[str, str],
        hide: Sequence[Path],
        scratch: Path,
    ) -> AbstractContextManager[RunningCopy]:
        """Give the copy to a uid of its own. It is opened by the check alone, behind the wall. The
        `dsn` is the databases' paths, one a line."""
        return _sqlite_copy.given_away(roots, facts, hide)


def _named(paths: Iterable[str]) -> dict[bytes, str]:
    """A name in the set for each file: its own, made unique with a number."""
    named: dict[bytes, str] = {}
    for path in paths:
        own = name = PREFIX + os.fsencode(Path(path).name)
        number = 2
        while name in named:
            name = own + b"~%d" % number
            number += 1
        named[name] = path
    return named


def _problem(path: str, look: Look, mode: Mode) -> SplitmirrorError | None:
    if look.missing:
        return DatabaseUnreachable(f"{path} {look.error}", hint="Correct `paths`.")
    if look.error:
        return DatabaseUnsuitable(f"{path}: {look.error}", hint="Correct `paths`.")
    if mode is Mode.HOT and look.journal != "wal":
        return DatabaseUnsuitable(
            f"{path} has a rollback journal: in hot mode a commit could be torn",
            hint='Set mode = "freeze", or switch the database over with PRAGMA journal_mode = WAL.',
        )
    return None


def _several() -> DatabaseUnsuitable:
    return DatabaseUnsuitable(
        "a transaction over several database files may be torn between them in hot mode",
        hint='Set mode = "freeze" if the application writes through ATTACH.',
    )


def _decoded(answer: bytes) -> Held:
    return msgspec.json.decode(answer, type=Held)


def _refusal(path: str, held: Held, deadline_s: float) -> SplitmirrorError:
    if held.busy:
        return DeadlineExceeded(
            f"{path} was kept locked by another process for {deadline_s:g} s",
            hint="Find the long transaction (lslocks names its process), or allow more time.",
            path=path,
        )
    return DatabaseError(
        f"{path} cannot be held: {held.error}",
        hint="Open it with the sqlite3 program and look.",
        path=path,
    )


@dataclass(frozen=True, slots=True)
class _SqliteHold:
    """Databases held by the companion."""

    companion: Companion
    mode: Mode
    paths: tuple[str, ...]
    held: Held

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The holder; it needs no warning, so SIGKILL."""
        return (self.companion.session(signal.SIGKILL),)

    @property
    def blocked_writers_since_s(self) -> float | None:
        """In freeze mode since before the first lock."""
        return self.held.since_s if self.mode is Mode.FREEZE else None

    def confirm(self, into: Path) -> tuple[RedoFile, ...]:
        """The holder answers that its transactions are open, and the kernel that it still has the
        locks, on the files that lie at these paths now. There is nothing to copy."""
        try:
            answer = _decoded(self.companion.ask("confirm", _ANSWER_S))
            pid = self.companion.session(signal.SIGKILL).pid
        except (CompanionGone, DeadlineExceeded) as error:
            raise HoldBroken(f"the hold on SQLite broke: {error}", hint=error.hint) from error
        if not answer.held:
            raise HoldBroken("SQLite ended the hold's transaction", hint="Run the backup again.")
        held = locks.held_by(pid)
        for path, journal in zip(self.paths, self.held.journals, strict=True):
            if not self._locked(path, journal, held):
                raise HoldBroken(
                    f"the lock on {path} was lost, or the file was replaced",
                    hint="See that nothing moves the database while it is backed up.",
                    path=path,
                )
        return ()

    def _locked(self, path: str, journal: str, held: Sequence[locks.FileLock]) -> bool:
        if journal == "wal":
            path, wanted = path + "-shm", _WAL_READ_BYTES
            if self.mode is Mode.FREEZE:
                wanted = range(_WAL_WRITE_BYTE, _WAL_WRITE_BYTE + 1)
        else:
            wanted = range(_RESERVED_BYTE, _RESERVED_BYTE + 1)
        try:
            ino = os.stat(path).st_ino
        except FileNotFoundError:
            return False
        return any(
            lock.ino == ino and lock.covers(byte) and lock.exclusive >= (self.mode is Mode.FREEZE)
            for lock in held
            for byte in wanted
        )
