"""Maps on real filesystems: what an early map gets wrong, and what the check makes of it.

A leg here is a copy of the disk's image made while the filesystem was frozen: the same instant for
every block, as a mirror's split gives it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import mmap
import os
import random
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.real.relocating import relocate

from splitmirror.databases import Keep, Root, keep_all
from splitmirror.errors import LegError, NotOnMirror, UnsupportedStack
from splitmirror.extents import views
from splitmirror.extents.check import Checked, check, check_maps
from splitmirror.extents.known import Known
from splitmirror.extents.rescan import rescan
from splitmirror.extents.scan import scan
from splitmirror.extents.table import FileTable
from splitmirror.extents.trees import plan_trees
from splitmirror.extents.views import LegView, PrimaryView, mountable
from splitmirror.model import ExtentFlag, FileEntry, Kind, Leg, MapCounts, Run, Tree, Volume
from splitmirror.system import filesystems, loop
from splitmirror.system.fiemap import punch_hole

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]

BLOCK = 4096
MIB = 1 << 20
ROUTES = pytest.mark.parametrize("fstype", ["ext4", "xfs"])
MKFS: Mapping[str, tuple[str, ...]] = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard"),
    "ext4-inline": ("mkfs.ext4", "-q", "-F", "-O", "inline_data"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-K"),
}


def run(*argv: str | Path) -> str:
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout


@dataclass(frozen=True)
class Disk:
    """A filesystem on a loop device over an image."""

    image: Path
    device: str
    mountpoint: Path

    @property
    def volume(self) -> Volume:
        return Volume(name="v", device=self.device, size=self.image.stat().st_size)

    def trees(self, *paths: Path) -> tuple[Tree, ...]:
        roots = [Root(name=os.fsencode(path.name), path=os.fsencode(path)) for path in paths]
        return plan_trees(roots, [self.volume])

    def leg(self, copy: Path) -> Leg:
        size = self.image.stat().st_size
        return Leg(split_id="s", volumes={"v": (Run(path=str(copy), offset=0, length=size),)})


@contextlib.contextmanager
def mounted(device: str, mountpoint: Path, *options: str) -> Iterator[None]:
    mountpoint.mkdir(exist_ok=True)
    run("mount", *options, device, mountpoint)
    try:
        yield
    finally:
        run("umount", mountpoint)


@contextlib.contextmanager
def new_disk(where: Path, kind: str) -> Iterator[Disk]:
    image = where / f"{kind}.img"
    with image.open("wb") as made:
        made.truncate(320 * MIB)
    run(*MKFS[kind], image)
    device = loop.attach(image)
    try:
        with mounted(device.path, where / "mnt"):
            yield Disk(image=image, device=device.path, mountpoint=where / "mnt")
    finally:
        loop.detach(device)


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with new_disk(tmp_path, request.getfixturevalue("fstype")) as made:
        yield made


@contextlib.contextmanager
def frozen(mountpoint: Path) -> Iterator[None]:
    fd = filesystems.open_mountpoint(str(mountpoint))
    try:
        filesystems.syncfs(fd)
        filesystems.freeze(fd)
        try:
            yield
        finally:
            assert filesystems.thaw(fd), "somebody else thawed it"
    finally:
        os.close(fd)


def sync(mountpoint: Path) -> None:
    fd = os.open(mountpoint, os.O_RDONLY)
    filesystems.syncfs(fd)
    os.close(fd)


def copy_image(disk: Disk) -> Path:
    copy = disk.image.with_suffix(".leg")
    run("cp", "--sparse=always", disk.image, copy)
    return copy


def split(disk: Disk) -> Leg:
    with frozen(disk.mountpoint):
        return disk.leg(copy_image(disk))


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def read_by_map(leg: Leg, entry: FileEntry, tree: Tree) -> bytes:
    """A file's bytes off the raw leg, as its map says they lie."""
    assert entry.extents.plain
    content = bytearray(entry.attributes.size)
    for logical, physical, length, flags in entry.extents:
        if flags & ExtentFlag.UNWRITTEN:
            continue
        at = logical
        filesystem = tree.filesystem
        for piece in leg.locate(filesystem.volume, filesystem.offset + physical, length):
            with Path(piece.path).open("rb") as raw:
                raw.seek(piece.offset)
                content[at : at + piece.length] = raw.read(piece.length)
            at += piece.length
    return bytes(content)


