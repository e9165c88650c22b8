"""Looking anew at names that changed, and at nothing else."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from tests.unit.test_extents_scan import tree

from splitmirror.databases import Keep, keep_all
from splitmirror.errors import DeviceFailed
from splitmirror.extents import renew as module
from splitmirror.extents.changes import Changed, Named
from splitmirror.extents.check import check, check_changed
from splitmirror.extents.confirm import strange_directory
from splitmirror.extents.known import SETTLED_NS, Known
from splitmirror.extents.renew import Patch, renew
from splitmirror.extents.scan import scan
from splitmirror.extents.table import FileTable
from splitmirror.extents.views import PrimaryView
from splitmirror.model import FileEntry, Tree
from splitmirror.system import fiemap, libc

Keeper = Callable[[bytes], Keep]


@pytest.fixture(autouse=True)
def extents(tmp_path: Path) -> None:
    (tmp_path / "probe").write_bytes(b"x")
    with (tmp_path / "probe").open("rb") as probe:
        try:
            fiemap.fiemap(probe.fileno(), 1)
        except DeviceFailed:
            pytest.skip("the folder for tests lies on a filesystem without extents")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three directories with three files each, and two names of one more."""
    path = tmp_path / "t"
    for name in ("one", "two", "two/deep"):
        (path / name).mkdir(parents=True)
        for file in "fgh":
            (path / name / file).write_bytes(os.urandom(5000))
    os.link(path / "one/f", path / "two/linked")
    return path


@dataclasses.dataclass
class Story:
    """An early look, and what became of the files since."""

    trees: tuple[Tree, ...]
    keep: Keeper
    early: Known

    @classmethod
    def of(cls, *trees: Tree, keep: Keeper = keep_all) -> Story:
        flush(trees)
        return cls(trees, keep, Known(scan(PrimaryView(trees), trees, keep)))

    def renewed(self, *names: bytes) -> Patch:
        """Those names of the first tree looked at anew."""
        return self.looked_at((0, name) for name in names)

    def looked_at(self, named: Iterable[Named]) -> Patch:
        flush(self.trees)
        view = PrimaryView(self.trees, live=False)
        return renew(view, self.trees, self.keep, self.early, changed(named))

    def now(self) -> FileTable:
        return scan(PrimaryView(self.trees, live=False), self.trees, self.keep)

    def comes_out_right(self, patch: Patch) -> None:
        """The patch says of everything what a whole look says. Times of what was only linked are
        not its business."""
        now = self.now()
        assert len(patch) == len(now)
        assert patch.stored_bytes == now.stored_bytes
        counts = check(self.early.table, now).counts
        whole = check_changed(patch).whole()
        assert [timeless(e) for e in whole.table] == [timeless(e) for e in now]
        assert whole.counts == counts


def changed(named: Iterable[Named]) -> Changed:
    """As if each of the names had come or gone."""
    names = frozenset(named)
    return Changed(names, frozenset((at, name.rpartition(b"/")[0]) for at, name in names))


def flush(trees: Sequence[Tree]) -> None:
    """What is written back later has another map then."""
    for each in trees:
        fd = os.open(each.path, os.O_RDONLY)
        libc.syncfs(fd)
        os.close(fd)


def timeless(entry: FileEntry) -> FileEntry:
    return dataclasses.replace(entry, ctime_ns=0)


def test_nothing_named_is_nothing_changed(root: Path) -> None:
    story = Story.of(tree(root, b"t"))

    patch = story.renewed()

    assert (patch.gone, len(patch.added)) == ((), 0)
    story.comes_out_right(patch)


