"""Processes of their own that need not import everything first: forked off one that has.

To start Python and import the project takes three seconds in the guest, and a scenario has many
commands. What they do and how they may be killed is the same.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [
        *("splitmirror.cli.app", "splitmirror.backup", "splitmirror.recover", "splitmirror.drill"),
        *("splitmirror.verify", "splitmirror.demo.writer", "splitmirror.media.virtualtape"),
        *("splitmirror.mirrors.lvm", "splitmirror.mirrors.md"),
        *("splitmirror.databases.none", "splitmirror.databases.postgresql"),
    ]
)

KILLED = -signal.SIGKILL
_BEGINS_S = 60.0
_ENDS_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended: its exit status, or the negative number of the signal that killed it."""

    status: int
    out: str
    err: str


def call(act: Callable[..., object], *arguments: object, timeout_s: float = 170) -> Ended:
    """Call a module's function in a process of its own, and wait for that."""
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        process = _forks.Process(target=_redirected, args=(out.name, err.name, act, arguments))
        process.start()
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
        status = process.exitcode
        assert status is not None
        said, complained = (file.read().decode() for file in (out, err))
    return Ended(status=status, out=said, err=complained)


def _redirected(
    out: str, err: str, act: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    for path, fd in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, fd)
        os.close(file)
    act(*arguments)


@contextmanager
def meanwhile(act: Callable[..., object], *arguments: object, rest_s: float) -> Iterator[None]:
    """Have `act(*arguments, told_to_stop, begun)` called in a process of its own, from when it says
    that it has begun until the block is left. To ask whether it is told to stop takes `rest_s`."""
    stop, begun = _forks.Event(), _forks.Event()
    process = _forks.Process(target=act, args=(*arguments, partial(stop.wait, rest_s), begun.set))
    process.start()
    try:
        assert begun.wait(_BEGINS_S)
        yield
    finally:
        stop.set()
        process.join(_ENDS_S)
        process.kill()
    assert process.exitcode == 0


def splitmirror(*words: str) -> Ended:
    """A command of splitmirror."""
    return call(_command, words)


def _command(words: tuple[str, ...]) -> None:
    from splitmirror.cli import main

    sys.argv = ["splitmirror", *words]
    main()
