"""Databases directly on btrfs or xfs: what a copy of their directories is, and what is refused."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.real.directories_lab import MIB, Directories, directories_on, make_directory
from tests.real.killing import killed_at
from tests.real.ledgered import create, judged, writing
from tests.real.loopfs import LoopFs, loop_filesystems

from splitmirror import config, doctor
from splitmirror.backup import backup
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.databases import Root, by_name, keep_all
from splitmirror.errors import (
    ConfigError,
    LegError,
    MirrorError,
    MirrorNotReady,
    NoRoom,
    NotOnMirror,
    SplitmirrorError,
    UnsafeMirror,
)
from splitmirror.extents.scan import scan
from splitmirror.extents.trees import plan_trees
from splitmirror.extents.views import LegView
from splitmirror.init import propose
from splitmirror.mirrors import Feature, Mirror
from splitmirror.mirrors.directories import Directory, DirectoryMirror, Settings
from splitmirror.mirrors.group import GroupMirror
from splitmirror.model import Kind
from splitmirror.recover import recover
from splitmirror.stream.pipeline import LegSource
from splitmirror.stream.plan import plan_parts
from splitmirror.system import btrfs as btrfs_system
from splitmirror.system import programs, reflink
from splitmirror.verify import verify

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def btrfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Directories]:
    with directories_on(tmp_path_factory.mktemp("btrfs"), "btrfs", ["data"]) as made:
        yield made
        assert made.legs() == []


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Directories]:
    with directories_on(tmp_path_factory.mktemp("xfs"), "xfs", ["data"]) as made:
        yield made
        assert made.legs() == []


@pytest.fixture
def database(btrfs: Directories, request: pytest.FixtureRequest) -> Path:
    """A SQLite database in a directory of the subvolume."""
    return create(btrfs.path("data") / f"db{abs(hash(request.node.name))}", "app.sqlite", 4 * MIB)


def sqlite(place: Directories, *paths: Path, **options: object) -> Config:
    return place.configured({"driver": "sqlite", "paths": [str(path) for path in paths]}, **options)


def whole(loaded: Config, place: Directories, path: Path, scratch: Path) -> None:
    """A backup with a writer beside it comes back with all that was acknowledged."""
    with writing(path, place.ledger):
        made = backup(loaded)
    verdict = judged(loaded, made, place.ledger, scratch)
    (place.ledger / f"{path.stem}.acknowledged").unlink()
    assert (verdict.lost, verdict.torn) == (0, 0)
    assert verdict.acknowledged_before_split > 0
    assert (made.write_pause_s, dict(made.pause_parts)) == (0.0, {}), "nothing was to be frozen"
    assert place.legs() == []


# --- whole backups; those of PostgreSQL are in test_directories_postgresql


@pytest.mark.parametrize("check", ["quiesced", "released"])
def test_a_sqlite_database_in_a_subvolume_that_is_written_meanwhile_comes_back_whole(
    btrfs: Directories, database: Path, tmp_path: Path, check: str
) -> None:
    whole(sqlite(btrfs, database, check=check), btrfs, database, tmp_path)


def test_a_database_is_found_in_its_subvolume_by_whatever_way_it_is_mounted(
    btrfs: Directories, database: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    argv = ["mount", "-o", "subvol=data", btrfs.host.device.path, str(elsewhere)]
    programs.run(argv, timeout_s=30)
    try:
        path = elsewhere / database.relative_to(btrfs.path("data"))
        whole(sqlite(btrfs, path), btrfs, path, tmp_path)
    finally:
        programs.run(["umount", str(elsewhere)], timeout_s=30)


def test_journal_catalogue_and_tape_may_lie_on_the_same_filesystem(
    btrfs: Directories, database: Path, tmp_path: Path
) -> None:
    sqlite(btrfs, database)
    own = btrfs.host.path / "own"
    own.mkdir()
    text = btrfs.config_path.read_text()
    (tmp_path / "c.toml").write_text(
        text.replace(f"{btrfs.base}/state", f"{own}/state").replace(f"{btrfs.base}/SM", f"{own}/SM")
    )
    whole(config.load(tmp_path / "c.toml"), btrfs, database, tmp_path)


def test_a_btrfs_over_several_devices_is_backed_up(tmp_path: Path) -> None:
    """No device is read: what a snapshot has is read through it."""
    with loop_filesystems(tmp_path / "hosts", "btrfs", "xfs") as (host, other):
        (other.path / "second").touch()
        os.truncate(other.path / "second", 256 * MIB)
        second = programs.run(["losetup", "-f", "--show", str(other.path / "second")], timeout_s=30)
        try:
            programs.run(["btrfs", "device", "add", second.strip(), host.mountpoint], timeout_s=60)
            make_directory(host.path / "data", "btrfs")
            for part in ("ledger", "state"):
                (tmp_path / part).mkdir()
            directory = Directory(name="data", path=str(host.path / "data"))
            place = Directories(base=tmp_path, host=host, directories=(directory,))
            path = create(host.path / "data" / "db", "app.sqlite", 4 * MIB)
            whole(sqlite(place, path), place, path, tmp_path)
            programs.run(["btrfs", "device", "del", second.strip(), host.mountpoint], timeout_s=60)
        finally:
            programs.run(["losetup", "-d", second.strip()], timeout_s=30)


_PAIRS = """
import os, sys
first, second = (os.open(path, os.O_WRONLY | os.O_CREAT) for path in sys.argv[1:])
print("ready", flush=True)
for number in range(1, 1 << 40):
    for fd in (first, second):
        os.pwrite(fd, number.to_bytes(8, "little"), 0)
        os.fdatasync(fd)
