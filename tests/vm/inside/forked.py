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
from collections.abc import Callable
from dataclasses import dataclass

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["splitmirror.cli.app", "splitmirror.backup", "splitmirror.recover", "splitmirror.drill"]
)

KILLED = -signal.SIGKILL


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


def splitmirror(*words: str) -> Ended:
    """A command of splitmirror."""
    return call(_command, words)


def _command(words: tuple[str, ...]) -> None:
    from splitmirror.cli import main

    sys.argv = ["splitmirror", *words]
    main()
