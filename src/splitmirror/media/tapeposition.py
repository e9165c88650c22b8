"""Where a tape stands, and how it is brought elsewhere: with drives that tell, and without.

Most drives have READ POSITION and LOCATE. Where one has not, records and filemarks are counted
while the tape is spaced over, from its beginning on if need be. Spacing goes past st: from it one
learns only that it failed, from the drive where it stopped, and why.

Every method raises OSError or CommandFailed where the drive failed; where the tape stands then is
not known.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from splitmirror.system import scsitape, st
from splitmirror.system.sgio import CommandFailed, Sense
from splitmirror.system.st import Op

_FILEMARKS_AT_END: Final = 2
_MOST: Final = (1 << 23) - 1  # what SPACE's 24 bits with a sign hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Before which object the tape stands, and whether it stopped before it was to, at the end of
    data or at the beginning."""

    position: int
    short: bool = False


class Positions(Protocol):
    """Moves the tape of an open drive. `now` is where it stands."""

    def tell(self) -> int | None:
        """What the drive says; None: nothing."""
        ...

    def locate(self, wanted: int, now: int | None) -> Stop:
        """`now` None: not known."""
        ...

    def space_filemarks(self, count: int, now: int) -> Stop: ...

    def after_refused_write(self, now: int) -> int:
        """Where the tape stands after a write at `now` that ended with ENOSPC: at `now`, or behind
        what was to be written."""
        ...


def positions_of(fd: int) -> Positions:
    """For a tape that stands at its beginning."""
    if scsitape.knows_position(fd):
        with suppress(OSError):
            st.operate(fd, Op.SEEK, 0)
            return Told(fd)
    return Counted(fd)


def at_end_of_data(fd: int) -> bool:
    """Whether no object is next. The tape may have gone over one; back is the caller's."""
    return scsitape.is_end_of_data(_space(fd, 1))


def something_is_kept(fd: int) -> bool:
    """Whether more than the filemarks that a volume ends with is next, so that a write-once
    cartridge is not to be written here. Where the tape stands afterwards is not known."""
    for _ in range(_FILEMARKS_AT_END + 1):
        met = _space(fd, 1)
        if met is None or not met.filemark:
            return not scsitape.is_end_of_data(met)
    return True


class Told:
    """A drive with READ POSITION and LOCATE."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def tell(self) -> int | None:
        return st.position(self._fd)

    def locate(self, wanted: int, now: int | None) -> Stop:
        try:
            st.operate(self._fd, Op.SEEK, wanted)
        except OSError:
            at = st.position(self._fd)
            # After a reset it stands somewhere, too.
            if at >= wanted or not at_end_of_data(self._fd):
                raise
            return Stop(position=at, short=True)
        return Stop(position=st.position(self._fd))

    def space_filemarks(self, count: int, now: int) -> Stop:
        short = _space(self._fd, count, filemarks=True) is not None
        return Stop(position=st.position(self._fd), short=short)

    def after_refused_write(self, now: int) -> int:
        return st.position(self._fd)


class Counted:
    """A drive without them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def tell(self) -> int | None:
        return None

    def locate(self, wanted: int, now: int | None) -> Stop:
        if now is None or wanted < now:
            st.operate(self._fd, Op.REWIND)
            now = 0
        while now < wanted:
            now, met = self._over_records(min(wanted - now, _MOST), now)
            if scsitape.is_end_of_data(met):
                return Stop(position=now, short=True)
        return Stop(position=now)

    def space_filemarks(self, count: int, now: int) -> Stop:
        left, step = abs(count), _MOST if count > 0 else -_MOST
        while left:
            now, met = self._over_records(step, now)
            if met is not None and not met.filemark:
                return Stop(position=now, short=True)
            left -= met is not None
        return Stop(position=now)

    def after_refused_write(self, now: int) -> int:
        """st refuses one write by itself after each that met the early warning, and says that the
        tape is at its end of data. Only else the drive was asked; then all is counted anew."""
        if st.Flag.END_OF_DATA in st.status(self._fd).flags:
            return now
        st.operate(self._fd, Op.WRITE_FILEMARKS, 0)  # else st writes one before it rewinds
        return self.locate(now + 1, None).position

    def _over_records(self, count: int, now: int) -> tuple[int, Sense | None]:
        """Over so many records, back where the count is negative, and over the filemark that was
        met before: where the tape stands, and what was met."""
        met = _space(self._fd, count)
        if met is None:
            return now + count, None
        if met.information is None:
            raise OSError(errno.EIO, "the drive does not tell how far it went")
        passed = abs(count) - abs(met.information) + met.filemark  # which was gone over, too
        return now + (passed if count > 0 else -passed), met


def _space(fd: int, count: int, *, filemarks: bool = False) -> Sense | None:
    """None: so far; else what was met before, a filemark or an end."""
    try:
        scsitape.space(fd, count, filemarks=filemarks)
        return None
    except CommandFailed as error:
        met = error.sense
        ended = scsitape.is_end_of_data(met) or scsitape.is_beginning(met)
        if met is None or not (met.filemark or ended):
            raise
        return met
    finally:
        with suppress(OSError):  # the first error is the one to tell
            st.forget(fd)
