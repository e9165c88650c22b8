"""Volumes on top of md arrays: all of one array at one instant, in one piece or scattered."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.vm.inside.md_lab import (
    KIB,
    MIB,
    A,
    B,
    C,
    D,
    array,
    level_mirror,
    mounted,
    run,
    taken_away,
    until,
    write_durably,
)

from splitmirror.databases import Root, keep_all
from splitmirror.errors import LegError, UnsupportedStack
from splitmirror.extents.scan import scan
from splitmirror.extents.trees import plan_trees
from splitmirror.extents.views import LegView
from splitmirror.mirrors.md import MdMirror
from splitmirror.model import Extent, Leg, Run, Tree
from splitmirror.system import dmlinear
from splitmirror.system.blockdev import devno_of

DEADLINE_S = 10.0


@contextmanager
def volume_group(*devices: str) -> Iterator[None]:
    run("vgcreate", "-q", "-y", "sm", *devices)
    try:
        yield
    finally:
        run("vgremove", "-q", "-y", "-f", "sm")


@pytest.fixture
def group() -> Iterator[str]:
    """A volume group on one array."""
    with array() as device, volume_group(device):
        yield device


def volume(name: str, *sizes: str) -> str:
    """A logical volume in as many pieces, with another one between each two."""
    first, *more = sizes
    run("lvcreate", "-q", "-y", "-W", "n", "-L", first, "-n", name, "sm")
    for number, size in enumerate(more):
        run("lvcreate", "-q", "-y", "-W", "n", "-L", "4M", "-n", f"{name}between{number}", "sm")
        run("lvextend", "-q", "-L", f"+{size}", f"sm/{name}")
    return f"/dev/mapper/sm-{name}"


def tree_of(mirror: MdMirror, mountpoint: Path) -> Tree:
    (tree,) = plan_trees([Root(name=b"t", path=os.fsencode(mountpoint))], mirror.volumes())
    return tree


@contextmanager
def frozen(mountpoint: Path) -> Iterator[None]:
    run("fsfreeze", "-f", str(mountpoint))
    try:
        yield
    finally:
        run("fsfreeze", "-u", str(mountpoint))


def test_of_two_volumes_on_one_array_the_second_is_never_ahead(group: str, tmp_path: Path) -> None:
    first, second = volume("one", "8M"), volume("two", "8M")
    mirror = level_mirror(tmp_path, group)
    for number in range(5):
        with Writer(first, second) as writer:
            writer.wait(50)
            mirror.split(f"s{number}")
            writer.wait(20)
        leg = mirror.leg(f"s{number}", DEADLINE_S)
        ahead, behind = number_on(leg, first), number_on(leg, second)
        assert 0 <= ahead - behind <= 1, f"{ahead} on the first, {behind} on the second"
        assert ahead >= 50
        mirror.rejoin(f"s{number}")


class Writer:
    """Writes 1, 2, 3 … to the first device and then to the second, durably, on a thread."""

    def __init__(self, *devices: str) -> None:
        self._fds = [os.open(device, os.O_WRONLY | os.O_DSYNC | os.O_CLOEXEC) for device in devices]
        self._written = 0
        self._stop = False
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop = True
        self._thread.join()
        for fd in self._fds:
            os.close(fd)

    def wait(self, more: int) -> None:
        enough = self._written + more
        until(lambda: self._written >= enough)

    def _write(self) -> None:
        while not self._stop:
            for fd in self._fds:
                os.pwrite(fd, str(self._written + 1).encode().ljust(4096), 0)
            self._written += 1


def number_on(leg: Leg, device: str) -> int:
    """What the writer wrote last to a device, as its leg has it."""
    (segment,) = dmlinear.segments(devno_of(device)) or ()
    (run_of_leg,) = leg.locate("md0", segment.offset, 4096)
    with Path(run_of_leg.path).open("rb") as file:
        file.seek(run_of_leg.offset)
        return int(file.read(4096))


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_a_filesystem_on_an_array_is_read_off_its_leg(fstype: str, tmp_path: Path) -> None:
    with array() as device, mounted(device, tmp_path / "m", fstype) as mountpoint:
        check_leg(level_mirror(tmp_path, device), mountpoint)


def test_a_volume_in_one_piece_is_found_on_its_array(group: str, tmp_path: Path) -> None:
    volume("first", "4M")
    with mounted(volume("data", "40M"), tmp_path / "m", "ext4") as mountpoint:
        mirror = level_mirror(tmp_path, group)
        tree = tree_of(mirror, mountpoint)
        assert (tree.filesystem.volume, tree.filesystem.offset) == ("md0", 5 * MIB)
        check_leg(mirror, mountpoint)


def test_a_volume_in_pieces_is_read_off_its_leg(group: str, tmp_path: Path) -> None:
    device = volume("data", "12M", "16M", "8M")
    with mounted(device, tmp_path / "m", "xfs") as mountpoint:
        mirror = level_mirror(tmp_path, group)
        assert tree_of(mirror, mountpoint).filesystem.volume == "sm-data"
        leg = check_leg(mirror, mountpoint)
        assert [piece.length for piece in leg.volumes["sm-data"]] == [12 * MIB, 16 * MIB, 8 * MIB]


def test_a_volume_in_pieces_on_two_arrays_is_read_off_both_legs(tmp_path: Path) -> None:
    with (
        array("/dev/md0", (A, B)) as one,
        array("/dev/md1", (C, D)) as two,
        volume_group(one, two),
        mounted(volume("data", "50M", "20M"), tmp_path / "m", "ext4") as mountpoint,
    ):
        leg = check_leg(level_mirror(tmp_path, one, two), mountpoint)
        assert len({piece.path for piece in leg.volumes["sm-data"]}) == 2


def check_leg(mirror: MdMirror, mountpoint: Path) -> Leg:
    """Everything on the leg is as it was at the split, by its extents and by its files."""
    files = {f"f{number}": os.urandom(3 * MIB + number) for number in range(6)}
    for name, data in files.items():
        write_durably(mountpoint / name, data)
    tree = tree_of(mirror, mountpoint)
    with frozen(mountpoint):
        mirror.split("s")
    for name in files:
        write_durably(mountpoint / name, bytes(64 * KIB), MIB)
    leg = mirror.leg("s", DEADLINE_S)
    assert off_the_leg(leg, tree) == {f"t/{name}": (data, data) for name, data in files.items()}
    assert not dmlinear.ours()
    mirror.rejoin("s")
    assert mirror.state().level
    return leg


def off_the_leg(leg: Leg, tree: Tree) -> dict[str, tuple[bytes, bytes]]:
    """Each file as its extents on the raw leg have it, and as the mounted leg has it."""
    found = {}
    with LegView(leg, [tree]) as view:
        for entry in scan(view, [tree], keep_all):
            if size := entry.attributes.size:
                raw = b"".join(
                    read(piece) for extent in entry.extents for piece in pieces(leg, tree, extent)
                )
                with os.fdopen(view.open_file(entry, tree), "rb") as file:
                    found[entry.name.decode()] = (raw[:size], file.read())
    return found


def pieces(leg: Leg, tree: Tree, extent: Extent) -> list[Run]:
    where = tree.filesystem.offset + extent.physical
    return leg.locate(tree.filesystem.volume, where, extent.length)


def read(piece: Run) -> bytes:
    with Path(piece.path).open("rb") as file:
        file.seek(piece.offset)
        return file.read(piece.length)


def test_a_volume_that_lies_beside_the_array_too_is_refused_by_name(tmp_path: Path) -> None:
    with array() as device, volume_group(device, C):
        at = volume("data", "50M", "40M")
        with mounted(at, tmp_path / "m", "ext4") as mountpoint:
            mirror = level_mirror(tmp_path, device)
            with pytest.raises(UnsupportedStack, match="sm-data: dm linear in 3 pieces"):
                tree_of(mirror, mountpoint)


def test_a_leg_put_together_is_read_only_and_nobody_else_looks_into_it(
    group: str, tmp_path: Path
) -> None:
    device = volume("data", "12M", "16M")
    with mounted(device, tmp_path / "m", "ext4"):
        mirror = level_mirror(tmp_path, group)
        mirror.split("s")
        leg = mirror.leg("s", DEADLINE_S)
        uuid = run("blkid", "-o", "value", "-s", "UUID", device).strip()
        with dmlinear.joined(leg.volumes["sm-data"]) as node:
            run("udevadm", "settle")
            assert Path(node).is_block_device()
            with pytest.raises(PermissionError):
                write_durably(Path(node), bytes(4096))
            assert os.path.realpath(f"/dev/disk/by-uuid/{uuid}") == os.path.realpath(device)
            assert "ID_FS_UUID" not in run("udevadm", "info", "--query=property", node)
            assert len(dmlinear.ours()) == 1
        assert not dmlinear.ours()
        mirror.rejoin("s")


KILLED = """
import os, sys
from splitmirror.model import Run
from splitmirror.system import dmlinear
runs = [Run(path=sys.argv[1], offset=at << 20, length=1 << 20) for at in (0, 2)]
if sys.argv[2] == "made":
    dmlinear._made(dmlinear._new_name(), runs)
    os.kill(os.getpid(), 9)
with dmlinear.joined(runs):
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("when", "left"), [("made", 1), ("in use", 0)])
def test_what_a_killed_process_put_together_goes(when: str, left: int, tmp_path: Path) -> None:
    run("modprobe", "dm-mod")
    killed = subprocess.run([sys.executable, "-c", KILLED, C, when], check=False)
    assert killed.returncode == -9
    if left:
        assert len(dmlinear.ours()) == left
        dmlinear.sweep()
    until(lambda: not dmlinear.ours())


def test_a_leg_in_pieces_whose_disk_is_gone_is_an_error(group: str, tmp_path: Path) -> None:
    with mounted(volume("data", "12M", "16M"), tmp_path / "m", "ext4") as mountpoint:
        mirror = level_mirror(tmp_path, group)
        tree = tree_of(mirror, mountpoint)
        mirror.split("s")
        leg = mirror.leg("s", DEADLINE_S)
        with taken_away(B), pytest.raises(LegError, match="gone"), LegView(leg, [tree]):
            pass
        mirror.rejoin("s")
        assert mirror.state().level
