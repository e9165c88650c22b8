"""A tape file as one long stream of bytes: cut into records of one size, and put together again.

Writing copies only what does not fill a record: large chunks reach the medium as they came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue

from splitmirror.archive.pax import BLOCK
from splitmirror.errors import MediumDamaged
from splitmirror.media import END_OF_DATA, Block, Mark
from splitmirror.stream.behind import Sink, Then, at_once

BLOCK_SIZE = 256 << 10  # bytes of a record unless the set says otherwise
LARGEST_BLOCK = 1 << 20  # what every tape drive and its adapter take in one piece
_GATHERED = 2 << 20  # bytes collected before the sink is called: few calls, still in the cache
_GATHERING = 4  # such buffers, where the sink writes behind

ReadRecord = Callable[[memoryview], int | Mark]
"""Medium.read, or what behaves like it."""

NextRecord = Callable[[], memoryview | Mark]
"""The next record, valid until the one after it is asked for; or the mark that was met."""


_ZEROS = bytes(BLOCK)


def check_block_size(size: int) -> None:
    """Raises ValueError for a record size that this format does not have."""
    if size % BLOCK or not BLOCK <= size <= LARGEST_BLOCK:
        raise ValueError(f"a record is a multiple of {BLOCK} and {LARGEST_BLOCK} at most: {size}")


class RecordWriter:
    """Gathers bytes into records of exactly `block_size`; `close` pads the last with zeros.

    What is smaller than a record is copied; the rest of `data` must stay as it is until a `then`
    that comes later is answered.
    """

    def __init__(self, sink: Sink, block_size: int, then: Then = at_once) -> None:
        check_block_size(block_size)
        self.early_warning = False
        self._sink = sink
        self._then = then
        self._block = block_size
        size = max(1, _GATHERED // block_size) * block_size
        self._free = SimpleQueue[memoryview]()
        for _ in range(1 if then is at_once else _GATHERING):
            self._free.put(memoryview(bytearray(size)))
        self._buffer = self._free.get()
        self._filled = 0
        self._sent = 0

    @property
    def written(self) -> int:
        """Bytes put so far."""
        return self._sent + self._filled

    def put(self, data: Block) -> None:
        """Append bytes. They are copied or with the sink when it returns. Raises what the sink
        raises; nothing may be put after that."""
        end = self._filled + len(data)
        if len(data) < self._block and end <= len(self._buffer):
            self._buffer[self._filled : end] = data
            self._filled = end
        else:
            self._put_large(memoryview(data))

    def put_file(self, header: bytes, data: Block) -> int:
        """Append a header, the data behind it and zeros up to the next tar block: `put`, `put` and
        `pad` in one go. Gives how many bytes that was."""
        filled = self._filled
        begin = filled + len(header)
        end = begin + len(data)
        padded = end + -end % BLOCK  # a record is whole blocks, so the buffer's position tells
        if padded > len(self._buffer) or len(data) >= self._block:
            self.put(header)
            self.put(data)
            self.pad()
            return padded - filled
        buffer = self._buffer
        buffer[filled:begin] = header
        buffer[begin:end] = data
        if padded > end:
            buffer[end:padded] = _ZEROS[: padded - end]
        self._filled = padded
        return padded - filled

    def _put_large(self, data: memoryview) -> None:
        """Fill up the record that was begun; whole records go to the sink from where they lie."""
        begun = -self._filled % self._block
        head, data = data[:begun], data[begun:]
        self._buffer[self._filled : self._filled + len(head)] = head
        self._filled += len(head)
        whole = len(data) - len(data) % self._block
        self._send(data[:whole])
        self._buffer[: len(data) - whole] = data[whole:]
        self._filled = len(data) - whole

    def _send(self, more: memoryview) -> None:
        """Hand over the gathered records, and `more`."""
        blocks = [
            stretch[at : at + self._block]
            for stretch in (self._buffer[: self._filled], more)
            for at in range(0, len(stretch), self._block)
        ]
        if blocks:
            self.early_warning |= self._sink(blocks)
        self._sent += self._filled + len(more)
        if self._filled:
            self._next_buffer()
        self._filled = 0

    def _next_buffer(self) -> None:
        """Go on in a buffer that the sink has done with, even if it has to be waited for."""
        self._then(partial(self._free.put, self._buffer))
        self._buffer = self._free.get()

    def pad(self) -> None:
        """Zeros up to the next tar block."""
        if rest := -self._filled % BLOCK:
            self.put(_ZEROS[:rest])

    def close(self) -> None:
        """Pad the last record and hand over the rest."""
        self.put(bytes(-self.written % self._block))
        self._send(self._buffer[:0])


def one_by_one(read: ReadRecord) -> NextRecord:
    """The records that `read` gives, each in the same place."""
    buffer = memoryview(bytearray(LARGEST_BLOCK))

    def next_record() -> memoryview | Mark:
        length = read(buffer)
        return length if isinstance(length, Mark) else buffer[:length]

    return next_record


class RecordReader:
    """The bytes of a tape file from a position on, a record at a time, where they lie.

    The source stands before the record that holds byte `start`, so behind `start // block_size`
    records. Whatever is not as the format says raises MediumDamaged, with the position.
    """

    def __init__(self, next_record: NextRecord, *, start: int = 0) -> None:
        self.position = start  # bytes of the tape file before what comes next
        self.block_size = 0  # known once a record was read
        self._next = next_record
        self._record = memoryview(b"")  # what is left of the record that was read last

    def take(self, length: int) -> bytes:
        """The next bytes, all of them."""
        if length <= len(self._record):
            taken, self._record = bytes(self._record[:length]), self._record[length:]
            self.position += length
            return taken
        return b"".join(map(bytes, self.views(length)))  # copied before the next is read

    def views(self, length: int) -> Iterator[memoryview]:
        """The next bytes where they lie; each view is valid until the next is taken."""
        while length:
            if not self._record and not self._fill():
                raise self.damaged("the tape file ends in the middle of a member")
            view, self._record = self._record[:length], self._record[length:]
            self.position += len(view)
            length -= len(view)
            yield view

    def skip(self, length: int) -> None:
        """Pass over bytes."""
        for _ in self.views(length):
            pass

    def finish(self) -> None:
        """Pass over the padding up to the filemark, and the filemark."""
        while self._record or self._fill():
            if bytes(self._record).strip(b"\0"):
                raise self.damaged("there are data behind the end of the archive")
            self.position += len(self._record)
            self._record = self._record[:0]

    def damaged(self, what: str) -> MediumDamaged:
        """The error to raise: what is wrong, and where in the tape file."""
        return MediumDamaged(
            f"{what} (at byte {self.position} of the tape file)",
            hint="Clean the drive and read again. If it stays so, restore from another set: "
            "'splitmirror verify' tells which files of this one are whole.",
            position=self.position,
        )

    def _fill(self) -> bool:
        """Read the next record; False: a filemark came."""
        record = self._next()
        if record is END_OF_DATA:
            raise self.damaged("the recording ends before the filemark")
        if isinstance(record, Mark):
            return False
        begun, length = 0, len(record)
        if not self.block_size:
            self._begin(length)
            begun = self.position % length
        elif length != self.block_size:
            raise self.damaged(f"a record of {length} bytes among records of {self.block_size}")
        self._record = record[begun:]
        return True

    def _begin(self, length: int) -> None:
        """All records of a tape file are as long as its first."""
        try:
            check_block_size(length)
        except ValueError as error:
            raise self.damaged(f"a record of {length} bytes") from error
        self.block_size = length