def read_by_mount(view: LegView, entry: FileEntry, tree: Tree) -> bytes:
    with open(view.open_file(entry, tree), "rb") as file:  # noqa: PTH123 - a descriptor
        return file.read()


def regular(table: FileTable) -> Iterator[FileEntry]:
    return (entry for entry in table if entry.attributes.kind is Kind.FILE)


def contents(root: Path) -> dict[bytes, str]:
    """The hash of every regular file below a directory, by member name."""
    base = os.fsencode(root.parent) + b"/"
    return {
        os.fsencode(path).removeprefix(base): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


# --- everything that can happen to a file between the early map and the split


class Story:
    """A directory whose files come to different ends: `begin`, an early map, then `go_on`."""

    RENEWED = frozenset(
        {b"grown", b"truncated", b"punched", b"preallocated", b"filled", b"mapped", b"replaced",
         b"relocated", b"hard-z"}
    )  # fmt: skip
    NEW = frozenset({b"created", b"renamed-to", b"dir-to/a", b"dir-to/deep/b", b"\xff\xfe new"})
    GONE = frozenset({b"deleted", b"renamed-from", b"dir/a", b"dir/deep/b", b"hard-a"})
    # Files of the same size whose early map reads other bytes than the file has at the split.
    DANGER = frozenset({b"preallocated", b"filled", b"mapped", b"relocated", b"replaced"})

    def __init__(self, mountpoint: Path, fstype: str) -> None:
        self.root = mountpoint / "data"
        self.fstype = fstype
        self.early_files = 0

    def begin(self) -> None:
        (self.root / "dir/deep").mkdir(parents=True)
        (self.root / "quiet").mkdir()
        for at in range(50):
            (self.root / f"quiet/{at}").write_bytes(noise(3 * BLOCK + at, at))
        for seed, name in enumerate(("overwritten", "grown", "truncated", "punched", "deleted",
                                     "renamed-from", "dir/a", "dir/deep/b", "replaced",
                                     "touched")):  # fmt: skip
            (self.root / name).write_bytes(noise(64 * BLOCK + 17, 1000 + seed))
        (self.root / "hard-a").write_bytes(noise(BLOCK, 7))
        os.link(self.root / "hard-a", self.root / "hard-z")
        (self.root / "soft").symlink_to("dir/a")
        (self.root / "empty").touch()
        self._open("preallocated", lambda fd: os.posix_fallocate(fd, 0, 16 * BLOCK))
        self._open("filled", lambda fd: os.truncate(fd, 16 * BLOCK))
        self._open("mapped", lambda fd: os.truncate(fd, 16 * BLOCK))
        self._open("relocated", self._in_pieces)
        self.early_files = sum(p.is_file() and not p.is_symlink() for p in self.root.rglob("*"))

    @contextlib.contextmanager
    def go_on(self) -> Iterator[None]:
        """Let it happen; what is mapped into memory stays so while this is entered."""
        root = self.root
        self._relocate(root / "relocated")
        self._open("relocated", lambda fd: os.pwrite(fd, noise(64 * BLOCK, 31), 0))
        self._open("overwritten", lambda fd: os.pwrite(fd, noise(8 * BLOCK, 32), 0))
        self._open("grown", lambda fd: os.pwrite(fd, noise(8 * BLOCK, 33), 100 * BLOCK + 5))
        os.truncate(root / "truncated", 5 * BLOCK + 1)
        self._open("punched", lambda fd: punch_hole(fd, 8 * BLOCK, 8 * BLOCK))
        (root / "deleted").unlink()
        (root / "renamed-from").rename(root / "renamed-to")
        (root / "dir").rename(root / "dir-to")
        (root / "hard-a").unlink()
        (root / "created").write_bytes(noise(20 * BLOCK, 34))
        (root / "\udcff\udcfe new").write_bytes(noise(9, 35))
        (root / "aside").write_bytes(noise(64 * BLOCK + 17, 36))
        (root / "aside").rename(root / "replaced")
        (root / "touched").chmod(0o600)
        self._open("filled", lambda fd: os.pwrite(fd, noise(4 * BLOCK, 37), 4 * BLOCK))
        self._open("preallocated", lambda fd: os.pwrite(fd, noise(4 * BLOCK, 38), 2 * BLOCK))
        with (root / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[3 * BLOCK : 5 * BLOCK] = noise(2 * BLOCK, 39)
            yield

    def names(self, names: frozenset[bytes]) -> set[bytes]:
        return {b"data/" + name for name in names}

    def _open(self, name: str, action: object) -> None:
        fd = os.open(self.root / name, os.O_RDWR | os.O_CREAT, 0o644)
        action(fd)  # type: ignore[operator]
        os.close(fd)

    @staticmethod
    def _in_pieces(fd: int) -> None:
        """Written backwards, each piece synced, so that the extents lie in the wrong order."""
        for at in reversed(range(0, 1024, 16)):
            os.pwrite(fd, noise(16 * BLOCK, at), at * BLOCK)
            os.fsync(fd)

    def _relocate(self, path: Path) -> None:
        before = path.stat().st_ctime_ns
        relocate(path, self.fstype)
        if self.fstype == "ext4":
            assert path.stat().st_ctime_ns == before, "it leaves no trace in the times"


@dataclass
class Split:
    """A story told to its end: the early table, the one checked on the frozen primary, the leg."""

    story: Story
    trees: tuple[Tree, ...]
    early: FileTable
    found: FileTable
    frozen: Checked
    leg: Leg
    hashes: dict[bytes, str]  # of the primary's files, as they were at the split


def tell(disk: Disk, fstype: str) -> Split:
    story = Story(disk.mountpoint, fstype)
    story.begin()
    sync(disk.mountpoint)
    trees = disk.trees(story.root)
    early = scan(PrimaryView(trees), trees, keep_all, xattrs=True)
    with story.go_on():
        with frozen(disk.mountpoint), PrimaryView(trees, live=False) as view:
            leg = disk.leg(copy_image(disk))
            found = rescan(view, trees, keep_all, Known(early))
            checked = check_maps(view, found, early=early)
        hashes = contents(story.root)
    for path in story.root.rglob("*"):  # and the primary goes on
        if path.is_file() and not path.is_symlink():
            path.write_bytes(noise(BLOCK, 99))
    sync(disk.mountpoint)
    return Split(story, trees, early, found, checked, leg, hashes)


@ROUTES
def test_every_file_is_read_by_its_map_as_it_was_at_the_split(disk: Disk, fstype: str) -> None:
    told = tell(disk, fstype)
    story = told.story
    before = hashlib.sha256(Path(told.leg.volumes["v"][0].path).read_bytes()).digest()

    with LegView(told.leg, told.trees) as view:
        now = scan(view, told.trees, keep_all, xattrs=True)
        checked = check(told.early, now)
        read = {}
        for entry in regular(checked.table):
            by_map = read_by_map(told.leg, entry, told.trees[0])
            assert by_map == read_by_mount(view, entry, told.trees[0]), entry.name
            read[entry.name] = hashlib.sha256(by_map).hexdigest()

    assert read == told.hashes
    assert set(checked.renewed) == story.names(story.RENEWED)
    assert set(checked.new) == story.names(story.NEW)
    assert set(checked.gone) == story.names(story.GONE)
    assert checked.counts == MapCounts(
        early=story.early_files,
        renewed=len(story.RENEWED),
        new=len(story.NEW),
        gone=len(story.GONE),
    )
    # Attributes come from the leg though the map was right.
    touched = now[now.find(b"data/touched") or 0]
    assert touched.attributes.mode == 0o600
    # Looking at the leg did not write to it.
    after = hashlib.sha256(Path(told.leg.volumes["v"][0].path).read_bytes()).digest()
    assert before == after

    # The frozen primary, looked at as a difference and mapped anew, says the same as the leg.
    assert list(told.frozen.table) == list(now)
    assert told.frozen.counts == checked.counts


@ROUTES
def test_without_the_check_early_maps_read_wrong_bytes(disk: Disk, fstype: str) -> None:
    told = tell(disk, fstype)
    wrong = set()

    for entry in regular(told.early):
        expected = told.hashes.get(entry.name)
        if expected is not None:
            by_early_map = read_by_map(told.leg, entry, told.trees[0])
            if hashlib.sha256(by_early_map).hexdigest() != expected:
                wrong.add(entry.name)

    assert wrong >= told.story.names(told.story.DANGER)
    assert wrong <= set(told.frozen.renewed)


def test_a_relocated_file_passes_discovery_and_is_caught_by_the_check(tmp_path: Path) -> None:
    with new_disk(tmp_path, "ext4") as disk:
        story = Story(disk.mountpoint, "ext4")
        story.begin()
        sync(disk.mountpoint)
        trees = disk.trees(story.root)
        early = scan(PrimaryView(trees), trees, keep_all)
        early.looked_ns += 1_000_000_000  # as if everything had been still for long
        relocate(story.root / "relocated", "ext4")

        with frozen(disk.mountpoint), PrimaryView(trees, live=False) as view:
            found = rescan(view, trees, keep_all, Known(early))
            checked = check_maps(view, found, early=early)

    assert check(early, found).renewed == ()
    assert checked.renewed == (b"data/relocated",)


def test_tiny_files_kept_in_the_inode_are_not_plain_and_are_read_through_the_mount(
    tmp_path: Path,
) -> None:
    with new_disk(tmp_path, "ext4-inline") as disk:
        root = disk.mountpoint / "data"
        root.mkdir()
        (root / "tiny").write_bytes(b"12 bytes in.")
        (root / "large").write_bytes(noise(BLOCK, 1))
        trees = disk.trees(root)
        leg = split(disk)
        with LegView(leg, trees) as view:
            table = scan(view, trees, keep_all)
            tiny, large = (
                table[table.find(b"data/tiny") or 0],
                table[table.find(b"data/large") or 0],
            )

            assert not tiny.extents.plain
            assert large.extents.plain
            assert read_by_mount(view, tiny, trees[0]) == b"12 bytes in."


def test_a_btrfs_leg_is_mounted_beside_its_primary_and_never_read_by_map(tmp_path: Path) -> None:
    with new_disk(tmp_path, "btrfs") as disk:
        root = disk.mountpoint / "data"
        root.mkdir()
        (root / "f").write_bytes(noise(20 * BLOCK, 1))
        trees = disk.trees(root)
        leg = split(disk)
        (root / "f").write_bytes(b"the primary went on")
        (root / "g").touch()

        with LegView(leg, trees) as view:
            table = scan(view, trees, keep_all)
            file = table[1]
            content = read_by_mount(view, file, trees[0])

        with LegView(split(disk), trees) as view:  # the next backup, most likely on the same loop
            assert scan(view, trees, keep_all).names == [b"data", b"data/f", b"data/g"]

        assert table.names == [b"data", b"data/f"]
        assert content == noise(20 * BLOCK, 1)
        assert not file.extents.plain
        assert (root / "f").read_bytes() == b"the primary went on"


def test_a_btrfs_mount_that_is_not_the_legs_is_refused(tmp_path: Path) -> None:
    with new_disk(tmp_path, "btrfs") as disk:
        (tree,) = disk.trees(disk.mountpoint)
        other = tmp_path / "other"
        other.write_bytes(bytes(MIB))
        primary = os.open(disk.mountpoint, os.O_RDONLY)
        try:
            with (
                loop.attached(other, read_only=True) as leg,
                pytest.raises(UnsupportedStack, match="does not tell the two apart") as refused,
            ):
                views.prove_device(primary, leg.path, tree.filesystem)
        finally:
            os.close(primary)

    assert "reflink" in refused.value.hint


def test_a_btrfs_over_two_devices_is_refused(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        devices = []
        for name in ("one", "two"):
            with (tmp_path / name).open("wb") as made:
                made.truncate(128 * MIB)
            device = loop.attach(tmp_path / name)
            stack.callback(loop.detach, device)
            devices.append(device.path)
        run("mkfs.btrfs", "-q", "-f", "-K", *devices)
        run("btrfs", "device", "scan", *devices)
        stack.enter_context(mounted(devices[0], tmp_path / "mnt"))
        volumes = [Volume(name="v", device=devices[0], size=128 * MIB)]

        with pytest.raises(UnsupportedStack, match="2 devices"):
            plan_trees([Root(name=b"data", path=os.fsencode(tmp_path / "mnt"))], volumes)


# --- legs


@ROUTES
def test_a_leg_leaves_no_loop_device_and_no_mount_behind(disk: Disk, fstype: str) -> None:
    trees = disk.trees(disk.mountpoint)
    leg = split(disk)
    image = leg.volumes["v"][0].path

    with LegView(leg, trees):
        assert len(loop.find(image)) == 1
        listed = Path("/proc/self/mountinfo").read_text()
        assert loop.find(image)[0] not in listed.split()

    assert loop.find(image) == []


def test_a_descriptor_left_open_on_the_leg_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "_GONE_DEADLINE_S", 0.1)
    with new_disk(tmp_path, "ext4") as disk:
        trees = disk.trees(disk.mountpoint)
        leg = split(disk)
        view = LegView(leg, trees)
        view.__enter__()
        forgotten = view.open_tree(trees[0])
        try:
            with pytest.raises(LegError, match="still in use"):
                view.__exit__(None, None, None)
        finally:
            os.close(forgotten)


@ROUTES
def test_a_leg_that_is_no_filesystem_is_a_leg_error(
    disk: Disk, fstype: str, tmp_path: Path
) -> None:
    trees = disk.trees(disk.mountpoint)
    blank = tmp_path / "blank"
    with blank.open("wb") as made:
        made.truncate(320 * MIB)

    with pytest.raises(LegError, match="cannot mount"), LegView(disk.leg(blank), trees):
        pass

    assert loop.find(blank) == []


def test_a_tree_that_is_not_on_the_leg_is_named(tmp_path: Path) -> None:
    with new_disk(tmp_path, "ext4") as disk:
        leg = split(disk)
        late = disk.mountpoint / "late"
        late.mkdir()

        with pytest.raises(LegError, match="late"), LegView(leg, disk.trees(late)):
            pass


def test_a_filesystem_inside_a_volume_and_within_one_run_is_mounted(tmp_path: Path) -> None:
    """A volume of two runs, a partition of it in the second; and the same torn in two."""
    with new_disk(tmp_path, "ext4") as disk:
        (disk.mountpoint / "f").write_bytes(noise(5 * BLOCK, 3))
        (tree,) = disk.trees(disk.mountpoint)
        (whole,) = split(disk).volumes["v"]
        before = Run(path=str(tmp_path / "elsewhere"), offset=0, length=7 * MIB)
        (tmp_path / "elsewhere").write_bytes(bytes(7 * MIB))

        inside = dataclasses.replace(
            tree, filesystem=dataclasses.replace(tree.filesystem, offset=7 * MIB)
        )
        half = whole.length // 2
        low = Run(path=whole.path, offset=0, length=half)
        high = Run(path=whole.path, offset=half, length=whole.length - half)

        for runs in ((before, whole), (before, low, high)):
            leg = Leg(split_id="s", volumes={"v": runs})
            with LegView(leg, [inside]) as view:
                table = scan(view, [inside], keep_all)
                file = table[table.find(inside.name + b"/f") or 0]
                assert read_by_map(leg, file, inside) == noise(5 * BLOCK, 3)

        torn = Leg(split_id="s", volumes={"v": (before, high, low)})
        with pytest.raises(UnsupportedStack, match="pieces"), LegView(torn, [inside]):
            pass


# --- stacks


def test_a_partition_of_a_mirrored_disk_is_found_with_its_offset(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    with image.open("wb") as made:
        made.truncate(64 * MIB)
    device = run("losetup", "-f", "--show", image).strip()
    try:
        run("addpart", device, "1", "4096", "102400")  # sectors: from 2 MiB, 50 MiB
        run(*MKFS["ext4"], f"{device}p1")
        with mounted(f"{device}p1", tmp_path / "mnt"):
            (tmp_path / "mnt/f").write_bytes(noise(BLOCK, 1))
            volume = Volume(name="v", device=device, size=64 * MIB)
            roots = [Root(name=b"d", path=os.fsencode(tmp_path / "mnt"))]
            trees = plan_trees(roots, [volume])
            with frozen(tmp_path / "mnt"):
                run("cp", image, tmp_path / "leg")
            run_ = Run(path=str(tmp_path / "leg"), offset=0, length=64 * MIB)
            leg = Leg(split_id="s", volumes={"v": (run_,)})
            with LegView(leg, trees) as view:
                table = scan(view, trees, keep_all)
                file = table[table.find(b"d/f") or 0]
                content = read_by_map(leg, file, trees[0])
    finally:
        run("delpart", device, "1")
        run("losetup", "-d", device)

    assert trees[0].filesystem.offset == 4096 * 512
    assert content == noise(BLOCK, 1)


def test_a_root_is_found_through_links_bind_mounts_and_its_own_nested_mounts(
    tmp_path: Path,
) -> None:
    with new_disk(tmp_path, "ext4") as disk:
        for name in ("real/nested", "elsewhere"):
            (disk.mountpoint / name).mkdir(parents=True)
        (disk.mountpoint / "elsewhere/f").write_bytes(noise(BLOCK, 1))
        (tmp_path / "bound").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "bound")
        with (
            mounted(str(disk.mountpoint / "real"), tmp_path / "bound", "--bind"),
            mounted(str(disk.mountpoint / "elsewhere"), tmp_path / "bound/nested", "--bind"),
        ):
            root = Root(name=b"data", path=os.fsencode(tmp_path / "link"))
            trees = plan_trees([root], [disk.volume])
            leg = split(disk)
            with LegView(leg, trees) as view:
                table = scan(view, trees, keep_all)

    assert [(tree.name, tree.inside) for tree in trees] == [
        (b"data", b"real"),
        (b"data/nested", b"elsewhere"),
    ]
    assert trees[0].path == os.fsencode(tmp_path / "bound")
    assert table.names == [b"data", b"data/nested", b"data/nested/f"]


def test_a_filesystem_below_a_root_that_is_off_the_mirror_is_refused_unless_left_out(
    tmp_path: Path,
) -> None:
    def keep(name: bytes) -> Keep:
        return Keep.EMPTY if name == b"data/stat" else Keep.KEEP

    with new_disk(tmp_path, "ext4") as disk:
        stat = disk.mountpoint / "stat"
        root = Root(name=b"data", path=os.fsencode(disk.mountpoint))
        with mounted("tmpfs", stat, "-t", "tmpfs"):
            (stat / "f").touch()
            with pytest.raises(NotOnMirror, match=str(stat)):
                plan_trees([root], [disk.volume])
            trees = plan_trees([root], [disk.volume], keep)
            table = scan(PrimaryView(trees), trees, keep)

    assert len(trees) == 1
    assert b"data/stat" in table.names
    assert b"data/stat/f" not in table.names


def test_a_filesystem_mounted_after_the_plan_is_refused_by_name(tmp_path: Path) -> None:
    with new_disk(tmp_path, "ext4") as disk:
        trees = disk.trees(disk.mountpoint)
        with (
            mounted("tmpfs", disk.mountpoint / "later", "-t", "tmpfs"),
            pytest.raises(NotOnMirror, match="mnt/later"),
        ):
            scan(PrimaryView(trees), trees, keep_all)


def test_a_loop_over_a_file_is_refused_as_off_the_mirror_or_as_unsupported_on_it(
    tmp_path: Path,
) -> None:
    with new_disk(tmp_path, "ext4") as disk:
        for image, error in (
            (tmp_path / "off.img", NotOnMirror),
            (disk.mountpoint / "on.img", UnsupportedStack),
        ):
            with image.open("wb") as made:
                made.truncate(16 * MIB)
            run(*MKFS["ext4"], image)
            device = loop.attach(image)
            try:
                with (
                    mounted(device.path, tmp_path / "inner"),
                    pytest.raises(error, match=f"loop device over {image}"),
                ):
                    disk.trees(tmp_path / "inner")
            finally:
                loop.detach(device)


def test_an_overlay_is_refused_by_its_name(tmp_path: Path) -> None:
    with new_disk(tmp_path, "ext4") as disk:
        for name in ("lower", "upper", "work"):
            (disk.mountpoint / name).mkdir()
        layers = ",".join(
            f"{kind}dir={disk.mountpoint / kind}" for kind in ("lower", "upper", "work")
        )
        with (
            mounted("overlay", tmp_path / "merged", "-t", "overlay", "-o", layers),
            pytest.raises(UnsupportedStack, match="overlay"),
        ):
            disk.trees(tmp_path / "merged")


def test_whether_a_leg_can_be_mounted_is_known_beforehand(tmp_path: Path) -> None:
    with new_disk(tmp_path, "ext4") as disk:
        (tree,) = disk.trees(disk.mountpoint)

    assert mountable(tree.filesystem)
    assert not mountable(dataclasses.replace(tree.filesystem, fstype="zfs"))
