"""Addresses on a leg: from a volume's to those of the devices that it lies on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from splitmirror.model import Leg, Run


class Span(NamedTuple):
    """`length` bytes from `address` of a source (see windows)."""

    source: int
    address: int
    length: int


class LegRuns:
    """The runs of all of a leg's volumes in one row, for their index is a span's source."""

    def __init__(self, leg: Leg) -> None:
        self.all: list[Run] = []
        self._volumes: dict[str, tuple[int, Sequence[int], int]] = {}
        for volume, runs in leg.volumes.items():
            begins, end = list[int](), 0
            for run in runs:
                begins.append(end)
                end += run.length
            self._volumes[volume] = (len(self.all), begins, end)
            self.all += runs

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Where each source begins and ends on its path."""
        return [(run.offset, run.offset + run.length) for run in self.all]

    def in_one_piece(self, volume: str, offset: int) -> tuple[int, int, int] | None:
        """For a volume that lies in one run: its source, the address of its byte `offset`, and
        that of its end. None for one that is scattered, or not there."""
        first, begins, _ = self._volumes.get(volume, (0, (), 0))
        if len(begins) != 1:
            return None
        run = self.all[first]
        return first, run.offset + offset, run.offset + run.length

    def spans(self, volume: str, address: int, length: int) -> list[Span]:
        """Leg.locate, quick enough for every extent. Raises ValueError beyond the volume's end."""
        first, begins, end = self._volumes[volume]
        if address < 0 or address + length > end:
            raise ValueError(f"{length} bytes at {address} are beyond the end of volume {volume}")
        at = bisect_right(begins, address) - 1
        found = []
        while length:
            run, within = self.all[first + at], address - begins[at]
            part = min(length, run.length - within)
            if part:
                found.append(Span(first + at, run.offset + within, part))
            address, length, at = address + part, length - part, at + 1
        return found
