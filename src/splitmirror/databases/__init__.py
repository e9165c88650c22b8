"""The database seam: what a database driver must do. One driver, one file in this folder.

A driver module has `Settings` (a msgspec.Struct) and `open_database(settings) -> Database`. It is
found by its name in the configuration.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from splitmirror.model import Finding, Mode, Session


class Keep(enum.Enum):
    """What becomes of a file or directory that was found."""

    KEEP = "back it up"
    WHOLE = "back it up with all that is in it, at any depth, without asking for each"
    EMPTY = "keep the directory, leave out what is in it"
    LEAVE = "leave it out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A directory (or a single file) of the database.

    `name` is its name in the set, such as b"data" or b"tblspc/16385"; it is unique and no other
    root's name lies below it. `path` is absolute on the primary, with symbolic links resolved.
    """

    name: bytes
    path: bytes


SortKey = tuple[int | bytes, ...]


def keep_all(name: bytes) -> Keep:
    """Leave nothing out."""
    return Keep.WHOLE


def by_name(name: bytes) -> SortKey:
    """The order of a plain tree: path components, byte by byte."""
    return tuple(name.split(b"/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which files make up the database right now, and how they are named and ordered.

    `keep` and `order` are called with a member name in the set (b"data/base/5/1259"); keep also
    for directories; a left-out directory is not entered, and of what is in a WHOLE one it is not
    asked. `order` gives tuples that compare with one another whatever the names are; a directory
    must come before what it holds.
    `outside`: files off the roots, copied from the primary: (name in the set, path). `bare`:
    directories off them, each before what it holds, of which the set has only themselves: places of
    what the redo log brings. Neither needs to be on the mirror.
    """

    roots: tuple[Root, ...]
    outside: tuple[Root, ...] = ()
    bare: tuple[Root, ...] = ()
    keep: Callable[[bytes], Keep] = keep_all
    order: Callable[[bytes], SortKey] = by_name

    @property
    def apart(self) -> tuple[Root, ...]:
        """The bare directories that lie in no other."""
        names = {root.name for root in self.bare}
        return tuple(root for root in self.bare if root.name.rpartition(b"/")[0] not in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedoFile:
    """A file that recovery needs beside the leg: `copy` is where it lies synced now."""

    name: bytes
    copy: Path
    made_by_server: bool = False  # backup_label: no file of the primary


class Hold(Protocol):
    """The database is quiesced as long as this lives."""

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The processes whose end ends the hold; for the guard."""
        ...

    @property
    def blocked_writers_since_s(self) -> float | None:
        """time.monotonic() at which writers began to wait for this hold; None: they do not."""
        ...

    def confirm(self, into: Path) -> tuple[RedoFile, ...]:
        """Prove that the hold was never broken, and copy what recovery needs into the directory
        `into`, synced. In hot mode this ends the database's backup mode; it is the last thing done
        inside the hold. Raises HoldBroken."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport:
    """What the checks of a restored copy found, in words; `passed` when all is well."""

    passed: bool
    checks: tuple[str, ...]
    problems: tuple[str, ...] = ()


class RunningCopy(Protocol):
    """A restored copy that was started, walled off from the original."""

    dsn: str

    def check(self) -> CopyReport:
        """The database's own checks (pg_amcheck, PRAGMA integrity_check)."""
        ...


class Database(Protocol):
    """A database server, or a set of database files. Raises DatabaseError with what to do."""

    modes: frozenset[Mode]
    mends_instants: bool  # in hot mode its files may be of different instants within the hold

    def preflight(self, mode: Mode) -> list[Finding]:
        """What would stop a backup in this mode. Changes nothing. Does not raise for what it finds.
        `facts()` may be called after it."""
        ...

    def facts(self) -> Mapping[str, str]:
        """What goes into the set's record: version, system identifier, what a restore must know."""
        ...

    def layout(self) -> Layout:
        """Which files make up the database right now. Reads directories and links only: no query,
        no connection, so that it works while the filesystems are frozen. After `preflight`."""
        ...

    def titles(self, names: Iterable[bytes]) -> Mapping[bytes, str]:
        """The server's own name for files, by member name: the table or index. Queries the server,
        so never while it is frozen. What is not known is left out."""
        ...

    def quiesce(self, mode: Mode, deadline_s: float) -> AbstractContextManager[Hold]:
        """Quiesce the database; entering blocks until it is, leaving releases it, whatever
        happened. Raises DeadlineExceeded, DatabaseError. Freeze mode: the recipe freezes the
        filesystems right after entering."""
        ...

    def make_ready(self, roots: Mapping[bytes, Path], facts: Mapping[str, str]) -> None:
        """Turn a restored whole set into one that can be started: links to tablespaces point to
        where they were restored (`roots`: name in the set to directory), stale files are gone.
        Never touches a path outside `roots`, but for the directories between a target and the
        roots in it, and those that a root needs beside it. A second call is harmless."""
        ...

    def start_copy(
        self,
        roots: Mapping[bytes, Path],
        facts: Mapping[str, str],
        hide: Sequence[Path],
        scratch: Path,
    ) -> AbstractContextManager[RunningCopy]:
        """Start a restored copy walled off: another uid, a mount namespace in which every path in
        `hide` (the originals) is masked, a socket of its own in `scratch`, no listening address,
        archiving off. Leaving stops it. Raises CopyFailed with the end of its log."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NoHold:
    """The hold of a driver that has nothing to hold: the filesystems' freeze is all there is."""

    sessions: tuple[Session, ...] = ()
    blocked_writers_since_s: float | None = None
    redo: tuple[RedoFile, ...] = field(default=())

    def confirm(self, into: Path) -> tuple[RedoFile, ...]:
        """Nothing of its own that could break."""
        return self.redo
