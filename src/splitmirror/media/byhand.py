"""Drives without a changer: a person puts the volumes in and takes them out."""

from __future__ import annotations

import re
from collections.abc import Collection

from splitmirror.errors import NoSuchVolume, WrongMedium
from splitmirror.media import END_OF_DATA
from splitmirror.media.asking import Ask
from splitmirror.media.bays import Bay
from splitmirror.media.walking import VolumeReader, read_record

_EMPTY = "it is empty"
_BLANK = "a blank volume is in it"


class ByHand:
    """Asks for each volume until it is in the drive."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def bring(self, bay: Bay, serial: str, *, writable: bool, or_blank: bool = False) -> None:
        """That volume is in the drive, proven by its label, and loaded; or with `or_blank` one that
        is blank. Nothing is loaded writable before that. Raises NoSuchVolume, Busy, and what the
        drive raises."""
        will_do = {serial, _BLANK} if or_blank else {serial}
        there = ""
        while found := self._why_not(bay, will_do, writable):
            there = self._told(found, there)
            self._let_out(bay, found)
            self._ask(f"Put volume {serial} into drive {bay.name} ({there}).")

    def bring_blank(self, bay: Bay, taken: Collection[str]) -> str:
        """A blank volume is in the drive, loaded writable; the serial that it gets, the next one
        behind those that are taken."""
        serial, there = next_serial(taken), ""
        while (found := self._look(bay)) != _BLANK:
            there = self._told(found, there)
            self._let_out(bay, found)
            self._ask(f"Put a blank volume into drive {bay.name} and mark it {serial} ({there}).")
        bay.medium.load(writable=True)
        return serial

    @staticmethod
    def put_away(bay: Bay) -> None:
        """Let the volume out for the operator to take. An empty drive: harmless."""
        bay.eject()

    def look(self, bay: Bay) -> str:
        """What is in the drive: a serial, or in words why there is none."""
        found = self._look(bay)
        bay.medium.unload()
        return found

    def _why_not(self, bay: Bay, will_do: Collection[str], writable: bool) -> str:
        """What is in the drive instead, or hinders that it is written; "" when it is loaded."""
        found = self._look(bay)
        if found not in will_do:
            return found
        try:
            bay.medium.load(writable=writable)
        except WrongMedium as error:  # protected against writing
            return str(error)
        return ""

    def _look(self, bay: Bay) -> str:
        """The same; left loaded, read-only."""
        try:
            bay.medium.load(writable=False)
            if read_record(bay.medium) is END_OF_DATA:
                return _BLANK
            return VolumeReader(bay.medium).serial
        except NoSuchVolume:
            return _EMPTY
        except WrongMedium as error:
            return str(error)

    @staticmethod
    def _told(found: str, before: str) -> str:
        """Why it is asked. That the drive is empty once the wrong volume was let out is not worth
        another notice."""
        if found == _EMPTY:
            return before or found
        if re.fullmatch(r"[A-Z0-9]{6}", found):
            return f"{found} was in it"
        return found.replace("is in it", "was in it")

    @staticmethod
    def _let_out(bay: Bay, found: str) -> None:
        if found == _EMPTY:
            bay.medium.unload()
        else:
            bay.eject()


def next_serial(taken: Collection[str]) -> str:
    """The serial behind the last of those taken: SM0002 behind SM0001."""
    last = max((each for each in taken if re.fullmatch(r"[A-Z0-9]{5}\d", each)), default="")
    digits = re.search(r"\d+$", last)
    if digits is None:
        return "SM0001"
    number = str(int(digits[0]) + 1).zfill(len(digits[0]))
    if len(number) > len(digits[0]):
        raise NoSuchVolume(
            f"there is no serial behind {last}",
            hint="Label a volume with another beginning: `splitmirror media label`.",
        )
    return last[: digits.start()] + number
