"""Any medium with faults that a test switches on, in the manner of nbdkit's error filter.

    medium = FaultyMedium(inner, [Fault(kind=FaultKind.WRITE_ERROR, object=12)])

A fault strikes when the object with its number would be written, read or passed. What comes before
it reaches the inner medium, so that the volume holds what a real one would.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from splitmirror.errors import (
    Busy,
    DriveLost,
    EndOfMedium,
    MediumDamaged,
    MediumError,
    SplitmirrorError,
    WrongMedium,
)
from splitmirror.media import Block, Capacity, Limits, Mark, Medium, WriteOnce


class FaultKind(enum.Enum):
    """What goes wrong."""

    WRITE_ERROR = "the object cannot be written"
    SHORT_END = "the volume ends before the object; room comes back when it is written shorter"
    EARLY_WARNING = "from the object on writing gives the early warning"
    READ_ERROR = "the object cannot be read; it can be located past"
    LOST_POSITION = "behind the object the drive knows no position until it is loaded anew"
    WRONG_POSITION = "from the object on the drive tells one object too many"
    SYNC_ERROR = "a sync with the object on the volume fails"
    RESET = "the drive was reset, or stands elsewhere: nothing is known until it is loaded anew"
    PROTECTED = "the volume is write-protected"
    RESERVED = "another host has the drive for itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """`times`: how often it strikes; None: always. The object matters to faults of objects only."""

    kind: FaultKind
    object: int = 0
    times: int | None = None


class FaultyMedium:
    """A Medium around another one."""

    def __init__(self, inner: Medium, faults: Iterable[Fault] = ()) -> None:
        self.inner = inner
        self._left = {fault: fault.times for fault in faults}
        self._lost = False

    def switch_on(self, fault: Fault) -> None:
        self._left[fault] = fault.times

    def switch_off(self) -> None:
        """All faults. What they have done stays done."""
        self._left.clear()

    def load(self, *, writable: bool) -> None:
        if self._has(FaultKind.RESERVED):
            raise _fault(Busy, "another host has reserved the drive")
        if writable and self._has(FaultKind.PROTECTED):
            raise _fault(WrongMedium, "the volume is write-protected")
        if self._lost:
            self.inner.unload()
        self.inner.load(writable=writable)
        self._lost = False

    def unload(self) -> None:
        self.inner.unload()
        self._lost = False

    def write(self, blocks: Sequence[Block]) -> bool:
        early = False
        for block in blocks:
            self._before_writing()
            early = self.inner.write([block])
            self._lose_position()
        return early or self._early()

    def write_filemarks(self, count: int, *, sync: bool) -> bool:
        early = False
        for _ in range(count):
            self._before_writing()
            early = self.inner.write_filemarks(1, sync=False)
            self._lose_position()
        if sync:
            self._check_position()
            if self._strikes(FaultKind.SYNC_ERROR, self.inner.tell(), reached=True):
                raise _fault(MediumError, "the sync failed")
            early = self.inner.write_filemarks(0, sync=True)
        return early or self._early()

    def read(self, buffer: memoryview) -> int | Mark:
        self._check_position()
        if self._strikes(FaultKind.READ_ERROR, self.inner.tell()):
            raise _fault(
                MediumDamaged,
                f"object {self.inner.tell()} cannot be read",
                object=self.inner.tell(),
            )
        found = self.inner.read(buffer)
        self._lose_position()
        return found

    def locate(self, position: int) -> None:
        self._check_position()
        self.inner.locate(position)

    def space_filemarks(self, count: int) -> None:
        self._check_position()
        self.inner.space_filemarks(count)

    def tell(self) -> int:
        self._check_position()
        position = self.inner.tell()
        wrong = self._strikes(FaultKind.WRONG_POSITION, position, reached=True)
        return position + wrong

    @property
    def limits(self) -> Limits:
        return self.inner.limits

    @property
    def capacity(self) -> Capacity:
        return self.inner.capacity

    @property
    def write_once(self) -> bool:
        return isinstance(self.inner, WriteOnce) and self.inner.write_once

    def _before_writing(self) -> None:
        self._check_position()
        position = self.inner.tell()
        if self._strikes(FaultKind.WRITE_ERROR, position):
            raise _fault(MediumError, f"object {position} cannot be written")
        if self._strikes(FaultKind.SHORT_END, position, reached=True):
            raise _fault(EndOfMedium, f"the volume ends before object {position}")

    def _early(self) -> bool:
        return self._strikes(FaultKind.EARLY_WARNING, self.inner.tell(), reached=True)

    def _lose_position(self) -> None:
        """The object before the position was just passed."""
        self._lost |= self._strikes(FaultKind.LOST_POSITION, self.inner.tell() - 1)

    def _check_position(self) -> None:
        self._lost |= self._has(FaultKind.RESERVED)
        self._lost |= self._strikes(FaultKind.RESET, 0, reached=True)
        if self._lost:
            raise _fault(DriveLost, "the drive is not trusted any more")

    def _has(self, kind: FaultKind) -> bool:
        return any(fault.kind is kind for fault in self._left)

    def _strikes(self, kind: FaultKind, position: int, *, reached: bool = False) -> bool:
        """Whether a fault of this kind is due at the object (`reached`: or at one before it)."""
        for fault, left in self._left.items():
            here = position >= fault.object if reached else position == fault.object
            if fault.kind is kind and here and left != 0:
                self._left[fault] = None if left is None else left - 1
                return True
        return False


def _fault(kind: type[SplitmirrorError], what: str, **facts: object) -> SplitmirrorError:
    return kind(f"{what} (a fault that was asked for)", hint="Load the volume anew.", **facts)
