"""Whole backups from clones of image files, on hosts of xfs and btrfs."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.real.killing import killed_at
from tests.real.ledgered import create, judged, writing
from tests.real.loopfs import loop_filesystems
from tests.real.reflink_lab import (
    HOSTS,
    MIB,
    Images,
    images_on,
    with_filesystems,
    without_loop_device,
)

from splitmirror import backup as recipe
from splitmirror.backup import backup
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.databases import Root
from splitmirror.errors import (
    LegError,
    MirrorError,
    MirrorNotReady,
    NoRoom,
    NotOnMirror,
    SplitmirrorError,
    UnsafeMirror,
    WouldFreeze,
)
from splitmirror.extents.changes import Changes
from splitmirror.extents.trees import plan_trees
from splitmirror.mirrors.reflink import Disk, ReflinkMirror, Settings
from splitmirror.model import BackupSet, Filesystem, Finding
from splitmirror.recover import recover
from splitmirror.restore import restore
from splitmirror.system import fiemap, loop, programs
from splitmirror.system.fiemap import punch_hole
from splitmirror.verify import verify

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

SIZES = {"data": 256 * MIB, "wal": 320 * MIB}
INSIDE = ("ext4", "xfs")


@pytest.fixture(scope="module", params=HOSTS)
def images(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Images]:
    place = tmp_path_factory.mktemp("images")
    with (
        images_on(place, request.param, SIZES, host_size=2 << 30) as bare,
        with_filesystems(bare, INSIDE) as made,
    ):
        yield made
        assert made.legs() == []


def contents(place: Path) -> dict[str, str]:
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in place.rglob("*")
        if path.is_file()
    }


def populate(place: Path) -> None:
    place.mkdir()
    (place / "large").write_bytes(os.urandom(5 * MIB))
    (place / "small").write_bytes(b"small")
    with (place / "holed").open("wb") as file:
        file.seek(3 * MIB)
        file.write(os.urandom(100_000))
        file.truncate(8 * MIB)
    (place / "folder").mkdir()
    (place / "folder" / "inside").write_bytes(os.urandom(70_000))


def overwrite(place: Path) -> None:
    """Every byte becomes another, on the disk."""
    for path in place.rglob("*"):
        if path.is_file():
            path.write_bytes(os.urandom(path.stat().st_size))
    os.sync()


def restored(loaded: Config, made: BackupSet, target: Path) -> None:
    with Catalog.open(loaded.catalog_path) as catalog:
        restore(loaded.open_supply(), catalog, made.set_id, (), target)


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "unwatched"])
@pytest.mark.parametrize("check", ["quiesced", "released"])
def test_files_on_images_are_backed_up_as_they_were_at_the_split(
    images: Images, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, check: str, watched: bool
) -> None:
    if not watched:
        monkeypatch.setattr(Changes, "arm", lambda changes, trees: None)
    places = [images.mountpoint(disk) / f"{disk}-{check}-{watched}" for disk in SIZES]
    for place in places:
        populate(place)
    expected = {place.name: contents(place) for place in places}
    loaded = images.configured(
        {"driver": "none", "paths": [str(place) for place in places]}, mode="freeze", check=check
    )
    trust = recipe.trust

    def then_everything_changes(*arguments: Any) -> Any:
        for place in places:
            overwrite(place)
        return trust(*arguments)

    monkeypatch.setattr(recipe, "trust", then_everything_changes)
    made = backup(loaded)

    assert made.complete
    restored(loaded, made, tmp_path / "back")
    assert {place.name: contents(place) for place in (tmp_path / "back").iterdir()} == expected
    assert contents(places[0]) != expected[places[0].name], "nothing happened on the primary"
    assert images.legs() == []


@pytest.mark.parametrize("mode", ["hot", "freeze"])
@pytest.mark.parametrize("disk", list(SIZES))
def test_a_sqlite_database_that_is_written_meanwhile_comes_back_whole(
    images: Images, tmp_path: Path, disk: str, mode: str
) -> None:
    path = create(images.mountpoint(disk) / f"db-{mode}", f"{disk}-{mode}.sqlite", 8 * MIB)
    loaded = images.configured({"driver": "sqlite", "paths": [str(path)]}, mode=mode)
    with writing(path, images.ledger):
        made = backup(loaded)

    verdict = judged(loaded, made, images.ledger, tmp_path)
    (images.ledger / f"{path.stem}.acknowledged").unlink()
    assert (verdict.lost, verdict.torn) == (0, 0)
    assert verdict.acknowledged_before_split > 0
    assert made.write_pause_s < 5


# --- killed


PLACES = {
    "prepared": "splitmirror.mirrors.reflink:ReflinkMirror.split",
    "frozen": "splitmirror.hold:Hold.thaw",
    "split": "splitmirror.backup:trust",
    "trusted": "splitmirror.backup:plan_writing",
    "planned": "splitmirror.backup:write",
    "written": "splitmirror.backup:clean_up",
}


@pytest.mark.parametrize(
    ("where", "legs", "finished"),
    [
        ("prepared", 0, False),
        ("frozen", 2, False),
        ("split", 2, False),
        ("trusted", 2, True),
        ("written", 2, True),
    ],
)
def test_a_backup_that_was_killed_is_put_right(
    images: Images, tmp_path: Path, where: str, legs: int, finished: bool
) -> None:
    places = {disk: images.mountpoint(disk) / f"killed-{where}-{disk}" for disk in SIZES}
    for place in places.values():
        populate(place)
    expected = {disk: contents(place) for disk, place in places.items()}
    paths = {disk: str(place) for disk, place in places.items()}
    loaded = images.configured({"driver": "none", "paths": paths}, mode="freeze")

    killed_at(images.config_path, PLACES[where])
    assert len(images.legs()) == legs
    for place in places.values():
        overwrite(place)  # nothing is frozen any more
    (recovered,) = recover(loaded)

    assert (recovered.finished is not None) == finished
    assert images.legs() == []
    if recovered.finished is not None:
        verify(loaded.open_supply(), recovered.set_id).require_sound()
        restored(loaded, recovered.finished, tmp_path / "back")
        assert {disk: contents(tmp_path / "back" / disk) for disk in SIZES} == expected
    assert backup(loaded).complete


def test_a_leg_outlives_its_loop_devices_and_the_backup_is_finished_from_it(
    tmp_path: Path,
) -> None:
    """As after a reboot: the host's filesystem is mounted again, and nothing on it yet."""
    with images_on(tmp_path, "xfs", {"data": 64 * MIB}) as images:
        with with_filesystems(images, ["ext4"]):
            place = images.mountpoint("data") / "files"
            populate(place)
            expected = contents(place)
            loaded = images.configured({"driver": "none", "paths": [str(place)]}, mode="freeze")
            killed_at(images.config_path, PLACES["planned"])
        without_loop_device(images.image("data"))
        with closing(loaded.open_mirror()) as mirror:
            assert not mirror.state().level
            with pytest.raises(MirrorNotReady, match="no loop device"):
                mirror.volumes()
        programs.run(["umount", images.host.mountpoint], timeout_s=30)
        with pytest.raises(MirrorNotReady, match="no image"):
            recover(loaded)
        images.host.mount(images.host.path)
        (recovered,) = recover(loaded)
        assert recovered.finished is not None
        restored(loaded, recovered.finished, tmp_path / "back")
        assert contents(tmp_path / "back" / "files") == expected


