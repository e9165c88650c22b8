"""The files that are backed up: large ones, and a mixed set that has aged.

The filesystem is filled and emptied first: a block that was never written is given back by the disk
without being read, and reading such blocks would make dd faster than the disk is.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

_CHUNK = 4 << 20
_SMALL_LEAST, SMALL_MOST = 100, 16 << 10
_FOLDERS = 200
_AGEINGS = 2  # how often a third of the small files is deleted and written again
_A_FOLDER = 1000  # tiny files in one directory


def fill_and_empty(directory: Path) -> None:
    """Write every free block of the filesystem once."""
    path = directory / "filled"
    block = os.urandom(_CHUNK)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
    try:
        while os.write(fd, block) == len(block):
            pass
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    finally:
        os.fsync(fd)
        os.close(fd)
        path.unlink()


def make_large(directory: Path, total: int, each: int) -> int:
    """Files of `each` bytes, `total` in all; gives how many bytes they have."""
    directory.mkdir(parents=True, exist_ok=True)
    number = max(1, total // each)
    for at in range(number):
        _write_large(directory / f"large{at:04d}", each, at)
    os.sync()
    return number * each


def make_mixed(directory: Path, small: int, large: int, each: int) -> int:
    """`small` files of up to 16 KiB in 200 directories and large ones of `each` bytes, aged: twice
    a third of the small ones is deleted, all over the set, and written again with other sizes, the
    large ones in between. Gives how many bytes they have. The same files each time."""
    rng = random.Random(1)
    names = [directory / f"{at % _FOLDERS:03d}" / f"small{at:06d}" for at in range(small)]
    for folder in range(_FOLDERS):
        (directory / f"{folder:03d}").mkdir(parents=True)
    _write_small(names, rng)
    for ageing in range(_AGEINGS):
        gone = rng.sample(names, len(names) // 3)
        for name in gone:
            name.unlink()
        os.sync()
        if ageing == 0 and large:
            make_large(directory / "large", large, min(each, large))
        _write_small(gone, rng)
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _write_small(names: Sequence[Path], rng: random.Random) -> None:
    block = rng.randbytes(2 * SMALL_MOST)
    for name in names:
        begin = rng.randrange(SMALL_MOST)
        name.write_bytes(block[begin : begin + rng.randint(_SMALL_LEAST, SMALL_MOST)])
    os.sync()


def _write_large(path: Path, size: int, seed: int) -> None:
    block = random.Random(seed).randbytes(min(_CHUNK, size))
    with path.open("wb", buffering=0) as file:
        for at in range(0, size, len(block)):
            file.write(block[: size - at])


def make_tiny(directory: Path, number: int) -> None:
    """`number` files of a few bytes, a thousand in a directory."""
    for first in range(0, number, _A_FOLDER):
        folder = directory / f"{first // _A_FOLDER:04d}"
        folder.mkdir(parents=True)
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for at in range(first, min(first + _A_FOLDER, number)):
                name = f"file{at:07d}"
                fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=folder_fd)
                os.write(fd, b"tiny %07d\n" % at)
                os.close(fd)
        finally:
            os.close(folder_fd)


def tiny_names(number: int) -> Iterator[str]:
    """The paths that `make_tiny` makes, below its directory."""
    return (f"{at // _A_FOLDER:04d}/file{at:07d}" for at in range(number))


def change_some(directory: Path, number: int, changed: int) -> None:
    """Let `changed` of the tiny files, spread evenly, grow by new blocks."""
    names = list(tiny_names(number))
    for at in range(0, number, max(1, number // changed)):
        with (directory / names[at]).open("r+b") as file:
            file.truncate(0)
            file.write(os.urandom(6000))
