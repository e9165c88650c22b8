"""A tape library's SCSI changer: /dev/schN, or its /dev/sgN.

The changer's own words for what went wrong (sense data, SPC-4 annex D) become ChangerError,
ChangerNotReady and Busy. A unit attention is news that needs no answer here, for every command says
by itself what it is about: the command is given again.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Final, TypeVar

from splitmirror.errors import Busy, ChangerError, ChangerNotReady, PrivilegeError
from splitmirror.media.changer import Slot, SlotKind, is_cleaning
from splitmirror.system import scsichanger
from splitmirror.system.scsichanger import CLEANING_MEDIUM, Element, ElementKind
from splitmirror.system.sgio import CommandFailed, Sense

_KINDS: Final = {
    ElementKind.DRIVE: SlotKind.DRIVE,
    ElementKind.DOOR: SlotKind.DOOR,
    ElementKind.STORAGE: SlotKind.STORAGE,
}
_NOT_READY, _ILLEGAL_REQUEST, _UNIT_ATTENTION = 2, 5, 6  # sense keys
_BECOMING_READY: Final = Sense(key=_NOT_READY, asc=0x04, ascq=0x01)
_READY_DEADLINE_S: Final = 600.0  # it looks over its slots when its door was closed
_READY_POLL_S: Final = 1.0
_ATTENTIONS: Final = 10  # so many pieces of news in a row are none any more

# What is said of additional sense codes that an operator can do something about.
_WORDS: Final = {
    (0x04, 0x01): "it is becoming ready",
    (0x04, 0x02): "it wants to look into its slots first",
    (0x04, 0x03): "it needs an operator",
    (0x04, 0x12): "it is offline",
    (0x04, 0x15): "its arm is switched off",
    (0x04, 0x18): "its door is open",
    (0x15, 0x01): "the arm cannot get into position",
    (0x21, 0x01): "there is no slot with that address",
    (0x30, 0x03): "a cleaning cartridge is there",
    (0x3B, 0x0D): "the destination is not empty",
    (0x3B, 0x0E): "there is no cartridge in the source",
    (0x3B, 0x11): "a magazine cannot be reached",
    (0x3B, 0x12): "a magazine was taken out",
    (0x53, 0x00): "a cartridge could not be loaded or let out",
    (0x53, 0x01): "the drive could not unload its tape",
    (0x53, 0x02): "the drive does not let the cartridge out",
    (0x53, 0x03): "the drive does not let the cartridge out",
    (0x83, 0x00): "the barcode cannot be read",
}
_HELD: Final = {(0x53, 0x02), (0x53, 0x03)}
_OUT_OF_REACH: Final = {(0x3B, 0x11), (0x3B, 0x12)}
_CANNOT_TELL: Final = {(0x20, 0x00), (0x24, 0x00)}  # of a command, or of a field in it

Answer = TypeVar("Answer")


class ScsiChanger:
    """A Changer by its device node, which is open until `close`."""

    def __init__(self, path: str) -> None:
        """Raises ChangerError when it is none, PrivilegeError."""
        self._path = path
        self._labels = self._devices = True  # what the changer is known to tell, until it refuses
        self._fd: int | None = self._open()
        try:
            kind = self._ask(scsichanger.device_type)
            if kind != scsichanger.MEDIUM_CHANGER:
                raise self._no_changer(f"it is a device of type {kind}")
            self._addresses = self._ask(scsichanger.addresses)
        except BaseException:
            self.close()
            raise

    def inventory(self, *, look: bool = False) -> list[Slot]:
        if look:
            self._ask(scsichanger.initialize)
        return [_slot(element) for kind in _KINDS for element in self._elements(kind)]

    def move(self, source: int, destination: int) -> None:
        arm = self._addresses[ElementKind.ARM].start
        self._ask(
            lambda fd: scsichanger.move(fd, arm, source, destination),
            f"the move from {source} to {destination}",
        )

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    # --- inside

    def _elements(self, kind: ElementKind) -> list[Element]:
        """With barcodes and the drives' serial numbers, as far as the changer can tell them."""
        labels, devices = self._labels, self._devices and kind is ElementKind.DRIVE
        where = self._addresses[kind]

        def give(fd: int) -> list[Element]:
            return list(scsichanger.elements(fd, kind, where, labels=labels, devices=devices))

        try:
            return self._ask(give)
        except ChangerError as error:
            if error.facts.get("sense") not in _CANNOT_TELL or not (labels or devices):
                raise
        if devices:
            self._devices = False
        else:
            self._labels = False
        return self._elements(kind)

    def _ask(self, give: Callable[[int], Answer], what: str = "") -> Answer:
        """Give a command, again when that is all it takes. `what` it was, for the error."""
        if self._fd is None:
            raise RuntimeError(f"{self._path} is closed")
        attentions, until_s = 0, time.monotonic() + _READY_DEADLINE_S
        while True:
            try:
                return give(self._fd)
            except CommandFailed as error:
                sense = error.sense
                attentions += 1
                if sense is not None and sense.key == _UNIT_ATTENTION and attentions <= _ATTENTIONS:
                    continue
                if sense != _BECOMING_READY or time.monotonic() > until_s:
                    raise self._failed(error, what) from error
                time.sleep(_READY_POLL_S)
            except OSError as error:
                raise self._trouble(error) from error

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError as error:
            raise PrivilegeError(
                f"{self._path} cannot be opened: {error.strerror}", hint="Run as root."
            ) from error
        except OSError as error:
            raise self._trouble(error) from error

    # --- errors

    def _failed(self, error: CommandFailed, what: str) -> ChangerError | Busy:
        sense = error.sense
        why = str(error) if sense is None else f"{_WORDS.get(sense.code, 'it failed')} ({sense})"
        said = f"the changer {self._path}: {what}{': ' if what else ''}{why}"
        facts = {"path": self._path, "sense": sense.code if sense is not None else None}
        if error.reserved or error.busy:
            return Busy(said, hint="Have the other host let go of it, or wait.", **facts)
        if sense is None:
            return ChangerError(said, hint="Look at the library and its cables (dmesg).", **facts)
        if sense.code in _HELD:
            hint = "Wait for whoever uses the drive, here or on another host, or end it."
            return Busy(said, hint=hint, **facts)
        if sense.key == _NOT_READY or sense.code in _OUT_OF_REACH:
            hint = "Look at the library: close its door, put its magazines in, switch it online."
            return ChangerNotReady(said, hint=hint, **facts)
        if sense.key == _ILLEGAL_REQUEST:
            hint = "`splitmirror media inventory --look` shows what is where."
            return ChangerError(said, hint=hint, **facts)
        hint = "Look at the library's panel for what its arm has met, and put that right there."
        return ChangerError(said, hint=hint, **facts)

    def _trouble(self, error: OSError) -> ChangerError:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            return self._no_changer("it takes no SCSI commands")
        return ChangerError(
            f"the changer {self._path} cannot be used: {error.strerror}",
            hint="Look whether the library is there (`lsscsi -g`), and load the kernel's driver: "
            "modprobe ch, or modprobe sg.",
            path=self._path,
        )

    def _no_changer(self, why: str) -> ChangerError:
        return ChangerError(
            f"{self._path} is no changer that can be used: {why}",
            hint="`lsscsi -g` shows the changer (mediumx) with its nodes; before Linux 5.15 name "
            "its /dev/sgN.",
            path=self._path,
        )


def _slot(element: Element) -> Slot:
    trouble = "" if element.exception is None else _exception(element.exception)
    return Slot(
        address=element.address,
        kind=_KINDS[element.kind],
        full=element.full,
        barcode=element.label if element.full else "",
        accessible=element.accessible,
        cleaning=element.full
        and (element.medium_type == CLEANING_MEDIUM or is_cleaning(element.label)),
        source=element.source,
        device=element.device,
        trouble=trouble,
    )


def _exception(code: tuple[int, int]) -> str:
    return _WORDS.get(code, f"code {code[0]:02x}/{code[1]:02x}")
