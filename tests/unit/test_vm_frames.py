"""What host and guest say to one another comes out as it went in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from tests.vm.frames import Frame, Wire


def wire_of(pieces: Iterable[bytes]) -> Wire:
    left: Iterator[bytes] = iter(pieces)
    return Wire(lambda _length: next(left, b""), lambda _data: None)


def cut(data: bytes, at: int) -> list[bytes]:
    return [piece for start in range(0, len(data), at) if (piece := data[start : start + at])]


FRAMES = [
    Frame(kind="run", facts={"argv": ["true"], "timeout_s": 1.5}, payload=b"in"),
    Frame(kind="out", payload=bytes(range(256)) * 300),
    Frame(kind="off"),
]


@pytest.mark.parametrize("at", [1, 7, 1 << 16])
def test_frames_come_out_as_they_went_in_however_they_are_cut(at: int) -> None:
    wire = wire_of(cut(b"".join(frame.encode() for frame in FRAMES), at))
    assert [wire.receive() for _ in FRAMES] == FRAMES
    with pytest.raises(EOFError):
        wire.receive()


def test_a_frame_that_breaks_off_is_an_end() -> None:
    with pytest.raises(EOFError):
        wire_of([FRAMES[0].encode()[:-1]]).receive()
