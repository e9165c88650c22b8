"""What every database driver must do: claims that its test runs, shipped for outside drivers too.

    from splitmirror.testing.databases import CLAIMS

    @pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
    def test_my_database(claim, tmp_path):
        claim(MyBench(tmp_path))

A `Bench` has a live database. A claim raises AssertionError, with what was expected, when the
driver does not hold it. Copies are taken with the driver's own layout, while nobody writes: what a
split adds to that is the recipe's and tested there.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from splitmirror.databases import Database, Keep, Layout, RedoFile, RunningCopy
from splitmirror.errors import CopyFailed, DatabaseError, HoldBroken
from splitmirror.model import Finding, Mode
from splitmirror.system import process

DEADLINE_S: Final = 30.0
_END_S: Final = 10.0

Roots = Mapping[bytes, Path]


class Bench(Protocol):
    """A live database, its driver, and room to try things."""

    def database(self) -> Database:
        """The driver, opened on the live database; not looked at yet."""
        ...

    def absent(self) -> Database:
        """The driver, opened on a database that is not there."""
        ...

    def commit(self) -> None:
        """Commit one more row (a file, or whatever it holds). Raises when it is refused."""
        ...

    def committed(self) -> int:
        """The rows in the live database."""
        ...

    def rows(self, copy: RunningCopy, roots: Roots) -> int:
        """The rows in a started copy."""
        ...

    def damage(self, roots: Roots) -> None:
        """Damage a restored set so that the database's own checks must see it."""
        ...

    def scratch(self) -> Path:
        """A new empty directory."""
        ...


Claim = Callable[[Bench], None]
CLAIMS: Final[list[Claim]] = []


def _claim(claim: Claim) -> Claim:
    CLAIMS.append(claim)
    return claim


# --- taking a copy as the recipe does, with cp instead of a mirror


def members(layout: Layout) -> Iterator[tuple[bytes, bytes]]:
    """(name in the set, path) of everything that the layout keeps, directories first; of what is
    off its roots only the directories."""
    for root in layout.roots:
        yield from _below(layout, root.name, root.path)
    yield from ((root.name, root.path) for root in layout.bare)


def _below(layout: Layout, name: bytes, path: bytes) -> Iterator[tuple[bytes, bytes]]:
    keep = layout.keep(name)
    if keep is Keep.LEAVE:
        return
    yield name, path
    if keep is not Keep.EMPTY and stat.S_ISDIR(os.lstat(path).st_mode):
        for own in sorted(os.listdir(path)):
            yield from _below(layout, name + b"/" + own, path + b"/" + own)


