"""What the tests of the embedded mirror share: two small disks, and looking for remains."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from splitmirror.mirrors.qsd import Disk, QsdMirror, Settings
from splitmirror.model import Volume
from splitmirror.system import (
    filesystems,
    loop,
    nbdstack,
    process,
    programs,
)
from splitmirror.system.nbdstack import Place
from splitmirror.testing.mirror_case import write_through_device

MIB = 1 << 20
SIZE = 16 * MIB


def settings_in(place: Path, **changes: object) -> Settings:
    disks = tuple(
        Disk(name=name, primary=f"{place}/{name}.img", mirror=f"{place}/{name}.mir", size=SIZE)
        for name in ("d0", "d1")
    )
    known: dict[str, object] = {"dir": f"{place}/qsd", "disks": disks, "level_below": 0}
    return Settings(**(known | changes))  # type: ignore[arg-type]


@contextlib.contextmanager
def attached(settings: Settings) -> Iterator[QsdMirror]:
    mirror = QsdMirror(settings)
    mirror.attach()
    try:
        yield mirror
    finally:
        mirror.close()
        QsdMirror(settings).detach()


def place_of(mirror: QsdMirror) -> Place:
    return Place(directory=Path(mirror._settings.dir))


def scribble(volume: Volume, offset: int = 0, length: int = MIB) -> None:
    write_through_device(volume, offset, os.urandom(length))


def primaries(mirror: QsdMirror) -> dict[str, bytes]:
    return {v.name: Path(v.device).read_bytes() for v in mirror.volumes()}


def daemon_of(mirror: QsdMirror) -> int:
    daemon = nbdstack.find_daemon(place_of(mirror))
    assert daemon is not None
    return daemon.pid


def kill(pid: int) -> None:
    ticks = process.start_ticks(pid)
    assert ticks is not None
    os.kill(pid, signal.SIGKILL)
    assert process.wait_gone(pid, ticks, 10)


def remains(place: Path) -> list[str]:
    """Every loop device, mount and process that has to do with a directory."""
    found = [m.mountpoint for m in filesystems.mounts() if m.mountpoint.startswith(f"{place}/")]
    for device in Path("/sys/block").glob("loop*"):
        backing = (
            loop.backing(f"/dev/{device.name}") if Path(f"/dev/{device.name}").exists() else ""
        )
        if backing and backing.startswith(f"{place}/"):
            found.append(f"/dev/{device.name}")
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                int(entry.name) != os.getpid()
                and f"{place}/".encode() in (entry / "cmdline").read_bytes()
            ):
                found.append(f"process {entry.name}")
    return found


@contextlib.contextmanager
def small_filesystem(place: Path, size: int, *options: str) -> Iterator[Path]:
    """An ext4 of its own."""
    image = place / "host.img"
    image.touch()
    os.truncate(image, size)
    where = place / "host"
    where.mkdir()
    with loop.attached(image, read_only=False) as device:
        programs.run(["mkfs.ext4", "-q", "-m", "0", *options, device.path], timeout_s=30)
        programs.run(["mount", device.path, str(where)], timeout_s=30)
        try:
            yield where
        finally:
            programs.run(["umount", str(where)], timeout_s=30)


def in_another_process(settings: Settings, code: str) -> subprocess.Popen[bytes]:
    """Run code with `mirror` opened, in a process of its own; it tells when it is under way."""
    prologue = (
        "import os, signal, sys, msgspec\n"
        "from splitmirror.mirrors import qsd\n"
        "settings = msgspec.json.decode(sys.argv[1], type=qsd.Settings)\n"
        "mirror = qsd.QsdMirror(settings)\n"
    )
    argument = msgspec.json.encode(settings)
    return subprocess.Popen(
        [sys.executable, "-c", prologue + code, argument], stdout=subprocess.PIPE
    )
