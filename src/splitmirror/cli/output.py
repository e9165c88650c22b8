"""What the commands print: words for people, one JSON document for programs, errors for both."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePath
from typing import Any

from splitmirror.errors import SplitmirrorError
from splitmirror.progress import Progress, silent
from splitmirror.units import show_seconds, show_size

REDRAW_S = 0.2


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
    before = error.__context__
    while before is not None and before is not error.__cause__:
        what = str(before) or type(before).__name__
        print(f"  before that: {what}", file=sys.stderr)
        before = before.__context__
    if as_json:
        document: dict[str, object] = {
            "kind": type(error).__name__,
            "message": str(error),
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
        if "report" in error.facts:
            document["report"] = plain(error.facts["report"])
        print_json({"error": document})


class Line:
    """A progress line that is redrawn in place: share, rate, time left.

    It draws only when it is called, from the step's own thread: nothing is printed while a
    filesystem is frozen.
    """

    def __init__(self, step: str) -> None:
        self._step = step
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
        text = f"{self._step}: {show_size(done)}"
        rate = done / max(now_s - self._began_s, 1e-3)
        if total:
            text += f" of {show_size(total)} ({100 * done // total} %)"
        text += f", {show_size(rate)}/s"
        if total and rate and not last:
            text += f", {show_seconds((total - done) / rate)} left"
        sys.stderr.write(f"\r\033[K{text}" + ("\n" if last else ""))
        sys.stderr.flush()


def terminal_watch(step: str) -> Progress:
    """A line for each step on a terminal, silence elsewhere."""
    return Line(step) if sys.stderr.isatty() else silent
