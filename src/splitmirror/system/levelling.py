"""Bringing the mirrors level: everything once, then what changed meanwhile, again and again.

Every copy is throttled, or the database above stalls behind it. A copy that fails or is cancelled
gives its bitmap back unharmed, so only a first full copy has to be made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

from splitmirror.errors import MirrorError, SplitmirrorError
from splitmirror.progress import Progress
from splitmirror.system import blockjobs
from splitmirror.system.blockjobs import Copy, Job
from splitmirror.system.qmp import Monitor
from splitmirror.system.qsdstack import Stack, StackDisk
from splitmirror.system.stackrecord import StackRecord, SyncKind, SyncReport

_JOB_PREFIX = "sync."
# A pass that leaves more than this of what it found does not gain on the database's writes.
_NO_GAIN = 0.8
_PASSES_BEFORE_NO_GAIN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast (bytes a second) and how far: until at most `level_below` bytes are dirty, in at
    most `max_passes` rounds."""

    speed: int
    level_below: int
    max_passes: int


class _Copied:
    """Bytes copied so far in several rounds, told as one."""

    def __init__(self, watcher: Progress) -> None:
        self.bytes = 0
        self._watcher = watcher

    def progress(self, done: int, total: int) -> None:
        self._watcher(self.bytes + done, self.bytes + total)

    def add(self, jobs: Sequence[Job]) -> None:
        self.bytes += sum(job.current_progress for job in jobs)


def level(
    stack: Stack, record: StackRecord, monitor: Monitor, pace: Pace, progress: Progress
) -> StackRecord:
    """Copy until the mirrors are level, and save what was done in the record's `last_sync`.

    No leg may be parted. Copies left by a process that died are cancelled first. Raises
    MirrorError with the engine's words when a copy fails; the bitmaps then still tell what is
    missing.
    """
    began = time.monotonic()
    copied = _Copied(progress)
    blockjobs.remove(monitor, _is_ours)
    record = stack.renew_bitmaps(record, monitor)
    stack.open_legs(record, monitor)
    kind = SyncKind.INCREMENTAL if record.established else SyncKind.FULL
    if not record.established:
        _copy_everything(stack, record, monitor, pace.speed, copied)
        record = dataclasses.replace(record, established=True)
        stack.file.save(record)
    passes = _passes(stack, record, monitor, pace, copied)
    progress(copied.bytes, copied.bytes)
    seconds = time.monotonic() - began
    report = SyncReport(kind=kind, bytes=copied.bytes, passes=passes, seconds=seconds)
    record = dataclasses.replace(record, last_sync=report)
    stack.file.save(record)
    return record


def _copy_everything(
    stack: Stack, record: StackRecord, monitor: Monitor, speed: int, copied: _Copied
) -> None:
    # What is written from the copies' instant on is what they lack.
    clear = [blockjobs.clear_bitmap(disk.name, record.bitmap) for disk in stack.disks]
    copies = [_copy(disk, None, speed).action() for disk in stack.disks]
    # A transaction with a bitmap's clearing in it cannot be grouped; its instant is one all the
    # same, and if any copy fails the mirrors just stay unestablished.
    blockjobs.transaction(monitor, clear + copies, grouped=False)
    _finish(stack, record, monitor, copied)


def _passes(
    stack: Stack, record: StackRecord, monitor: Monitor, pace: Pace, copied: _Copied
) -> int:
    """Copy what is dirty until little is, or it does not become less; how often it did."""
    before = 0
    for done in range(pace.max_passes):
        dirty = stack.dirty_bytes(record, monitor)
        if dirty <= pace.level_below:
            return done
        if done >= _PASSES_BEFORE_NO_GAIN and dirty > _NO_GAIN * before:
            return done
        before = dirty
        copies = [_copy(disk, record.bitmap, pace.speed) for disk in stack.disks]
        blockjobs.transaction(monitor, [copy.action() for copy in copies], grouped=True)
        _finish(stack, record, monitor, copied)
    return pace.max_passes


def _finish(stack: Stack, record: StackRecord, monitor: Monitor, copied: _Copied) -> None:
    """Wait for the copies' end; on an error, or an interrupt, nothing goes on behind our back."""
    ids = [f"{_JOB_PREFIX}{disk.name}" for disk in stack.disks]
    try:
        ended = blockjobs.wait_concluded(monitor, ids, progress=copied.progress)
    except BaseException:
        with contextlib.suppress(SplitmirrorError):
            blockjobs.remove(monitor, _is_ours)
        raise
    blockjobs.remove(monitor, _is_ours)
    if problem := blockjobs.problem(ended):
        stack.renew_bitmaps(record, monitor)
        raise MirrorError(
            f"the mirror could not be synchronized: {problem}",
            hint="Look at the disk with the mirror's images; then synchronize again.",
        )
    copied.add(ended)


def _copy(disk: StackDisk, bitmap: str | None, speed: int) -> Copy:
    job_id = f"{_JOB_PREFIX}{disk.name}"
    return Copy(job_id=job_id, node=disk.name, target=disk.leg_node, bitmap=bitmap, speed=speed)


def _is_ours(job_id: str) -> bool:
    return job_id.startswith(_JOB_PREFIX)
