"""Volumes brought to be read: each once, several at once where there are drives for them, and what
is wanted of one in the order in which it lies there.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from splitmirror.archive.manifest import PartRecord
from splitmirror.errors import WrongMedium
from splitmirror.media.supply import Loaded, ReadSupply
from splitmirror.progress import Progress
from splitmirror.stream.together import Ask, together


@dataclass(frozen=True, slots=True, kw_only=True)
class OnVolume:
    """The parts of a set that are wanted of one volume, in the order in which they lie there.

    `numbers`: the same as ranges of part numbers, one after the other; beside these parts a range
    has none of which anything is wanted.
    """

    serial: str
    parts: tuple[PartRecord, ...]
    numbers: tuple[range, ...]


def on_volumes(parts: Iterable[PartRecord], wanted: AbstractSet[int]) -> list[OnVolume]:
    """Where the wanted parts lie, the volumes in the order of their lowest numbers. Raises
    WrongMedium for a part of which no volume is known."""
    found: dict[str, list[PartRecord]] = {}
    for part in sorted(parts, key=lambda part: part.number):
        if part.number in wanted:
            found.setdefault(_serial(part), []).append(part)
    return [_on_volume(serial, of_it, wanted) for serial, of_it in found.items()]


def _on_volume(serial: str, parts: list[PartRecord], wanted: AbstractSet[int]) -> OnVolume:
    parts.sort(key=_object)
    numbers: list[range] = []
    for part in parts:
        last = numbers[-1] if numbers else range(0)
        between = range(last.stop, part.number)
        if numbers and last.stop <= part.number and wanted.isdisjoint(between):
            numbers[-1] = range(last.start, part.number + 1)
        else:
            numbers.append(range(part.number, part.number + 1))
    return OnVolume(serial=serial, parts=tuple(parts), numbers=tuple(numbers))


def _serial(part: PartRecord) -> str:
    if part.position is None:
        raise WrongMedium(
            f"part {part.number} of the set is on an unknown volume",
            hint="Make the catalogue anew: splitmirror catalog rebuild",
        )
    return part.position.volume


def _object(part: PartRecord) -> int:
    return part.position.object if part.position else 0


Read = Callable[[Loaded, OnVolume], None]
"""Reads what is wanted of a volume that is there."""


class Bringing:
    """The volumes of a supply that are there. A context manager: leaving it lets all of them go.

    All methods are for the thread that made it, but for `check`, and what `each` calls.
    """

    def __init__(self, supply: ReadSupply) -> None:
        self._supply = supply
        self._there: dict[str, tuple[ExitStack, Loaded]] = {}
        self._error: BaseException | None = None

    def __enter__(self) -> Bringing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ExitStack() as all_of_them:
            for stack, _ in self._there.values():
                all_of_them.push(stack)
            self._there.clear()

    def bring(self, serial: str) -> Loaded:
        """Have it there, until `let_go`. It is there already: harmless."""
        if serial not in self._there:
            with ExitStack() as stack:
                loaded = stack.enter_context(self._supply.to_read(serial))
                self._there[serial] = stack.pop_all(), loaded
        return self._there[serial][1]

    def let_go(self, serial: str) -> None:
        stack, _ = self._there.pop(serial)
        stack.close()

    def at_once(self, wanted: Sequence[OnVolume]) -> int:
        """How many of them are read at once."""
        return max(1, min(self._supply.readers, len(wanted)))

    def each(self, wanted: Sequence[OnVolume], read: Read) -> None:
        """Have every one of these volumes read, those first that are there; each is brought once,
        and no other stays.

        Several at once where the supply can: `read` is called on different threads then. When one
        fails the others end at their next `check`, and its error is raised.
        """
        for serial in self._there.keys() - {one.serial for one in wanted}:
            self.let_go(serial)
        todo = deque(sorted(wanted, key=lambda one: one.serial not in self._there))

        def job(ask: Ask) -> None:
            while todo:
                one = todo.popleft()
                loaded = ask(partial(self.bring, one.serial))
                read(loaded, one)
                ask(partial(self.let_go, one.serial))

        together([job] * self.at_once(wanted), self._stop)

    def check(self) -> None:
        """Raises what went wrong elsewhere. On any thread."""
        if self._error is not None:
            raise self._error

    def _stop(self, error: BaseException) -> None:
        self._error = self._error or error


class Told:
    """A progress that several threads add to."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total = progress, total
        self._lock, self._done = threading.Lock(), 0

    def add(self, done: int) -> None:
        with self._lock:
            self._done += done
            self._progress(self._done, self._total)
