"""Restored SQLite databases: made ready, given to another uid, checked behind a wall."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from splitmirror.databases import CopyReport, RunningCopy
from splitmirror.databases._copies import hand_over, refuse_original
from splitmirror.databases._sqlite_check import Checked
from splitmirror.errors import CopyFailed, ProgramFailed
from splitmirror.system import programs, walled

PREFIX = b"db/"  # every database's name in the set begins so

_CHECK = "splitmirror.databases._sqlite_check"
_CHECK_S = 24 * 3600.0  # integrity_check reads everything, and sorts


def make_ready(roots: Mapping[bytes, Path]) -> None:
    """Remove what an older database of that name left beside a restored one. Harmless again.

    A stale -journal would be rolled back into it, a stale -wal replayed into it.
    """
    for name, path in _databases(roots).items():
        stale = ["-shm", "-journal"] + ([] if name + b"-wal" in roots else ["-wal"])
        for ending in stale:
            path.with_name(path.name + ending).unlink(missing_ok=True)


@contextmanager
def given_away(
    roots: Mapping[bytes, Path], facts: Mapping[str, str], hide: Sequence[Path]
) -> Iterator[RunningCopy]:
    """The copy, owned by a uid that nobody else has. Raises CopyFailed."""
    hidden = _with_siblings((*hide, *_originals(facts)))
    refuse_original(roots, hidden)
    make_ready(roots)
    databases = tuple(_databases(roots).values())
    if not databases:
        raise CopyFailed("the set holds no SQLite database", hint="Restore the whole set.")
    for path in databases:
        _restored(path, roots)
    uid = walled.unused_uid()
    places = tuple(sorted({Path(os.path.realpath(path.parent)) for path in databases}))
    for place in places:
        os.chown(place, uid, uid)  # SQLite makes -wal and -shm there
    hand_over((path for path in roots.values() if path.exists()), uid)
    yield _SqliteCopy(databases, walled.Wall(uid=uid, gid=uid, hide=hidden, show=places))


def _databases(roots: Mapping[bytes, Path]) -> dict[bytes, Path]:
    """The roots that are databases: all but the -wal of another one."""
    endings = {name + b"-wal" for name in roots}
    return {
        name: path
        for name, path in roots.items()
        if name.startswith(PREFIX) and name not in endings
    }


def _restored(path: Path, roots: Mapping[bytes, Path]) -> None:
    """Raise CopyFailed unless the database is there, with its -wal beside it."""
    if not path.exists():
        raise CopyFailed(f"{path} was not restored", hint="Restore the whole set.")
    for name, other in roots.items():
        if roots.get(name.removesuffix(b"-wal")) == path and other != path:
            wanted = path.with_name(path.name + "-wal")
            if other != wanted:
                raise CopyFailed(
                    f"{other} must lie at {wanted}", hint="Restore both to one directory."
                )


def _originals(facts: Mapping[str, str]) -> list[Path]:
    return [Path(value) for key, value in facts.items() if key.startswith("path.")]


def _with_siblings(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Each path and the files that SQLite keeps beside it."""
    endings = ("", "-wal", "-shm", "-journal")
    return tuple(
        dict.fromkeys(
            Path(os.path.realpath(path.with_name(path.name + ending)))
            for path in paths
            for ending in endings
        )
    )


class _SqliteCopy:
    """Restored databases behind a wall."""

    def __init__(self, databases: Sequence[Path], wall: walled.Wall) -> None:
        self._databases = databases
        self._wall = wall
        self.dsn = "\n".join(str(path) for path in databases)

    def check(self) -> CopyReport:
        """PRAGMA integrity_check and foreign_key_check of each."""
        argv = [sys.executable, "-m", _CHECK, *walled.options(self._wall), "--"]
        argv += [str(path) for path in self._databases]
        try:
            lines = programs.run(argv, timeout_s=_CHECK_S).splitlines()
        except ProgramFailed as error:
            raise CopyFailed(f"the check could not be run: {error}", hint=error.hint) from error
        found = [msgspec.json.decode(line, type=Checked) for line in lines]
        problems = tuple(problem for each in found for problem in each.problems)
        checks = tuple(check for each in found for check in each.checks)
        return CopyReport(passed=not problems, checks=checks, problems=problems)
