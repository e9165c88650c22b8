"""What the claims of all contract suites say alike. Each raises AssertionError with what was
expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from splitmirror.errors import SplitmirrorError

E = TypeVar("E", bound=SplitmirrorError)


def same(found: object, wanted: object, what: str) -> None:
    """They are equal."""
    if found != wanted:
        raise AssertionError(f"{what}: {_short(found)} instead of {_short(wanted)}")


def _short(thing: object) -> str:
    if isinstance(thing, list):
        return f"[{', '.join(map(_short, thing))}]"
    return f"{thing[:14]!r}+{len(thing)}" if isinstance(thing, bytes) else repr(thing)


def raised(
    kinds: type[E] | tuple[type[E], ...], act: Callable[[], object], what: str, names: str = ""
) -> E:
    """It raises an error of these kinds, which says what to do and names what it should."""
    try:
        act()
    except kinds as error:
        if not error.hint or names not in str(error):
            why = f"the error has no hint, or does not name {names!r}"
            raise AssertionError(f"{what}: {why}: {error}") from error
        return error
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    raise AssertionError(f"{what}: no {' or '.join(kind.__name__ for kind in kinds)} was raised")
