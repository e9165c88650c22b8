"""The process that is the library: it answers the kernel, and tests over a socket.

A test's request is one line of JSON, `[act, arguments]`, with a method of `Hands` as the act; the
answer is a line `[true, what it gave]` or `[false, why not]`.
"""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm.vtl import tcmu
from tests.vm.vtl.cartridge import Cartridge, Kind
from tests.vm.vtl.changer import Changer
from tests.vm.vtl.drive import Drive
from tests.vm.vtl.scsi import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a library is made of. The cartridges lie in the first slots; those beyond the slots,
    and all where there is no changer, lie outside."""

    drives: int = 2
    slots: int = 8
    doors: int = 2
    changer: bool = True
    cartridges: tuple[Kind, ...] = ()


class Counting:
    """A device whose commands are counted, by opcode."""

    def __init__(self, device: Device) -> None:
        self.serial = device.serial
        self.device = device
        self.counts: Counter[int] = Counter()

    def delay_s(self, cdb: bytes) -> float:
        return self.device.delay_s(cdb)

    def command(self, cdb: bytes, data: bytes) -> bytes:
        self.counts[cdb[0]] += 1
        return self.device.command(cdb, data)


class Hands:
    """Everything that can be done to the library beside SCSI. Drives and doors count from 0,
    cartridges are called by their names."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        self.lock = threading.Lock()
        self._cartridges = {kind.name: Cartridge(directory, kind) for kind in shape.cartridges}
        self._drives = [Drive(f"VTLDRIVE{number}") for number in range(shape.drives)]
        self._outside = dict(self._cartridges)
        self._changer = None
        if shape.changer:
            self._changer = Changer(
                "VTLCHANGER", self._drives, slots=shape.slots, doors=shape.doors
            )
            for slot, name in zip(range(shape.slots), self._cartridges, strict=False):
                self._changer.slots[slot] = self._outside.pop(name)
        self.devices = [Counting(drive) for drive in self._drives]
        if self._changer:
            self.devices.append(Counting(self._changer))

    def fault(self, drive: int, **values: Any) -> None:
        """Set values of the drive's `Faults`."""
        for name, value in values.items():
            setattr(self._drives[drive].faults, name, value)

    def changer_fault(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self._there().faults, name, value)

    def power_cycle(self, drive: int) -> None:
        self._drives[drive].power_cycle()

    def slip(self, drive: int, objects: int) -> None:
        self._drives[drive].slip(objects)

    def set(self, name: str, **values: Any) -> None:
        """Change what a cartridge is (`Kind`), as when its tab is slid."""
        self._cartridges[name].set(**values)

    def lengths(self, name: str) -> list[int]:
        """Of every object on a cartridge; -1 for a filemark."""
        return self._cartridges[name].lengths

    def digests(self, name: str) -> list[str]:
        """Of every object on a cartridge, in few characters."""
        return self._cartridges[name].digests()

    def state(self, drive: int) -> dict[str, Any]:
        """What its initiator has made of a drive."""
        return self._drives[drive].state()

    def blank(self, name: str) -> None:
        """As it was when it was bought."""
        self._cartridges[name].cut(0)

    def settle(self, name: str) -> None:
        """The drive has written what it was given, though nobody asked for a sync."""
        self._cartridges[name].sync()

    def counts(self, drive: int) -> dict[int, int]:
        """How many commands of each opcode a drive got."""
        return dict(self.devices[drive].counts)

    def move(self, source: int, destination: int) -> None:
        """As the changer does when it is told to, by addresses."""
        self._there().move(source, destination)

    def put_in(self, door: int, name: str) -> None:
        """From outside behind the door."""
        self._there().put_in(door, self._outside[name])
        del self._outside[name]

    def take_out(self, door: int) -> str:
        cartridge = self._there().take_out(door)
        self._outside[cartridge.name] = cartridge
        return cartridge.name

    def take_unseen(self, slot: int) -> str:
        """Out of a slot, by its address, behind the changer's back."""
        cartridge = self._there().take_unseen(slot)
        self._outside[cartridge.name] = cartridge
        return cartridge.name

    def insert(self, drive: int, name: str) -> None:
        """From outside into a drive, by hand."""
        if self._drives[drive].cartridge is not None:
            raise ValueError(f"drive {drive} is full")
        self._drives[drive].insert(self._outside.pop(name))

    def remove(self, drive: int) -> str:
        """Out of a drive, by hand."""
        if self._drives[drive].cartridge is None:
            raise ValueError(f"drive {drive} is empty")
        cartridge = self._drives[drive].remove()
        self._outside[cartridge.name] = cartridge
        return cartridge.name

    def where(self) -> dict[str, list[str | None]]:
        """The names of the cartridges in drives, slots and behind doors."""
        held = [drive.cartridge for drive in self._drives]
        slots = self._changer.slots if self._changer else []
        doors = self._changer.doors if self._changer else []
        places = {"drives": held, "slots": slots, "doors": doors}
        return {key: [c.name if c else None for c in there] for key, there in places.items()}

    def close(self) -> None:
        for cartridge in self._cartridges.values():
            cartridge.close()

    def _there(self) -> Changer:
        if self._changer is None:
            raise ValueError("this library has no changer")
        return self._changer


def serve(directory: Path, shape: Shape) -> None:
    """Be the library until a test says `stop`. Prints a line once the kernel knows the devices."""
    directory.mkdir(parents=True, exist_ok=True)
    tcmu.load_modules()
    hands = Hands(directory, shape)
    units = [tcmu.LogicalUnit(d.serial, d, hands.lock) for d in hands.devices]
    for unit in units:
        threading.Thread(target=_until_gone, args=(unit,), daemon=True).start()
    try:
        tcmu.attach(units)
        with socket.socket(socket.AF_UNIX) as listening:
            at = directory / "socket"
            at.unlink(missing_ok=True)
            listening.bind(str(at))
            listening.listen()
            print("ready", flush=True)
            _listen(listening, hands)
    finally:
        tcmu.detach()
        for unit in units:
            unit.remove()
        hands.close()


def _until_gone(unit: tcmu.LogicalUnit) -> None:
    with suppress(OSError):  # the kernel took the device away
        unit.serve()


def _listen(listening: socket.socket, hands: Hands) -> None:
    while True:
        connection, _ = listening.accept()
        with connection, connection.makefile("rw") as lines:
            act, arguments = json.loads(lines.readline())
            if act == "stop":
                return
            try:
                with hands.lock:
                    given = getattr(hands, act)(**arguments)
                answer = [True, given]
            except Exception as error:
                answer = [False, repr(error)]
            lines.write(json.dumps(answer) + "\n")


def ask(directory: Path, act: str, **arguments: Any) -> Any:
    """A request to the library whose directory this is. Raises RuntimeError when it is refused."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(directory / "socket"))
        with connection.makefile("rw") as lines:
            lines.write(json.dumps([act, arguments]) + "\n")
            lines.flush()
            if act == "stop":
                return None
            done, given = json.loads(lines.readline())
    if not done:
        raise RuntimeError(f"{act} {arguments}: {given}")
    return given
