"""Backups off an md array that are killed on the way, or lose their leg. Whole ones of PostgreSQL:
test_whole_md.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vm.inside.md_backup import (
    command,
    configured,
    killed_behind,
    load,
    require_sound,
    state_of,
    without_leg_behind,
)
from tests.vm.inside.md_lab import (
    KIB,
    E,
    F,
    array,
    bring_back,
    mounted,
    virtio_name,
    write_durably,
)

from splitmirror.backup import backup
from splitmirror.errors import LegError
from splitmirror.recover import recover


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An ext4 on an array."""
    place = tmp_path_factory.mktemp("md")
    place.parent.parent.chmod(0o755)
    place.parent.chmod(0o755)
    place.chmod(0o755)
    with array("/dev/md0", (E, F)) as device, mounted(device, place / "data", "ext4") as mountpoint:
        yield mountpoint


FINISHED_FROM = ("trusted", "part", "cleaned up")


def files_of(data: Path) -> dict[str, str]:
    """Some fresh files, as a source."""
    files = data / "files"
    files.mkdir(exist_ok=True)
    for number in range(3):
        write_durably(files / f"f{number}", os.urandom(300 * KIB))
    return {"driver": '"none"', "paths": f'["{files}"]'}


def test_a_leg_that_vanishes_while_it_is_read_leaves_no_set(data: Path, tmp_path: Path) -> None:
    path = configured(tmp_path, "/dev/md0", files_of(data), mode="freeze")
    disk = virtio_name(F)
    try:
        code, said = without_leg_behind("plan", path, disk)
        assert code == LegError.exit_code, said
        assert "leg" in said
        assert command(path, "list")["sets"] == []
        write_durably(data / "files" / "f1", bytes(KIB))
    finally:
        bring_back(disk)
    (recovered,) = recover(load(path))
    assert recovered.finished is None
    command(path, "resync")
    assert state_of(path).level
    require_sound(load(path), backup(load(path)).set_id)


@pytest.mark.parametrize("record", ["split intended", "split", "released", *FINISHED_FROM])
def test_a_backup_that_is_killed_is_put_right(record: str, data: Path, tmp_path: Path) -> None:
    path = configured(tmp_path, "/dev/md0", files_of(data), mode="freeze")
    killed_behind(record, path)
    write_durably(data / "files" / "f1", bytes(KIB))  # nothing is frozen
    (recovered,) = recover(load(path))
    assert (recovered.finished is not None) == (record in FINISHED_FROM), recovered
    if recovered.finished:
        require_sound(load(path), recovered.set_id)
    assert state_of(path).level
