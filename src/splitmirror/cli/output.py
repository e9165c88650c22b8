"""What the commands print: words for people, one JSON document for programs, errors for both."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import PurePath
from typing import Any

from splitmirror.errors import SplitmirrorError
from splitmirror.progress import IN_FILES, Progress, silent
from splitmirror.units import show_seconds, show_size

REDRAW_S = 0.2
RATE_AFTER_S = 1.0  # before that a rate, and the time left that follows from it, is a guess


def plain(value: object) -> Any:
    """A value of ours as JSON knows it. Bytes become text, undecodable ones as lone surrogates
    (PEP 383), datetimes ISO 8601."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {plain(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        return os.fsdecode(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, PurePath):
        return str(value)
    return value


def print_json(value: object) -> None:
    """One document on one line, the last line of standard output."""
    print(json.dumps(plain(value)), flush=True)


def printable(name: bytes) -> str:
    """A file's name for a terminal: control characters and undecodable bytes are escaped."""
    text = name.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_error(error: SplitmirrorError, *, as_json: bool) -> None:
    """What went wrong and what to do, on standard error; with `as_json` also as a document."""
    print(f"splitmirror: {error}", file=sys.stderr)
    if error.hint:
        print(f"  what to do: {error.hint}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"  also: {note}", file=sys.stderr)
    for before in _before(error):
        print(f"  before that: {str(before) or type(before).__name__}", file=sys.stderr)
    if as_json:
        more = {"report": error.facts["report"]} if "report" in error.facts else {}
        print_error_document(type(error).__name__, str(error), error.exit_code, error.hint, **more)


def _before(error: BaseException) -> Iterator[BaseException]:
    """The errors during whose handling this one came up, but not those that it says itself (raised
    `from` another one, or `from None`)."""
    while error.__context__ is not None and not error.__suppress_context__:
        error = error.__context__
        yield error


def print_error_document(
    kind: str, message: str, exit_code: int, hint: str = "", **more: object
) -> None:
    """An error as the one document of a command with --json."""
    document = {"kind": kind, "message": message, "hint": hint, "exit_code": exit_code}
    print_json({"error": document | more})


class Line:
    """A progress line that is redrawn in place: share, rate, time left.

    It draws only when it is called, from the step's own thread: nothing is printed while a
    filesystem is frozen.
    """

    def __init__(self, step: str) -> None:
        self._step = step
        self._show = _show_files if step in IN_FILES else show_size
        self._began_s = time.monotonic()
        self._drawn_s = 0.0
        self._ended = False

    def __call__(self, done: int, total: int) -> None:
        now_s = time.monotonic()
        last = done >= total > 0
        if self._ended or not done or (now_s - self._drawn_s < REDRAW_S and not last):
            return
        self._ended = last
        self._drawn_s = now_s
        text = f"{self._step}: {self._show(done)}"
        seconds = now_s - self._began_s
        if total:
            text += f" of {self._show(total)} ({100 * done // total} %)"
        if last or seconds >= RATE_AFTER_S:
            rate = done / max(seconds, 1e-3)
            text += f", {self._show(rate)}/s"
            if total and not last:
                text += f", {_show_left((total - done) / rate)} left"
        sys.stderr.write(f"\r\033[K{text}" + ("\n" if last else ""))
        sys.stderr.flush()


def _show_files(count: float) -> str:
    return f"{count:,.0f} files"


def _show_left(seconds: float) -> str:
    """The time left, no finer than it can be known."""
    return "1 s" if seconds < 1 else show_seconds(round(seconds))


def terminal_watch(step: str) -> Progress:
    """A line for each step on a terminal, silence elsewhere."""
    return Line(step) if sys.stderr.isatty() else silent
