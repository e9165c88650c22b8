"""A clone that is made while its source is written to, and renewed when it stands still: on real
filesystems, after everything that can happen to an image between the two."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from tests.real.loopfs import LoopFs, loop_filesystems
from tests.real.reflink_lab import HOSTS, MIB

from splitmirror.system import fiemap, libc, reflink

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

BLOCK = 4096
SIZE = 8 * MIB + 512  # a loop device has whole sectors, not whole blocks
PUNCH_HOLE, KEEP_SIZE, ZERO_RANGE = 2, 1, 16  # linux/falloc.h


@pytest.fixture(scope="module", params=HOSTS)
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LoopFs]:
    with loop_filesystems(tmp_path_factory.mktemp("early"), request.param) as (made,):
        yield made


@contextmanager
def image_and_clone(host: LoopFs, *, nocow: bool = False) -> Iterator[tuple[int, int]]:
    """An image of data, a hole and unwritten blocks, and a nameless file beside it."""
    path = host.path / "image"
    path.touch()
    if nocow:
        subprocess.run(["chattr", "+C", path], check=True)
    with ExitStack() as undo:
        undo.callback(path.unlink)
        image = os.open(path, os.O_RDWR)
        undo.callback(os.close, image)
        os.truncate(image, SIZE)
        os.pwrite(image, os.urandom(5 * MIB), 0)
        libc.fallocate(image, KEEP_SIZE, 6 * MIB, MIB)
        os.pwrite(image, os.urandom(512), SIZE - 512)
        directory = os.open(host.path, os.O_RDONLY)
        undo.callback(os.close, directory)
        clone = reflink.nameless(directory, image)
        undo.callback(os.close, clone)
        yield image, clone


def whole(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def one_of_many(image: int, chance: random.Random) -> None:
    """Something that a loop device does to its image."""
    offset = chance.randrange(SIZE // BLOCK) * BLOCK
    length = min(chance.choice((1, 2, 7, 64, 300)) * BLOCK, SIZE - offset)
    match chance.choice(("write", "write", "small", "punch", "zero", "sync")):
        case "write":
            os.pwrite(image, chance.randbytes(length), offset)
        case "small":
            os.pwrite(image, chance.randbytes(512), offset)
        case "punch":
            libc.fallocate(image, PUNCH_HOLE | KEEP_SIZE, offset, length)
        case "zero":
            libc.fallocate(image, ZERO_RANGE | KEEP_SIZE, offset, length)
        case "sync":
            os.fsync(image)


@pytest.mark.parametrize("seed", range(12))
def test_a_renewed_clone_is_what_its_source_is_whatever_happened_meanwhile(
    host: LoopFs, seed: int
) -> None:
    chance = random.Random(seed)
    with image_and_clone(host, nocow=host.fstype == "btrfs" and seed % 2 == 0) as (image, clone):
        for _ in range(chance.choice((0, 5, 40))):
            one_of_many(image, chance)
        known = reflink.clone_early(image, clone)
        for _ in range(chance.choice((0, 1, 5, 40))):
            one_of_many(image, chance)  # the last of it in the page cache only
        reflink.renew(image, clone, known)
        expected = whole(image)

        assert whole(clone) == expected
        for _ in range(20):
            one_of_many(image, chance)
        os.fsync(image)
        assert whole(image) != expected
        assert whole(clone) == expected, "the clone follows its source"


def test_only_what_changed_is_cloned_again(host: LoopFs, monkeypatch: pytest.MonkeyPatch) -> None:
    with image_and_clone(host) as (image, clone):
        for at in range(0, 4 * MIB, 2 * BLOCK):
            libc.fallocate(image, PUNCH_HOLE | KEEP_SIZE, at, BLOCK)
        known = reflink.clone_early(image, clone)
        assert len(known) > 500
        again: list[tuple[int, int]] = []
        clone_range = reflink._clone_range

        def noted(source: int, into: int, begin: int, end: int, size: int) -> None:
            again.append((begin, end))
            clone_range(source, into, begin, end, size)

        monkeypatch.setattr(reflink, "_clone_range", noted)
        os.pwrite(image, os.urandom(BLOCK), 41 * BLOCK)  # was data
        os.pwrite(image, os.urandom(BLOCK), 100 * BLOCK)  # was a hole
        reflink.renew(image, clone, known)

        assert whole(clone) == whole(image)
        assert sum(end - begin for begin, end in again) <= 2 * MIB
        assert (41 * BLOCK, 42 * BLOCK) in again


def test_a_source_that_has_another_size_by_now_is_cloned_anew(host: LoopFs) -> None:
    with image_and_clone(host) as (image, clone):
        known = reflink.clone_early(image, clone)
        os.truncate(image, 3 * MIB)
        reflink.renew(image, clone, known)
        assert whole(clone) == whole(image)


def test_all_extents_of_a_file_are_told_and_counted(host: LoopFs) -> None:
    path = host.path / "many"
    with path.open("w+b") as file:
        os.truncate(file.fileno(), 10_000 * BLOCK)
        for number in range(5000):  # more than are asked for at once
            os.pwrite(file.fileno(), b"x" * BLOCK, number * 2 * BLOCK)
        for number in range(5000):
            hole = (number * 2 + 1) * BLOCK
            libc.fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, hole, BLOCK)
        found = fiemap.records(file.fileno(), sync=True)
        assert fiemap.count(file.fileno()) == len(found) == 5000
        assert [fiemap.range_of(r) for r in found] == [(n * 2 * BLOCK, BLOCK) for n in range(5000)]
    path.unlink()