def test_files_that_changed_came_and_went_are_found_by_name(root: Path) -> None:
    story = Story.of(tree(root, b"t"))
    (root / "one/g").write_bytes(os.urandom(9000))
    (root / "one/new").write_bytes(b"x")
    (root / "two/h").unlink()
    (root / "two/soft").symlink_to("f")
    os.mkfifo(root / "two/pipe")
    (root / "two/deep/f").unlink()
    (root / "two/deep/f").mkdir()
    (root / "two/deep/f/inside").write_bytes(b"y")

    story.comes_out_right(
        story.renewed(
            b"t/one/g", b"t/one/new", b"t/two/h", b"t/two/soft", b"t/two/pipe", b"t/two/deep/f",
            b"t/two/never-was", b"t/one/g/nonsense",
        )
    )  # fmt: skip


def test_a_directory_that_was_renamed_is_renewed_with_all_that_is_in_it(root: Path) -> None:
    story = Story.of(tree(root, b"t"))
    (root / "two").rename(root / "ten")

    patch = story.renewed(b"t/two", b"t/ten")

    story.comes_out_right(patch)
    assert {name for name in patch.added.names if name.startswith(b"t/ten")} == {
        b"t/ten", b"t/ten/deep", b"t/ten/deep/f", b"t/ten/deep/g", b"t/ten/deep/h", b"t/ten/f",
        b"t/ten/g", b"t/ten/h", b"t/ten/linked",
    }  # fmt: skip


def test_a_directory_that_was_exchanged_for_a_file_takes_its_contents_with_it(root: Path) -> None:
    story = Story.of(tree(root, b"t"))
    shutil.rmtree(root / "two")
    (root / "two").write_bytes(b"a file now")

    story.comes_out_right(story.renewed(b"t/two", b"t/two/f", b"t/two/deep/g"))


@pytest.mark.parametrize("first", ["one/f", "two/linked"])
def test_all_names_of_a_file_are_looked_at_together(root: Path, first: str) -> None:
    story = Story.of(tree(root, b"t"))
    with (root / first).open("ab") as file:
        file.write(os.urandom(9000))

    patch = story.renewed(b"t/" + first.encode())

    story.comes_out_right(patch)
    assert set(patch.added.names) >= {b"t/one/f", b"t/two/linked"}


def test_the_first_name_of_a_file_may_go_and_another_becomes_the_file(root: Path) -> None:
    story = Story.of(tree(root, b"t"))
    (root / "one/f").unlink()

    story.comes_out_right(story.renewed(b"t/one/f"))


def test_a_name_that_goes_with_its_directory_changes_the_others_of_its_file(root: Path) -> None:
    story = Story.of(tree(root, b"t"))
    shutil.rmtree(root / "one")

    story.comes_out_right(story.renewed(b"t/one"))


def test_a_file_that_got_its_second_name_is_known_by_its_inode(root: Path) -> None:
    story = Story.of(tree(root, b"t"))
    os.link(root / "two/deep/g", root / "one/aaa")

    story.comes_out_right(story.renewed(b"t/one/aaa"))


def test_what_is_left_out_or_emptied_stays_so(root: Path) -> None:
    def keep(name: bytes) -> Keep:
        return {b"t/two/deep": Keep.EMPTY, b"t/one/x": Keep.LEAVE}.get(name, Keep.KEEP)

    story = Story.of(tree(root, b"t"), keep=keep)
    (root / "two/deep/new").write_bytes(b"x")
    (root / "one/x").write_bytes(b"x")
    (root / "one/y").mkdir()
    (root / "one/y/z").touch()

    story.comes_out_right(
        story.renewed(b"t/two/deep/new", b"t/two/deep/f", b"t/one/x", b"t/one/y", b"t/one/y/z")
    )


def test_a_tree_may_be_a_single_file_and_trees_lie_side_by_side(root: Path, tmp_path: Path) -> None:
    (tmp_path / "app.db").write_bytes(b"sqlite")
    story = Story.of(tree(root / "one", b"one"), tree(tmp_path / "app.db", b"app.db"))
    (tmp_path / "app.db").write_bytes(os.urandom(9000))
    (root / "one/zzz").write_bytes(b"x")

    story.comes_out_right(story.looked_at([(0, b"one/zzz"), (1, b"app.db")]))


