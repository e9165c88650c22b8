"""Virtual tape on a filesystem of its own that really runs full."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitmirror.errors import EndOfMedium, MediumError
from splitmirror.media.labels import TapeFileKind
from splitmirror.media.virtualtape import Settings, open_medium
from splitmirror.media.volume import VolumeReader, open_for_append

pytestmark = pytest.mark.real

BLOCK = 64 << 10


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    options = ["-t", "tmpfs", "-o", "size=4m", "none"]
    subprocess.run(["mount", *options, where], check=True, timeout=30)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True, timeout=30)


def test_a_host_filesystem_that_runs_full_is_warned_of_and_ends_the_volume(small: Path) -> None:
    settings = Settings(path=str(small / "volume.tap"), early_warning="1MiB")
    blocks = [bytes([number]) * BLOCK for number in range(100)]
    with open_for_append(open_medium(settings), label_blank="SM0001") as writer:
        writer.begin_file(TapeFileKind.PART, "set-1", 1, BLOCK)
        warned_at = next(number for number in range(100) if writer.write(blocks[:1]))
        assert 40 <= warned_at <= 50
        file = writer.end_file()
        writer.begin_file(TapeFileKind.PART, "set-1", 2, BLOCK)
        with pytest.raises(EndOfMedium, match="SM0001 is full: the filesystem of") as caught:
            writer.write(blocks)
        assert str(small) in caught.value.hint
        writer.abandon_file()
        writer.finish_set()
    medium = open_medium(settings)
    medium.load(writable=False)
    reader = VolumeReader(medium)
    assert list(reader.files()) == [file]
    assert reader.end().closed
    medium.unload()


def test_a_filesystem_without_locks_is_told_and_the_file_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(MediumError, match="cannot be locked: No locks available") as caught:
        open_medium(Settings(path=str(tmp_path / "volume.tap"))).load(writable=True)
    assert caught.value.hint
    assert os.listdir("/proc/self/fd") == before
