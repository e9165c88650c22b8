"""Check restored SQLite databases behind a wall: `python -m splitmirror.databases._sqlite_check`.

It enters the wall itself and executes nothing else, so that the interpreter may lie where the
wall's uid could not have started it.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Sequence

import msgspec

from splitmirror.databases import _sqlite_hold
from splitmirror.system import walled

_MOST_PROBLEMS = 20  # of each check; a torn file has thousands


class Checked(msgspec.Struct, frozen=True):
    """What was checked and what is wrong, in words."""

    checks: list[str]
    problems: list[str]


def check(path: str) -> Checked:
    """SQLite's own checks: sqlite.org/pragma.html, integrity_check and foreign_key_check."""
    checks: list[str] = []
    problems: list[str] = []
    try:
        connection = _sqlite_hold.connect(path)
        for pragma in (f"integrity_check({_MOST_PROBLEMS})", "foreign_key_check"):
            rows = connection.execute(f"PRAGMA {pragma}").fetchmany(_MOST_PROBLEMS)
            problems += [f"{path}: {pragma}: {row}" for row in rows if row != ("ok",)]
            checks.append(f"{pragma} of {path}")
        connection.close()
    except sqlite3.Error as error:
        problems.append(f"{path}: {error}")
    return Checked(checks, problems)


def main(arguments: Sequence[str]) -> int:
    """Enter the wall and print one Checked for each path, as JSON lines."""
    wall, parent, paths = walled.given(arguments)
    walled.enter(wall, parent=parent)
    for path in paths:
        os.write(1, msgspec.json.encode(check(path)) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
