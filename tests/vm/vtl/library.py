"""A library for a test: it begins and ends with a `with` block."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from tests.vm.vtl.cartridge import Kind
from tests.vm.vtl.changer import BAYS, DOORS, SLOTS
from tests.vm.vtl.service import Shape, ask

from splitmirror.system import programs

DIRECTORY = Path("/run/vtl")
_END_DEADLINE_S = 60.0
_PROGRAM_DEADLINE_S = 120.0


def cartridges(*names: str, **values: Any) -> tuple[Kind, ...]:
    """Cartridges that are alike but for their names, which are their barcodes."""
    return tuple(Kind(name=name, barcode=name, **values) for name in names)


class Library:
    """`drives` are their /dev/nstN, `generic` the /dev/sgN of the same, `changer` its /dev/schN,
    `changer_generic` its /dev/sgN. Elements of the changer are told by their addresses."""

    def __init__(self, shape: Shape, directory: Path = DIRECTORY) -> None:
        self.shape = shape
        self._directory = directory
        self.slots = tuple(range(SLOTS, SLOTS + shape.slots))
        self.doors = tuple(range(DOORS, DOORS + shape.doors))
        self.bays = tuple(range(BAYS, BAYS + shape.drives))

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        shape = msgspec.json.encode(self.shape).decode()
        self._log = (self._directory / "log").open("a")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.vm.vtl", str(self._directory), "--shape", shape],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the library did not start: {self.log()}")
        programs.run(["udevadm", "settle"], timeout_s=_PROGRAM_DEADLINE_S)
        serials = [f"VTLDRIVE{number}" for number in range(self.shape.drives)]
        self.drives = [_node("scsi_tape", "nst*[0-9]", serial) for serial in serials]
        self.generic = [_node("scsi_generic", "sg*", serial) for serial in serials]
        if self.shape.changer:
            self.changer = _node("scsi_changer", "sch*", "VTLCHANGER")
            self.changer_generic = _node("scsi_generic", "sg*", "VTLCHANGER")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ask(self._directory, "stop")
        self._process.wait(_END_DEADLINE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    # --- what can be done to it beside SCSI: see service.Hands

    def fault(self, drive: int, **values: Any) -> None:
        self._ask("fault", drive=drive, **values)

    def changer_fault(self, **values: Any) -> None:
        self._ask("changer_fault", **values)

    def power_cycle(self, drive: int) -> None:
        self._ask("power_cycle", drive=drive)

    def slip(self, drive: int, objects: int) -> None:
        self._ask("slip", drive=drive, objects=objects)

    def set(self, name: str, **values: Any) -> None:
        self._ask("set", name=name, **values)

    def state(self, drive: int) -> dict[str, Any]:
        return dict(self._ask("state", drive=drive))

    def blank(self, name: str) -> None:
        self._ask("blank", name=name)

    def lengths(self, name: str) -> list[int]:
        return list(self._ask("lengths", name=name))

    def digests(self, name: str) -> list[str]:
        return list(self._ask("digests", name=name))

    def settle(self, name: str) -> None:
        self._ask("settle", name=name)

    def counts(self, drive: int) -> dict[int, int]:
        return {int(opcode): times for opcode, times in self._ask("counts", drive=drive).items()}

    def move(self, source: int, destination: int) -> None:
        self._ask("move", source=source, destination=destination)

    def put_in(self, door: int, name: str) -> None:
        self._ask("put_in", door=door, name=name)

    def take_out(self, door: int) -> str:
        return str(self._ask("take_out", door=door))

    def take_unseen(self, slot: int) -> str:
        return str(self._ask("take_unseen", slot=slot))

    def insert(self, drive: int, name: str) -> None:
        self._ask("insert", drive=drive, name=name)

    def remove(self, drive: int) -> str:
        return str(self._ask("remove", drive=drive))

    def where(self) -> dict[str, list[str | None]]:
        return dict(self._ask("where"))

    def log(self) -> str:
        return (self._directory / "log").read_text()

    def _ask(self, act: str, **arguments: Any) -> Any:
        return ask(self._directory, act, **arguments)


def _node(device_class: str, pattern: str, serial: str) -> str:
    """The device file of the logical unit with a serial number."""
    for node in sorted(Path("/sys/class", device_class).glob(pattern)):
        page = node / "device/vpd_pg80"
        if page.exists() and page.read_bytes()[4:].decode().strip() == serial:
            return f"/dev/{node.name}"
    raise RuntimeError(f"the kernel made no {device_class} of {serial}")
