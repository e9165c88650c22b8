"""No database: directory trees that the filesystem freeze alone keeps still.

Whatever writes to the trees must be able to start from the state after a power cut, for that is
what a frozen filesystem shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import msgspec

from splitmirror.databases import CopyReport, Hold, Layout, NoHold, Root, RunningCopy
from splitmirror.databases._copies import refuse_original
from splitmirror.errors import (
    ConfigError,
    CopyFailed,
    DatabaseUnreachable,
    DatabaseUnsuitable,
    SplitmirrorError,
)
from splitmirror.model import Finding, Mode


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`paths`: the trees, named by their last component; or a table of name = path."""

    paths: list[str] | dict[str, str]


def open_database(settings: Settings) -> Files:
    """Raises ConfigError for names that cannot stand side by side in one set."""
    return Files(_named(settings.paths))


def _named(paths: list[str] | dict[str, str]) -> dict[bytes, Path]:
    pairs = list(paths.items()) if isinstance(paths, dict) else [(Path(p).name, p) for p in paths]
    named: dict[bytes, Path] = {}
    for text, path in pairs:
        name = os.fsencode(text)
        if not name or b"/" in name or name in (b".", b".."):
            raise ConfigError(
                f"{text!r} cannot name the tree {path}",
                hint='Give it a name without slashes: paths = { name = "/path" }.',
            )
        if name in named:
            raise ConfigError(
                f"two trees are both named {text!r}",
                hint='Give each a name of its own: paths = { name = "/path" }.',
            )
        if not Path(path).is_absolute():
            raise ConfigError(f"not an absolute path: {path}", hint="Write it from / on.")
        named[name] = Path(path)
    if not named:
        raise ConfigError("no path to back up", hint='Name one: paths = ["/srv/files"].')
    return named


class Files:
    """The driver. Needs no connection and no preparation."""

    modes = frozenset({Mode.FREEZE})
    mends_instants = False

    def __init__(self, named: Mapping[bytes, Path]) -> None:
        self._named = named

    def preflight(self, mode: Mode) -> list[Finding]:
        """Whether the trees are there."""
        findings = [self._look(path) for path in self._named.values()]
        if mode not in self.modes:
            problem = DatabaseUnsuitable(
                "plain files have no redo log, so no hot mode", hint='Set mode = "freeze".'
            )
            findings.append(Finding(what="mode", problem=problem))
        return findings

    def _look(self, path: Path) -> Finding:
        problem: SplitmirrorError | None = None
        if not path.exists():
            problem = DatabaseUnreachable(
                f"{path} does not exist", hint="Correct `paths`, or mount what belongs there."
            )
        return Finding(what=f"tree {path}", problem=problem)

    def facts(self) -> Mapping[str, str]:
        """The trees' original places."""
        return {f"path.{os.fsdecode(name)}": str(path) for name, path in self._named.items()}

    def layout(self) -> Layout:
        """Every tree, whole, in the order of its names."""
        return Layout(
            roots=tuple(
                Root(name=name, path=os.fsencode(os.path.realpath(path)))
                for name, path in self._named.items()
            )
        )

    def titles(self, names: Iterable[bytes]) -> Mapping[bytes, str]:
        """No server, no other names."""
        return {}

    def quiesce(self, mode: Mode, deadline_s: float) -> AbstractContextManager[Hold]:
        """Nothing to do: the recipe freezes the filesystems."""
        return nullcontext(NoHold())

    def make_ready(self, roots: Mapping[bytes, Path], facts: Mapping[str, str]) -> None:
        """Files are ready as they are."""

    def start_copy(
        self,
        roots: Mapping[bytes, Path],
        facts: Mapping[str, str],
        hide: Sequence[Path],
        scratch: Path,
    ) -> AbstractContextManager[RunningCopy]:
        """Starts nothing; the check looks whether every tree has come back."""
        return _looking_at(roots, facts, hide)


@contextmanager
def _looking_at(
    roots: Mapping[bytes, Path], facts: Mapping[str, str], hide: Sequence[Path]
) -> Iterator[RunningCopy]:
    refuse_original(roots, hide)
    wanted = {key.removeprefix("path."): path for key, path in facts.items()}
    missing = [path for name, path in wanted.items() if os.fsencode(name) not in roots]
    if missing:
        raise CopyFailed(f"not restored: {', '.join(missing)}", hint="Restore the whole set.")
    yield _RestoredFiles(roots)


class _RestoredFiles:
    """Files that were restored; there is nothing that could be started."""

    def __init__(self, roots: Mapping[bytes, Path]) -> None:
        self._roots = roots
        self.dsn = ""

    def check(self) -> CopyReport:
        """Whether the trees are there; the restore itself has checked every hash."""
        gone = [f"{path} is missing" for path in self._roots.values() if not path.exists()]
        checks = tuple(f"{path} is there" for path in self._roots.values() if path.exists())
        return CopyReport(passed=not gone, checks=checks, problems=tuple(gone))
