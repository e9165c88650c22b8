"""How long a split of a directory takes on xfs and btrfs, and how long a writer waits for it.

    python -m bench.directories_split [--directory /var/tmp] [--most 100000]

Two tables in Markdown, for docs/mirrors.md. Beside the splits a writer overwrites a block of its
own file and syncs it, again and again: its longest write while a split goes on stands beside its
longest at rest.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.reflink_split import BLOCK, broken_up, host, shown, timed
from splitmirror.mirrors.directories import Directory, DirectoryMirror, Settings

ROUNDS = 5
FILES = (1_000, 10_000, 100_000)
EXTENTS = (1_000, 10_000, 100_000)
FILE_SIZE = 16 << 10
IN_A_FOLDER = 1_000


@dataclass
class Writer:
    """Overwrites a block of a file and syncs it, until the block is left. `took`: each write's
    beginning and seconds."""

    path: Path
    took: list[tuple[float, float]] = field(default_factory=list)

    @contextmanager
    def going(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._write, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _write(self, stop: threading.Event) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT)
        blocks = max(os.fstat(fd).st_size // BLOCK, 1)
        number = 0
        while not stop.is_set():
            number += 1
            began = time.monotonic()
            os.pwrite(fd, os.urandom(BLOCK), number * 7919 % blocks * BLOCK)
            os.fdatasync(fd)
            self.took.append((began, time.monotonic() - began))
        os.close(fd)

    def longest(self, since: float, until: float) -> float:
        """Of the writes that overlap with a stretch of time."""
        return max((took for at, took in self.took if at < until and at + took > since), default=0)


def measured(data: Path, written: Path) -> list[list[float]]:
    """Seconds of each split, of the longest write at rest, of the longest beside each split, and of
    each rejoin."""
    seconds: list[list[float]] = [[], [], [], []]
    settings = Settings(directories=(Directory(name="bench", path=str(data)),))
    with closing(DirectoryMirror(settings)) as mirror:
        for number in range(ROUNDS):
            split_id, writer = f"s{number}", Writer(written)
            with writer.going():
                time.sleep(0.3)
                mirror.prepare_split(split_id)
                at_rest = time.monotonic()
                time.sleep(0.5)
                began = time.monotonic()
                seconds[0].append(timed(mirror.split, split_id))
                ended = time.monotonic()
            seconds[1].append(writer.longest(at_rest, began))
            seconds[2].append(writer.longest(began, ended))
            mirror.leg(split_id, 60)
            seconds[3].append(timed(mirror.rejoin, split_id))
    return seconds


def made(where: Path, fstype: str) -> Path:
    """An empty directory of its own, on btrfs a subvolume."""
    data = where / "data"
    if fstype == "btrfs":
        subprocess.run(["btrfs", "-q", "subvolume", "create", data], check=True)
    else:
        data.mkdir()
    return data


def fill(data: Path, files: int) -> None:
    block = os.urandom(FILE_SIZE)
    for number in range(files):
        if number % IN_A_FOLDER == 0:
            folder = data / f"{number // IN_A_FOLDER}"
            folder.mkdir()
        (folder / f"{number}").write_bytes(block)
    os.sync()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--most", type=int, default=FILES[-1])
    options = parser.parse_args()
    print(f"Linux {platform.release()}, {os.cpu_count()} CPUs; median (worst of {ROUNDS}) in ms\n")
    heads = "split | longest write at rest | longest write beside the split | rejoin |"
    print(f"| host | files of 16 KiB | {heads}\n|---|---|---|---|---|---|")
    for fstype in ("xfs", "btrfs"):
        for files in (number for number in FILES if number <= options.most):
            with host(options.directory, fstype, 16 << 30) as where:
                data = made(where, fstype)
                fill(data, files)
                columns = " | ".join(map(shown, measured(data, data / "written")))
            print(f"| {fstype} | {files:,} | {columns} |", flush=True)
    print(
        f"\n| host | extents of one file, which is written to | {heads}\n|---|---|---|---|---|---|"
    )
    for fstype in ("xfs", "btrfs"):
        for wanted in (number for number in EXTENTS if number <= options.most):
            with host(options.directory, fstype, 16 << 30) as where:
                data = made(where, fstype)
                extents = broken_up(data / "large", wanted)
                columns = " | ".join(map(shown, measured(data, data / "large")))
            print(f"| {fstype} | {extents:,} | {columns} |", flush=True)


if __name__ == "__main__":
    main()