"""


def test_a_snapshot_is_of_one_instant(btrfs: Directories) -> None:
    """A writer that writes to A and then to B, always, never shows B ahead of A."""
    paths = [btrfs.path("data") / name for name in "AB"]
    argv = [sys.executable, "-c", _PAIRS, *map(str, paths)]
    seen = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        try:
            for number in range(20):
                mirror = DirectoryMirror(btrfs.settings)
                mirror.split(f"pair-{number}")
                (folder,) = mirror.leg(f"pair-{number}", 1).folders["data"]
                seen.append([
                    int.from_bytes((Path(folder.path) / path.name).read_bytes(), "little")
                    for path in paths
                ])  # fmt: skip
                mirror.rejoin(f"pair-{number}")
        finally:
            writer.kill()
    assert all(second <= first <= second + 1 for first, second in seen), seen
    assert len({first for first, _ in seen}) > 5, "hardly anything was written"


@pytest.mark.parametrize("fstype", ["xfs", "btrfs"])
def test_a_leg_is_read_by_its_maps_on_xfs_and_through_its_files_on_btrfs(
    xfs: Directories, btrfs: Directories, fstype: str
) -> None:
    """What it was at the split, though everything has other bytes on the primary by then."""
    place = xfs if fstype == "xfs" else btrfs
    folder = place.path("data") / "read"
    (folder / "inner").mkdir(parents=True)
    expected = {}
    for number in range(300):
        path = folder / "inner" / f"{number}"
        path.write_bytes(os.urandom(1 + number * 700))
        expected[f"read/inner/{number}".encode()] = path.read_bytes()
    with closing(DirectoryMirror(place.settings)) as mirror:
        trees = plan_trees([Root(name=b"read", path=os.fsencode(folder))], mirror.volumes())
        mirror.split("read")
        for path in folder.rglob("*[0-9]"):
            path.write_bytes(os.urandom(path.stat().st_size))
        os.sync()
        leg = mirror.leg("read", 1)
        found = {}
        with LegView(leg, trees) as view:
            table = scan(view, trees, keep_all, xattrs=True)
            table.of_leg = True
            plan = plan_parts(table, table.ordered(by_name), MIB)
            with LegSource(leg, trees, view, table) as source:
                for part in plan.parts:
                    for member in source.members(part):
                        if member.attributes.kind is Kind.FILE:
                            found[member.name] = b"".join(map(bytes, member.chunks))
        mirror.rejoin("read")
    assert found == expected
    assert source.counts.through == (0 if fstype == "xfs" else 300)


# --- killed


@pytest.mark.parametrize(
    ("where", "legs", "finished"),
    [
        ("splitmirror.mirrors.directories:DirectoryMirror.split", 0, False),
        ("splitmirror.hold:Hold.release", 1, False),
        ("splitmirror.backup:plan_writing", 1, True),
        ("splitmirror.backup:clean_up", 1, True),
    ],
)
def test_a_backup_that_was_killed_is_put_right(
    btrfs: Directories, database: Path, where: str, legs: int, finished: bool
) -> None:
    loaded = sqlite(btrfs, database)
    killed_at(btrfs.config_path, where)
    assert len(btrfs.legs()) == legs

    (recovered,) = recover(loaded)

    assert (recovered.finished is not None) == finished
    assert btrfs.legs() == []
    if finished:
        verify(loaded.open_supply(), recovered.set_id).require_sound()
    assert backup(loaded).complete


def test_a_leg_outlives_the_mount_and_the_backup_is_finished_from_it(tmp_path: Path) -> None:
    """As after a reboot."""
    with directories_on(tmp_path, "btrfs", ["data"]) as place:
        path = create(place.path("data") / "db", "app.sqlite", 4 * MIB)
        loaded = sqlite(place, path)
        killed_at(place.config_path, "splitmirror.backup:write")
        programs.run(["umount", place.host.mountpoint], timeout_s=30)
        state = DirectoryMirror(place.settings).state()
        assert (state.attached, state.level) == (False, False)
        with pytest.raises(MirrorNotReady, match="no directory"):
            recover(loaded)
        place.host.mount(place.host.path)

        (recovered,) = recover(loaded)

        assert recovered.finished is not None
        verify(loaded.open_supply(), recovered.set_id).require_sound()
        assert place.legs() == []


# --- legs that are not what was split


def test_what_is_no_snapshot_of_the_subvolume_is_no_leg(btrfs: Directories) -> None:
    data = btrfs.path("data")
    leg = data.with_name("data@made.leg")
    for argv in (
        ["create", str(leg)],
        ["snapshot", str(data), str(leg)],  # that can be written to
    ):
        subprocess.run(["btrfs", "-q", "subvolume", *argv], check=True)
        with closing(DirectoryMirror(btrfs.settings)) as mirror:
            assert mirror.state().split_id == "made"
            with pytest.raises(LegError, match="no read-only snapshot") as refused:
                mirror.leg("made", 1)
            assert refused.value.hint
            mirror.rejoin("made")
            assert mirror.state().level


def test_a_leg_that_is_deleted_while_it_is_read_leaves_an_incomplete_set(
    btrfs: Directories, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = sqlite(btrfs, database)
    leg = DirectoryMirror.leg
    asked: list[str] = []

    def then_it_is_given_back(mirror: DirectoryMirror, split_id: str, deadline_s: float) -> object:
        found = leg(mirror, split_id, deadline_s)
        asked.append(split_id)
        if len(asked) == 2:  # for the check, and to be read
            mirror.rejoin(split_id)
        return found

    monkeypatch.setattr(DirectoryMirror, "leg", then_it_is_given_back)
    with pytest.raises(LegError) as raised:
        backup(loaded)
    assert raised.value.hint
    with Catalog.open(loaded.catalog_path) as catalog:
        assert not [s for s in catalog.sets() if s.set_id == asked[0] and s.complete]
    assert btrfs.legs() == []


def test_a_part_of_a_split_is_no_leg_and_is_deleted(
    xfs: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was cut off among its clones."""
    (xfs.path("data") / "file").write_bytes(b"data")
    code = (
        "import os, signal, sys, msgspec\n"
        "from splitmirror.mirrors.directories import DirectoryMirror, Settings\n"
        "from splitmirror.system import reflink\n"
        "reflink.clone_live = lambda *fds: os.kill(os.getpid(), signal.SIGKILL)\n"
        "DirectoryMirror(msgspec.json.decode(sys.argv[1], type=Settings)).split('half')\n"
    )
    argv = [sys.executable, "-c", code, msgspec.json.encode(xfs.settings).decode()]
    subprocess.run(argv, capture_output=True, check=False, timeout=60)
    assert xfs.legs() == ["data@half.part"]
    with closing(DirectoryMirror(xfs.settings)) as mirror:
        assert mirror.state().split_id == "half" and "cut off" in mirror.state().why
        for attempt in (lambda: mirror.leg("half", 1), lambda: mirror.split("half")):
            with pytest.raises(MirrorError) as refused:
                attempt()
            assert refused.value.hint
        mirror.rejoin("half")
        assert xfs.legs() == []
        assert mirror.state().level


