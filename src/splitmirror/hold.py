"""The two holds of a backup, one inside the other.

The outer one is the database's: from its quiesce to its release. The inner one is the freeze of
the filesystems around the split; in freeze mode it begins with the quiesce and, where the maps are
checked before the release, ends with it. Only the inner one, and a locked database, make writers
wait. The guard knows of both and ends them if this process cannot. Where the engine writes to those
filesystems in order to split, there is no inner one.
"""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack
from pathlib import Path

from splitmirror.databases import Database, RedoFile
from splitmirror.databases import Hold as DatabaseHold
from splitmirror.freeze import Freeze
from splitmirror.guard import Guard
from splitmirror.journal import Journal
from splitmirror.mirrors import Mirror
from splitmirror.model import Mode
from splitmirror.system.deadline import uninterrupted


class Hold:
    """The database and its filesystems, standing still as far as `mode` asks.

    Use it as a context manager: whatever happens, leaving thaws and releases. The order of calls is
    `quiesce`, `split`, `release`.
    """

    def __init__(
        self,
        *,
        database: Database,
        freeze: Freeze,
        guard: Guard,
        journal: Journal,
        mode: Mode,
        deadline_s: float,
    ) -> None:
        self._database = database
        self._freeze = freeze
        self._guard = guard
        self._journal = journal
        self._mode = mode
        self._deadline_s = deadline_s
        self._undo = ExitStack()
        self._frozen = ExitStack()
        self._held: DatabaseHold | None = None
        self._parting_s = 0.0  # monotonic; what was written before is in the split
        self.began_s = 0.0
        self.ended_s = 0.0
        self.pause_s = 0.0

    def __enter__(self) -> Hold:
        return self

    @uninterrupted()
    def __exit__(self, *failure: object) -> None:
        try:
            self._frozen.close()
        finally:
            self._undo.close()
            self.ended_s = self.ended_s or time.monotonic()

    def quiesce(self) -> None:
        """Quiesce the database; in freeze mode freeze its filesystems too.

        There the flush comes first, too: behind a database's lock writers would wait for it.
        """
        if self._mode is Mode.FREEZE:
            self._freeze.flush()
        self.began_s = time.monotonic()
        self._guard.arm("quiesce", self._deadline_s)
        self._undo.callback(self._guard.disarm, "quiesce")
        self._held = self._undo.enter_context(self._database.quiesce(self._mode, self._deadline_s))
        for session in self._held.sessions:
            self._journal.record(
                "session",
                what=session.what,
                pid=session.pid,
                start_ticks=session.start_ticks,
                signal=session.signal,
            )
            self._guard.keep(session)
        if self._mode is Mode.FREEZE:
            self._begin_freeze()

    def split(self, mirror: Mirror, split_id: str, *, thaw: bool) -> None:
        """Part the mirror under the freeze. Hot mode thaws at once; freeze mode only with `thaw`.

        Raises HoldBroken when someone else thawed meanwhile."""
        self._parting_s = time.monotonic()
        if self._mode is Mode.HOT and self._freeze.mountpoints:
            self._begin_freeze()
        mirror.split(split_id)
        if thaw or self._mode is Mode.HOT:
            self.thaw()

    @uninterrupted()
    def thaw(self) -> None:
        """End the freeze, proving that it lasted. Harmless when it has ended."""
        self._freeze.thaw()
        self._frozen.close()

    def release(self, into: Path) -> tuple[RedoFile, ...]:
        """Thaw, prove that the database's hold lasted, copy what recovery needs, release.

        Journals the pause, the window and `consistent_s`: what was acknowledged before that
        monotonic time is in the set. A redo log carries it on to its own end.
        """
        self.thaw()
        assert self._held is not None, "release comes after quiesce"
        self._guard.confirm()
        asked_s = time.monotonic()
        redo = self._held.confirm(into)
        blocked_since_s = self._held.blocked_writers_since_s
        with uninterrupted():
            self._undo.close()
        self.ended_s = time.monotonic()
        began_s = self._freeze.began_s if blocked_since_s is None else blocked_since_s
        self.pause_s = (self._freeze.ended_s if blocked_since_s is None else self.ended_s) - began_s
        self._journal.record(
            "released",
            pause_s=self.pause_s,
            window_s=self.ended_s - self.began_s,
            consistent_s=asked_s if redo else began_s or self._parting_s,
        )
        return redo

    @property
    def pause_parts(self) -> dict[str, float]:
        """Seconds until all was frozen, between, and until all was thawed; nothing where nothing
        was frozen. After `release`."""
        if not self._freeze.mountpoints:
            return {}
        parts = self._freeze.parts
        return {"freeze": parts.freeze_s, "held": parts.held_s, "thaw": parts.thaw_s}

    def _begin_freeze(self) -> None:
        """Flush while writers go on, then freeze. Until the thaw nothing is written to the journal
        and no garbage is collected, which takes long with millions of files in memory."""
        assert self._held is not None, "the database is quiesced first"
        self._journal.record("freeze intended", mountpoints=list(self._freeze.mountpoints))
        if self._held.blocked_writers_since_s is None:
            self._freeze.flush()  # right before the freeze: all that is dirtied since adds to it
        self._frozen.enter_context(self._journal.silent())
        gc.disable()
        self._frozen.callback(gc.enable)
        self._frozen.callback(self._freeze.thaw_quietly)
        self._freeze.freeze()