def copy_members(layout: Layout, target: Path) -> dict[bytes, Path]:
    """Copy the set to `target`; each root's new place. Sockets and pipes are left out."""
    for name, path in members(layout):
        place = target / os.fsdecode(name)
        status = os.lstat(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISDIR(status.st_mode):
            place.mkdir(mode=stat.S_IMODE(status.st_mode), exist_ok=True)
        elif stat.S_ISLNK(status.st_mode):
            place.symlink_to(os.fsdecode(os.readlink(path)))
        elif stat.S_ISREG(status.st_mode):
            shutil.copy2(os.fsdecode(path), place)
        else:
            continue
        os.chown(place, status.st_uid, status.st_gid, follow_symlinks=False)
    roots = (*layout.roots, *layout.apart)
    return {root.name: target / os.fsdecode(root.name) for root in roots}


def add_redo(redo: Sequence[RedoFile], target: Path) -> None:
    """Put the redo log's files to their places in the copy."""
    for file in redo:
        place = target / os.fsdecode(file.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file.copy, place)


def restored(bench: Bench, database: Database, mode: Mode) -> dict[bytes, Path]:
    """A copy of the live database, taken under the hold: where each root of it is."""
    _prepared(database, mode)
    target = bench.scratch()
    with database.quiesce(mode, DEADLINE_S) as hold:
        roots = copy_members(database.layout(), target)
        redo = hold.confirm(bench.scratch())
    add_redo(redo, target)
    return roots


def _prepared(database: Database, mode: Mode) -> None:
    problems = [each for each in database.preflight(mode) if each.problem and not each.warning]
    assert not problems, f"{mode} of a live database is impossible: {problems}"


def _modes(database: Database) -> list[Mode]:
    return sorted(database.modes)


def _originals(database: Database) -> list[Path]:
    return [Path(os.fsdecode(root.path)) for root in database.layout().roots]


# --- what is found beforehand


@_claim
def every_mode_that_is_offered_is_possible(bench: Bench) -> None:
    database = bench.database()
    assert database.modes, "no mode at all"
    for mode in _modes(database):
        _prepared(database, mode)


@_claim
def a_mode_that_is_not_offered_is_found_to_be_a_problem(bench: Bench) -> None:
    database = bench.database()
    for mode in set(Mode) - database.modes:
        assert _problems(database.preflight(mode)), f"{mode} is not refused"


@_claim
def a_database_that_is_not_there_is_a_finding_and_no_exception(bench: Bench) -> None:
    database = bench.absent()
    for mode in _modes(database):
        problems = _problems(database.preflight(mode))
        assert problems, "nothing was found to be wrong"
        for problem in problems:
            assert isinstance(problem, DatabaseError), f"{problem!r} is not of the database"
            assert problem.hint, f"{problem!r} does not say what to do"


def _problems(findings: list[Finding]) -> list[Exception]:
    return [each.problem for each in findings if each.problem is not None and not each.warning]


@_claim
def facts_are_text_for_the_record(bench: Bench) -> None:
    database = bench.database()
    _prepared(database, _modes(database)[0])
    for key, value in database.facts().items():
        assert isinstance(key, str) and isinstance(value, str), f"{key!r}: {value!r}"


# --- the layout


@_claim
def roots_stand_beside_one_another(bench: Bench) -> None:
    database = bench.database()
    for mode in _modes(database):
        _prepared(database, mode)
        names = [root.name for root in database.layout().roots]
        assert names, "no root"
        for name in names:
            assert not name.startswith(b"/") and b".." not in name.split(b"/"), name
            clash = [other for other in names if (other + b"/").startswith(name + b"/")]
            assert clash == [name], f"{name!r} holds {clash}"


@_claim
def roots_are_where_they_really_lie(bench: Bench) -> None:
    database = bench.database()
    for mode in _modes(database):
        _prepared(database, mode)
        for root in database.layout().roots:
            real = os.path.realpath(root.path)
            assert root.path == real and os.path.lexists(real), f"{root} is at {real!r}"


@_claim
def any_two_names_can_be_ordered_and_a_directory_comes_first(bench: Bench) -> None:
    database = bench.database()
    for mode in _modes(database):
        _prepared(database, mode)
        layout = database.layout()
        found = [name for name, _ in members(layout)]
        odd = [found[0] + b"/" + own for own in (b"1", b"1.2", b"x", b"\xff", b"1_fsm/y", b"")]
        place = {name: at for at, name in enumerate(sorted(found + odd, key=layout.order))}
        for name in found:
            parent = name.rpartition(b"/")[0]
            assert place.get(parent, -1) < place[name], f"{name!r} comes before its directory"


@_claim
def titles_are_of_names_that_were_asked_for(bench: Bench) -> None:
    database = bench.database()
    _prepared(database, _modes(database)[0])
    names = [name for name, _ in members(database.layout())]
    for name, title in database.titles(names).items():
        assert name in names and title, f"{name!r}: {title!r}"


# --- the hold


@_claim
def a_hold_is_confirmed_and_then_let_go(bench: Bench) -> None:
    database = bench.database()
    for mode in _modes(database):
        _prepared(database, mode)
        with database.quiesce(mode, DEADLINE_S) as hold:
            assert database.layout().roots, "no layout while the database is held"
            hold.confirm(bench.scratch())
        before = bench.committed()
        bench.commit()
        assert bench.committed() == before + 1, f"after {mode} nothing is committed"


@_claim
def an_error_inside_the_hold_lets_go_and_comes_out(bench: Bench) -> None:
    class Stop(Exception):
        pass

    database = bench.database()
    for mode in _modes(database):
        _prepared(database, mode)
        try:
            with database.quiesce(mode, DEADLINE_S):
                raise Stop
        except Stop:
            bench.commit()
        else:
            raise AssertionError(f"{mode}: the error was swallowed")


@_claim
def a_hold_whose_session_ends_is_broken(bench: Bench) -> None:
    database = bench.database()
    for mode in _modes(database):
        _prepared(database, mode)
        with database.quiesce(mode, DEADLINE_S) as hold:
            sessions = hold.sessions
            for session in sessions:
                alive = process.alive(session.pid, session.start_ticks)
                assert alive, f"{session} is no living process"
                process.end(session)
                gone = process.wait_gone(session.pid, session.start_ticks, _END_S)
                assert gone, f"{session} does not end by its signal"
            try:
                hold.confirm(bench.scratch())
            except HoldBroken:
                assert sessions, "nothing could have broken it"
            else:
                assert not sessions, f"{mode}: a broken hold was confirmed"
        bench.commit()


@_claim
def the_redo_log_is_of_the_set_and_lies_where_it_was_wanted(bench: Bench) -> None:
    database = bench.database()
    for mode in _modes(database):
        _prepared(database, mode)
        into = bench.scratch()
        with database.quiesce(mode, DEADLINE_S) as hold:
            roots = [root.name for root in database.layout().roots]
            redo = hold.confirm(into)
        for file in redo:
            assert any(file.name.startswith(root + b"/") for root in roots), file
            assert file.copy.is_file() and into in file.copy.parents, file


# --- restored copies


@_claim
def a_copy_taken_under_the_hold_is_whole(bench: Bench) -> None:
    database = bench.database()
    for mode in _modes(database):
        bench.commit()
        wanted = bench.committed()
        roots = restored(bench, database, mode)
        facts = database.facts()
        database.make_ready(roots, facts)
        database.make_ready(roots, facts)
        with database.start_copy(roots, facts, _originals(database), bench.scratch()) as copy:
            report = copy.check()
            assert report.passed and not report.problems, f"{mode}: {report.problems}"
            assert report.checks, "nothing was checked"
            found = bench.rows(copy, roots)
        assert found == wanted, f"{mode}: {found} rows instead of {wanted}"
        assert bench.committed() == wanted, f"{mode}: the original was changed"
        bench.commit()


@_claim
def the_original_is_not_started_as_a_copy(bench: Bench) -> None:
    database = bench.database()
    _prepared(database, _modes(database)[0])
    layout = database.layout()
    roots = {root.name: Path(os.fsdecode(root.path)) for root in layout.roots}
    try:
        with database.start_copy(
            roots, database.facts(), _originals(database), bench.scratch()
        ) as copy:
            raise AssertionError(f"it was started: {copy.dsn}")
    except CopyFailed:
        bench.commit()


@_claim
def a_damaged_copy_is_found_out(bench: Bench) -> None:
    database = bench.database()
    mode = _modes(database)[0]
    roots = restored(bench, database, mode)
    bench.damage(roots)
    facts = database.facts()
    try:
        with database.start_copy(roots, facts, _originals(database), bench.scratch()) as copy:
            report = copy.check()
    except CopyFailed:
        return
    assert not report.passed and report.problems, "the checks passed"
