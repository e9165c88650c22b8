"""Real raid1 volumes in the guest, for the scenarios of LVM."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from splitmirror.mirrors import lvm as engine
from splitmirror.mirrors.lvm import LvmMirror, LvmVolume
from splitmirror.model import Volume
from splitmirror.system import programs
from splitmirror.system.blockdev import flush_buffers

MIB = 1 << 20
BY_ID = "/dev/disk/by-id/virtio-"
EMULATED_QUICK_S = 12.0  # a bare lvconvert takes two seconds in the guest, more beside a writer


def run(*argv: str, timeout_s: float = 120) -> str:
    return programs.run(argv, timeout_s=timeout_s)


def until(true: Callable[[], bool], limit_s: float = 60) -> None:
    limit = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lv:
    """A logical volume to be made: `disks` are the legs, in their order."""

    group: str
    name: str
    mib: int
    disks: tuple[str, ...]

    @property
    def full(self) -> str:
        return f"{self.group}/{self.name}"

    @property
    def device(self) -> str:
        return f"/dev/mapper/{self.group}-{self.name}"

    def image(self, number: int) -> str:
        return f"{self.device}_rimage_{number}"


@contextmanager
def volumes(*wanted: Lv) -> Iterator[tuple[Lv, ...]]:
    """The volumes, in sync; gone afterwards."""
    groups: dict[str, list[str]] = {lv.group: [] for lv in wanted}
    for lv in wanted:
        groups[lv.group] += [d for d in lv.disks if d not in groups[lv.group]]
    for group, disks in groups.items():
        run("vgcreate", group, *(BY_ID + disk for disk in disks))
    try:
        for lv in wanted:
            make(lv)
        yield wanted
    finally:
        for group, disks in groups.items():
            run("vgremove", "-y", "-f", group)
            run("pvremove", "-y", *(BY_ID + disk for disk in disks))


def make(lv: Lv) -> None:
    legs = str(len(lv.disks) - 1)
    where = [BY_ID + disk for disk in lv.disks]
    command = ("lvcreate", "-y", "--type", "raid1", "-m", legs, "-L", f"{lv.mib}M")
    run(*command, "-n", lv.name, lv.group, *where)
    until(lambda: lvs(lv.full, "copy_percent") == "100.00")


def lvs(name: str, field: str) -> str:
    said = run("lvs", "-a", "--reportformat", "json", "-o", field, name)
    return str(json.loads(said)["report"][0]["lv"][0][field])


def mirror(state: Path, *wanted: Lv, **settings: object) -> LvmMirror:
    named = tuple(LvmVolume(lv=lv.full) for lv in wanted)
    return engine.open_mirror(engine.Settings(volumes=named, **settings), state)  # type: ignore[arg-type]


def health(lv: Lv) -> str:
    """The letters that device-mapper has for the legs."""
    return run("dmsetup", "status", lv.device).split()[5]


def read(path: str, offset: int, length: int) -> bytes:
    """Read past every cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        flush_buffers(fd)
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def same_bytes(first: str, second: str) -> bool:
    """Whether two devices hold the same."""
    with open(first, "rb") as one, open(second, "rb") as other:  # noqa: PTH123
        for file in (one, other):
            flush_buffers(file.fileno())
        while block := one.read(MIB):
            if block != other.read(MIB):
                return False
    return True


class Writer:
    """Writes to random blocks of a device past its cache, without a pause, for a block."""

    def __init__(self, device: str, size: int) -> None:
        self._script = (
            "import mmap, os, random, sys\n"
            "device, size = sys.argv[1], int(sys.argv[2])\n"
            "fd = os.open(device, os.O_WRONLY | os.O_DIRECT)\n"
            "page = mmap.mmap(-1, 4096)\n"
            "while True:\n"
            "    page[:] = os.urandom(4096)\n"
            "    os.pwrite(fd, page, random.randrange(size // 4096) * 4096)\n"
        )
        self._arguments = (device, str(size))

    def __enter__(self) -> Writer:
        self._process = programs.start(["python3", "-c", self._script, *self._arguments])
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()


class PairWriter:
    """Writes 1, 2, 3, … first to one file or device and then to another, each time through to the
    disk, on a thread, for a block."""

    def __init__(self, paths: Sequence[str], offset: int = 0) -> None:
        self._paths = paths
        self._offset = offset
        self._written = 0
        self._stop = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> PairWriter:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop = True
        self._thread.join()

    def wait_for(self, more: int) -> None:
        with self._changed:
            enough = self._written + more
            assert self._changed.wait_for(lambda: self._written >= enough, timeout=60)

    def _write(self) -> None:
        fds = [os.open(path, os.O_RDWR | os.O_CREAT | os.O_DSYNC) for path in self._paths]
        number = 0
        while not self._stop:
            number += 1
            for fd in fds:
                os.pwrite(fd, struct.pack("<Q", number).ljust(4096, b"\0"), self._offset)
            with self._changed:
                self._written = number
                self._changed.notify_all()
        for fd in fds:
            os.close(fd)


def written_bytes(device: str) -> int:
    """How many bytes were written to a device since it was made (Documentation/admin-guide/
    iostats.rst, field 7, in sectors)."""
    devno = os.stat(device).st_rdev
    stat = Path(f"/sys/dev/block/{os.major(devno)}:{os.minor(devno)}/stat").read_text().split()
    return int(stat[6]) * 512


def volume(lv: Lv) -> Volume:
    return Volume(name=lv.full, device=lv.device, size=lv.mib * MIB)
