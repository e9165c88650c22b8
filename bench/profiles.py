"""Where the main thread's time goes: the most expensive functions, without what they called.

Time in the threads that read, hash and write is not in it: where they are the limit, the main
thread is seen waiting for them (`acquire` of a lock). The profiler itself makes calls dearer.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import tempfile
from pathlib import Path

from bench import cost

_TOP = 15
_SOURCES = Path(__file__).parent.parent


def top(profile: cProfile.Profile | str) -> list[str]:
    """The first entries of a profile, or of one that was saved in a file."""
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = sum(own for _, _, own, _, _ in stats.values())
    entries = sorted(stats.items(), key=lambda item: -item[1][2])[:_TOP]
    return [
        f"{own / total:.1%} {_where(*function)} ({calls} calls)"
        for function, (_, calls, own, _, _) in entries
    ]


def _where(path: str, line: int, name: str) -> str:
    """A function's module and name; of a built-in one the name says it all."""
    if path == "~":
        return name
    path = path.removeprefix(f"{_SOURCES}/").removeprefix("src/")
    return f"{'/'.join(Path(path).parts[-3:])}:{name}"


def of_command(*words: str) -> list[str]:
    """Of a splitmirror command, the loading of its modules included."""
    with tempfile.NamedTemporaryFile() as file:
        saved = ["-m", "cProfile", "-o", file.name, "-m", "splitmirror"]
        cost.run([sys.executable, *saved, *words])
        return top(file.name)
