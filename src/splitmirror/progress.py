"""How a long step tells how far it is. The faces (a terminal, JSON, metrics) draw it."""

from __future__ import annotations

from typing import Final, Protocol

# Steps whose progress is told in files, not in bytes: they read none.
IN_FILES: Final = frozenset(("map",))


class Progress(Protocol):
    """Called with bytes done and bytes in all (0: not known); of a step IN_FILES, with files. Must
    return at once."""

    def __call__(self, done: int, total: int) -> None: ...


def silent(done: int, total: int) -> None:
    """The progress of a step that nobody watches."""


class Watch(Protocol):
    """Gives the progress of a step, by the step's name."""

    def __call__(self, step: str) -> Progress: ...


def unwatched(step: str) -> Progress:
    """Nobody watches."""
    return silent
