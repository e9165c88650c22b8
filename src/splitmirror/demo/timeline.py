"""The demo's picture: the phases as bars on one time scale, the write pause set off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from splitmirror.model import Phase
from splitmirror.units import show_seconds

WIDTH = 48


def timeline(phases: Sequence[Phase], *, width: int = WIDTH) -> Iterator[str]:
    """A line a phase: name, duration, its bar at its place between the first and the last."""
    if not phases:
        return
    begin_s = min(phase.began_s for phase in phases)
    length_s = max(phase.began_s + phase.seconds for phase in phases) - begin_s or 1.0
    for phase in phases:
        left = min(round((phase.began_s - begin_s) / length_s * width), width - 1)
        cells = max(1, min(round(phase.seconds / length_s * width), width - left))
        bar = " " * left + "█" * cells
        yield f"  {phase.name:<12} {show_seconds(phase.seconds):>10}  {bar}"
