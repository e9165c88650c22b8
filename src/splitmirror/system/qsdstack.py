"""A stack of mirrored disks as one thing: started, found again, taken down.

Each disk has a block node of its own name over its primary, with a dirty bitmap, and, except
while its leg is parted, a node over its mirror. Which daemon that is stands in state.json; that it
is the same one still is proven by its process, by the disks' devices and by its bitmaps.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from splitmirror.errors import MirrorNotReady
from splitmirror.model import Volume
from splitmirror.system import blockjobs, loop, nbdstack, process, selfprobe
from splitmirror.system.blockjobs import Bitmap
from splitmirror.system.nbdstack import Place
from splitmirror.system.qmp import Monitor
from splitmirror.system.stackrecord import RecordFile, StackRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class StackDisk:
    """A disk and its images."""

    name: str
    primary: Path
    mirror: Path

    @property
    def leg_node(self) -> str:
        return f"{self.name}-leg"


class Stack:
    """The disks of one directory. Not thread-safe."""

    def __init__(self, place: Place, disks: Sequence[StackDisk], granularity: int) -> None:
        self.place = place
        self.disks = tuple(disks)
        self.file = RecordFile(place.directory)
        self._granularity = granularity
        self._monitor: Monitor | None = None
        self._monitor_of = ""  # the instance that it talks to

    def start(self, sizes: Mapping[str, int]) -> StackRecord:
        """Start a daemon, prove it sound, and put the disks on it. The record is saved at each
        step, so that `take_down` finds what there is, whatever happens."""
        record = StackRecord(instance=secrets.token_hex(8), attached_at=datetime.now(UTC))
        self.file.save(record)
        daemon = nbdstack.start_daemon(self.place)
        monitor = self._connect(record.instance)
        aio = selfprobe.run(monitor, self.place)
        record = dataclasses.replace(record, daemon=daemon, aio=aio)
        self.file.save(record)
        volumes = tuple(self._serve(monitor, disk, record, sizes) for disk in self.disks)
        record = dataclasses.replace(record, volumes=volumes)
        self.file.save(record)
        return record

    def _serve(
        self, monitor: Monitor, disk: StackDisk, record: StackRecord, sizes: Mapping[str, int]
    ) -> Volume:
        nbdstack.add_node(monitor, disk.name, disk.primary, record.aio, unmap=True)
        self._add_bitmap(monitor, disk, record.bitmap)  # before anyone can write
        device = nbdstack.expose(monitor, self.place, disk.name)
        return Volume(name=disk.name, device=device, size=sizes[disk.name])

    def take_down(self) -> None:
        """Stop whatever runs here, in whatever state it is. Nothing there: harmless. Raises Busy
        before it changes anything."""
        names = [*(disk.name for disk in self.disks), selfprobe.NAME]
        for name in names:
            for device in loop.find(self.place.export(name)):
                nbdstack.check_unused(device)
        for name in names:
            nbdstack.withdraw(self.place, name)
        self.close()
        nbdstack.stop_daemon(self.place)
        self.place.clear()
        self.file.remove()

    # --- found again

    def talk(self) -> tuple[StackRecord, Monitor]:
        """The record, and a connection to the very daemon that it describes.

        Raises MirrorNotReady, saying which part is missing.
        """
        record = self.file.read()
        if record is None:
            raise not_ready("the mirror is not attached")
        if record.daemon is None or not record.volumes:
            raise not_ready("an attach of the mirror was cut off")
        if not process.alive(record.daemon.pid, record.daemon.start_ticks):
            raise not_ready(self._death(record))
        for volume in record.volumes:
            if not nbdstack.is_exposed(self.place, volume.name, volume.device):
                raise not_ready(f"the disk {volume.name} ({volume.device}) is gone")
        if self._monitor is None or self._monitor_of != record.instance:
            return record, self._connect(record.instance)
        return record, self._monitor

    def close(self) -> None:
        """Hang up. A second call is harmless."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def _connect(self, instance: str) -> Monitor:
        self.close()
        self._monitor = Monitor.connect(self.place.monitors)
        self._monitor_of = instance
        return self._monitor

    def _death(self, record: StackRecord) -> str:
        when = nbdstack.last_words(self.place, [volume.name for volume in record.volumes])
        said = f" at {when:%Y-%m-%d %H:%M:%S} UTC" if when else ""
        return (
            f"the mirror's daemon died{said} (attached {record.attached_at:%Y-%m-%d %H:%M:%S} "
            "UTC): full resync needed"
        )

    # --- bitmaps

    def dirty_bytes(self, record: StackRecord, monitor: Monitor) -> int:
        """What the mirrors lack. Raises MirrorNotReady when a bitmap cannot be trusted."""
        found = blockjobs.bitmaps(monitor, record.bitmap)
        sound = [bitmap for disk in self.disks if (bitmap := _sound(found.get(disk.name)))]
        if len(sound) < len(self.disks):
            raise not_ready("the record of what changed is lost: full resync needed")
        return sum(bitmap.count for bitmap in sound)

    def renew_bitmaps(self, record: StackRecord, monitor: Monitor) -> StackRecord:
        """Make anew each bitmap that cannot be trusted any more. If there was one, the record that
        comes back says that everything must be copied. No job may run."""
        found = blockjobs.bitmaps(monitor, record.bitmap)
        lost = [disk for disk in self.disks if not _sound(found.get(disk.name))]
        for disk in lost:
            if disk.name in found:
                wrong = {"node": disk.name, "name": record.bitmap}
                monitor.execute("block-dirty-bitmap-remove", wrong)
            self._add_bitmap(monitor, disk, record.bitmap)
        if lost:
            record = dataclasses.replace(record, established=False)
            self.file.save(record)
        return record

    def _add_bitmap(self, monitor: Monitor, disk: StackDisk, name: str) -> None:
        arguments = {"node": disk.name, "name": name, "granularity": self._granularity}
        monitor.execute("block-dirty-bitmap-add", arguments)

    # --- the mirrors' nodes

    def open_legs(self, record: StackRecord, monitor: Monitor) -> None:
        """Have the daemon open the mirrors, as far as they are not."""
        present = blockjobs.nodes(monitor)
        for disk in self.disks:
            if disk.leg_node not in present:
                nbdstack.add_node(monitor, disk.leg_node, disk.mirror, record.aio, unmap=False)

    def close_legs(self, monitor: Monitor) -> None:
        """Have the daemon close them, so that nothing writes to them any more."""
        present = blockjobs.nodes(monitor)
        for disk in self.disks:
            if disk.leg_node in present:
                nbdstack.remove_node(monitor, disk.leg_node)


def _sound(bitmap: Bitmap | None) -> Bitmap | None:
    return bitmap if bitmap and bitmap.recording and not bitmap.inconsistent else None


def not_ready(what: str) -> MirrorNotReady:
    """The error for a mirror that must be attached (again) first."""
    return MirrorNotReady(
        what,
        hint="`splitmirror mirror start` attaches it; `splitmirror resync` copies what it must.",
    )
