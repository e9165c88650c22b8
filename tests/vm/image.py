"""The guest's image, from a cache: `python -m tests.vm.image` builds it where it is missing.

An image lies in a directory named after the key of its inputs: the recipe, the guest's init, the
requirements of pyproject.toml and the versions of them that are installed here, so that the guest
runs what the host's tests run. It is built beside and renamed: it is whole or it is not there.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import re
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.vm import recipe

from splitmirror.errors import ProgramFailed, SplitmirrorError
from splitmirror.system import programs
from splitmirror.units import show_seconds

CACHE_VARIABLE = "SPLITMIRROR_VM_CACHE"
PROJECT = Path(__file__).parents[2]
TEST_PACKAGES = ("pytest", "pytest-timeout")  # what runs the scenarios in the guest

_UNUSED_S = 14 * 24 * 3600  # an image that nobody booted for two weeks goes when one is built
_TO_RUN = ("qemu-system-x86_64", "qemu-img", "setpriv")
_TO_BUILD = ("mmdebstrap", "mkfs.ext4", "bsdtar", "dpkg-deb", "chroot")
_REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A guest's kernel, first root and root disk. Read only: a guest writes beside the disk."""

    directory: Path

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd.cpio"

    @property
    def root(self) -> Path:
        return self.directory / "root.img"


def cache() -> Path:
    """Where images are kept: $SPLITMIRROR_VM_CACHE, else below $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "splitmirror-vm"


def missing() -> list[str]:
    """What this machine lacks to run guests, or to build the image when that is not cached."""
    if platform.machine() != "x86_64":
        return [f"an amd64 processor (this is {platform.machine()})"]
    lacks = [] if cached() or os.geteuid() == 0 else ["root, to build the guest's image"]
    wanted = _TO_RUN if cached() else _TO_RUN + _TO_BUILD
    return lacks + [program for program in wanted if programs.find(program) is None]


def inputs() -> recipe.Inputs:
    """The project's requirements, those of its tests, and the versions installed here."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    development = project["optional-dependencies"]["dev"]
    tests = [line for line in development if _name(line) in TEST_PACKAGES]
    requirements = tuple(sorted(project["dependencies"] + tests))
    pins = tuple(pin for line in requirements if (pin := _pin(_name(line))))
    return recipe.Inputs(requirements=requirements, pins=pins, python=sys.executable)


def key(of: recipe.Inputs, files: Sequence[Path]) -> str:
    """Sixteen characters that differ when anything differs that decides what an image holds."""
    digest = hashlib.sha256()
    for part in (*(file.read_bytes() for file in files), *_encoded(of)):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:16]


def cached() -> Image | None:
    """The image for what is here now, when it is in the cache."""
    directory = cache() / _current_key()
    return Image(directory=directory) if directory.is_dir() else None


def need(say: recipe.Say, *, again: bool = False) -> Image:
    """The image, built now if it is not cached, or `again`. Two builders wait for one another.

    Raises ProgramFailed, MissingProgram.
    """
    with _sole_builder():
        image = None if again else cached()
        if image is None:
            image = _build(cache() / _current_key(), say)
            _sweep(keep=image.directory)
    os.utime(image.directory)
    return image


def _build(target: Path, say: recipe.Say) -> Image:
    started = time.monotonic()

    def step(what: str) -> None:
        say(f"guest image: {what} (after {show_seconds(time.monotonic() - started)})")

    building = Path(tempfile.mkdtemp(prefix=".building-", dir=cache()))
    try:
        recipe.build(building, inputs(), step)
        if target.exists():
            recipe.remove(target)
        building.rename(target)
    except BaseException:
        # A child of what was interrupted may still write there: then the next build sweeps it.
        with contextlib.suppress(ProgramFailed):
            recipe.remove(building)
        raise
    step(f"complete, in {target}")
    return Image(directory=target)


@contextlib.contextmanager
def _sole_builder() -> Iterator[None]:
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sweep(keep: Path) -> None:
    """Remove what a killed build left, and images that are long out of use."""
    for directory in cache().iterdir():
        left = directory.name.startswith(".building-")
        old = directory.is_dir() and directory.stat().st_mtime < time.time() - _UNUSED_S
        if directory != keep and (left or old):
            recipe.remove(directory)


def _current_key() -> str:
    here = Path(__file__).parent
    return key(inputs(), (here / "recipe.py", here / "init.sh"))


def _encoded(of: recipe.Inputs) -> Iterator[bytes]:
    for number, lines in enumerate((of.requirements, of.pins)):
        yield from (f"{number} {line}".encode() for line in lines)


def _name(requirement: str) -> str:
    match = _REQUIREMENT.match(requirement)
    assert match is not None, requirement
    return match[0].lower()


def _pin(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return f"{package}=={importlib.metadata.version(package)}"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vm.image", description=__doc__)
    parser.add_argument("--again", action="store_true", help="build it although it is cached")
    options = parser.parse_args(argv)
    if lacks := missing():
        print(f"guest image: not built: this machine lacks {', '.join(lacks)}", file=sys.stderr)
        return 1
    try:
        image = need(lambda line: print(line, file=sys.stderr, flush=True), again=options.again)
    except SplitmirrorError as error:
        print(f"guest image: {error}\n{error.hint}", file=sys.stderr)
        return 1
    print(image.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
