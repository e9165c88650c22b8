"""A whole backup and restore of files on raid1 volumes of two groups, split by lvconvert, by the
command line. Those at device-mapper level are in test_whole_lvm."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.vm.inside import forked
from tests.vm.inside.lvm_lab import Lv, health, run, volumes

from splitmirror.errors import UnsafeMirror

DATA = Lv(group="va", name="data", mib=24, disks=("a", "b"))
WAL = Lv(group="vb", name="wal", mib=16, disks=("c", "d"))


@pytest.fixture(scope="module")
def places() -> Iterator[tuple[Path, Path]]:
    run("modprobe", "-a", "dm-mod", "dm-raid", "raid1", "ext4", "loop")
    where = Path("/run/backup-data"), Path("/run/backup-wal")
    with volumes(DATA, WAL):
        for path, lv in zip(where, (DATA, WAL), strict=True):
            path.mkdir(exist_ok=True)
            run("mkfs.ext4", "-q", "-F", lv.device)
            run("mount", lv.device, str(path))
            for number in range(20):
                (path / f"file-{number}").write_bytes(os.urandom(100_000 + number))
        yield where
        for path in where:
            run("umount", str(path))


def configured(base: Path, places: tuple[Path, Path]) -> str:
    path = base / "splitmirror.toml"
    path.write_text(f"""
source = "files"
state_dir = "{base}/state"
[mirror]
driver = "lvm"
split = "lvconvert"
[[mirror.volumes]]
lv = "{DATA.full}"
[[mirror.volumes]]
lv = "{WAL.full}"
[database]
driver = "none"
paths = ["{places[0]}", "{places[1]}"]
[backup]
mode = "freeze"
cleanup = "leave-split"
[medium]
driver = "virtualtape"
path = "{base}/SM0001.tap"
""")
    return str(path)


def splitmirror(config: str, *words: str) -> dict[str, object]:
    """What a command answers."""
    done = forked.splitmirror(*words, "--config", config, "--json")
    assert done.status == 0, done.out + done.err
    document: dict[str, object] = json.loads(done.out.splitlines()[-1])
    return document


def test_a_backup_by_lvconvert_comes_back_whole_and_a_scribble_on_its_leg_is_found(
    places: tuple[Path, Path],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    config = configured(tmp_path, places)
    made = splitmirror(config, "backup")
    assert made["complete"] is True
    record_property("write_pause_ms", round(1000 * float(str(made["write_pause_s"]))))
    splitmirror(config, "restore", "latest", "--to", str(tmp_path / "back"))
    originals = {f.read_bytes() for place in places for f in place.glob("file-*")}
    assert {f.read_bytes() for f in (tmp_path / "back").rglob("file-*")} == originals
    assert health(DATA) == health(WAL) == "A-"
    with open(DATA.image(1), "r+b", buffering=0) as leg:  # noqa: PTH123
        leg.seek(20 << 20)
        leg.write(os.urandom(4096))
        os.fsync(leg.fileno())
    found = forked.splitmirror("resync", "--prove", "--config", config)
    assert found.status == UnsafeMirror.exit_code
    assert "not what the primary holds" in found.err
    run(
        "lvchange",
        "-y",
        "--rebuild",
        run("readlink", "-f", "/dev/disk/by-id/virtio-b").strip(),
        DATA.full,
    )
    assert splitmirror(config, "resync", "--prove")["proven"] is True
