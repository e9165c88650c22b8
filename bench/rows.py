"""A row of the result: one figure, its goal, whether it is met, and what it was made of."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.cost import Cost, gib
from bench.pairs import Ratios, ratios

# A machine that is noisier than this says little, and must not let every goal be met.
MOST_NOISE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`met`: a ratio reaches its goal within `noise`, the error that dd against dd showed in the
    same run (0 where that was not measured, or where it is no matter of speed). With `at_most` the
    goal is a limit, and nothing is allowed for."""

    name: str
    what: str
    value: float
    goal: float
    unit: str
    at_most: bool = False
    allows_noise: bool = False
    noise: float = 0.0
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        if self.at_most:
            return self.value <= self.goal
        return self.value >= self.goal * (1 - self.noise)

    def judged(self, noise: float) -> Row:
        """With the noise of its run, of which no more than `MOST_NOISE` is allowed for."""
        return replace(self, noise=min(noise, MOST_NOISE)) if self.allows_noise else self

    def document(self) -> dict[str, Any]:
        """What stands in the JSON."""
        return {
            "name": self.name,
            "value": rounded(self.value),
            "goal": rounded(self.goal),
            "met": self.met,
            "unit": self.unit,
            "what": self.what,
            "at_most": self.at_most,
            "noise": rounded(self.noise),
            **self.more,
        }

    def line(self) -> str:
        """For a terminal."""
        sign = "≤" if self.at_most else "≥"
        verdict = "met" if self.met else "NOT MET"
        return f"{self.name:38} {self.value:9.3f} {self.unit:24} {sign} {self.goal:<8g} {verdict}"


def compared(
    name: str,
    what: str,
    ours: Sequence[Cost],
    theirs: Sequence[Cost],
    *,
    goal: float,
    unit: str,
    more: Mapping[str, Any] | None = None,
) -> Row:
    """How many times as fast as the other side ours was, bytes a second against bytes a second."""
    paired = ratios((cost.rate for cost in ours), (cost.rate for cost in theirs))
    return Row(
        name=name,
        what=what,
        value=paired.median,
        goal=goal,
        unit=unit,
        allows_noise=True,
        more={**both(ours, theirs, paired), **(more or {})},
    )


def both(ours: Sequence[Cost], theirs: Sequence[Cost], paired: Ratios) -> dict[str, Any]:
    """What both sides of a comparison took: medians of seconds, of rates and of CPU seconds."""
    return {
        "pairs": len(paired.values),
        "spread": [rounded(value) for value in paired.spread],
        "seconds": sides(ours, theirs, lambda cost: cost.seconds),
        "mib_s": sides(ours, theirs, lambda cost: cost.rate / (1 << 20)),
        "cpu_s": sides(ours, theirs, lambda cost: cost.cpu_s),
        "cpu_s_per_gib": sides(ours, theirs, lambda cost: cost.cpu_s_per_gib),
        "gib": rounded(gib(ours[0].bytes)),
    }


def sides(ours: Iterable[Cost], theirs: Iterable[Cost], of: Any) -> dict[str, float]:
    return {
        "ours": rounded(statistics.median(map(of, ours))),
        "theirs": rounded(statistics.median(map(of, theirs))),
    }


def rounded(value: float) -> float:
    """Four figures: more would be noise in the document."""
    return float(f"{value:.4g}")


def document(rows: Sequence[Row], peak_rss: int | None, **more: Any) -> dict[str, Any]:
    """What a run ends with, as one line of JSON. `peak_rss` in bytes."""
    peak = None if peak_rss is None else rounded(peak_rss / (1 << 20))
    return {"rows": [row.document() for row in rows], "peak_rss_mib": peak, **more}
