"""How fast a set went from the leg to the medium, and what it waited for.

Three things go on at once: the leg is read ahead, members are packed and hashed, the medium is
written behind. The one in the middle waits for the other two, and so tells which of the three is
the bottleneck.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Final

from splitmirror.errors import LegError
from splitmirror.model import Leg, Speed
from splitmirror.stream.leg_reader import Devices
from splitmirror.stream.look import ReadCounts

_AT_ONCE: Final = 4 << 20  # as `dd bs=4M iflag=direct` reads


def measured_rate(leg: Leg, size: int) -> float | None:
    """Bytes a second of the leg by itself: the first `size` bytes of its longest run, one large
    direct read after another. None where the run is too short for one. Raises LegError."""
    run = max((run for runs in leg.volumes.values() for run in runs), key=lambda run: run.length)
    size = min(size, run.length) // _AT_ONCE * _AT_ONCE
    if not size:
        return None
    buffer = memoryview(mmap.mmap(-1, _AT_ONCE))
    with closing(Devices([run])) as devices:
        began_s = time.monotonic()
        try:
            for at in range(run.offset, run.offset + size, _AT_ONCE):
                devices.read(0, at, [buffer])
        except (OSError, EOFError) as error:
            raise LegError(
                f"cannot read {run.path} to measure it: {error}",
                hint="Look at the kernel's log; replace the mirror disk if it fails.",
                device=run.path,
            ) from error
    return size / (time.monotonic() - began_s)


def speed_of(
    stored: int,
    seconds: float,
    reading: Sequence[ReadCounts],
    *,
    written_s: float,
    for_medium_s: float,
    streams: int,
    leg_rate: float | None,
) -> Speed:
    """What `stored` bytes in `seconds` came to: of all streams, which went on at once, what each
    read, and the seconds spent in writing to media and in waiting for them. `leg_rate`: what the
    leg itself can do."""
    for_leg_s = sum(counts.waited_s for counts in reading)
    packing_s = max(seconds * streams - for_leg_s - for_medium_s, 0.0)
    waits = {"reading the leg": for_leg_s, "packing": packing_s, "the medium": for_medium_s}
    return Speed(
        bytes=stored,
        seconds=seconds,
        stages={
            "looking": sum(counts.look_s for counts in reading),
            "packing": packing_s,
            "writing": written_s,
            "waiting for the leg": for_leg_s,
            "waiting for the medium": for_medium_s,
        },
        bottleneck=max(waits, key=waits.__getitem__),
        leg_rate=leg_rate,
    )
