"""Moving a file's blocks on the disk without changing the file, as defragmenters do.

ext4: EXT4_IOC_MOVE_EXT, what e4defrag(8) uses; it itself wants an /etc/mtab. xfs: xfs_fsr(8).
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from pathlib import Path

EXT4_IOC_MOVE_EXT = 0xC028660F  # _IOWR('f', 15, struct move_extent), fs/ext4/ext4.h
_MOVE = struct.Struct("=IIQQQQ")  # reserved, donor fd, from block, donor's block, length, moved
BLOCK = 4096


def relocate(path: Path, fstype: str) -> None:
    """Give the file other blocks. Its bytes, size and change time stay as they are (on ext4)."""
    if fstype == "xfs":
        subprocess.run(["xfs_fsr", "-v", path], check=True, capture_output=True)
        return
    donor = path.with_name(path.name + ".donor")
    blocks = -(-path.stat().st_size // BLOCK)
    file_fd, donor_fd = os.open(path, os.O_RDWR), os.open(donor, os.O_RDWR | os.O_CREAT)
    try:
        os.posix_fallocate(donor_fd, 0, blocks * BLOCK)
        os.fsync(file_fd)
        begin = 0
        while begin < blocks:
            move = bytearray(_MOVE.pack(0, donor_fd, begin, begin, blocks - begin, 0))
            fcntl.ioctl(file_fd, EXT4_IOC_MOVE_EXT, move)
            moved = _MOVE.unpack(move)[-1]
            assert moved, "the kernel moved nothing"
            begin += moved
    finally:
        os.close(file_fd)
        os.close(donor_fd)
        donor.unlink()
