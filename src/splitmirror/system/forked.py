"""A copy of this process that works beside it and takes its orders from it.

It is forked, and no program is run: so it is ready in a millisecond, knows what this process knew,
and shares the memory that was mapped MAP_SHARED (mmap(2)). The interpreter's lock is its own, which
threads would hand to one another after every system call. It must touch nothing that a thread of
this process may have been in the middle of at that moment: other libraries' connections, logs,
standard output (fork(2)); and it ends without any cleaning up but its own.

However this process ends, the kernel closes the pipe to the copy, and it ends too.
"""

from __future__ import annotations

import gc
import os
import signal
import struct
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NoReturn

from splitmirror.system import libc

_LENGTH = struct.Struct("<I")  # of the message that follows
_AT_ONCE = 64 << 10  # bytes; what a pipe holds (pipe(7))
_PR_SET_PDEATHSIG = 1
_OURS_TO_HANDLE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # they reach the whole group

Serve = Callable[[Iterator[bytes], Callable[[bytes], None]], None]
"""Takes the orders as they come, until there are no more, and gives answers."""


class Forked:
    """The copy, as the process sees it that made it. It runs `serve` and ends.

    Not thread-safe, but one thread may send while another one receives.
    """

    def __init__(
        self,
        serve: Serve,
        siblings: Iterable[Forked] = (),
        *,
        kept: Iterable[int] | None = None,
    ) -> None:
        """`siblings`: copies that were made before, whose pipes this one must not keep open. With
        `kept` it closes every descriptor but these (locks must not outlive this process), and is
        killed when this process ends, whatever it is doing (prctl(2), PR_SET_PDEATHSIG)."""
        theirs, self._orders = os.pipe()
        self._answers, ours = os.pipe()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS_TO_HANDLE)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                pipes = [fd for one in siblings for fd in (one._orders, one._answers) if fd >= 0]
                _live(serve, theirs, ours, [self._orders, self._answers, *pipes], kept)
        except OSError:
            os.close(self._orders)
            os.close(self._answers)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(theirs)
            os.close(ours)
        self._received = b""
        self._status: int | None = None

    def fileno(self) -> int:
        """Readable when an answer comes, or when it has ended."""
        return self._answers

    def send(self, order: bytes) -> None:
        """Waits while the pipe is full. Raises BrokenPipeError when the copy has ended."""
        _send(self._orders, order)

    def receive(self) -> list[bytes] | None:
        """The answers that came meanwhile, or part of one; None: it has ended."""
        chunk = os.read(self._answers, _AT_ONCE)
        if not chunk:
            return None
        whole, self._received = _cut(self._received + chunk)
        return whole

    def kill(self) -> None:
        """End it at once and wait until it has ended. A second call is harmless."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def no_more(self) -> None:
        """It gets no more orders and ends. A second call is harmless."""
        orders, self._orders = self._orders, -1
        if orders >= 0:
            os.close(orders)

    def wait(self) -> int:
        """Its exit code once it has ended, or minus the signal that ended it. A second call is
        harmless."""
        self.no_more()
        if self._status is None:
            _, status = os.waitpid(self.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
            os.close(self._answers)
            self._answers = -1
        return self._status


def _live(
    serve: Serve,
    orders: int,
    answers: int,
    not_ours: Iterable[int],
    kept: Iterable[int] | None,
) -> NoReturn:
    """The copy's whole life."""
    code = 1
    try:
        for number in _OURS_TO_HANDLE:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS_TO_HANDLE)
        for fd in not_ours:
            os.close(fd)
        if kept is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            _close_but({0, 1, 2, orders, answers, *kept})
        gc.freeze()  # to look through what is shared would be to copy it
        serve(_messages(orders), partial(_send, answers))
        code = 0
    except BrokenPipeError:
        pass  # nobody is left to be told
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _close_but(kept: set[int]) -> None:
    begin = 0
    for fd in sorted(kept):
        if begin < fd:  # an empty range would be taken for all of them (Python 3.11)
            os.closerange(begin, fd)
        begin = fd + 1
    os.closerange(begin, os.sysconf("SC_OPEN_MAX"))


def _messages(fd: int) -> Iterator[bytes]:
    received = b""
    while chunk := os.read(fd, _AT_ONCE):
        whole, received = _cut(received + chunk)
        yield from whole


def _cut(received: bytes) -> tuple[list[bytes], bytes]:
    """The messages that are whole, and the rest."""
    whole, at = list[bytes](), 0
    while at + _LENGTH.size <= len(received):
        (length,) = _LENGTH.unpack_from(received, at)
        end = at + _LENGTH.size + length
        if end > len(received):
            break
        whole.append(received[at + _LENGTH.size : end])
        at = end
    return whole, received[at:]


def _send(fd: int, message: bytes) -> None:
    rest = memoryview(_LENGTH.pack(len(message)) + message)
    while rest:
        rest = rest[os.write(fd, rest) :]
