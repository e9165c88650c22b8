"""md arrays on the guest's scratch disks, for the scenarios of md."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from splitmirror.mirrors import md
from splitmirror.mirrors.md import ArraySettings, MdMirror
from splitmirror.progress import silent
from splitmirror.system import programs

A, B, C, D, E, F = (f"/dev/disk/by-id/virtio-{name}" for name in "abcdef")
MIB = 1 << 20
KIB = 1 << 10


def run(*argv: str) -> str:
    return programs.run(argv, timeout_s=60)


def real(path: str) -> str:
    return os.path.realpath(path)


@contextmanager
def array(
    device: str = "/dev/md0",
    members: Sequence[str] = (A, B),
    *,
    metadata: str = "1.2",
    bitmap: str = "internal",
    size: str = "max",
) -> Iterator[str]:
    """An array in sync, of raid1; gone with its superblocks at the end, whatever was done to it.
    Its bitmap is cleared every second, not every five."""
    run("modprobe", "-a", "raid1", "dm-mod", "loop")
    more = ["--bitmap-chunk=64K", "--delay=1"] if bitmap == "internal" else []
    run(
        *("mdadm", "--create", device, "--quiet", "--run", "--level=1", f"--bitmap={bitmap}"),
        *(f"--raid-devices={len(members)}", f"--metadata={metadata}"),
        *(f"--size={size}", *more, *members),
    )
    wait_until_level(device)
    try:
        yield device
    finally:
        run("udevadm", "settle")
        for found in sorted(Path("/dev").glob("md[0-9]*")):
            programs.run(["mdadm", "--stop", str(found)], timeout_s=60)
        for member in members:
            if Path(member).exists():
                run("mdadm", "--zero-superblock", "--force", member)


def wait_until_level(device: str) -> None:
    sysfs = sysfs_of(device)
    until(
        lambda: (
            (sysfs / "sync_action").read_text() == "idle\n"
            and (sysfs / "degraded").read_text() == "0\n"
        )
    )


def sysfs_of(device: str) -> Path:
    return Path("/sys/block", os.path.basename(real(device)), "md")


def until(true: Callable[[], bool], limit_s: float = 60) -> None:
    limit = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < limit, "what was waited for did not come"
        time.sleep(0.05)


def mirror_of(state: Path, *devices: str, allow_degraded: bool = False) -> MdMirror:
    settings = md.Settings(
        arrays=tuple(ArraySettings(device=device) for device in devices),
        allow_degraded=allow_degraded,
    )
    return md.open_mirror(settings, state)


def level_mirror(state: Path, *devices: str) -> MdMirror:
    mirror = mirror_of(state, *devices)
    mirror.synchronize(silent)
    return mirror


VIRTIO = Path("/sys/bus/virtio/drivers/virtio_blk")


def virtio_name(disk: str) -> str:
    """A disk's name for its driver: what is written there to `unbind` takes it away."""
    return Path("/sys/class/block", os.path.basename(real(disk)), "device").resolve().name


def bring_back(name: str) -> None:
    (VIRTIO / "bind").write_text(name)
    run("udevadm", "settle")


@contextmanager
def taken_away(disk: str) -> Iterator[None]:
    name = virtio_name(disk)
    (VIRTIO / "unbind").write_text(name)
    try:
        yield
    finally:
        bring_back(name)


def written_to(device: str) -> int:
    """Bytes that were written to a disk since the host was booted: /sys/block/X/stat, field 7."""
    stat = Path("/sys/class/block", os.path.basename(real(device)), "stat").read_text()
    return int(stat.split()[6]) * 512


@contextmanager
def mounted(device: str, at: Path, fstype: str, *options: str) -> Iterator[Path]:
    """A new filesystem on a device, mounted."""
    make = {
        "ext4": ["mkfs.ext4", "-q", "-F"],
        "xfs": ["mkfs.xfs", "-q", "-f", "--unsupported"],  # below 300 MB
    }
    run(*make[fstype], device)
    at.mkdir(exist_ok=True)
    run("mount", *options, device, str(at))
    try:
        yield at
    finally:
        run("umount", str(at))


def write_durably(path: Path, data: bytes, offset: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
    try:
        os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        os.close(fd)
