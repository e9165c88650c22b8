"""SIMH .tap framing, and the index of what lies in such a file.

Source: Bob Supnik, "SIMH Magtape Representation and Handling". A record is its length as a 32-bit
little-endian word, its bytes, a zero byte when the length is odd, and the same length word again; a
filemark is the word 0, the end of the medium the word 0xFFFFFFFF, an erase gap 0xFFFFFFFE. The
upper eight bits of a length carry an error class; we write 0 there and take nothing else.

The index keeps runs of equal objects, so that a tape of a million records of one size takes a few
hundred bytes. Beside the tape it is kept as a sidecar: a hash, a blank and one line of JSON. The
sidecar is a cache: it counts only while it matches the tape, else the tape is walked.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import os
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from splitmirror.media import Block, Place

WORD: Final = struct.Struct("<I")
END_WORD: Final = 0xFFFF_FFFF
GAP_WORD: Final = 0xFFFF_FFFE
LARGEST: Final = (1 << 24) - 1  # a length has 24 bits

_SAMPLE = 4096  # bytes hashed at either end: the first labels, and the last set's
_CHUNK = 1 << 20  # bytes looked at in one go where zeros are counted
_IOV_MAX = os.sysconf("SC_IOV_MAX")
_BATCH = 1 << 20  # bytes for one system call: with 4 MiB it was a quarter slower
_FILEMARKS_AT_END = 2  # what a volume ends with; more zeros are no filemarks unless proven


class Run(NamedTuple):
    """`times` objects of one kind, side by side: records of `size` bytes, or filemarks (0)."""

    first: int  # number of the first object
    offset: int  # where it begins in the file
    size: int
    times: int


def stride(size: int) -> int:
    """Bytes that an object takes in the file."""
    return WORD.size if size == 0 else 2 * WORD.size + size + (size & 1)


class Index:
    """Where each object begins. `end` is the offset behind the last one."""

    def __init__(self) -> None:
        self._runs: list[Run] = []
        self.end = 0

    @property
    def objects(self) -> int:
        return self._runs[-1].first + self._runs[-1].times if self._runs else 0

    def append(self, size: int, count: int = 1) -> None:
        """`count` objects of `size` now follow at `end`."""
        last = self._runs[-1] if self._runs else None
        if last and last.size == size and last.offset + last.times * stride(size) == self.end:
            self._runs[-1] = last._replace(times=last.times + count)
        else:
            self._runs.append(Run(self.objects, self.end, size, count))
        self.end += count * stride(size)

    def find(self, position: int) -> tuple[int, int]:
        """(offset, size) of an object; size 0 is a filemark. The position must be on the tape."""
        run = self._runs[self._run_at(position)]
        return run.offset + (position - run.first) * stride(run.size), run.size

    def alike(self, position: int) -> int:
        """How many objects of one kind and size lie side by side from `position` on, it included.
        The position must be on the tape."""
        run = self._runs[self._run_at(position)]
        return run.first + run.times - position

    def cut(self, position: int) -> None:
        """Forget object `position` and all behind it."""
        if position >= self.objects:
            return
        self.end, _ = self.find(position)
        number = self._run_at(position)
        kept = position - self._runs[number].first
        del self._runs[number + (kept > 0) :]
        if kept:
            self._runs[number] = self._runs[number]._replace(times=kept)

    def after_filemarks(self, position: int, count: int) -> int | None:
        """The object behind the `count`th filemark from `position` on; None: not so many."""
        for run in self._runs[self._run_at(position) :] if self._runs else ():
            if run.size:
                continue
            begin = max(run.first, position)
            here = run.first + run.times - begin
            if here >= count:
                return begin + count
            count -= max(here, 0)
        return None

    def before_filemarks(self, position: int, count: int) -> int | None:
        """The `count`th filemark backward from `position`; None: not so many."""
        for run in reversed(self._runs):
            if run.size or run.first >= position:
                continue
            end = min(run.first + run.times, position)
            if end - run.first >= count:
                return end - count
            count -= end - run.first
        return None

    def filemarks_at_end(self) -> int:
        """How many filemarks stand last."""
        return self._runs[-1].times if self._runs and self._runs[-1].size == 0 else 0

    def runs(self) -> list[tuple[int, int, int]]:
        """(offset, size, times) of each run, for the sidecar."""
        return [(run.offset, run.size, run.times) for run in self._runs]

    def _run_at(self, position: int) -> int:
        return max(0, bisect_right(self._runs, position, key=lambda run: run.first) - 1)


# --- walking the tape


class Stop(enum.Enum):
    """Why a walk ended where it did."""

    END_MARK = "the word for the end of the medium"
    END_OF_FILE = "the file ends between two objects"
    TORN = "the file ends within an object"
    BROKEN = "a word that begins no object, or does not match its second one"


def walk(fd: int, index: Index, size: int) -> Stop:
    """Append what follows `index.end` in a file of `size` bytes to the index, up to its last whole
    object.

    Whoever writes such a tape puts the end mark down only when all before it was synced. So where
    the walk meets the mark, everything is proven. Elsewhere a tail may be what a power cut leaves,
    and zeros in it what was never written: filemarks that only the end of the file follows, and
    more of them than a volume ends with, do not count.
    """
    proven = index.objects
    stop = _walk(fd, index, size)
    doubtful = min(index.filemarks_at_end(), index.objects - proven)
    if stop is Stop.END_OF_FILE or (stop is not Stop.END_MARK and doubtful > _FILEMARKS_AT_END):
        index.cut(index.objects - doubtful)
    return stop


def _walk(fd: int, index: Index, size: int) -> Stop:
    while index.end + WORD.size <= size:
        word = read_word(fd, index.end)
        if word == END_WORD:
            return Stop.END_MARK
        if word == GAP_WORD:
            index.end += WORD.size
        elif word == 0:
            index.append(0, _zero_words(fd, index.end, size))
        elif word > LARGEST:
            return Stop.BROKEN
        elif index.end + stride(word) > size:
            return Stop.TORN
        elif read_word(fd, index.end + stride(word) - WORD.size) != word:
            return Stop.BROKEN
        else:
            index.append(word)
    rest = os.pread(fd, WORD.size, index.end)
    return Stop.TORN if any(rest) else Stop.END_OF_FILE


def read_word(fd: int, offset: int) -> int:
    """The word at `offset`, which must lie in the file."""
    word: int = WORD.unpack(os.pread(fd, WORD.size, offset))[0]
    return word


def records_in(buffer: memoryview, begin: int, size: int) -> list[Place]:
    """Where the records of `size` bytes lie that stand whole in the buffer from `begin` on, up to
    the first whose length words are not what they should be."""
    word, step, found = WORD.pack(size), stride(size), list[Place]()
    for at in range(begin, len(buffer) - step + 1, step):
        record, end = at + WORD.size, at + step
        if buffer[at:record] != word or buffer[end - WORD.size : end] != word:
            break
        found.append((record, record + size))
    return found


def _zero_words(fd: int, offset: int, size: int) -> int:
    """How many zero words follow one another from `offset` on. Quick, for a tail may be long."""
    begin = offset
    while offset < size:
        chunk = os.pread(fd, _CHUNK, offset)
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        offset += zeros
        if not chunk or zeros < len(chunk):
            break
    return (offset - begin) // WORD.size


def ends_cleanly(fd: int, begin: int, size: int) -> bool:
    """Whether the file ends with a whole record, filemarks and the end mark, none before `begin`.

    A walk that stopped before such an end has met damage, and no torn tail.
    """
    offset = size - WORD.size
    if offset <= begin or read_word(fd, offset) != END_WORD:
        return False
    while offset - WORD.size > begin and read_word(fd, offset - WORD.size) == 0:
        offset -= WORD.size
    if offset - WORD.size <= begin:
        return False
    length = read_word(fd, offset - WORD.size)
    start = offset - stride(length)
    return 0 < length <= LARGEST and start >= begin and read_word(fd, start) == length


# --- writing


def batches(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """From which record to which one system call should write."""
    begin = total = 0
    for number, size in enumerate(sizes):
        if total and (total + size > _BATCH or 2 * (number - begin) + 3 > _IOV_MAX):
            yield begin, number
            begin, total = number, 0
        total += size
    if total:
        yield begin, len(sizes)


def framed(blocks: Sequence[Block], sizes: Sequence[int]) -> list[Block]:
    """The blocks with their length words between them, as buffers to be written in one go."""
    buffers: list[Block] = []
    behind = b""
    for block, size in zip(blocks, sizes, strict=True):
        word = WORD.pack(size)
        buffers += [behind + word, block]
        behind = bytes(size & 1) + word
    return [*buffers, behind]


def write_all(fd: int, buffers: list[Block], offset: int) -> tuple[int, OSError | None]:
    """Bytes that were written before all were or an error came, and the error."""
    begin = offset
    while buffers:
        try:
            done = os.pwritev(fd, buffers[:_IOV_MAX], offset)
        except OSError as error:
            return offset - begin, error
        offset += done
        buffers = _after(buffers, done)
    return offset - begin, None


def _after(buffers: list[Block], done: int) -> list[Block]:
    """What is left of the buffers behind `done` bytes."""
    for number, buffer in enumerate(buffers):
        view = memoryview(buffer).cast("B")
        if done < view.nbytes:
            return [view[done:], *buffers[number + 1 :]]
        done -= view.nbytes
    return []


# --- the sidecar


class _Sidecar(msgspec.Struct, frozen=True):
    """`end`: up to where the tape was synced; `sample`: hash of what then stood at either end."""

    format: int
    end: int
    sample: str
    runs: list[tuple[int, int, int]]


def sidecar_of(tape: Path) -> Path:
    return tape.with_name(tape.name + ".idx")


def save(tape: Path, fd: int, index: Index) -> None:
    """Replace the sidecar. What cannot be written is left out: the tape can be walked."""
    path = sidecar_of(tape)
    new = path.with_name(path.name + ".new")
    try:
        sample = _sample(fd, index.end)
        body = msgspec.json.encode(
            _Sidecar(format=1, end=index.end, sample=sample, runs=index.runs())
        )
        new.write_bytes(_hash(body).encode() + b" " + body + b"\n")
        new.replace(path)
    except OSError:
        for stale in (new, path):
            with contextlib.suppress(OSError):
                stale.unlink()


def load(tape: Path, fd: int, size: int) -> Index | None:
    """The index up to the synced end, or None where the sidecar is lost, torn, or not of this
    tape as it is now."""
    kept = _kept(tape, size)
    return _index(kept) if kept and kept.sample == _sample(fd, kept.end) else None


def load_beyond_damage(tape: Path, fd: int, size: int) -> Index | None:
    """The same for a tape that is damaged, perhaps where the sample is taken: it is enough that
    the sidecar's end is where the end mark stands."""
    kept = _kept(tape, size)
    at_mark = kept is not None and kept.end == size - WORD.size
    return _index(kept) if kept and at_mark and read_word(fd, kept.end) == END_WORD else None


def _kept(tape: Path, size: int) -> _Sidecar | None:
    try:
        digest, _, body = sidecar_of(tape).read_bytes().rstrip(b"\n").partition(b" ")
        if digest.decode("latin-1") != _hash(body):
            return None
        kept = msgspec.json.decode(body, type=_Sidecar)
    except (OSError, msgspec.DecodeError):
        return None
    return kept if kept.format == 1 and kept.end <= size else None


def _index(kept: _Sidecar) -> Index:
    index = Index()
    for offset, length, count in kept.runs:
        index.end = offset
        index.append(length, count)
    index.end = kept.end
    return index


def _hash(*data: bytes) -> str:
    return hashlib.blake2b(b"".join(data), digest_size=16).hexdigest()


def _sample(fd: int, end: int) -> str:
    head = os.pread(fd, min(_SAMPLE, end), 0)
    tail = os.pread(fd, min(_SAMPLE, end), max(0, end - _SAMPLE))
    return _hash(head, tail)