# --- splits that are not whole


def test_a_split_of_which_a_leg_is_missing_is_no_split(images: Images) -> None:
    with closing(ReflinkMirror(images.settings)) as mirror:
        mirror.split("half")
        first, second = sorted(images.host.path.glob("*.leg"))
        second.unlink()
        assert mirror.state().split_id == "half"
        assert "cut off" in mirror.state().why
        with pytest.raises(LegError, match="only some images"):
            mirror.leg("half", 1)
        with pytest.raises(MirrorError, match="split as half"):
            mirror.split("half")
        mirror.rejoin("half")
        assert not first.exists()
        assert mirror.state().level


def test_what_was_only_prepared_is_gone_with_its_process(images: Images) -> None:
    free = os.statvfs(images.host.path).f_bfree
    code = (
        "import os, signal, sys, msgspec\n"
        "from splitmirror.mirrors.reflink import ReflinkMirror, Settings\n"
        "mirror = ReflinkMirror(msgspec.json.decode(sys.argv[1], type=Settings))\n"
        "mirror.prepare_split('never')\n"
        "for clone in mirror._prepared.clones: clone.make()\n"
        "print('cloned', flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    argv = [sys.executable, "-c", code, msgspec.json.encode(images.settings).decode()]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "cloned\n"), done.stderr
    assert images.legs() == []
    with closing(ReflinkMirror(images.settings)) as mirror:
        assert mirror.state().level
    os.sync()
    assert os.statvfs(images.host.path).f_bfree >= free - MIB


def test_another_file_that_is_called_like_a_leg_is_none(images: Images) -> None:
    image = images.image("data")
    others = [
        image.with_name(name)
        for name in ("data.img@x", "data.img@.leg", "other.img@x.leg", "data.img@a b.leg")
    ]
    for other in others:
        other.touch()
    with closing(ReflinkMirror(images.settings)) as mirror:
        assert mirror.state().split_id is None
        mirror.rejoin("x")
    for other in others:
        other.unlink()


# --- what is refused


def problems(mirror: ReflinkMirror, filesystems: Sequence[Filesystem] = ()) -> list[Finding]:
    return [finding for finding in mirror.preflight(filesystems) if finding.problem is not None]


def only_problem(mirror: ReflinkMirror) -> SplitmirrorError:
    (finding,) = problems(mirror)
    assert not finding.warning and finding.problem is not None and finding.problem.hint
    return finding.problem


def test_a_healthy_host_has_no_problem_and_is_told_that_it_is_no_mirror(images: Images) -> None:
    with closing(ReflinkMirror(images.settings)) as mirror:
        assert problems(mirror) == []
        assert "no protection" in mirror.preflight([])[0].what


@contextmanager
def one_image(host: Path, **changes: Any) -> Iterator[ReflinkMirror]:
    """An image of 8 MiB in a directory, a loop device over it."""
    image = host / "one.img"
    image.write_bytes(bytes(8 * MIB))
    device = loop.attach(image)
    try:
        yield ReflinkMirror(Settings(disks=(Disk(name="one", image=str(image)),), **changes))
    finally:
        loop.detach(device)


def test_a_host_without_reflink_is_refused(tmp_path: Path) -> None:
    with loop_filesystems(tmp_path, "xfs") as (disk,):
        programs.run(["umount", disk.mountpoint], timeout_s=30)
        programs.run(["mkfs.xfs", "-q", "-f", "-m", "reflink=0", disk.device.path], timeout_s=30)
        disk.mount(disk.path)
        with one_image(disk.path) as mirror:
            problem = only_problem(mirror)
            assert "reflink=1" in problem.hint
            with pytest.raises(MirrorError, match="cannot be split"):
                mirror.split("s")
            assert mirror.state().split_id is None


def test_a_host_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    with loop_filesystems(tmp_path, "ext4") as (disk,), one_image(disk.path) as mirror:
        assert "lies on ext4" in str(only_problem(mirror))


def test_legs_on_another_filesystem_are_refused(images: Images, tmp_path: Path) -> None:
    disks = tuple(
        Disk(name=disk.name, image=disk.image, dir=str(tmp_path)) for disk in images.disks
    )
    found = [finding.problem for finding in problems(ReflinkMirror(Settings(disks=disks)))]
    assert found and all("cannot be cloned into" in str(problem) for problem in found)


def test_legs_lie_in_a_directory_of_their_own_where_one_is_named(images: Images) -> None:
    legs = images.host.path / "legs"
    legs.mkdir()
    disks = tuple(Disk(name=disk.name, image=disk.image, dir=str(legs)) for disk in images.disks)
    with closing(ReflinkMirror(Settings(disks=disks))) as mirror:
        assert problems(mirror) == []
        mirror.split("apart")
        assert len(list(legs.iterdir())) == 2
        assert mirror.leg("apart", 1).volumes["data"][0].path.startswith(f"{legs}/")
        mirror.rejoin("apart")
        assert list(legs.iterdir()) == []


def test_a_directory_for_an_image_is_refused_with_what_to_do_instead(images: Images) -> None:
    database = images.host.path / "database"
    database.mkdir()
    mirror = ReflinkMirror(Settings(disks=(Disk(name="db", image=str(database)),)))
    with pytest.raises(MirrorError, match="database is a directory") as refused:
        mirror.volumes()
    assert 'driver = "directories"' in refused.value.hint
    assert not mirror.state().level
    loaded = images.configured({"driver": "none", "paths": [str(database)]}, mode="freeze")
    with pytest.raises(NotOnMirror, match="database"):
        backup(loaded)


def test_an_image_without_its_own_whole_loop_device_is_refused(images: Images) -> None:
    (disk, _) = images.disks
    mirror = ReflinkMirror(Settings(disks=(disk,)))
    (own,) = loop.find(disk.image)
    with loop.attached(disk.image, read_only=True) as second:
        with pytest.raises(UnsafeMirror, match="several loop devices"):
            mirror.volumes()
        named = Disk(name="data", image=disk.image, device=own)
        assert ReflinkMirror(Settings(disks=(named,))).volumes()[0].device == own
        other = Disk(name="data", image=images.disks[1].image, device=second.path)
        with pytest.raises(MirrorNotReady, match="is no loop device over"):
            ReflinkMirror(Settings(disks=(other,))).volumes()
    unused = images.host.path / "part.img"
    unused.write_bytes(bytes(2 * MIB))
    device = loop.attach(unused, offset=MIB)
    try:
        with pytest.raises(MirrorError, match="not over the whole"):
            ReflinkMirror(Settings(disks=(Disk(name="p", image=str(unused)),))).volumes()
    finally:
        loop.detach(device)
        unused.unlink()


def test_an_image_that_has_grown_below_its_loop_device_is_refused(images: Images) -> None:
    with one_image(images.host.path) as mirror:
        os.truncate(images.host.path / "one.img", 9 * MIB)
        with pytest.raises(MirrorError, match="not over the whole") as refused:
            mirror.volumes()
        assert "losetup -c" in refused.value.hint
    (images.host.path / "one.img").unlink()


def test_an_image_in_too_many_extents_is_refused_before_writers_wait_for_it(
    images: Images,
) -> None:
    with one_image(images.host.path, longest_split_s=0.004) as mirror:
        with (images.host.path / "one.img").open("r+b") as file:
            for at in range(0, 8 * MIB, 4096 * 2):
                punch_hole(file.fileno(), at, 4096)
            os.fsync(file.fileno())
            extents = fiemap.count(file.fileno())
        assert extents == 1024
        assert problems(mirror) == []
        tight = ReflinkMirror(msgspec.structs.replace(mirror._settings, longest_split_s=0.003))
        assert "1024 extents" in str(only_problem(tight))
    (images.host.path / "one.img").unlink()


def test_too_little_room_for_what_is_overwritten_is_told_and_below_a_tenth_refused(
    images: Images,
) -> None:
    filler = images.host.path / "filler"
    with closing(ReflinkMirror(images.settings)) as mirror, filler.open("wb") as file:
        status = os.statvfs(images.host.path)
        free = status.f_bavail * status.f_frsize
        os.posix_fallocate(file.fileno(), 0, free - 400 * MIB)
        os.sync()
        (finding,) = problems(mirror)
        assert finding.warning and "writes fail" in str(finding.problem)
        tight = ReflinkMirror(msgspec.structs.replace(images.settings, room="450MiB"))
        problem = only_problem(tight)
        assert isinstance(problem, NoRoom)
        assert "450" in problem.hint
    filler.unlink()


def test_images_on_a_filesystem_that_would_be_frozen_are_refused(
    images: Images, tmp_path: Path
) -> None:
    """An image on the filesystem of another image that belongs to the set."""
    inner = images.mountpoint("wal")  # xfs with reflink
    trees = plan_trees(
        [Root(name=b"x", path=os.fsencode(inner))], ReflinkMirror(images.settings).volumes()
    )
    with one_image(inner) as mirror:
        found = [finding.problem for finding in problems(mirror, [trees[0].filesystem])]
    (inner / "one.img").unlink()
    assert {NotOnMirror} == {type(problem) for problem in found}
    disks = (*images.disks, Disk(name="one", image=str(inner / "one.img")))
    with one_image(inner):
        mirror = ReflinkMirror(Settings(disks=disks))
        found = [finding.problem for finding in problems(mirror, [trees[0].filesystem])]
    (inner / "one.img").unlink()
    assert WouldFreeze in {type(problem) for problem in found}


def test_an_image_without_checksums_on_btrfs_is_cloned(tmp_path: Path) -> None:
    """chattr +C, as images on btrfs often have it: only files that both have it share blocks."""
    with loop_filesystems(tmp_path, "btrfs") as (disk,):
        image = disk.path / "plain.img"
        image.touch()
        subprocess.run(["chattr", "+C", image], check=True)
        image.write_bytes(os.urandom(4 * MIB))
        device = loop.attach(image)
        try:
            settings = Settings(disks=(Disk(name="plain", image=str(image)),))
            with closing(ReflinkMirror(settings)) as mirror:
                assert problems(mirror) == []
                before = image.read_bytes()
                mirror.split("s")
                image.write_bytes(os.urandom(4 * MIB))
                (run,) = mirror.leg("s", 1).volumes["plain"]
                assert Path(run.path).read_bytes() == before
                mirror.rejoin("s")
        finally:
            loop.detach(device)
