"""How long a split by reflink takes, by the number of extents of the image.

    python -m bench.reflink_split [--directory /var/tmp] [--most 100000]

A table in Markdown, for docs/mirrors.md. The image is broken up as a database does it: every other
block of it is overwritten while a clone of it is there.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from splitmirror.demo.lab import MKFS
from splitmirror.mirrors.reflink import Disk, ReflinkMirror, Settings
from splitmirror.progress import silent
from splitmirror.system import fiemap, loop, programs

BLOCK = 4096
ROUNDS = 5
CHANGED = 1000
EXTENTS = (1_000, 10_000, 100_000, 300_000)


@contextmanager
def host(directory: Path, fstype: str, size: int) -> Iterator[Path]:
    """A filesystem of its own, mounted."""
    with ExitStack() as undo:
        place = Path(undo.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        disk, where = place / "disk.img", place / "mnt"
        disk.touch()
        os.truncate(disk, size)
        where.mkdir()
        programs.run([*MKFS[fstype], str(disk)], timeout_s=60)
        device = undo.enter_context(loop.attached(disk, read_only=False))
        programs.run(["mount", device.path, str(where)], timeout_s=60)
        undo.callback(programs.run, ["umount", str(where)], timeout_s=600)
        yield where


def broken_up(image: Path, extents: int) -> int:
    """Make an image of about so many extents; how many it has."""
    block = os.urandom(BLOCK)
    with image.open("wb") as file:
        for _ in range(max(extents, CHANGED)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        if extents > 1:
            kept = image.with_suffix(".kept")
            programs.run(["cp", "--reflink=always", str(image), str(kept)], timeout_s=60)
            for at in range(0, extents * BLOCK, 2 * BLOCK):
                os.pwrite(file.fileno(), block, at)
            os.fsync(file.fileno())
            kept.unlink()
    with image.open("rb") as file:
        return fiemap.count(file.fileno())


def measured(image: Path) -> list[list[float]]:
    """Seconds of each preparation, of a split before which nothing, and one before which CHANGED
    blocks were overwritten, and of each rejoin."""
    disk = Disk(name="bench", image=str(image))
    mirror = ReflinkMirror(Settings(disks=(disk,), longest_split_s=1e9))
    seconds: list[list[float]] = [[], [], [], []]
    with loop.attached(image, read_only=False) as device, closing(mirror):
        for number in range(2 * ROUNDS):
            mirror.synchronize(silent)
            split_id = f"s{number}"
            seconds[0].append(timed(mirror.prepare_split, split_id))
            if number % 2:
                overwrite(device.path, number)
            seconds[1 + number % 2].append(timed(mirror.split, split_id))
            mirror.leg(split_id, 60)
            seconds[3].append(timed(mirror.rejoin, split_id))
    return seconds


def timed(act: Callable[[str], object], split_id: str) -> float:
    began = time.monotonic()
    act(split_id)
    return time.monotonic() - began


def overwrite(device: str, seed: int) -> None:
    chance = random.Random(seed)
    fd = os.open(device, os.O_WRONLY)
    blocks = os.lseek(fd, 0, os.SEEK_END) // BLOCK
    for _ in range(CHANGED):
        os.pwrite(fd, chance.randbytes(BLOCK), chance.randrange(blocks) * BLOCK)
    os.fsync(fd)  # as a freeze does
    os.close(fd)


def shown(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.1f} ({max(seconds) * 1e3:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--most", type=int, default=EXTENTS[-1])
    options = parser.parse_args()
    print(f"Linux {platform.release()}, {os.cpu_count()} CPUs; median (worst) in ms\n")
    changed = f"split, {CHANGED:,} blocks changed"
    print(f"| host | extents at first | prepare | split | {changed} | rejoin |")
    print("|---|---|---|---|---|---|")
    for fstype in ("xfs", "btrfs"):
        for wanted in (1, *(e for e in EXTENTS if e <= options.most)):
            with host(options.directory, fstype, 8 << 30) as where:
                extents = broken_up(where / "disk.img", wanted)
                columns = " | ".join(map(shown, measured(where / "disk.img")))
            print(f"| {fstype} | {extents:,} | {columns} |", flush=True)


if __name__ == "__main__":
    main()
