"""Drives as a library has them: each with its name, and with its slot where there is a changer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from splitmirror.errors import ChangerError, ConfigError
from splitmirror.media import Ejecting, Identified, Medium
from splitmirror.media.changer import Slot, SlotKind, of_kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Bay:
    """A drive. `address`: of its slot; None without a changer."""

    name: str
    medium: Medium
    address: int | None = None

    @property
    def lease(self) -> str:
        """The name of its lease: one drive may be named by several links below /dev."""
        return _resolved(self.name)

    def eject(self) -> None:
        """Unload, and let the cartridge out where the drive holds it."""
        self.medium.unload()
        if isinstance(self.medium, Ejecting):
            self.medium.eject()


def bays_of(drives: Sequence[Medium], slots: Sequence[Slot] | None) -> list[Bay]:
    """The drives with their slots among those of the changer (None: there is no changer).

    A drive is found by its serial number where both it and the changer tell it, else the first
    drive is the changer's first, and so on. Raises ChangerError when that does not come out even,
    ConfigError when two drives are one.
    """
    names = [_name(medium, number) for number, medium in enumerate(drives, 1)]
    if len({_resolved(name) for name in names}) < len(names):
        raise ConfigError(
            f"a drive is named twice: {', '.join(names)}", hint="Name each drive once."
        )
    addresses = [None] * len(drives) if slots is None else _addresses(drives, names, slots)
    return [
        Bay(name=name, medium=medium, address=address)
        for name, medium, address in zip(names, drives, addresses, strict=True)
    ]


def _resolved(name: str) -> str:
    return os.path.realpath(name) if name.startswith("/") else name


def _name(medium: Medium, number: int) -> str:
    return medium.name if isinstance(medium, Identified) else f"drive{number}"


def _addresses(
    drives: Sequence[Medium], names: Sequence[str], slots: Sequence[Slot]
) -> list[int | None]:
    there = of_kind(slots, SlotKind.DRIVE)
    found: list[int | None] = []
    for number, (medium, name) in enumerate(zip(drives, names, strict=True)):
        device = medium.device if isinstance(medium, Identified) else ""
        if device and any(slot.device for slot in there):
            match = next((slot for slot in there if _is_device(slot.device, device)), None)
        else:
            match = there[number] if number < len(there) else None
        if match is None or match.address in found:
            raise _does_not_match(name, device, there)
        found.append(match.address)
    return found


def _is_device(told: str, serial: str) -> bool:
    """Whether a changer's designation of a drive is the one with that serial number: alone, or
    behind the maker (8 characters) and the model (16; SPC-4, T10 vendor ID)."""
    told, serial = told.strip(), serial.strip()
    return told == serial or told.endswith(f" {serial}") or told[24:] == serial


def _does_not_match(name: str, device: str, there: Sequence[Slot]) -> ChangerError:
    known = ", ".join(f"{slot.address} ({slot.device or 'no serial number'})" for slot in there)
    which = f" (serial number {device})" if device else ""
    return ChangerError(
        f"{name}{which} is none of the changer's drives: {known or 'it has none'}",
        hint="Name the changer of the library that these drives are in, and the drives in the "
        "order of its slots; `lsscsi -g` shows them.",
        drive=name,
    )
