"""Asking a person for a volume: on a terminal, or by a notice and a wait.

An `Ask` is called with what is wanted, in words, and returns when it may be tried again; then it is
looked whether the volume is there, and if not it is called again. It raises NoSuchVolume when
nobody can answer, or nobody has.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from splitmirror.errors import ConfigError, NoSuchVolume
from splitmirror.system import programs
from splitmirror.units import show_seconds

Ask = Callable[[str], None]

REMIND_S: Final = 3600.0  # a notice is given again after so long without an answer
_NOTICE_TIMEOUT_S: Final = 60.0
_MOST_S = 31 * 86_400.0


class AskSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the settings of a medium have for asking. `notify`: the program, with its arguments if
    it has any, that gets on its standard input what is wanted. Then the medium is looked at every
    `notify_poll_s` seconds, for `notify_deadline_s` in all."""

    notify: str | list[str] = ""
    notify_poll_s: float = 10.0
    notify_deadline_s: float = 12 * 3600.0  # put in on Friday night, answered in the morning

    def __post_init__(self) -> None:
        for key in ("notify_poll_s", "notify_deadline_s"):
            if not 0 < getattr(self, key) <= _MOST_S:
                raise ConfigError(
                    f"[medium] {key} is {getattr(self, key):g}",
                    hint="Give it a number of seconds above 0, a month at most.",
                )

    @property
    def notify_command(self) -> Sequence[str]:
        return [self.notify] if isinstance(self.notify, str) and self.notify else self.notify

    @property
    def programs(self) -> Sequence[str]:
        """What is run, for those who check beforehand that it is there."""
        return self.notify_command[:1]


def ask_by(settings: object) -> Ask:
    """How a person is asked for a volume: on the terminal where there is one, else by the notice
    that the medium's settings have, if they do."""
    if sys.stdin.isatty() and sys.stderr.isatty():
        return AskOnTerminal()
    if isinstance(settings, AskSettings) and settings.notify_command:
        return AskByNotice(
            settings.notify_command,
            poll_s=settings.notify_poll_s,
            deadline_s=settings.notify_deadline_s,
        )
    return ask_nobody


def ask_nobody(wanted: str) -> None:
    """Raises NoSuchVolume."""
    raise NoSuchVolume(
        f"nobody can be asked: {wanted}",
        hint="Do that and run it again. On a terminal you are asked; elsewhere the program that "
        "[medium] notify names is told, and the volume is waited for.",
    )


class AskOnTerminal:
    """Prints what is wanted and waits for the Enter key. Threads wait for one another."""

    def __init__(self) -> None:
        self._one = threading.Lock()

    def __call__(self, wanted: str) -> None:
        with self._one:
            sys.stderr.write(f"\r\033[K{wanted}\nThen press Enter (Ctrl-D gives up): ")
            sys.stderr.flush()
            if not sys.stdin.readline():
                sys.stderr.write("\n")
                raise NoSuchVolume(
                    f"the answer was to give up: {wanted}",
                    hint="Run it again when the volume is at hand.",
                )


class _Wait(threading.local):
    """Each thread waits for a volume of its own."""

    told = ""
    since_told_s = 0.0
    waited_s = 0.0


class AskByNotice:
    """Tells a program, then waits a little each time. What a thread waits in all, over all volumes,
    is bounded: at the deadline it raises NoSuchVolume. Raises ProgramFailed, MissingProgram."""

    def __init__(self, command: Sequence[str], *, poll_s: float, deadline_s: float) -> None:
        self._command = command
        self._poll_s = poll_s
        self._deadline_s = deadline_s
        self._wait = _Wait()

    def __call__(self, wanted: str) -> None:
        wait = self._wait
        if wanted != wait.told or wait.since_told_s >= REMIND_S:
            self._tell(wanted)
            wait.told, wait.since_told_s = wanted, 0.0
        left_s = self._deadline_s - wait.waited_s
        if left_s <= 0:
            raise NoSuchVolume(
                f"nobody answered in {show_seconds(self._deadline_s)}: {wanted}",
                hint="Do that and run it again; [medium] notify_deadline_s says how long is "
                "waited.",
            )
        for_s = min(self._poll_s, left_s)
        wait.waited_s += for_s
        wait.since_told_s += for_s
        time.sleep(for_s)

    def _tell(self, wanted: str) -> None:
        text = f"splitmirror waits for a volume.\n{wanted}\n"
        sys.stderr.write(text)
        programs.run(self._command, timeout_s=_NOTICE_TIMEOUT_S, input=text.encode())
