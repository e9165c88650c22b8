"""A lab with a set of plain files, for backups that are cut off."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitmirror.demo.lab import Disk, Lab, lab_at

DISKS = (Disk(name="data", fstype="ext4", size=96 << 20),)


@contextmanager
def lab_with_files(count: int, size: int) -> Iterator[Lab]:
    """`count` files of `size` random bytes, in data/files of one disk; gone when the block is
    left."""
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sm-files-") as directory,
        lab_at(Path(directory) / "lab", DISKS) as lab,
    ):
        place = lab.mountpoint("data") / "files"
        place.mkdir()
        for number in range(count):
            (place / f"file{number:02d}").write_bytes(os.urandom(size))
        yield lab
