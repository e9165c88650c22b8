"""SCSI devices of the kernel whose commands are answered here: target_core_user and tcm_loop.

Each device is a ring of commands in memory that is shared with the kernel through a UIO device.
Sources: Documentation/target/tcmu-design.rst, linux/target_core_user.h, and the kernel's
drivers/target/loopback/tcm_loop.c for how a target shows up as a host adapter of this machine.
"""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.vm.vtl.scsi import DATA_OUT, Device
from tests.vm.vtl.sense import INTERNAL, Check, Key, ReservationConflict, Status

MODULES = ("configfs", "target_core_mod", "target_core_user", "tcm_loop", "st", "sg", "ch")

_TARGETS = Path("/sys/kernel/config/target")
_BACKENDS = _TARGETS / "core/user_0"
_PORT = _TARGETS / "loopback/naa.60014050000000aa"
_INITIATOR = "naa.60014050000000ab"
_UIO_DEADLINE_S = 10.0

# The mailbox: where the ring is and how far the kernel (head) and we (tail) have come.
_RING = struct.Struct("<4xII")  # its offset and size
_HEAD_AT, _TAIL_AT = 12, 64
# An entry: length and operation, id, the kernel's flags, ours. Then the question or the answer.
_ENTRY = struct.Struct("<IHBB")
_QUESTION = struct.Struct("<IIIIQQQ")  # iov count, two more counts, padding, where the CDB is
_IOV = struct.Struct("<QQ")
_ANSWER = struct.Struct("<BBHI96s")  # SCSI status, padding, bytes read, sense
_COMMAND = 1  # operation; others are padding
_READ_LENGTH_TOLD = 0x02  # our flag


def load_modules() -> None:
    subprocess.run(["modprobe", "-a", *MODULES], check=True)
    if not _TARGETS.parent.is_mount():
        subprocess.run(["mount", "-t", "configfs", "configfs", str(_TARGETS.parent)], check=True)
    _TARGETS.joinpath("loopback").mkdir(exist_ok=True)


class LogicalUnit:
    """One device in the kernel. `serve` answers its commands until `close`."""

    def __init__(self, name: str, device: Device, lock: threading.Lock) -> None:
        self.backend = _BACKENDS / name
        self._device = device
        self._lock = lock
        self.backend.mkdir(parents=True)
        for setting in (
            f"dev_config=vtl/{name}",
            f"dev_size={1 << 30}",
            "hw_block_size=512",
            "nl_reply_supported=-1",
            "max_data_area_mb=32",
        ):
            (self.backend / "control").write_text(setting)
        (self.backend / "enable").write_text("1")
        uio = _uio_of(f"tcm-user/0/{name}/vtl/{name}")
        self._fd = os.open(f"/dev/{uio.name}", os.O_RDWR)
        size = int((uio / "maps/map0/size").read_text(), 16)
        self._memory = mmap.mmap(self._fd, size)
        self._offset, self._size = _RING.unpack_from(self._memory)
        self._closed = False

    def serve(self) -> None:
        while not self._closed:
            os.read(self._fd, 4)  # waits for the kernel's bell
            while (tail := self._word(_TAIL_AT)) != self._word(_HEAD_AT):
                length = self._entry(self._offset + tail)
                struct.pack_into("<I", self._memory, _TAIL_AT, (tail + length) % self._size)
            os.write(self._fd, bytes(4))

    def remove(self) -> None:
        """Take the device from the kernel. It must be detached."""
        self._closed = True
        self.backend.rmdir()

    def _word(self, at: int) -> int:
        word: int = struct.unpack_from("<I", self._memory, at)[0]
        return word

    def _entry(self, at: int) -> int:
        """Answer one entry of the ring; its length."""
        memory = self._memory
        word, identity, kernel_flags, _ = _ENTRY.unpack_from(memory, at)
        if word & 7 != _COMMAND:
            return int(word & ~7)
        body = at + _ENTRY.size
        count, _, _, _, cdb_at, _, _ = _QUESTION.unpack_from(memory, body)
        begin = body + _QUESTION.size
        areas = [_IOV.unpack_from(memory, begin + n * _IOV.size) for n in range(count)]
        cdb = memory[cdb_at : cdb_at + 16]
        incoming = cdb[0] in DATA_OUT
        data = b"".join(memory[a : a + size] for a, size in areas) if incoming else b""
        status, sense, answer = self._ask(cdb, data)
        told = 0
        if areas and not incoming:
            told = _scatter(memory, areas, answer)
            _ENTRY.pack_into(memory, at, word, identity, kernel_flags, _READ_LENGTH_TOLD)
        _ANSWER.pack_into(memory, body, status, 0, 0, told, sense)
        return int(word & ~7)

    def _ask(self, cdb: bytes, data: bytes) -> tuple[Status, bytes, bytes]:
        """The device's status, sense data and data."""
        try:
            time.sleep(self._device.delay_s(cdb))
            with self._lock:
                return Status.GOOD, b"", self._device.command(cdb, data)
        except Check as check:
            return Status.CHECK_CONDITION, check.sense(), check.data
        except ReservationConflict:
            return Status.RESERVATION_CONFLICT, b"", b""
        except Exception as error:
            print(f"command {cdb.hex()}: {error!r}", file=sys.stderr, flush=True)
            return Status.CHECK_CONDITION, Check(Key.HARDWARE_ERROR, INTERNAL).sense(), b""


def _scatter(memory: mmap.mmap, areas: Sequence[tuple[int, int]], data: bytes) -> int:
    """Put data into the areas as far as there is room; how much."""
    done = 0
    for at, size in areas:
        piece = data[done : done + size]
        memory[at : at + len(piece)] = piece
        done += len(piece)
    return done


def _uio_of(name: str) -> Path:
    limit = time.monotonic() + _UIO_DEADLINE_S
    while time.monotonic() < limit:
        for uio in Path("/sys/class/uio").iterdir():
            if (uio / "name").read_text().strip() == name and Path("/dev", uio.name).exists():
                return uio
        time.sleep(0.02)
    raise TimeoutError(f"no UIO device {name}")


def attach(units: Sequence[LogicalUnit]) -> None:
    """Show the units as one host adapter's. The kernel asks each of them meanwhile."""
    group = _PORT / "tpgt_1"
    group.mkdir(parents=True)
    (group / "nexus").write_text(_INITIATOR)
    for number, unit in enumerate(units):
        lun = group / "lun" / f"lun_{number}"
        lun.mkdir()
        (lun / unit.backend.name).symlink_to(unit.backend)


def detach() -> None:
    """Let the kernel forget the host adapter. None there: harmless."""
    group = _PORT / "tpgt_1"
    if not group.exists():
        return
    for lun in _luns(group):
        for link in lun.iterdir():
            if link.is_symlink():
                link.unlink()
        lun.rmdir()
    group.rmdir()
    _PORT.rmdir()


def _luns(group: Path) -> Iterator[Path]:
    yield from sorted((group / "lun").iterdir())
