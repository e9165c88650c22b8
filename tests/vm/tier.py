"""What the guest tier says of itself: first what it will run, last how long it took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from tests.vm import image
from tests.vm.scenarios import Ran

from splitmirror.units import show_seconds


@dataclass(slots=True, kw_only=True)
class Tier:
    """The course of one session."""

    image_s: float = 0.0
    boots_s: list[float] = field(default_factory=list)
    ran: list[Ran] = field(default_factory=list)


TIER = pytest.StashKey[Tier]()


def plan(items: Sequence[pytest.Item]) -> str:
    """One line for the guest tests among the items; empty when there are none that will run."""
    ours = [item for item in items if item.get_closest_marker("vm")]
    running = [item for item in ours if not item.get_closest_marker("skip")]
    if not running:
        return ""
    files = dict.fromkeys(item.path.name for item in running)
    found = image.cached()
    where = f"image cached in {found.directory}" if found else "image not cached: built first"
    return f"guest tier: {where}; a guest each for {', '.join(files)}"


def account(tier: Tier) -> Iterator[str]:
    """How long the image, the boots and each call of scenarios took, and the figures told."""
    if tier.image_s:
        yield f"image: {show_seconds(tier.image_s)}"
    boots = ", ".join(f"{boot:.1f}" for boot in tier.boots_s)
    yield f"boots: {len(tier.boots_s)} in {show_seconds(sum(tier.boots_s))} ({boots} s)"
    for ran in tier.ran:
        yield str(ran)
        for test, figures in ran.figures.items():
            yield f"  {test.rpartition('/')[2]}: {figures}"
