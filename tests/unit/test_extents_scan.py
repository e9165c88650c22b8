"""Walking the trees of the primary."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from splitmirror.databases import Keep, keep_all
from splitmirror.errors import DeviceFailed, MirrorError, NotOnMirror
from splitmirror.extents.known import SETTLED_NS, Known
from splitmirror.extents.rescan import rescan
from splitmirror.extents.scan import scan
from splitmirror.extents.table import FileTable
from splitmirror.extents.views import PrimaryView
from splitmirror.model import Extent, ExtentMap, Filesystem, Kind, Tree
from splitmirror.system import fiemap, libc


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def tree(path: Path, name: bytes = b"data") -> Tree:
    return Tree(
        name=name,
        path=os.fsencode(path),
        filesystem=Filesystem(
            mountpoint="/",
            fstype="ext4",
            options=frozenset(),
            source="/dev/null",
            devno=path.stat().st_dev,
            volume="v",
            offset=0,
        ),
        inside=os.fsencode(path).strip(b"/"),
    )


Keeper = Callable[[bytes], Keep]


def flush(root: Path) -> None:
    """What is written back later has another map then. Skips where files have no maps."""
    fd = os.open(root, os.O_RDONLY)
    libc.syncfs(fd)
    os.close(fd)
    (root.parent / "probe").write_bytes(b"x")
    with (root.parent / "probe").open("rb") as probe:
        try:
            fiemap.fiemap(probe.fileno(), 1)
        except DeviceFailed:
            pytest.skip("the folder for tests lies on a filesystem without extents")


def looked_at(*trees: Tree, keep: Keeper = keep_all, xattrs: bool = False) -> FileTable:
    return scan(PrimaryView(trees), trees, keep, maps=False, xattrs=xattrs)


def kinds(table: FileTable) -> dict[bytes, Kind]:
    return {entry.name: entry.attributes.kind for entry in table}


def test_a_directory_comes_before_what_it_holds_and_names_are_sorted(root: Path) -> None:
    (root / "b/inner").mkdir(parents=True)
    (root / "b/inner/z").touch()
    (root / "b/a").touch()
    (root / "a").touch()

    assert looked_at(tree(root)).names == [
        b"data", b"data/a", b"data/b", b"data/b/a", b"data/b/inner", b"data/b/inner/z",
    ]  # fmt: skip


def test_names_may_be_any_bytes(root: Path) -> None:
    for name in (b"\xff\xfe", b"a\nb", b"\x01 ", "ü".encode(), b"-rf", b"\\"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(b"x")

    assert looked_at(tree(root)).names[1:] == [
        b"data/\x01 ", b"data/-rf", b"data/\\", b"data/a\nb", b"data/\xc3\xbc", b"data/\xff\xfe",
    ]  # fmt: skip


def test_every_kind_of_file_is_told_and_sockets_are_skipped(root: Path) -> None:
    (root / "dir").mkdir()
    (root / "file").write_bytes(b"12345")
    (root / "link").symlink_to("/nowhere/\udcff")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(root / "s"))

    table = looked_at(tree(root))

    assert kinds(table) == {
        b"data": Kind.DIRECTORY,
        b"data/dir": Kind.DIRECTORY,
        b"data/fifo": Kind.FIFO,
        b"data/file": Kind.FILE,
        b"data/link": Kind.SYMLINK,
    }
    by_name = {entry.name: entry.attributes for entry in table}
    assert by_name[b"data/link"].link == b"/nowhere/\xff"
    assert by_name[b"data/file"].size == 5
    assert by_name[b"data/dir"].size == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="devices need root")
def test_a_device_keeps_its_number(root: Path) -> None:
    os.mknod(root / "c", 0o20600, os.makedev(1, 3))
    os.mknod(root / "b", 0o60600, os.makedev(7, 250))

    found = {entry.name: entry.attributes for entry in looked_at(tree(root))}

    assert (found[b"data/c"].kind, found[b"data/c"].rdev) == (Kind.CHARDEV, os.makedev(1, 3))
    assert (found[b"data/b"].kind, found[b"data/b"].rdev) == (Kind.BLOCKDEV, os.makedev(7, 250))


def test_later_names_of_one_inode_are_links_to_its_first_even_in_another_tree(
    root: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    (root / "m").write_bytes(b"x")
    os.link(root / "m", root / "a")
    os.link(root / "m", second / "0")

    table = looked_at(tree(root), tree(second, b"more"))

    links = {e.name: e.attributes.link for e in table if e.attributes.kind is Kind.HARDLINK}
    assert links == {b"data/m": b"data/a", b"more/0": b"data/a"}
    assert kinds(table)[b"data/a"] is Kind.FILE


def test_a_left_out_directory_is_not_entered_and_an_emptied_one_is_kept(root: Path) -> None:
    for name in ("leave", "empty", "keep"):
        (root / name).mkdir()
        (root / name / "inside").touch()

    def keep(name: bytes) -> Keep:
        assert name not in (b"data/leave/inside", b"data/empty/inside")
        return {b"data/leave": Keep.LEAVE, b"data/empty": Keep.EMPTY}.get(name, Keep.KEEP)

    assert looked_at(tree(root), keep=keep).names == [
        b"data", b"data/empty", b"data/keep", b"data/keep/inside",
    ]  # fmt: skip


def test_a_tree_may_be_a_single_file(root: Path) -> None:
    (root / "app.db").write_bytes(b"sqlite")
    (root / "app.db-wal").write_bytes(b"")

    table = looked_at(tree(root / "app.db", b"app.db"), tree(root / "app.db-wal", b"app.db-wal"))

    assert [(e.name, e.attributes.size, e.tree) for e in table] == [
        (b"app.db", 6, 0),
        (b"app.db-wal", 0, 1),
    ]


def test_a_tree_within_another_is_looked_at_once(root: Path) -> None:
    (root / "mnt").mkdir()
    (root / "mnt/f").touch()

    table = looked_at(tree(root), tree(root / "mnt", b"data/mnt"))

    assert table.names == [b"data", b"data/mnt", b"data/mnt/f"]
    assert [entry.tree for entry in table] == [0, 1, 1]


def test_a_symbolic_link_is_not_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").touch()
    (root / "way").symlink_to(outside)

    assert looked_at(tree(root)).names == [b"data", b"data/way"]


def test_extended_attributes_are_looked_for_only_when_told(root: Path) -> None:
    (root / "f").touch()
    os.setxattr(root / "f", "user.b", b"\0\xff")
    os.setxattr(root / "f", "user.a", b"1")
    os.setxattr(root, "user.dir", b"2")

    told = {e.name: e.attributes.xattrs for e in looked_at(tree(root), xattrs=True)}

    assert told[b"data/f"] == ((b"user.a", b"1"), (b"user.b", b"\0\xff"))
    assert told[b"data"] == ((b"user.dir", b"2"),)
    assert not any(entry.attributes.xattrs for entry in looked_at(tree(root)))


def test_a_path_longer_than_the_kernel_takes_at_once_is_walked(root: Path) -> None:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    depth = 300  # of 20 bytes each: 6000, more than PATH_MAX
    for _ in range(depth):
        os.mkdir("d" * 19, dir_fd=fd)
        inner = os.open("d" * 19, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)

    assert len(looked_at(tree(root))) == depth + 1


class Vanishing(PrimaryView):
    """A primary on which a file is removed after its directory was listed, before it is opened."""

    def __init__(self, trees: tuple[Tree, ...], *, live: bool) -> None:
        super().__init__(trees, live=live)

    def keep(self, name: bytes) -> Keep:
        if name == b"data/b":
            Path(os.fsdecode(self.trees[0].path), "b").unlink()
        return Keep.KEEP


@pytest.mark.parametrize("live", [True, False])
def test_a_file_that_vanishes_is_skipped_on_the_live_primary_only(root: Path, live: bool) -> None:
    for name in ("a", "b", "c"):
        (root / name).write_bytes(b"x")
    trees = (tree(root),)
    view = Vanishing(trees, live=live)

    if live:
        table = scan(view, trees, view.keep, maps=False)
        assert table.names == [b"data", b"data/a", b"data/c"]
    else:
        with pytest.raises(MirrorError, match="data/b"):
            scan(view, trees, view.keep, maps=False)


def test_a_tree_whose_filesystem_is_another_now_is_refused_by_name(root: Path) -> None:
    trees = (tree(Path("/proc"), b"data"),)
    other = Tree(
        name=b"data",
        path=os.fsencode(root),
        filesystem=trees[0].filesystem,
        inside=b"",
    )

    with pytest.raises(NotOnMirror, match=str(root)):
        looked_at(other)


def test_no_descriptor_is_left_open(root: Path) -> None:
    (root / "a/b/c").mkdir(parents=True)
    (root / "a/f").touch()
    before = os.listdir("/proc/self/fd")

    def fails(name: bytes) -> Keep:
        if name == b"data/a/b/c":
            raise KeyboardInterrupt
        return Keep.KEEP

    looked_at(tree(root), xattrs=True)
    with pytest.raises(KeyboardInterrupt):
        looked_at(tree(root), keep=fails)

    assert os.listdir("/proc/self/fd") == before


def test_a_file_costs_four_system_calls_and_one_question_whether_it_is_wanted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "d").mkdir()
    for at in range(200):
        (root / "d" / str(at)).write_bytes(b"x")
    flush(root)
    made = dict.fromkeys(("open", "fstat", "stat", "close", "listxattr", "map", "keep"), 0)

    def counted(what: str, plain: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            made[what] += 1
            return plain(*arguments, **named)

        return call

    def scanned(keep: Keeper) -> dict[str, int]:
        made.update(dict.fromkeys(made, 0))
        told: list[tuple[int, int]] = []
        trees = (tree(root),)
        with monkeypatch.context() as patched:
            for what in ("open", "fstat", "stat", "close", "listxattr"):
                patched.setattr(os, what, counted(what, getattr(os, what)))
            patched.setattr(fiemap, "ioctl", counted("map", fcntl.ioctl))
            view = PrimaryView(trees)
            table = scan(view, trees, keep, progress=lambda *how: told.append(how))
        assert told[-1] == (len(table), len(table)) == (202, 202)
        return dict(made)

    few = 10  # for two directories and the tree
    asked = scanned(counted("keep", lambda name: Keep.KEEP))  # type: ignore[arg-type]
    whole = scanned(counted("keep", keep_all))  # type: ignore[arg-type]

    for calls in (asked, whole):
        assert calls["map"] == 200
        for what in ("open", "fstat", "close"):
            assert 200 <= calls[what] <= 200 + few, what
        assert calls["stat"] + calls["listxattr"] == 0
    assert asked["keep"] <= 200 + few
    assert whole["keep"] <= few


# --- rescan: what changed since


def settled(table: FileTable) -> Known:
    """As if the early scan had begun long after the last change before it."""
    table.looked_ns += SETTLED_NS + 1_000_000_000
    return Known(table)


def seen_again(early: Known, *trees: Tree) -> FileTable:
    return rescan(PrimaryView(trees, live=False), trees, keep_all, early, maps=False)


def test_a_rescan_finds_what_a_scan_does(root: Path) -> None:
    for name in ("same", "changes", "other"):
        (root / name).mkdir()
        for file in "fgh":
            (root / name / file).write_bytes(b"x")
    os.link(root / "same/f", root / "same/hard")
    (root / "same/soft").symlink_to("f")
    early = settled(looked_at(tree(root)))

    (root / "changes/new").write_bytes(b"new")
    (root / "changes/g").unlink()
    (root / "same/g").write_bytes(b"grown")
    (root / "same/h").chmod(0o600)
    (root / "other").rename(root / "renamed")

    assert list(seen_again(early, tree(root))) == list(looked_at(tree(root)))


def test_a_rescan_takes_over_what_stands_still_and_nothing_else(root: Path) -> None:
    """Seen by a mark in the early maps, which no map of these files has."""
    (root / "still").write_bytes(b"x")
    (root / "touched").write_bytes(b"x")
    mark = ExtentMap.of([Extent(0, 4096, 1, 0)])
    early = FileTable()
    seen = looked_at(tree(root))
    early.append_from(seen, 0)
    early.append_from(seen, 1, extents=mark)
    early.append_from(seen, 2, extents=mark)
    early.looked_ns = seen.looked_ns
    touched = (root / "touched").stat()
    os.utime(root / "touched", ns=(touched.st_atime_ns, touched.st_mtime_ns))  # its ctime

    again = seen_again(settled(early), tree(root))

    marked = {entry.name for entry in again if entry.extents == mark}
    assert marked == {b"data/still"}


def test_what_changed_just_before_the_early_look_is_looked_at_again(root: Path) -> None:
    (root / "f").write_bytes(b"x")
    table = looked_at(tree(root))
    directory, file = root.stat(), (root / "f").stat()

    def known(looked_ns: int) -> Known:
        table.looked_ns = looked_ns
        return Known(table)

    assert not known(directory.st_ctime_ns + SETTLED_NS).is_directory(0, directory)
    assert known(directory.st_ctime_ns + SETTLED_NS + 1).is_directory(0, directory)
    assert not known(file.st_ctime_ns + SETTLED_NS).is_file(1, file)
    assert known(file.st_ctime_ns + SETTLED_NS + 1).is_file(1, file)


def test_a_rescan_gives_entries_the_trees_of_today(root: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    (root / "f").write_bytes(b"x")
    early = settled(looked_at(tree(root)))

    again = seen_again(early, tree(first, b"aaa"), tree(root))

    assert [(e.name, e.tree) for e in again] == [(b"aaa", 0), (b"data", 1), (b"data/f", 1)]
