"""An open tape drive: where its tape stands, and whether that is known.

After an error whose outcome is not known (a reset, a cartridge changed, another host's reservation,
a write that failed) nothing is: every call is refused until the volume is loaded anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from splitmirror.errors import DriveLost, SplitmirrorError
from splitmirror.media.tapedrive import RIGHTS, Drive, no_right, what_became
from splitmirror.media.tapeposition import Stop
from splitmirror.system import st
from splitmirror.system.sgio import CommandFailed
from splitmirror.system.st import Op


class Standing:
    """From the load to the unload of a volume.

    `position` is counted by whoever moves the tape; `end` the position of the end of data where it
    is known. `early`: the early warning was met, and the tape not moved back since. `pending`:
    records were written since the last sync.
    """

    def __init__(self, device: str, drive: Drive) -> None:
        self.device = device
        self.drive = drive
        self.position = 0
        self.end: int | None = None
        self.early = False
        self.pending = False
        self._lost = ""

    @property
    def lost(self) -> bool:
        return bool(self._lost)

    def check(self) -> None:
        """Raises DriveLost where nothing is known any more."""
        if self._lost:
            raise self._error()

    def confirm(self) -> None:
        """Ask the drive where it stands, if it can tell. Raises DriveLost elsewhere."""
        with self.knowing("the drive does not tell where it stands"):
            at = self.drive.positions.tell()
        if at not in (None, self.position):
            raise self.elsewhere(at)

    def stopped(self, stop: Stop, *, forward: bool = True) -> None:
        """The tape was moved."""
        self.position, self.early = stop.position, False
        if stop.short and forward:
            self.end = stop.position

    def rewind(self) -> None:
        self.settle()
        with self.knowing("the tape was not rewound"):
            st.operate(self.drive.fd, Op.REWIND)
        self.stopped(Stop(position=0))

    def go_back(self) -> None:
        """To where it is counted to be, from near there. Raises OSError, CommandFailed."""
        stop = self.drive.positions.locate(self.position, None)
        if stop.position != self.position:
            raise self.elsewhere(stop.position)

    def sync(self) -> None:
        with self.knowing("what was written last could not be synced"):
            st.operate(self.drive.fd, Op.WRITE_FILEMARKS, 0)
        self.pending = False

    def settle(self) -> None:
        """Before the tape is moved or the drive closed: sync, so that st writes no filemark."""
        if self.pending:
            self.sync()

    def close(self) -> None:
        """Settle, unless nothing is known, and close the drive."""
        try:
            self.settle()
        finally:
            os.close(self.drive.fd)

    @contextmanager
    def knowing(self, what: str) -> Iterator[None]:
        """An error of the drive in here leaves us without knowledge. Raises DriveLost."""
        try:
            yield
        except (OSError, CommandFailed) as error:
            raise self.lose(what, error) from error

    def elsewhere(self, at: int | None, wanted: int | None = None) -> SplitmirrorError:
        """For a drive that stands where it should not. Lost."""
        wanted = self.position if wanted is None else wanted
        return self.lose(f"it stands at object {at} instead of {wanted}")

    def lose(self, what: str, error: OSError | CommandFailed | None = None) -> SplitmirrorError:
        """Nothing more is done with this volume until it is loaded anew. The error to raise."""
        if self.pending:
            self.pending = False
            with suppress(OSError):  # else st writes a filemark when the drive is closed
                st.operate(self.drive.fd, Op.WRITE_FILEMARKS, 0)
        self._lost = f"{what}{what_became(self.drive.fd, error)}"
        if isinstance(error, OSError) and error.errno in RIGHTS:
            return no_right(self.device)
        return self._error()

    def _error(self) -> DriveLost:
        return DriveLost(
            f"the tape drive {self.device} is not trusted any more: {self._lost}",
            hint="Nothing more is written to the volume. Look at the drive (its display, dmesg). A "
            "backup is gone on with by `splitmirror recover`: it loads the volume anew, and goes "
            "on behind what is whole on it. Anything else is begun again.",
            device=self.device,
        )
