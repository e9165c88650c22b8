"""A process of our own that answers line by line, and ends when we do.

For what may not be done in this process, such as holding SQLite's locks. The module that is run
reads lines from its standard input, answers each with one line, and exits at the end of file: the
kernel gives it that when the last of our descriptors closes, however we end.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType

from splitmirror.errors import DeadlineExceeded, ProgramFailed
from splitmirror.model import Session
from splitmirror.system import process
from splitmirror.system.deadline import uninterrupted

_LONGEST_ANSWER = 1 << 20
_LEAVE_S = 5.0  # a companion exits at end of file at once; one that hangs is killed


class CompanionGone(ProgramFailed):
    """The companion ended before it answered."""


class Companion:
    """`python -m module arguments`, with a pipe each way. A context manager: leaving ends it.

    Not thread-safe. `what` names it in errors and in the guard's record.
    """

    def __init__(self, what: str, module: str, arguments: Sequence[str]) -> None:
        self._what = what
        self._answers = bytearray()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,  # Ctrl-C at the terminal is for us to handle
            bufsize=0,
        )

    def session(self, number: int) -> Session:
        """The process, to be ended with signal `number`. Raises CompanionGone when it has ended."""
        ticks = process.start_ticks(self._process.pid)
        if ticks is None:
            raise self._gone()
        return Session(
            what=self._what, pid=self._process.pid, start_ticks=ticks, signal=int(number)
        )

    def ask(self, question: str, deadline_s: float) -> bytes:
        """Send a line (if not empty) and give the next line that comes, without its newline.

        Raises CompanionGone, DeadlineExceeded.
        """
        if question:
            self._send(question)
        until = time.monotonic() + deadline_s
        while b"\n" not in self._answers:
            self._receive(until)
        line, _, rest = bytes(self._answers).partition(b"\n")
        self._answers[:] = rest
        return line

    def _send(self, question: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(os.fsencode(question) + b"\n")
        except BrokenPipeError:
            raise self._gone() from None

    def _receive(self, until: float) -> None:
        assert self._process.stdout is not None
        left = max(0.0, until - time.monotonic())
        if not select.select([self._process.stdout], [], [], left)[0]:
            raise DeadlineExceeded(
                f"{self._what} did not answer in time",
                hint="Find out what it waits for: another process may hold the database's lock.",
                pid=self._process.pid,
            )
        got = os.read(self._process.stdout.fileno(), 65536)
        if not got or len(self._answers) > _LONGEST_ANSWER:
            raise self._gone()
        self._answers += got

    def _gone(self) -> CompanionGone:
        return CompanionGone(
            f"{self._what} (pid {self._process.pid}) has ended",
            hint="Something ended it: look for the OOM killer, the guard or an operator.",
            pid=self._process.pid,
        )

    @uninterrupted()
    def close(self) -> None:
        """Give it end of file and wait; one that does not go is killed. Harmless a second time."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Companion:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
