"""The guard's steps without a guard: for `splitmirror release`, and `recover` after a crash."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Sequence

from splitmirror.errors import SplitmirrorError
from splitmirror.guard.record import Thawed
from splitmirror.guard.thawers import Thawers
from splitmirror.model import Session
from splitmirror.system import filesystems, process
from splitmirror.system.devicemapper import DeviceMapper

_FIRST_THAW_S = 0.2
_THAW_AGAIN_S = 0.02
_HOLDER_DEATH_S = 30.0  # a process that dies this slowly waits for a device that does not answer


def release_by_hand(
    mountpoints: Iterable[str],
    sessions: Iterable[Session],
    holder: Session | None,
    devices: Sequence[int] = (),
) -> list[str]:
    """Thaw and resume, end the sessions, kill the holder, see it dead, thaw and resume again; a
    line for each.

    A second call is harmless, and so is what is gone already: it is told, never raised. The holder
    is killed with SIGKILL, whatever its own signal is.
    """
    lines: list[str] = []
    with contextlib.ExitStack() as stack:
        control = stack.enter_context(DeviceMapper()).fd if devices else -1
        thawers = Thawers([*_open_all(mountpoints, stack, lines)], devices, control)
        stack.callback(thawers.close)
        thawers.thaw(_FIRST_THAW_S)
        lines += [_end(session) for session in sessions]
        if holder is None or _kill(holder, thawers, lines):
            thawers.thaw_for_good()
        lines += [_describe(thawed) for thawed in thawers.results()]
    return lines


def _open_all(
    mountpoints: Iterable[str], stack: contextlib.ExitStack, lines: list[str]
) -> Iterable[tuple[str, int]]:
    for path in mountpoints:
        try:
            fd = filesystems.open_mountpoint(path)
        except SplitmirrorError as error:
            lines.append(f"{path}: not thawed: {error}")
        else:
            stack.callback(os.close, fd)
            yield path, fd


def _end(session: Session) -> str:
    ended = process.end(session)
    return f"{session.what} (process {session.pid}): {'ended' if ended else 'gone already'}"


def _kill(holder: Session, thawers: Thawers, lines: list[str]) -> bool:
    """Whether the holder is dead, so that nothing of it can freeze again."""
    name = f"{holder.what} (process {holder.pid})"
    pidfd = process.open_pidfd(holder.pid, holder.start_ticks)
    if pidfd is None:
        lines.append(f"{name}: gone already")
        return True
    try:
        process.send(pidfd, signal.SIGKILL)
        until = time.monotonic() + _HOLDER_DEATH_S
        while not process.wait_exit(pidfd, _THAW_AGAIN_S):
            thawers.thaw(_THAW_AGAIN_S)
            if time.monotonic() > until:
                lines.append(f"{name}: killed, but it does not die; release again")
                return False
    finally:
        os.close(pidfd)
    lines.append(f"{name}: killed")
    return True


def _describe(thawed: Thawed) -> str:
    if thawed.problem:
        return f"{thawed.mountpoint}: not thawed: {thawed.problem}"
    return f"{thawed.mountpoint}: {'thawed' if thawed.times else 'was not frozen'}"