def test_a_split_that_fails_leaves_nothing(
    xfs: Directories, btrfs: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the second of two directories."""
    for place, module, name in (
        (xfs, reflink, "clone_live"),
        (btrfs, btrfs_system, "snapshot"),
    ):
        other = place.host.path / "other"
        make_directory(other, place.host.fstype)
        for directory in (place.path("data"), other):
            (directory / "a-file").write_bytes(b"data")
        mirror = DirectoryMirror(
            Settings(directories=(*place.directories, Directory(name="other", path=str(other))))
        )
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full_the_second_time(getattr(module, name)))
            with pytest.raises(NoRoom, match="cannot be split as s"):
                mirror.split("s")
        assert place.legs() == []
        assert mirror.state().level


def full_the_second_time(act: Callable[..., None]) -> Callable[..., None]:
    done: list[object] = []

    def acting(*arguments: object) -> None:
        done.append(arguments)
        if len(done) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        act(*arguments)

    return acting


# --- what is proposed


@pytest.mark.parametrize("fstype", ["xfs", "btrfs"])
def test_init_says_how_what_lies_there_could_be_split_as_it_is(
    xfs: Directories, btrfs: Directories, database: Path, tmp_path: Path, fstype: str
) -> None:
    """Its words make a configuration that loads."""
    where = database if fstype == "btrfs" else xfs.path("data")
    told = [line for line in propose(where).splitlines() if 'driver = "directories"' in line]
    (line,) = told
    driver, entry = line.removeprefix("#   [mirror] ").split("; [[mirror.directories]] ")
    found = tomllib.loads(f"{driver}\n[[directories]]\n" + entry.replace(", path", "\npath"))
    assert found.pop("driver") == "directories"
    settings = msgspec.convert(found, Settings)
    assert settings.directories[0].path == str(where if where.is_dir() else where.parent)
    with closing(DirectoryMirror(settings)) as mirror:
        assert [f for f in mirror.preflight([]) if f.problem is not None] == []


def test_nothing_is_said_of_a_sqlite_file_on_xfs_or_of_what_is_elsewhere(
    xfs: Directories, tmp_path: Path
) -> None:
    path = create(xfs.path("data") / "proposed", "app.sqlite")
    assert "directories" not in propose(path)
    with loop_filesystems(tmp_path, "ext4") as (disk,):
        assert "directories" not in propose(disk.path)


# --- what is refused


def refusal(loaded: Config) -> SplitmirrorError:
    """What a backup is refused with, before anything is touched; doctor says the same."""
    with pytest.raises(SplitmirrorError) as refused:
        backup(loaded)
    assert refused.value.hint
    found = [f.problem for f in doctor.examine(loaded) if f.problem and not f.warning]
    assert str(refused.value) in map(str, found)
    return refused.value


def test_freeze_mode_is_refused(btrfs: Directories, database: Path) -> None:
    problem = refusal(sqlite(btrfs, database, mode="freeze"))
    assert isinstance(problem, UnsafeMirror) and 'mode = "hot"' in problem.hint
    files = {"driver": "none", "paths": [str(database.parent)]}
    problem = refusal(btrfs.configured(files, mode="freeze"))
    assert isinstance(problem, UnsafeMirror) and '"hot"' not in problem.hint


def test_a_database_whose_files_must_be_of_one_instant_is_refused_where_they_are_not(
    xfs: Directories, btrfs: Directories, database: Path
) -> None:
    path = create(xfs.path("data") / "db", "app.sqlite")
    assert "one instant" in str(refusal(sqlite(xfs, path)))
    make_directory(btrfs.host.path / "second", "btrfs")
    second = Directory(name="second", path=str(btrfs.host.path / "second"))
    both = Directories(base=btrfs.base, host=btrfs.host, directories=(*btrfs.directories, second))
    assert "one instant" in str(refusal(sqlite(both, database)))


def test_what_is_outside_of_the_directories_is_refused(btrfs: Directories) -> None:
    make_directory(btrfs.host.path / "beside", "btrfs")
    part = replace(btrfs, directories=(Directory(name="a", path=str(btrfs.path("data") / "a")),))
    (btrfs.path("data") / "a").mkdir()
    problem = refusal(sqlite(part, create(btrfs.path("data") / "b", "app.sqlite")))
    assert isinstance(problem, NotOnMirror) and "data/a" in problem.hint
    for place in (btrfs.host.path / "beside" / "db", btrfs.host.path / "data-too"):
        problem = refusal(sqlite(btrfs, create(place, "app.sqlite")))
        assert isinstance(problem, NotOnMirror) and str(btrfs.path("data")) in problem.hint


def test_a_subvolume_in_a_subvolume_is_refused(btrfs: Directories) -> None:
    """A snapshot has an empty directory in its place."""
    inner = btrfs.path("data") / "inner"
    make_directory(inner, "btrfs")
    problem = refusal(sqlite(btrfs, create(inner / "db", "app.sqlite")))
    assert isinstance(problem, NotOnMirror) and "subvolume of its own" in str(problem)


def test_a_subvolume_of_which_only_a_part_is_mounted_is_refused(
    btrfs: Directories, database: Path, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    part.mkdir()
    programs.run(["mount", "--bind", str(database.parent), str(part)], timeout_s=30)
    try:
        legs = str(btrfs.host.path)
        problem = problem_of(Directory(name="part", path=str(part), dir=legs))
        assert "not mounted as a whole" in str(problem)
    finally:
        programs.run(["umount", str(part)], timeout_s=30)


def problem_of(*directories: Directory) -> SplitmirrorError:
    """The first problem that preflight finds."""
    with closing(DirectoryMirror(Settings(directories=directories))) as mirror:
        found = [f.problem for f in mirror.preflight([]) if f.problem and not f.warning]
    assert found and all(problem.hint for problem in found)
    return found[0]


def test_places_where_no_leg_can_be_made_are_refused(
    xfs: Directories, btrfs: Directories, tmp_path: Path
) -> None:
    data = str(xfs.path("data"))
    for legs, said in (
        (str(btrfs.host.path), "another filesystem"),
        (data, "copied itself"),
        (f"{data}-legs", "No such file"),
    ):
        assert said in str(problem_of(Directory(name="data", path=data, dir=legs)))
    assert "No such file" in str(problem_of(Directory(name="data", path=f"{data}/not-there")))
    inner = xfs.path("data") / "inner"
    inner.mkdir()
    both = Directory(name="data", path=data), Directory(name="inner", path=str(inner))
    assert f"legs of {inner}" in str(problem_of(*both))
    (xfs.host.path / "file").touch()
    assert "no directory" in str(problem_of(Directory(name="f", path=f"{xfs.host.path}/file")))
    nowhere = DirectoryMirror(Settings(directories=(Directory(name="x", path="/none/x"),)))
    assert not nowhere.state().attached
    with pytest.raises(MirrorNotReady):
        nowhere.volumes()


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_a_filesystem_without_reflink_is_refused(tmp_path: Path, fstype: str) -> None:
    with loop_filesystems(tmp_path, fstype) as (disk,):
        if fstype == "xfs":
            remade_without_reflink(disk)
        (disk.path / "data").mkdir()
        (disk.path / "data" / "file").write_bytes(b"data")
        directory = Directory(name="data", path=str(disk.path / "data"))
        problem = problem_of(directory)
        assert ("lies on ext4" if fstype == "ext4" else "cannot be cloned") in str(problem)
        mirror = DirectoryMirror(Settings(directories=(directory,)))
        with pytest.raises(MirrorError):
            mirror.split("s")
        assert [path.name for path in disk.path.glob("data*")] == ["data"]


def remade_without_reflink(disk: LoopFs) -> None:
    programs.run(["umount", disk.mountpoint], timeout_s=30)
    programs.run(["mkfs.xfs", "-q", "-f", "-m", "reflink=0", disk.device.path], timeout_s=30)
    disk.mount(disk.path)


def test_too_little_room_for_what_is_overwritten_is_told_and_refused(xfs: Directories) -> None:
    filler = xfs.host.path / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 300 * MIB)
    with closing(DirectoryMirror(xfs.settings)) as mirror:
        (finding,) = (f for f in mirror.preflight([]) if f.problem is not None)
        assert finding.warning and "writes fail" in str(finding.problem)
        tight = DirectoryMirror(msgspec.structs.replace(xfs.settings, room="450MiB"))
        (finding,) = (f for f in tight.preflight([]) if f.problem is not None)
        assert not finding.warning and isinstance(finding.problem, NoRoom)
    filler.unlink()


def test_a_group_of_directories_and_something_else_is_refused(
    xfs: Directories, btrfs: Directories
) -> None:
    members: list[Mirror] = [DirectoryMirror(place.settings) for place in (xfs, btrfs)]
    with pytest.raises(ConfigError, match="under a freeze"):
        GroupMirror(members)


def test_one_subvolume_alone_is_split_at_one_instant(xfs: Directories, btrfs: Directories) -> None:
    features = [DirectoryMirror(place.settings).features for place in (xfs, btrfs)]
    assert [Feature.GROUP_SPLIT in each for each in features] == [False, True]
