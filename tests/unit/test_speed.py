"""What a backup tells of its own speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitmirror.cli.show import rate
from splitmirror.errors import LegError
from splitmirror.model import Leg, Run
from splitmirror.stream.look import ReadCounts
from splitmirror.stream.speed import measured_rate, speed_of

MIB = 1 << 20


@pytest.mark.parametrize(
    ("for_leg_s", "for_medium_s", "bottleneck"),
    [(6.0, 1.0, "reading the leg"), (1.0, 6.0, "the medium"), (1.0, 1.0, "packing")],
)
def test_the_bottleneck_is_what_was_waited_for_most(
    for_leg_s: float, for_medium_s: float, bottleneck: str
) -> None:
    speed = speed_of(
        100 * MIB,
        10.0,
        [ReadCounts(waited_s=for_leg_s)],
        written_s=9.0,
        for_medium_s=for_medium_s,
        streams=1,
        leg_rate=20.0 * MIB,
    )
    assert speed.bottleneck == bottleneck
    assert speed.rate == 10 * MIB
    told = speed.stages
    assert told["packing"] + told["waiting for the leg"] + told["waiting for the medium"] == 10
    assert "10.0 MiB/s (50% of the leg's own 20.0 MiB/s)" in rate(speed)
    assert f"bottleneck: {bottleneck}" in rate(speed)


def test_what_streams_at_once_waited_for_is_added_up() -> None:
    counts = [ReadCounts(waited_s=4.0, look_s=1.0), ReadCounts(waited_s=5.0, look_s=2.0)]
    speed = speed_of(
        100 * MIB, 10.0, counts, written_s=15.0, for_medium_s=6.0, streams=2, leg_rate=None
    )
    assert speed.rate == 10 * MIB
    assert speed.stages == {
        "looking": 3.0,
        "packing": 5.0,
        "writing": 15.0,
        "waiting for the leg": 9.0,
        "waiting for the medium": 6.0,
    }


def leg_of(path: Path, length: int) -> Leg:
    return Leg(split_id="s", volumes={"v": (Run(path=str(path), offset=0, length=length),)})


def test_a_leg_is_measured_by_reading_no_more_than_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "leg"
    path.write_bytes(bytes(9 * MIB))
    measured = measured_rate(leg_of(path, 100 * MIB), 8 * MIB)
    assert measured is not None and measured > 0
    with pytest.raises(LegError, match="to measure it"):
        measured_rate(leg_of(path, 100 * MIB), 16 * MIB)


def test_a_leg_too_short_for_one_large_read_is_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "leg"
    path.write_bytes(bytes(MIB))
    assert measured_rate(leg_of(path, MIB), 1 << 30) is None