def test_a_whole_tree_may_be_named(root: Path) -> None:
    story = Story.of(tree(root, b"t"))
    (root / "one/new").write_bytes(b"x")

    story.comes_out_right(story.renewed(b"t"))


def test_a_name_that_vanishes_between_two_looks_is_gone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story.of(tree(root, b"t"))
    look = module._Renewal._look

    def vanishing(renewal: object, folder: object, base: bytes) -> None:
        (root / "one/g").unlink(missing_ok=True)
        look(renewal, folder, base)  # type: ignore[arg-type]

    monkeypatch.setattr(module._Renewal, "_look", vanishing)
    view = PrimaryView(story.trees)
    patch = renew(view, story.trees, keep_all, story.early, changed([(0, b"t/one/g")]))

    assert b"t/one/g" not in patch.added.names


def test_what_is_looked_at_depends_on_what_changed_not_on_how_much_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every system call of the renewal that costs something is counted."""

    def calls(files: int) -> dict[str, int]:
        root = tmp_path / f"t{files}"
        for at in range(files):
            (root / f"{at % 10}").mkdir(parents=True, exist_ok=True)
            (root / f"{at % 10}/{at}").write_bytes(b"x" * 3000)
        story = Story.of(tree(root, b"t"))
        (root / "3/3").write_bytes(b"y" * 9000)
        (root / "5/new").touch()
        flush(story.trees)
        view = PrimaryView(story.trees, live=False)
        made = dict.fromkeys(("open", "stat", "fstat", "scandir", "maps"), 0)

        def counted(what: str, plain: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **named: object) -> object:
                made[what] += 1
                return plain(*arguments, **named)

            return call

        with monkeypatch.context() as patched:
            for what in ("open", "stat", "fstat", "scandir"):
                patched.setattr(os, what, counted(what, getattr(os, what)))
            patched.setattr(fiemap, "ioctl", counted("maps", fcntl.ioctl))
            told = Changed(frozenset([(0, b"t/3/3"), (0, b"t/5/new")]), frozenset([(0, b"t/5")]))
            patch = renew(view, story.trees, keep_all, story.early, told)
            check_changed(patch)
        story.comes_out_right(patch)
        return made

    few, many = calls(30), calls(3000)

    assert few == many
    assert many["scandir"] == 0
    assert many["maps"] == 1
    assert many["open"] <= 12


# --- the leg's word


def confirmed(story: Story, table: FileTable) -> bytes | None:
    view = PrimaryView(story.trees, live=False)
    return strange_directory(view, story.trees, story.keep, Known(table))


def test_a_table_with_every_name_is_confirmed(root: Path) -> None:
    story = Story.of(tree(root, b"t"))

    assert confirmed(story, story.early.table) is None
    story.early.table.looked_ns += SETTLED_NS + 1_000_000_000  # by the times alone
    assert confirmed(story, story.early.table) is None


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda root: (root / "one/new").touch(), b"t/one"),
        (lambda root: (root / "two/deep/f").unlink(), b"t/two/deep"),
        (lambda root: (root / "two").rename(root / "ten"), b"t"),
        (lambda root: (root / "two/more").mkdir(), b"t/two"),
    ],
    ids=["a new file", "a file less", "renamed", "a new directory"],
)
def test_a_directory_with_other_names_is_strange(
    root: Path, change: Callable[[Path], object], where: bytes
) -> None:
    story = Story.of(tree(root, b"t"))
    change(root)

    assert confirmed(story, story.early.table) == where


def test_what_does_not_belong_to_the_set_is_not_strange(root: Path) -> None:
    def keep(name: bytes) -> Keep:
        return {b"t/two/deep": Keep.EMPTY, b"t/one/x": Keep.LEAVE}.get(name, Keep.KEEP)

    story = Story.of(tree(root, b"t"), keep=keep)
    (root / "two/deep/new").touch()
    (root / "one/x").touch()
    (root / "one/g").write_bytes(b"other bytes are seen when it is read")

    assert confirmed(story, story.early.table) is None
