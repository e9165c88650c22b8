"""Nodes, dirty bitmaps and copy jobs of a qemu-storage-daemon, spoken through its monitor.

Source: the QEMU Storage Daemon QMP reference (qapi/block-core.json, qapi/job.json, 7.2) and
docs/interop/bitmaps: a job with bitmap-mode on-success gives the bitmap back unchanged, with what
was written meanwhile added, when it fails or is cancelled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from splitmirror.errors import DeadlineExceeded, MirrorError
from splitmirror.progress import Progress, silent
from splitmirror.system.qmp import Monitor

# How often progress is asked for while a job runs and tells nothing by itself.
_PROGRESS_INTERVAL_S = 0.2
# A cancelled job only waits for the requests that are in flight.
_CANCEL_DEADLINE_S = 60.0


class Job(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A job as query-jobs tells it; progress in bytes. `error` is set when it failed."""

    id: str
    status: str
    current_progress: int
    total_progress: int
    error: str | None = None

    @property
    def concluded(self) -> bool:
        return self.status == "concluded"


class Bitmap(msgspec.Struct, frozen=True, kw_only=True):
    """A dirty bitmap of a node; `count` is the dirty bytes. A running copy has some without a
    name, for itself."""

    count: int
    recording: bool
    busy: bool
    granularity: int
    name: str = ""
    inconsistent: bool = False


class _Node(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    node_name: str
    dirty_bitmaps: tuple[Bitmap, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A copy of a node onto another one, as of the instant at which it starts.

    `bitmap`: only what is dirty in it, which a success clears; None: everything. `speed` in bytes
    a second and few requests in flight spare the database; 0 is as fast as it goes.
    """

    job_id: str
    node: str
    target: str
    bitmap: str | None
    speed: int = 0

    def action(self) -> dict[str, Any]:
        """Its part of a `transaction`."""
        data: dict[str, Any] = {
            "job-id": self.job_id,
            "device": self.node,
            "target": self.target,
            "auto-dismiss": False,
            "sync": "full",
        }
        if self.bitmap is not None:
            data |= {"sync": "bitmap", "bitmap": self.bitmap, "bitmap-mode": "on-success"}
        if self.speed:
            data |= {"speed": self.speed, "x-perf": {"max-workers": 2, "max-chunk": 1 << 20}}
        return {"type": "blockdev-backup", "data": data}


def clear_bitmap(node: str, bitmap: str) -> dict[str, Any]:
    """The part of a `transaction` that makes a bitmap clean."""
    return {"type": "block-dirty-bitmap-clear", "data": {"node": node, "name": bitmap}}


def transaction(monitor: Monitor, actions: Sequence[Mapping[str, Any]], *, grouped: bool) -> None:
    """Do all actions at one instant, or none. `grouped`: the jobs succeed or fail together, too.

    Raises what `Monitor.execute` does; then nothing was started.
    """
    mode = "grouped" if grouped else "individual"
    arguments = {"actions": actions, "properties": {"completion-mode": mode}}
    monitor.execute("transaction", arguments)


def jobs(monitor: Monitor) -> dict[str, Job]:
    """Every job there is, by its id; concluded ones stay until they are dismissed."""
    return {job.id: job for job in monitor.ask("query-jobs", list[Job])}


def bitmaps(monitor: Monitor, name: str) -> dict[str, Bitmap]:
    """The bitmaps of this name, by node."""
    nodes = monitor.ask("query-named-block-nodes", list[_Node], {"flat": True})
    return {n.node_name: bitmap for n in nodes for bitmap in n.dirty_bitmaps if bitmap.name == name}


def nodes(monitor: Monitor) -> set[str]:
    """The names of all block nodes."""
    listed = monitor.ask("query-named-block-nodes", list[_Node], {"flat": True})
    return {node.node_name for node in listed}


def wait_concluded(
    monitor: Monitor,
    ids: Collection[str],
    *,
    deadline_s: float | None = None,
    progress: Progress = silent,
) -> tuple[Job, ...]:
    """Wait until all these jobs have concluded, well or not; gives them as they ended.

    Raises MirrorError when one is not there, DeadlineExceeded (the jobs go on).
    """
    limit = None if deadline_s is None else time.monotonic() + deadline_s
    while True:
        found = _find(monitor, ids)
        progress(sum(j.current_progress for j in found), sum(j.total_progress for j in found))
        if all(job.concluded for job in found):
            return found
        if limit is not None and time.monotonic() >= limit:
            raise DeadlineExceeded(
                f"the mirror's copy is not complete after {deadline_s:g} s",
                hint="Allow more time, or look at the load of the disk with the mirror.",
            )
        # Any event wakes it; a state that is asked for is never older than the event.
        monitor.wait_event(_PROGRESS_INTERVAL_S)


def _find(monitor: Monitor, ids: Collection[str]) -> tuple[Job, ...]:
    present = jobs(monitor)
    if missing := [job_id for job_id in ids if job_id not in present]:
        raise MirrorError(
            f"the mirror's daemon has no job {', '.join(missing)}",
            hint="Another splitmirror process took it away; try again when it has ended.",
        )
    return tuple(present[job_id] for job_id in ids)


def remove(monitor: Monitor, wanted: Callable[[str], bool]) -> None:
    """Cancel the jobs whose id is `wanted`, if they still run, and dismiss them. None: harmless."""
    present = {job_id: job for job_id, job in jobs(monitor).items() if wanted(job_id)}
    for job_id, job in present.items():
        if not job.concluded:
            _cancel(monitor, job_id)
    wait_concluded(monitor, present, deadline_s=_CANCEL_DEADLINE_S)
    for job_id in present:
        monitor.execute("job-dismiss", {"id": job_id})


def _cancel(monitor: Monitor, job_id: str) -> None:
    try:
        monitor.execute("block-job-cancel", {"device": job_id, "force": True})
    except MirrorError:
        # It ended by itself just now, or with another one of its group.
        if jobs(monitor)[job_id].status not in ("aborting", "pending", "concluded"):
            raise


def problem(ended: Sequence[Job]) -> str:
    """The engine's words for what failed; empty when all is well."""
    return "; ".join(f"{job.id}: {job.error}" for job in ended if job.error is not None)
