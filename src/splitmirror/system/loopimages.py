"""An image file that serves as a disk, and the loop device over it. Source: loop(4)."""

from __future__ import annotations

import stat
from pathlib import Path

from splitmirror.errors import MirrorError, MirrorNotReady, UnsafeMirror
from splitmirror.model import Volume
from splitmirror.system import blockdev, loop
from splitmirror.system.legfiles import telling

SECTOR = 512  # a loop device has whole ones of its image


def volume(name: str, image: Path, device: str) -> Volume:
    """The loop device over a whole image: the only one, or `device`. Raises MirrorNotReady when
    there is none, MirrorError and UnsafeMirror when it is not what it should be."""
    size = _image_size(image)
    device = device or _only_device(image)
    with telling(f"the loop device {device} cannot be asked", MirrorNotReady):
        found, status = loop.info(device), image.stat()
    if found is None or (found.devno, found.inode) != (status.st_dev, status.st_ino):
        raise MirrorNotReady(
            f"{device} is no loop device over {image}",
            hint=f"Make it (`losetup {device} {image}`), or correct `device` in [mirror].",
        )
    covered = blockdev.size(device)
    if found.offset or found.limit or covered != size // SECTOR * SECTOR:
        raise MirrorError(
            f"{device} is not over the whole of {image}: {covered} bytes from {found.offset} on, "
            f"of {size}",
            hint="Make it without offset and limit; after the image has grown: "
            f"losetup -c {device}",
        )
    return Volume(name=name, device=device, size=covered)


def require_image(image: Path) -> None:
    """Raises MirrorNotReady when there is no image, MirrorError when it is none."""
    _image_size(image)


def _image_size(image: Path) -> int:
    try:
        status = image.stat()
    except OSError as error:
        raise MirrorNotReady(
            f"no image {image}: {error.strerror}",
            hint="Mount the filesystem that it lies on, or correct [mirror].",
        ) from error
    if stat.S_ISDIR(status.st_mode):
        raise MirrorError(
            f"{image} is a directory, not an image file",
            hint='Directories are split by driver = "directories"; docs/mirrors.md says which '
            "databases can be backed up so.",
        )
    if not stat.S_ISREG(status.st_mode):
        raise MirrorError(f"{image} is no image file", hint="Correct `image` in [mirror].")
    return status.st_size


def _only_device(image: Path) -> str:
    devices = loop.find(image)
    if not devices:
        raise MirrorNotReady(
            f"there is no loop device over {image}",
            hint=f"Make it with `losetup --find --show {image}` and mount it.",
        )
    if len(devices) > 1:
        raise UnsafeMirror(
            f"there are several loop devices over {image} ({', '.join(devices)}), each with a "
            "cache of its own",
            hint="Detach all but the one that is mounted (`losetup -d`), or name that as `device`.",
        )
    return devices[0]
