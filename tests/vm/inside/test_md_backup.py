"""Whole backups off an md array: PostgreSQL in both modes, and runs that are killed on the way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    run,
    virtio_name,
    wait_until_level,
    write_durably,
)
from tests.vm.recipe import CLUSTER

from splitmirror.backup import backup
from splitmirror.errors import LegError
from splitmirror.recover import recover
from splitmirror.testing.clusters import Cluster, cluster


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An ext4 on an array."""
    place = tmp_path_factory.mktemp("md")
    place.parent.parent.chmod(0o755)
    place.parent.chmod(0o755)
    place.chmod(0o755)
    with array("/dev/md0", (E, F)) as device, mounted(device, place / "data", "ext4") as mountpoint:
        yield mountpoint


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[Cluster]:
    home = data / "pg"
    home.mkdir()
    with cluster(home=home, template=Path(CLUSTER)) as running:
        yield running


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["hot", "freeze"])
def test_postgresql_is_backed_up_and_its_copy_starts(
    mode: str,
    data: Path,
    server: Cluster,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    table = {"driver": '"postgresql"', "dsn": f'"{server.dsn()}"', "os_user": '"postgres"'}
    path = configured(tmp_path, "/dev/md0", table, mode=mode)
    made = command(path, "backup")
    assert made["complete"]
    drilled = command(path, "drill")
    record_property("pause_ms", round(1000 * made["write_pause_s"], 1))
    parts = {name: round(1000 * part_s, 1) for name, part_s in made["pause_parts"].items()}
    record_property("pause_parts_ms", parts)
    bare_s = sorted(bare_pause_s(data) for _ in range(3))[1]
    record_property("bare_mdadm_ms", round(1000 * bare_s, 1))
    assert drilled
    assert state_of(path).level
    if mode == "hot":  # in freeze mode the database's files are looked at meanwhile
        assert made["write_pause_s"] <= 1.3 * bare_s


def bare_pause_s(mountpoint: Path) -> float:
    """How long a freeze lasts that has nothing in it but mdadm's two commands."""
    run("sync", "-f", str(mountpoint))
    began = time.perf_counter()
    with frozen(mountpoint):
        run("mdadm", "/dev/md0", "--fail", F)
        run("mdadm", "/dev/md0", "--remove", F)
    pause_s = time.perf_counter() - began
    run("mdadm", "/dev/md0", "--re-add", F)
    wait_until_level("/dev/md0")
    return pause_s


@contextmanager
def frozen(mountpoint: Path) -> Iterator[None]:
    run("fsfreeze", "-f", str(mountpoint))
    try:
        yield
    finally:
        run("fsfreeze", "-u", str(mountpoint))


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
