"""How a stretch of the set is read: which bytes go into one window, and in which reads.

A window is a buffer for the data of the files that come next in logical order. Where they lie is
sorted by physical address, neighbours are read together, and each lands at a place of its own in
the buffer, from where it is emitted in logical order. Nothing here reads: it is arithmetic.

Addresses are of a source, by its index: the leg's runs come first, and then, for one window each,
the files that must be read through the mounted leg. A source's bounds are never exceeded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from splitmirror.stream.leg_runs import Span
from splitmirror.stream.look import Look, PlainLook

# Direct I/O asks for the logical block size of the device, of which 4 KiB is the largest in use.
BLOCK = 4096
# Below this a gap costs less to read over than a read of its own does, on disk and flash alike.
MAX_GAP = 128 << 10
# Reads no longer than this keep several in flight within one window, also within a short one.
MAX_READ = 1 << 20
# Pieces so long lie in order anyhow, so more of them at once would gain nothing. Windows of them
# are short: the same little memory is read into and hashed all the time, and stays in the cache.
LONG = 2 << 20
LONG_WINDOW = 4 << 20
# A preadv takes no more than IOV_MAX (1024) places.
MAX_PLACES = 1000
# A range is cut at a window's end only where at least this much of it goes in.
MIN_CUT = 256 << 10
# No more members than this wait in one window: those without data take memory too.
MAX_SHARES = 8192


class Share(NamedTuple):
    """What of a member lies in one window: spans `first` up to `last`. A member that does not end
    goes on at the beginning of the next window. Of an ordinary file its PlainLook is the share: it
    lies in one window, and in one span, the one behind those of the share before it."""

    look: Look
    begins: bool
    ends: bool
    first: int
    last: int


class Place(NamedTuple):
    """`length` bytes of a read go to `position` of the buffer; None: they are a gap."""

    position: int | None
    length: int


class Read(NamedTuple):
    """One read of a source from `begin`, without a break, into `places`."""

    source: int
    begin: int
    length: int
    places: list[Place]


@dataclass(slots=True)
class Draft:
    """A window before it is read: whose data it will hold. `through` are the files that are read
    through the mounted leg: source `devices + i` is `through[i]`."""

    devices: int
    left: int
    long: bool = False  # begun with a long piece, and short for that
    shares: list[Share | PlainLook] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    through: list[Look] = field(default_factory=list)

    def named_spans(self) -> Iterator[tuple[bytes, Sequence[Span]]]:
        """Whose spans they are, in order."""
        for share in self.shares:
            if isinstance(share, Share):
                yield share.look.name, self.spans[share.first : share.last]
            elif share.span is not None:
                yield share.name, (share.span,)

    def take(self, look: Look, spans: Sequence[Span], *, begins: bool) -> Sequence[Span]:
        """Add as much of the spans as there is room for; what is left of them."""
        first, rest = len(self.spans), spans
        if spans and look.through:
            source = self.devices + len(self.through)
            self.through.append(look)
            spans = [span._replace(source=source) for span in spans]
        for at, span in enumerate(spans):
            if span.length >= LONG and not self.long:
                if self.spans:
                    rest = spans[at:]
                    break
                self.long, self.left = True, min(self.left, LONG_WINDOW)
            room = _room(span)
            if room > self.left:
                rest = self._cut(span, spans[at:])
                break
            self.spans.append(span)
            self.left -= room
        else:
            rest = ()
        self.shares.append(Share(look, begins, not rest, first, len(self.spans)))
        return rest

    @property
    def full(self) -> bool:
        return len(self.shares) >= MAX_SHARES

    def take_plain(self, look: PlainLook) -> bool:
        """Add an ordinary file; False: there is no room for it."""
        if look.span is not None:
            _, address, length = look.span
            room = (address % BLOCK + length + BLOCK - 1) & -BLOCK
            if room > self.left:
                return False
            self.left -= room
            self.spans.append(look.span)
        self.shares.append(look)
        return True

    def _cut(self, span: Span, rest: Sequence[Span]) -> Sequence[Span]:
        """Take the beginning of a span that does not fit as a whole."""
        end = (span.address // BLOCK * BLOCK + self.left) // BLOCK * BLOCK
        length = end - span.address
        self.left = 0
        if length < MIN_CUT:
            return rest
        self.spans.append(Span(span.source, span.address, length))
        return [Span(span.source, end, span.length - length), *rest[1:]]


def _room(span: Span) -> int:
    """What a span takes in the buffer: whole blocks."""
    begin = span.address // BLOCK * BLOCK
    return -(-(span.address + span.length - begin) // BLOCK) * BLOCK


def draft_windows(looks: Iterable[Look | PlainLook], devices: int, room: int) -> Iterator[Draft]:
    """Cut the files, in the order given, into windows of at most `room` bytes of buffer."""
    if room < 2 * MIN_CUT:
        raise ValueError(f"a window of {room} bytes is too small, {2 * MIN_CUT} is the least")
    draft = Draft(devices, room)
    for look in looks:
        if isinstance(look, PlainLook):
            if draft.full or not draft.take_plain(look):
                yield draft
                draft = Draft(devices, room)
                draft.take_plain(look)
            continue
        rest = draft.take(look, look.spans, begins=True)
        while rest:
            yield draft
            draft = Draft(devices, room)
            rest = draft.take(look, rest, begins=False)
        if draft.full:
            yield draft
            draft = Draft(devices, room)
    if draft.shares:
        yield draft


def lay_out(
    spans: Sequence[Span], bounds: Sequence[tuple[int, int]]
) -> tuple[list[Read], list[int]]:
    """The reads that bring all spans into a buffer, and each span's position in it.

    The spans may overlap (shared extents). `bounds`: for each source where it begins and ends; each
    span lies within. Reads begin and end at blocks (or bounds), as their places do.
    """
    reads: list[Read] = []
    positions = [0] * len(spans)
    used = 0  # of the buffer
    source = begin = end = position = lower = upper = -1  # the stretch of blocks that is growing
    keys = [span_source << 64 | address for span_source, address, _ in spans]
    for at in sorted(range(len(spans)), key=keys.__getitem__):
        span_source, address, length = spans[at]
        if span_source != source:
            if end > begin:
                _add(reads, source, begin, end, position)
            source, (lower, upper) = span_source, bounds[span_source]
            begin = end = -1
        span_begin = max(address & -BLOCK, lower)
        span_end = min((address + length + BLOCK - 1) & -BLOCK, upper)
        if span_begin > end or begin < 0:
            if end > begin:
                _add(reads, source, begin, end, position)
            begin = end = span_begin
            position = used
        if span_end > end:
            end = span_end
            used = position + ((end - begin + BLOCK - 1) & -BLOCK)
        positions[at] = position + address - begin
    if end > begin:
        _add(reads, source, begin, end, position)
    return reads, positions


def _add(reads: list[Read], source: int, begin: int, end: int, position: int) -> None:
    """Append a stretch, to the last read where it is near, else in reads of its own."""
    if reads:
        last = reads[-1]
        reached = last.begin + last.length
        near = last.source == source and begin - reached <= MAX_GAP
        if near and end - last.begin <= MAX_READ and len(last.places) < MAX_PLACES:
            if begin > reached:
                last.places.append(Place(None, begin - reached))
            last.places.append(Place(position, end - begin))
            reads[-1] = Read(source, last.begin, end - last.begin, last.places)
            return
    while begin < end:
        length = min(end - begin, MAX_READ)
        reads.append(Read(source, begin, length, [Place(position, length)]))
        begin, position = begin + length, position + length
