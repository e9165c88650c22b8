"""Freezing the filesystems around the split, all at once, under the guard's eye.

Source: FIFREEZE and FITHAW (linux/fs.h). The freeze is made by threads of this very process, whose
pipe the guard watches: were it a child's, the guard could see us dead, be refused the thaw, and the
child's freeze would then complete. The threads are made beforehand, and between freeze and thaw
nothing is printed, logged or imported.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from splitmirror.errors import FreezeFailed, GuardLost, HoldBroken, SplitmirrorError
from splitmirror.guard import Guard
from splitmirror.system import filesystems
from splitmirror.system.deadline import uninterrupted

FREEZE_DEADLINE_S = 10.0
_WHAT = "freeze"  # the name of this hold for the guard

# Writers go on while we flush; when a pass finds little, the freeze that follows finds little too.
_QUICK_FLUSH_S = 0.05
_FLUSH_PASSES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeParts:
    """Where the time went: until all were frozen, between, until all were thawed. Seconds."""

    freeze_s: float
    held_s: float
    thaw_s: float


class _Superblock:
    """One filesystem, with a thread that does to it what it is told.

    `held`: frozen by us and not thawed by us since. Someone else's freeze is never thawed here.
    """

    def __init__(self, mountpoint: str, fd: int) -> None:
        self.mountpoint = mountpoint
        self.held = False
        self.pending = 0  # orders that were not answered yet
        self.fd = fd
        self._orders = queue.SimpleQueue[Callable[[], bool] | None]()
        self._outcomes = queue.SimpleQueue[bool | SplitmirrorError]()
        threading.Thread(target=self._work, name=f"freeze {mountpoint}", daemon=True).start()

    def begin(self, act: Callable[[], bool]) -> None:
        self.pending += 1
        self._orders.put(act)

    def outcome(self) -> bool | SplitmirrorError:
        """Wait for the answer to the oldest order."""
        outcome = self._outcomes.get()
        self.pending -= 1
        return outcome

    def close(self) -> None:
        self._orders.put(None)

    def flush(self) -> bool:
        filesystems.syncfs(self.fd)
        return True

    def freeze(self) -> bool:
        filesystems.freeze(self.fd)
        self.held = True
        return True

    def thaw(self) -> bool:
        """Whether it was frozen still."""
        thawed = filesystems.thaw(self.fd)
        self.held = False
        return thawed

    def _work(self) -> None:
        while (act := self._orders.get()) is not None:
            try:
                self._outcomes.put(act())
            except SplitmirrorError as error:
                self._outcomes.put(error)


class Freeze:
    """All filesystems at `mountpoints` frozen at once, each superblock once. Used by one thread.

    Inside the `with` block: `flush`, `freeze`, `thaw`. Whatever happens, they are thawed on the way
    out. `began_s` and `ended_s` are monotonic: before the first FIFREEZE, after the last FITHAW; 0
    until then.
    """

    def __init__(
        self, mountpoints: Sequence[str], guard: Guard, deadline_s: float = FREEZE_DEADLINE_S
    ) -> None:
        self.mountpoints = tuple(mountpoints)
        self._guard = guard
        self._deadline_s = deadline_s
        self._all: list[_Superblock] = []
        self._active = False  # between the arming and the disarming of the guard
        self._guard_died = False
        self._unwatch: Callable[[], object] = lambda: None
        self.began_s = 0.0
        self.ended_s = 0.0
        self._frozen_s = 0.0
        self._thawing_s = 0.0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            seen: set[int] = set()
            for path in self.mountpoints:
                fd = filesystems.open_mountpoint(path)
                undo.callback(os.close, fd)
                superblock = filesystems.mount_of_fd(fd).devno
                if superblock not in seen:
                    seen.add(superblock)
                    self._all.append(_Superblock(path, fd))
                    undo.callback(self._all[-1].close)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.thaw_quietly()
        except FreezeFailed as failed:
            if error is None:
                raise
            error.add_note(str(failed))  # it must not hide what came first
        finally:
            self._undo.close()

    @property
    def parts(self) -> FreezeParts:
        """Where the time went. After `thaw`."""
        if not self.ended_s:
            raise ValueError("not frozen and thawed yet")
        return FreezeParts(
            freeze_s=self._frozen_s - self.began_s,
            held_s=self._thawing_s - self._frozen_s,
            thaw_s=self.ended_s - self._thawing_s,
        )

    def flush(self) -> None:
        """Write back what is dirty, while writers go on, until little is left for the freeze: a
        FIFREEZE in progress cannot be cut short. Raises DeviceFailed."""
        for _ in range(_FLUSH_PASSES):
            began = time.monotonic()
            _raise_first(self._all, self._together(_Superblock.flush))
            if time.monotonic() - began < _QUICK_FLUSH_S:
                return

    def freeze(self) -> None:
        """Freeze all, in parallel; the guard is armed before. When one cannot be frozen, or the
        guard dies, all are thawed. Raises FreezeFailed, GuardLost."""
        self._guard.arm(_WHAT, self._deadline_s)
        self._active = True
        self._unwatch = self._guard.on_death(self._release_alone)
        self.began_s = time.monotonic()
        outcomes = self._together(_Superblock.freeze)
        self._frozen_s = time.monotonic()
        if self._guard_died or not all(one.held for one in self._all):
            with contextlib.suppress(FreezeFailed):  # tried again, and told, on the way out
                self.thaw_quietly()
            _raise_first(self._all, outcomes)
            raise GuardLost("the guard died during the freeze", hint="Run the backup again.")

    @uninterrupted()
    def thaw(self) -> None:
        """Thaw all, and so prove that they were frozen all the time: raises HoldBroken when one was
        not any more, FreezeFailed when one cannot be thawed. Not frozen: harmless."""
        if not self._active:
            return
        self._thawing_s = time.monotonic()
        outcomes = self._together(_Superblock.thaw)
        self.ended_s = time.monotonic()
        _raise_first(self._all, outcomes)  # the guard stays armed, and tries it too
        pairs = zip(self._all, outcomes, strict=True)
        broken = tuple(one.mountpoint for one, still_frozen in pairs if not still_frozen)
        if broken:
            with contextlib.suppress(GuardLost):  # the broken hold came first
                self._let_go()
            raise HoldBroken(
                f"{' and '.join(broken)}: thawed before its time",
                hint="It was frozen beyond the deadline, or someone else thawed it: this split is "
                "void. Run the backup again.",
                mountpoints=broken,
            )
        self._let_go()

    @uninterrupted()
    def thaw_quietly(self) -> None:
        """Thaw what we hold, on the error path: raises nothing but FreezeFailed, for a filesystem
        that cannot be thawed. Not frozen: harmless. Waits for a freeze that is still going on."""
        if not self._active:
            return
        for one in self._all:  # Ctrl-C may have come while we waited for them
            while one.pending:
                one.outcome()
        held = [one for one in self._all if one.held]
        for one in held:
            one.begin(one.thaw)
        outcomes = [one.outcome() for one in held]
        self.ended_s = time.monotonic()
        _raise_first(held, outcomes)
        with contextlib.suppress(GuardLost):
            self._let_go()

    def _let_go(self) -> None:
        self._active = False
        self._unwatch()
        self._guard.disarm(_WHAT)

    def _together(self, act: Callable[[_Superblock], bool]) -> list[bool | SplitmirrorError]:
        for one in self._all:
            one.begin(functools.partial(act, one))
        return [one.outcome() for one in self._all]

    def _release_alone(self) -> None:
        """The guard has died: thaw at once, on its watcher's thread. A freeze still going on is
        thawed by `freeze` itself, which finds the flag."""
        self._guard_died = True
        for one in self._all:
            if one.held:
                with contextlib.suppress(FreezeFailed):
                    filesystems.thaw(one.fd)  # `held` stays: our own thaw must find it broken


def _raise_first(
    superblocks: Sequence[_Superblock], outcomes: Sequence[bool | SplitmirrorError]
) -> None:
    for one, outcome in zip(superblocks, outcomes, strict=True):
        if isinstance(outcome, SplitmirrorError):
            raise type(outcome)(f"{one.mountpoint}: {outcome}", hint=outcome.hint) from None
