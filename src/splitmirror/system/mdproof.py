"""Comparing the mirrors of an md array, by the kernel's own check. Source: md(4), "scrubbing"."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable

from splitmirror.errors import Busy, MirrorError
from splitmirror.system import md
from splitmirror.system.md import Array

_POLL_S = 0.1
_SECTOR = 512


def prove(array: Array, progress: Callable[[int], None]) -> int:
    """Read every block from every mirror of a level array and give the bytes that differ, counted
    in md's windows of 64 KiB. Nothing is repaired.

    `progress` is told the bytes of the array that are done. When this process dies the kernel's
    check goes on by itself and harms nothing. Raises Busy while the array is checked already,
    MirrorError when the check was cut short.
    """
    place = array.sysfs
    try:
        md.write(place / "sync_min", "0")  # a check that was cut short would go on from there
        md.write(place / "sync_action", "check")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise MirrorError(
                f"{array.path} cannot be checked: {error.strerror}", hint="See the kernel log."
            ) from None
        raise Busy(
            f"{array.path} is doing something else: {md.text(place / 'sync_action')}",
            hint="Wait for it (/proc/mdstat), or end it: "
            f"echo idle > {place}/sync_action; then try again.",
        ) from None
    try:
        while md.text(place / "sync_action") != "idle":
            progress(md.array(array.path).done)
            time.sleep(_POLL_S)
    except BaseException:
        with contextlib.suppress(OSError):
            md.write(place / "sync_action", "idle")
        raise
    if md.text(place / "sync_min") != "0":
        raise MirrorError(
            f"the check of {array.path} was cut short", hint="See /proc/mdstat, and try again."
        )
    progress(array.size)
    return int(md.text(place / "mismatch_cnt")) * _SECTOR
