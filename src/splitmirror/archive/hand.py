"""What one hand does: places members, with a Placer of its own, as it is told act by act.

Acts and answers are plain tuples, for they go from process to process (`marshal`). The bytes of
files do not: they lie in memory that all of them share.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from splitmirror.archive.pax import FileValues
from splitmirror.archive.placing import NewFile, Placer
from splitmirror.errors import MediumError, SplitmirrorError
from splitmirror.media import Place
from splitmirror.model import Attributes, Kind

Act = tuple[int, str, tuple[Any, ...]]
"""Its turn, the name of one of Hand's methods, its arguments, of which the first is the member's
name."""

Failure = tuple[int, bytes, str, bytes]
"""The turn, the member's name, why it was not placed; and of a hard link the target, where that is
not there."""

Packed = tuple[str, int, int, int, int, int, bytes, int, tuple[tuple[bytes, bytes], ...]]

_KINDS = {kind.value: kind for kind in Kind}


def packed(attributes: Attributes) -> Packed:
    return (
        attributes.kind.value,
        attributes.mode,
        attributes.uid,
        attributes.gid,
        attributes.size,
        attributes.mtime_ns,
        attributes.link,
        attributes.rdev,
        attributes.xattrs,
    )


def _unpacked(values: Packed) -> Attributes:
    kind, mode, uid, gid, size, mtime_ns, link, rdev, xattrs = values
    return Attributes(
        kind=_KINDS[kind],
        mode=mode,
        uid=uid,
        gid=gid,
        size=size,
        mtime_ns=mtime_ns,
        link=link,
        rdev=rdev,
        xattrs=xattrs,
    )


class Hand:
    """Files that come piece by piece are known by a number."""

    def __init__(self, placer: Placer, memory: memoryview) -> None:
        self.placer = placer
        self._memory = memory
        self._coming: dict[int, NewFile] = {}

    def do(self, act: Act) -> Failure | None:
        """What of it failed, when that is the member's own affair; raises everything else."""
        turn, what, arguments = act
        try:
            getattr(self, what)(*arguments)
        except MediumError as error:
            target = error.facts.get("target", b"")
            assert isinstance(target, bytes)
            return turn, arguments[0], str(error), target
        return None

    def small(self, name: bytes, values: FileValues, places: Sequence[Place]) -> None:
        self.placer.small(values, [self._memory[begin:end] for begin, end in places])

    def directory(self, name: bytes) -> None:
        self.placer.make_directory(name)

    def hardlink(self, name: bytes, target: bytes) -> None:
        self.placer.hardlink(name, target)

    def symlink(self, name: bytes, values: Packed) -> None:
        self.placer.symlink(name, _unpacked(values))

    def special(self, name: bytes, values: Packed) -> None:
        self.placer.special(name, _unpacked(values))

    # --- files that come piece by piece; of one that could not be begun nothing more is told

    def begin(self, name: bytes, number: int) -> None:
        self._coming[number] = self.placer.file(name)

    def expect(self, name: bytes, number: int, offset: int, length: int) -> None:
        if new := self._coming.get(number):
            new.expect(offset, length)

    def write(self, name: bytes, number: int, offset: int, begin: int, end: int) -> None:
        if new := self._coming.get(number):
            new.write(offset, self._memory[begin:end])

    def place(self, name: bytes, number: int, values: Packed) -> None:
        if new := self._coming.pop(number, None):
            new.place(_unpacked(values))

    def abandon(self, name: bytes, number: int, keep: bool) -> None:
        if new := self._coming.pop(number, None):
            new.abandon(keep=keep)


# --- in a process of its own


def orders_of(acts: list[Act]) -> bytes:
    return marshal.dumps(acts)


class Answer(NamedTuple):
    """What failed of an order; the error that stopped the hand (pickled; b"": none); and how many
    files it has placed so far, and what it could not give back: what, why, first, count."""

    failures: list[Failure]
    stopped: bytes
    files: int
    skipped: list[tuple[str, str, bytes, int]]


def answer_of(message: bytes) -> Answer:
    return Answer._make(marshal.loads(message))


def serve(
    hand: Hand, stop: memoryview, orders: Iterator[bytes], answer: Callable[[bytes], None]
) -> None:
    """Do what is ordered and answer each order; once `stop[0]` is set, nothing more is done. What
    is half made in the end is taken away."""
    with hand.placer:
        for order in orders:
            failures, stopped = list[Failure](), b""
            try:
                failures = list(_done(hand, stop, marshal.loads(order)))
            except BaseException as error:
                stop[0], stopped = 1, _pickled(error)
            skipped = [(s.what, s.why, s.first, s.count) for s in hand.placer.skipped]
            answer(marshal.dumps((failures, stopped, hand.placer.files, skipped)))


def _done(hand: Hand, stop: memoryview, acts: Iterable[Act]) -> Iterator[Failure]:
    for act in acts:
        if stop[0]:
            return
        if failure := hand.do(act):
            yield failure


def _pickled(error: BaseException) -> bytes:
    """An error, to be raised in another process: without what it came from, which is noted."""
    import pickle
    import traceback

    if not isinstance(error, SplitmirrorError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        return pickle.dumps(error)
    except Exception:  # an error of some library that cannot be pickled
        return pickle.dumps(RuntimeError("".join(traceback.format_exception(error))))
