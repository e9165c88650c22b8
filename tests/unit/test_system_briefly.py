"""Trying again for a moment."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest

from splitmirror.system import briefly


def test_a_lock_that_a_forked_process_keeps_for_a_moment_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "locked"
    path.touch()
    ours = os.open(path, os.O_RDONLY)
    fcntl.flock(ours, fcntl.LOCK_EX)
    child = os.fork()
    if child == 0:
        time.sleep(0.2)
        os._exit(0)
    os.close(ours)
    other = os.open(path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock = fcntl.LOCK_EX | fcntl.LOCK_NB
    briefly.tried(lambda: fcntl.flock(other, lock), frozenset({errno.EAGAIN}))
    os.close(other)
    os.waitpid(child, 0)


def test_another_error_is_raised_at_once_and_this_one_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(briefly, "_MOMENT_S", 0.1)
    tries: list[float] = []

    def fails(number: int) -> None:
        tries.append(time.monotonic())
        raise OSError(number, "no")

    with pytest.raises(OSError, match="no"):
        briefly.tried(lambda: fails(errno.EIO), frozenset({errno.EBUSY}))
    assert len(tries) == 1
    with pytest.raises(OSError, match="no"):
        briefly.tried(lambda: fails(errno.EBUSY), frozenset({errno.EBUSY}))
    assert len(tries) > 2
