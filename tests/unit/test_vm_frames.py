"""Host and guest find one another after a reset, and frames come out as they went in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.vm.frames import MARK, Frame, Wire


def wire_of(pieces: Iterable[bytes]) -> Wire:
    left: Iterator[bytes] = iter(pieces)
    return Wire(lambda _length: next(left, b""), lambda _data: None)


def cut(data: bytes, at: int) -> list[bytes]:
    return [piece for start in range(0, len(data), at) if (piece := data[start : start + at])]


FRAMES = [
    Frame(kind="run", facts={"argv": ["true"], "timeout_s": 1.5}, payload=b"in"),
    Frame(kind="out", payload=MARK + bytes(range(256))),
    Frame(kind="off"),
]


@pytest.mark.parametrize("at", [1, 7, 1 << 16])
def test_frames_come_out_as_they_went_in_however_they_are_cut(at: int) -> None:
    wire = wire_of(cut(b"".join(frame.encode() for frame in FRAMES), at))
    assert [wire.receive() for _ in FRAMES] == FRAMES
    with pytest.raises(EOFError):
        wire.receive()


@given(st.binary(max_size=60), st.integers(min_value=1, max_value=30))
def test_what_came_before_a_mark_is_dropped(before: bytes, at: int) -> None:
    half_a_frame = FRAMES[0].encode()[:-1]
    wire = wire_of(cut(before + half_a_frame + MARK + FRAMES[1].encode(), at))
    wire.find_mark()
    assert wire.receive() == FRAMES[1]


def test_a_frame_that_breaks_off_is_an_end() -> None:
    with pytest.raises(EOFError):
        wire_of([FRAMES[0].encode()[:-1]]).receive()
