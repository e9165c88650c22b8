"""The arithmetic: sides that take turns, paired ratios, their median, and what noise does to it.

A single ratio of two equal things is off by as much as the machine is noisy; the median of several
is off by less. `noise` is how far this very statistic is off where it must be 1: dd against dd.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# The standard deviation of a normal distribution is 1.4826 times its median absolute deviation; the
# standard error of a median is 1.2533 deviations over the root of the sample's size.
_ERROR_OF_MEDIAN = 1.4826 * 1.2533


@dataclass(frozen=True, slots=True)
class Ratios:
    """Ratios of the same two things, one a pair, in the order in which they were measured."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or min(self.values) <= 0:
            raise ValueError(f"no ratios: {self.values}")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles: half of the pairs lie between them."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        first, _, third = statistics.quantiles(self.values, n=4, method="inclusive")
        return first, third

    @property
    def error(self) -> float:
        """The standard error of the median, as a share of it."""
        middle = self.median
        deviation = statistics.median(abs(value - middle) for value in self.values)
        return _ERROR_OF_MEDIAN * deviation / math.sqrt(len(self.values)) / middle

    @property
    def noise(self) -> float:
        """Of equals: how far their median is from 1, or could well have been."""
        return max(abs(self.median - 1), self.error)


def ratios(above: Iterable[float], below: Iterable[float]) -> Ratios:
    """Pair by pair; pairs that only one side has are left out."""
    return Ratios(tuple(a / b for a, b in zip(above, below, strict=False)))


def take_turns(
    sides: Mapping[str, Callable[[], T]], rounds: Mapping[str, int]
) -> dict[str, list[T]]:
    """Measure every side once a round, as long as its number of rounds lasts. Each round begins
    with the next side, so that no side is always the first."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(max(rounds.values(), default=0)):
        taking_part = [name for name in sides if number < rounds.get(name, 0)]
        for name in _turned(taking_part, number):
            found[name].append(sides[name]())
    return found


def _turned(names: Sequence[str], by: int) -> list[str]:
    at = by % len(names)
    return [*names[at:], *names[:at]]
