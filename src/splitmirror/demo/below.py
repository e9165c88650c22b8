"""What lies below a lab's filesystems: a mirror over image files, made there and taken away again.

One class a kind of mirror. Each gives the `[mirror]` table of the lab's configuration, and a device
for each of the lab's disks. All of them are small and real: what is an image file here is a disk
elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Protocol

from splitmirror import config
from splitmirror.errors import Busy, SplitmirrorError
from splitmirror.mirrors import Attachable

if TYPE_CHECKING:
    from splitmirror.demo.lab import Lab

_PATIENCE_S: Final = 20.0
_POLL_S: Final = 0.1


class Below(Protocol):
    """A kind of mirror."""

    def table(self, lab: Lab) -> str:
        """The `[mirror]` table, as TOML."""
        ...

    def devices(self, lab: Lab, undo: ExitStack) -> dict[str, str]:
        """Make it: a device for each disk, by its name. `undo` takes it away. Raises MirrorError,
        DeviceFailed, MissingProgram."""
        ...


class Embedded:
    """The embedded mirror, on any Linux."""

    def table(self, lab: Lab) -> str:
        disks = "".join(
            f"""
[[mirror.disks]]
name = "{disk.name}"
primary = "{lab.image(disk.name, "primary")}"
mirror = "{lab.image(disk.name, "mirror")}"
size = {disk.size}
"""
            for disk in lab.disks
        )
        return f'driver = "qsd"\ndir = "{lab.base}/mirror"\nestablish_speed = "1GiB"\n{disks}'

    def devices(self, lab: Lab, undo: ExitStack) -> dict[str, str]:
        mirror = config.load(lab.config_path).open_mirror()
        undo.callback(mirror.close)
        assert isinstance(mirror, Attachable)
        undo.callback(patiently, mirror.detach, Busy)
        return {volume.name: volume.device for volume in mirror.attach()}


def patiently(act: Callable[[], object], refusal: type[SplitmirrorError]) -> None:
    """Try again for a while: what an interrupted program had open takes a moment to close, and a
    walled-off process elsewhere may have a copy of a mount until it ends."""
    until_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            act()
            return
        except refusal:
            if time.monotonic() > until_s:
                raise
            time.sleep(_POLL_S)
