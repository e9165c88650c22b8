"""What is to be written of a set, and what the streams that write it share."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from splitmirror.archive.manifest import PartRecord
from splitmirror.beside import CopyPart, copy_parts
from splitmirror.journal import Journal, Record
from splitmirror.media.supply import Supply
from splitmirror.model import BackupSet, Leg, VolumeUse
from splitmirror.notes import Notes, Trusted
from splitmirror.progress import Progress
from splitmirror.stream.plan import Part, Plan, divide

AnyPart = Part | CopyPart


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be written. `backup_set` is as it will stand in the set's own catalogue."""

    trusted: Trusted
    backup_set: BackupSet
    plan: Plan
    leg: Leg
    titles: Mapping[bytes, str]
    leg_rate: float | None = None  # bytes a second, where it was measured

    @property
    def members(self) -> int:
        """How many members the whole set has."""
        return sum(len(part.items) for part in self.plan.parts) + len(self.trusted.copied)

    def parts(self) -> list[AnyPart]:
        """All of it: what is read off the leg, and behind that the few files beside it."""
        behind = len(self.plan.parts) + 1
        return [*self.plan.parts, *copy_parts(self.trusted.copied, self.trusted.part_size, behind)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToWrite:
    """What is left of one stream's stretch, and the volume on which it was cut off; "" where none
    of it is whole yet."""

    parts: Sequence[AnyPart]
    begun_on: str


class Sharing:
    """What the streams of a set share: what is to be written, what became of its volumes. Thread-
    safe but for what only the caller's thread does.

    `records`: the run's journal so far.
    """

    def __init__(
        self,
        job: Job,
        supply: Supply,
        notes: Notes,
        journal: Journal,
        progress: Progress,
        records: Iterable[Record],
    ) -> None:
        self.job, self.supply, self.notes, self.journal = job, supply, notes, journal
        self.uses: dict[str, VolumeUse] = {}  # what became of volumes; without parts and bytes
        for record in records:
            if record.kind == "volume full":
                facts = {**record.facts, "notes": tuple(record.facts["notes"])}
                self.uses[facts["volume"]] = VolumeUse(full=True, **facts)
        self.noted = {part.number: part for part in notes.parts()}
        parts = job.parts()
        self.todo = deque(self._todo(parts))
        self._progress = progress
        self._total = sum(part.stored for part in parts)
        self._lock = threading.Lock()
        self._done: dict[int, int] = {}  # bytes that each stream has written in this run
        self._before = sum(part.stored for part in self.noted.values())

    def _todo(self, parts: Sequence[AnyPart]) -> Iterator[ToWrite]:
        for stretch in divide(parts, self.job.trusted.streams):
            left = [part for part in stretch if part.number not in self.noted]
            if left:
                whole = [self.noted[one.number] for one in stretch if one.number in self.noted]
                yield ToWrite(parts=left, begun_on=volume_of(whole[-1]) if whole else "")

    @property
    def written(self) -> int:
        """Bytes of data that were written in this run."""
        with self._lock:
            return sum(self._done.values())

    @property
    def full(self) -> set[str]:
        """The volumes on which nothing more fitted."""
        with self._lock:
            return {serial for serial, use in self.uses.items() if use.full}

    def next_stretch(self) -> ToWrite | None:
        """What no stream has begun yet."""
        with suppress(IndexError):
            return self.todo.popleft()
        return None

    def spare(self, in_use: Collection[str]) -> str:
        """A volume that the set was begun on and where nobody goes on; "" when there is none."""
        out = {*self.full, *in_use, *(other.begun_on for other in self.todo)}
        volumes = map(volume_of, reversed(self.noted.values()))
        return next((serial for serial in volumes if serial not in out), "")

    def tell(self, stream: int, done: int) -> None:
        """A stream has written so many bytes of data by now."""
        with self._lock:
            self._done[stream] = done
            self._progress(self._before + sum(self._done.values()), self._total)

    def learn(self, serial: str, *, full: bool = False, stalls: int = 0, stalled_s: float = 0.0,
              notes: Iterable[str] = ()) -> VolumeUse:  # fmt: skip
        """Add to what is known of a volume; all of it."""
        with self._lock:
            known = self.uses.get(serial, VolumeUse(volume=serial))
            self.uses[serial] = known = replace(
                known,
                full=known.full or full,
                stalls=known.stalls + stalls,
                stalled_s=round(known.stalled_s + stalled_s, 3),
                notes=tuple(dict.fromkeys((*known.notes, *filter(None, notes)))),
            )
        return known

    def use_of(self, serial: str, parts: Iterable[PartRecord]) -> VolumeUse:
        """What of the set lies on a volume."""
        on_it = [part for part in parts if volume_of(part) == serial]
        length = sum(part.length for part in on_it)
        return replace(self.learn(serial), parts=len(on_it), bytes=length)


def volume_of(part: PartRecord) -> str:
    """The serial of the volume on which a noted part is."""
    assert part.position is not None  # it is whole on the medium
    return part.position.volume
