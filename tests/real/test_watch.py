"""The watch for changes on real filesystems: what it names, what it cannot, when it gives up."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import mmap
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.real.loopfs import FSTYPES, LoopFs, loop_filesystems
from tests.real.relocating import relocate

from splitmirror.databases import Keep, Root, keep_all
from splitmirror.extents.changes import ARMED, Changed, Changes
from splitmirror.extents.check import check, check_changed
from splitmirror.extents.known import Known
from splitmirror.extents.renew import renew
from splitmirror.extents.scan import scan
from splitmirror.extents.table import FileTable
from splitmirror.extents.trees import plan_trees
from splitmirror.extents.views import PrimaryView
from splitmirror.model import FileEntry, Tree, Volume
from splitmirror.system import fanotify, filesystems, libc, loop
from splitmirror.system.fiemap import punch_hole

pytestmark = pytest.mark.real

ROUNDS = 25  # of random changes, each from a new early look on
BLOCK = 4096


@pytest.fixture(params=FSTYPES)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoopFs]:
    with loop_filesystems(tmp_path, request.param) as (made,):
        yield made


def trees_of(disk: LoopFs, *paths: Path) -> tuple[Tree, ...]:
    volume = Volume(name="v", device=disk.device.path, size=disk.image.stat().st_size)
    roots = [Root(name=os.fsencode(path.name), path=os.fsencode(path)) for path in paths]
    return plan_trees(roots, [volume])


@contextlib.contextmanager
def frozen(disk: LoopFs) -> Iterator[None]:
    fd = filesystems.open_mountpoint(disk.mountpoint)
    try:
        filesystems.syncfs(fd)
        filesystems.freeze(fd)
        try:
            yield
        finally:
            assert filesystems.thaw(fd)
    finally:
        os.close(fd)


def named_by(disk: LoopFs, change: Callable[[Path], object]) -> set[str]:
    """What the watch names of a change in `set`, by its path in there."""
    root = disk.path / "set"
    trees = trees_of(disk, root)
    with Changes() as changes:
        changes.arm(trees)
        assert changes.state == ARMED
        change(root)
        told = changes.told(trees)
    assert told is not None, changes.state
    return {os.fsdecode(name.removeprefix(b"set/")) for _, name in told.names}


def with_fd(path: Path, act: Callable[[int], object]) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        act(fd)
    finally:
        os.close(fd)


CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "made": (lambda root: (root / "new").touch(), {"new"}),
    "written": (lambda root: (root / "f").write_bytes(b"other"), {"f"}),
    "appended in a directory": (
        lambda root: with_fd(root / "d/f", lambda fd: os.pwrite(fd, b"x", 9000)), {"d/f"},
    ),
    "truncated": (lambda root: os.truncate(root / "f", 1), {"f"}),
    "preallocated": (
        lambda root: with_fd(root / "f", lambda fd: os.posix_fallocate(fd, 0, 99_999)), {"f"},
    ),
    "punched": (lambda root: with_fd(root / "f", lambda fd: punch_hole(fd, 0, BLOCK)), {"f"}),
    "removed": (lambda root: (root / "f").unlink(), {"f"}),
    "renamed": (lambda root: (root / "f").rename(root / "d/g"), {"f", "d/g"}),
    "linked": (lambda root: os.link(root / "f", root / "d/g"), {"d/g"}),
    "a directory made": (lambda root: (root / "d/e").mkdir(), {"d/e"}),
    "a directory renamed": (lambda root: (root / "d").rename(root / "e"), {"d", "e"}),
    "a directory removed": (lambda root: shutil.rmtree(root / "d"), {"d"}),
    "a symbolic link": (lambda root: (root / "s").symlink_to("f"), {"s"}),
    "only read": (lambda root: (root / "f").read_bytes(), set()),
    "outside the set": (lambda root: (root.parent / "else").write_bytes(b"x"), set()),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_told_by_name(disk: LoopFs, what: str) -> None:
    change, names = CHANGES[what]
    (disk.path / "set/d").mkdir(parents=True)
    for name in ("f", "d/f"):
        (disk.path / "set" / name).write_bytes(os.urandom(3 * BLOCK))

    assert named_by(disk, change) == names


def test_what_happened_in_a_directory_before_it_was_moved_is_told_where_it_is_now(
    disk: LoopFs,
) -> None:
    (disk.path / "set/d").mkdir(parents=True)
    (disk.path / "set/d/f").write_bytes(b"x")

    def change(root: Path) -> None:
        (root / "d/f").write_bytes(b"more")
        (root / "d").rename(root / "e")

    assert named_by(disk, change) == {"d", "e", "e/f"}


def test_a_tree_that_is_one_file_is_told_by_its_own_name(disk: LoopFs) -> None:
    (disk.path / "app.db").write_bytes(b"x")
    (disk.path / "other").write_bytes(b"x")
    trees = trees_of(disk, disk.path / "app.db")
    with Changes() as changes:
        changes.arm(trees)
        (disk.path / "app.db").write_bytes(b"more")
        (disk.path / "other").write_bytes(b"more")
        assert changes.told(trees) == (frozenset([(0, b"app.db")]), frozenset())


# --- what was named is all that must be looked at


def keep_some(name: bytes) -> Keep:
    own = name.rpartition(b"/")[2]
    if own.startswith(b"x"):
        return Keep.LEAVE
    return Keep.EMPTY if own.startswith(b"e") else Keep.KEEP


@dataclasses.dataclass
class Disturbance:
    """Random changes of files and directories; with `links` also second names of files."""

    rng: random.Random
    roots: tuple[Path, ...]
    links: bool

    def make(self, count: int) -> None:
        for _ in range(count):
            with contextlib.suppress(OSError, IndexError):  # what it would change may not be there
                self._one()

    def _one(self) -> None:
        rng = self.rng
        inside = [path for root in self.roots for path in root.rglob("*")]
        folders = [path for path in inside if path.is_dir() and not path.is_symlink()]
        files = [path for path in inside if path.is_file() and not path.is_symlink()]
        new = rng.choice([*folders, *self.roots]) / f"{rng.choice('abcdexfgh')}{rng.randrange(4)}"
        match rng.randrange(12):
            case 0 | 1 | 2:
                new.write_bytes(rng.randbytes(rng.randrange(9000)))
            case 3:
                new.mkdir()
            case 4:
                at = rng.randrange(20_000)
                with_fd(rng.choice(files), lambda fd: os.pwrite(fd, b"q" * 100, at))
            case 5:
                rng.choice(files).unlink()
            case 6:
                rng.choice([*folders, *files]).rename(new)
            case 7 if self.links:
                os.link(rng.choice(files), new)
            case 8:
                new.symlink_to("nowhere")
            case 9:
                os.truncate(rng.choice(files), rng.randrange(9000))
            case 10:
                shutil.rmtree(rng.choice(folders))
            case 11:
                length = rng.randrange(1, 50_000)
                with_fd(rng.choice(files), lambda fd: os.posix_fallocate(fd, 0, length))


@pytest.mark.parametrize("keep", [keep_all, keep_some], ids=["all", "some"])
def test_after_whatever_happened_the_names_alone_give_what_a_whole_look_gives(
    disk: LoopFs, keep: Callable[[bytes], Keep]
) -> None:
    """A second name that was left out of the set may be written to unseen, so there are no links
    where something is left out; reading finds that."""
    for seed in range(ROUNDS):
        rng = random.Random(seed)
        roots = (disk.path / f"{seed}-a", disk.path / f"{seed}-b")
        for root in roots:
            root.mkdir()
        single = disk.path / f"{seed}.db"
        single.write_bytes(b"x" * 5000)
        disturbance = Disturbance(rng, roots, links=keep is keep_all)
        disturbance.make(rng.randrange(60))
        trees = trees_of(disk, *roots, single)
        with Changes() as changes:
            changes.arm(trees)
            filesystems.flush(disk.mountpoint)
            early = Known(scan(PrimaryView(trees), trees, keep))
            disturbance.make(rng.randrange(40))
            if rng.random() < 0.3:
                single.write_bytes(os.urandom(9000))
            with frozen(disk):
                view = PrimaryView(trees, live=False)
                told = changes.told(trees)
                assert told is not None, changes.state
                patch = renew(view, trees, keep, early, told)
                whole = scan(view, trees, keep)
        counts = check(early.table, whole).counts
        assert (len(patch), patch.stored_bytes) == (len(whole), whole.stored_bytes), seed
        checked = check_changed(patch).whole()
        assert checked.counts == counts, seed
        assert [timeless(e) for e in checked.table] == [timeless(e) for e in whole], seed


def timeless(entry: FileEntry) -> FileEntry:
    """Without the time that changes when a file only gets or loses another name."""
    return dataclasses.replace(entry, ctime_ns=0)


def test_a_renamed_directory_costs_what_is_in_it_and_its_neighbours_nothing(
    disk: LoopFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = disk.path / "set"
    for folder in ("moves", "stays"):
        (root / folder / "deep").mkdir(parents=True)
        for at in range(40):
            (root / folder / "deep" / str(at)).write_bytes(b"x" * 100)
    trees = trees_of(disk, root)
    opened: list[bytes] = []
    with Changes() as changes:
        changes.arm(trees)
        filesystems.flush(disk.mountpoint)
        early = Known(scan(PrimaryView(trees), trees, keep_all))
        (root / "moves").rename(root / "moved")
        with frozen(disk):
            told = changes.told(trees)
            assert told is not None
            assert told.names == {(0, b"set/moves"), (0, b"set/moved")}
            assert told.folders == {(0, b"set")}
            plain = os.open

            def noted(path: bytes, *a: Any, **k: Any) -> int:
                opened.append(path)
                return plain(path, *a, **k)

            monkeypatch.setattr(os, "open", noted)
            patch = renew(PrimaryView(trees, live=False), trees, keep_all, early, told)
            monkeypatch.undo()

    assert len(opened) < 60
    assert sorted(patch.added.names) == sorted(
        [b"set", b"set/moved", b"set/moved/deep",
         *(b"set/moved/deep/%d" % at for at in range(40))]
    )  # fmt: skip
    assert check_changed(patch).changed.counts == dataclasses.replace(
        check_changed(patch).changed.counts, early=80, renewed=0, new=40, gone=40
    )


# --- what it cannot tell


def test_mmap_into_a_hole_and_relocation_are_not_told(disk: LoopFs) -> None:
    """Which is why a file's map is compared with the leg's when it is read, whatever the watch
    says."""
    root = disk.path / "set"
    root.mkdir()
    for name in ("mapped", "moved"):
        (root / name).write_bytes(os.urandom(16 * BLOCK))
    os.truncate(root / "mapped", 64 * BLOCK)

    def scatter(fd: int) -> None:
        for at in range(30, 0, -2):
            os.pwrite(fd, os.urandom(BLOCK), at * BLOCK)
            os.fsync(fd)

    with_fd(root / "moved", scatter)
    filesystems.flush(disk.mountpoint)
    trees = trees_of(disk, root)
    before = maps(trees)

    def change(root: Path) -> None:
        with (root / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[40 * BLOCK : 41 * BLOCK] = b"m" * BLOCK
        relocate(root / "moved", disk.fstype)
        filesystems.flush(disk.mountpoint)

    assert named_by(disk, change).isdisjoint({"mapped", "moved"})
    after = maps(trees)
    assert before[b"set/mapped"] != after[b"set/mapped"]
    assert before[b"set/moved"] != after[b"set/moved"]


def maps(trees: tuple[Tree, ...]) -> dict[bytes, bytes]:
    table = scan(PrimaryView(trees), trees, keep_all)
    return {name: table.packed_extents(at) for at, name in enumerate(table.names)}


# --- when nobody knows what changed


def told_after(
    trees: tuple[Tree, ...], change: Callable[[], object], later: tuple[Tree, ...] | None = None
) -> tuple[Changed | None, str]:
    with Changes() as changes:
        changes.arm(trees)
        change()
        return changes.told(trees if later is None else later), changes.state


def test_a_queue_that_overflows_means_that_all_may_have_changed(disk: LoopFs) -> None:
    """A queue that is bounded and not emptied. The real one is neither."""
    watch = fanotify.Watch(unlimited=False)
    limit = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    fd = os.open(disk.path, os.O_RDONLY)
    try:
        watch.arm(fd)
        for at in range(limit + 10):
            os.close(os.open(disk.path / str(at), os.O_CREAT))
        assert watch.stop() == ({}, set())
        assert "overflowed" in watch.lost
    finally:
        os.close(fd)
        watch.close()


def test_an_overflow_reaches_whoever_asks_for_the_names(
    disk: LoopFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanotify, "_UNLIMITED_QUEUE", 0)
    monkeypatch.setattr(fanotify.Watch, "start", lambda watch: None)  # nobody empties it
    limit = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    (disk.path / "set").mkdir()

    def change() -> None:
        for at in range(limit + 10):
            os.close(os.open(disk.path / "set" / str(at), os.O_CREAT))

    told, state = told_after(trees_of(disk, disk.path / "set"), change)

    assert told is None
    assert "overflowed" in state


def test_more_names_than_are_worth_keeping_mean_that_all_may_have_changed(
    disk: LoopFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanotify, "MOST_NAMES", 20)

    def change() -> None:
        for at in range(30):
            (disk.path / str(at)).touch()

    told, state = told_after(trees_of(disk, disk.path), change)

    assert told is None
    assert "more than 20" in state


def test_other_trees_than_were_watched_mean_that_all_may_have_changed(disk: LoopFs) -> None:
    for name in ("one", "two"):
        (disk.path / name).mkdir()
    one, two = trees_of(disk, disk.path / "one"), trees_of(disk, disk.path / "two")

    told, state = told_after(one, lambda: None, one + two)

    assert told is None
    assert "other trees" in state


def test_a_directory_above_the_set_that_moves_means_that_all_may_have_changed(
    disk: LoopFs,
) -> None:
    (disk.path / "above/set").mkdir(parents=True)

    def change() -> None:
        (disk.path / "above").rename(disk.path / "away")
        (disk.path / "away").rename(disk.path / "above")

    told, state = told_after(trees_of(disk, disk.path / "above/set"), change)

    assert told is None
    assert "moved" in state


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM, errno.ENOSYS])
def test_a_kernel_that_has_no_such_watch_is_said_to_have_none(
    disk: LoopFs, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(flags: int, event_flags: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(libc, "fanotify_init", refused)

    told, state = told_after(trees_of(disk, disk.path), lambda: None)

    assert told is None
    assert state
    assert state != ARMED


def test_a_subvolume_cannot_be_watched_and_that_is_said(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as made:
        made.truncate(160 << 20)
    subprocess.run(["mkfs.btrfs", "-q", "-f", image], check=True)
    with loop.attached(image, read_only=False) as device:
        mountpoint = tmp_path / "mnt"
        mountpoint.mkdir()
        subprocess.run(["mount", device.path, mountpoint], check=True)
        try:
            subprocess.run(
                ["btrfs", "subvolume", "create", mountpoint / "sub"], check=True,
                capture_output=True,
            )  # fmt: skip
            volume = Volume(name="v", device=device.path, size=160 << 20)
            roots = [Root(name=b"sub", path=os.fsencode(mountpoint / "sub"))]
            told, state = told_after(plan_trees(roots, [volume]), lambda: None)
        finally:
            subprocess.run(["umount", mountpoint], check=True)

    assert told is None
    assert "subvolumes cannot be watched" in state


def test_a_watch_that_ended_has_left_nothing_open(disk: LoopFs) -> None:
    (disk.path / "set").mkdir()
    before = sorted(os.listdir("/proc/self/fd"))

    told_after(trees_of(disk, disk.path / "set"), lambda: (disk.path / "set/f").touch())
    with Changes() as changes:
        changes.arm(trees_of(disk, disk.path / "set"))

    assert sorted(os.listdir("/proc/self/fd")) == before


def test_an_empty_table_can_be_renewed(disk: LoopFs) -> None:
    (disk.path / "set").mkdir()
    trees = trees_of(disk, disk.path / "set")

    told = Changed(frozenset([(0, b"set/f")]), frozenset([(0, b"set")]))
    patch = renew(PrimaryView(trees), trees, keep_all, Known(FileTable()), told)

    assert len(patch) == 0
