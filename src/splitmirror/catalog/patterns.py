"""Which members a restore or a listing asks for.

A pattern is a member name in the set, as `splitmirror show` prints it. `*`, `?` and `[...]` match
within a component, `**` across components. What names (or matches) a directory means all that is
below it too. A name that holds such signs itself is found by writing it as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_MAGIC = re.compile(rb"[*?\[]")
_PIECE = re.compile(rb"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|[^*?\[]+|\[", re.DOTALL)
_SIMPLE = {b"**/": rb"(?:[^/]+/)*", b"**": rb".*", b"*": rb"[^/]*", b"?": rb"[^/]"}


def _expression(pattern: bytes) -> bytes:
    return b"".join(_piece(match[0]) for match in _PIECE.finditer(pattern))


def _piece(piece: bytes) -> bytes:
    if piece in _SIMPLE:
        return _SIMPLE[piece]
    if piece.startswith(b"[") and len(piece) > 1:
        inside = piece[1:-1]
        negated = inside.startswith(b"!")
        body = re.sub(rb"([\\\[^&~|])", rb"\\\1", inside[negated:])
        body = body.replace(b"]", rb"\]")
        return rb"(?!/)[" + (b"^" if negated else b"") + body + b"]"
    return re.escape(piece)


@dataclass(frozen=True, slots=True)
class Pattern:
    """One pattern. `prefix`: every name that matches begins with it, for the catalogue's index."""

    text: bytes
    prefix: bytes = field(init=False)
    _regex: re.Pattern[bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        text = self.text.rstrip(b"/")
        magic = _MAGIC.search(text)
        object.__setattr__(self, "prefix", text[: magic.start()] if magic else text)
        either = re.escape(text) + b"|" + _compiled(text)
        object.__setattr__(self, "_regex", re.compile(b"(?:" + either + b")(?:/.*)?", re.DOTALL))

    def matches(self, name: bytes) -> bool:
        return self._regex.fullmatch(name) is not None


def _compiled(text: bytes) -> bytes:
    """The expression, or only the literal text where a range in brackets makes no sense."""
    expression = _expression(text)
    try:
        re.compile(expression)
    except re.error:
        return re.escape(text)
    return expression


def compiled(patterns: Sequence[bytes]) -> tuple[Pattern, ...]:
    """None at all: everything."""
    return tuple(Pattern(text) for text in patterns)


def after(prefix: bytes) -> bytes | None:
    """The smallest name that is behind all names beginning with `prefix`; None: there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None
