"""Restoring on real filesystems, real tapes (virtual ones), and with real databases."""

from __future__ import annotations

import os
import sqlite3
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from tests.real.loopfs import LoopFs, loop_filesystems
from tests.unit.made_sets import Made, directory, file, tree, write_set
from tests.unit.test_restore_recipe import a_rich_tree, look

from splitmirror.archive import acl
from splitmirror.catalog import Catalog
from splitmirror.databases import Database, Keep, Layout
from splitmirror.databases import postgresql as postgresql_driver
from splitmirror.databases import sqlite as sqlite_driver
from splitmirror.drill import DrillReport, drill
from splitmirror.errors import Busy, NoRoom, VerifyFailed
from splitmirror.media.supply import OneVolume
from splitmirror.media.virtualtape import Settings, VirtualTape, open_medium
from splitmirror.model import Mode
from splitmirror.restore import restore
from splitmirror.stream.member import Member
from splitmirror.system import loop, programs
from splitmirror.testing.clusters import Cluster, cluster
from splitmirror.verify import verify

pytestmark = pytest.mark.real

# linux/capability.h, struct vfs_cap_data version 2: cap_net_bind_service, permitted and effective
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


@pytest.fixture
def tape(tmp_path: Path) -> VirtualTape:
    made = open_medium(Settings(path=str(tmp_path / "volume.tap")))
    assert isinstance(made, VirtualTape)
    return made


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.db") as catalog:
        yield catalog


def recorded(catalog: Catalog, made: Made) -> Made:
    catalog.record(made.backup_set, made.parts, made.members)
    return made


def a_privileged_tree(root: Path) -> None:
    """What only root, on a real filesystem, can give a file."""
    a_rich_tree(root)
    text = b"user::rw-,user:4711:r--,group::r--,mask::rw-,other::---"
    (root / "guarded").write_bytes(b"x")
    os.setxattr(root / "guarded", "system.posix_acl_access", acl.from_text(text))
    default = b"user::rwx,group::r-x,group:4712:rwx,mask::rwx,other::---"
    os.setxattr(root / "deep", "system.posix_acl_default", acl.from_text(default))
    (root / "deep/inheriting").write_bytes(b"made under a default ACL")
    (root / "capable").write_bytes(b"#!")
    os.setxattr(root / "capable", "security.capability", CAPABILITY)
    os.setxattr(root / "capable", "trusted.secret", b"\x00")


@pytest.fixture(params=["ext4", "xfs"])
def filesystem(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoopFs]:
    with loop_filesystems(tmp_path / "loops", request.param) as (made,):
        yield made


def test_everything_a_file_can_be_comes_back_on_ext4_and_xfs(
    filesystem: LoopFs, tape: VirtualTape, catalog: Catalog
) -> None:
    source = filesystem.path / "source"
    source.mkdir()
    a_privileged_tree(source)
    made = recorded(catalog, write_set(tape, [tree(source, b"data")]))
    report = restore(OneVolume(tape), catalog, made.set_id, (), filesystem.path / "target")
    assert look(filesystem.path / "target/data") == look(source)
    assert report.skipped == ()
    sparse = (filesystem.path / "target/data/sparse").stat()
    assert sparse.st_blocks * 512 < 1 << 20 < sparse.st_size


def test_the_original_place_comes_back_over_changed_files_with_acls(
    filesystem: LoopFs, tape: VirtualTape, catalog: Catalog
) -> None:
    source = filesystem.path / "source"
    source.mkdir()
    a_privileged_tree(source)
    before = look(source)
    trees = [(b"data", os.fsencode(source))]
    made = recorded(catalog, write_set(tape, [tree(source, b"data")], trees=trees))
    (source / "plain").write_bytes(b"other")
    (source / "capable").unlink()
    (source / "stale").symlink_to("plain")
    os.removexattr(source / "deep", "system.posix_acl_default")
    os.setxattr(source / "guarded", "user.new", b"1")
    restore(OneVolume(tape), catalog, made.set_id, (), None, original=True)
    assert look(source) == before


def test_a_byte_flipped_in_the_tap_file_is_found_by_verify_and_by_restore(
    tape: VirtualTape, tmp_path: Path
) -> None:
    members = [directory(b"data"), *(file(b"data/%d" % i, b"%d" % i * 90_000) for i in range(9))]
    made = write_set(tape, [members])
    assert verify(OneVolume(tape), made.set_id).sound
    with (tmp_path / "volume.tap").open("r+b") as tap:
        at = tap.read().index(b"7" * 3000) + 1000
        tap.seek(at)
        tap.write(b"8")
    report = verify(OneVolume(tape), made.set_id)
    assert ["data/7" in found.what for found in report.damage] == [True]
    with pytest.raises(VerifyFailed, match="data/7"):
        restore(OneVolume(tape), None, made.set_id, (), tmp_path / "target")
    names = sorted(path.name for path in (tmp_path / "target/data").iterdir())
    assert names == [str(i) for i in range(9) if i != 7]


def test_a_filesystem_that_fills_up_is_told_with_the_files_name_and_leaves_no_half_file(
    tape: VirtualTape, catalog: Catalog, tmp_path: Path
) -> None:
    members = [directory(b"data"), *(file(b"data/%02d" % i, b"x" * 2000) for i in range(60))]
    made = recorded(catalog, write_set(tape, [members]))
    image, place = tmp_path / "few-inodes.img", tmp_path / "mnt"
    with image.open("wb") as file_:
        file_.truncate(64 << 20)
    programs.run(["mkfs.ext4", "-q", "-F", "-N", "32", str(image)], timeout_s=60)
    place.mkdir()
    device = loop.attach(image)
    try:
        programs.run(["mount", device.path, str(place)], timeout_s=30)
        try:
            with pytest.raises(NoRoom, match=r"target/data/\d\d: No space") as caught:
                restore(OneVolume(tape), catalog, made.set_id, (), place / "target")
            assert "Make room" in caught.value.hint
            found = list((place / "target/data").iterdir())
            assert found and all(path.read_bytes() == b"x" * 2000 for path in found)
        finally:
            programs.run(["umount", str(place)], timeout_s=30)
    finally:
        loop.detach(device)


def test_a_mount_below_the_original_place_is_not_cleared(
    tape: VirtualTape, catalog: Catalog, tmp_path: Path
) -> None:
    place = tmp_path / "srv"
    (place / "deep/mnt").mkdir(parents=True)
    with loop_filesystems(tmp_path / "loops", "ext4") as (other,):
        trees = [(b"data", os.fsencode(place))]
        members = [directory(b"data"), directory(b"data/deep"), file(b"data/deep/a", b"a")]
        made = recorded(catalog, write_set(tape, [members], trees=trees))
        programs.run(["mount", "--bind", other.mountpoint, str(place / "deep/mnt")], timeout_s=30)
        try:
            (other.path / "precious").touch()
            restore(OneVolume(tape), catalog, made.set_id, (), None, original=True)
            assert (other.path / "precious").exists()
            assert (place / "deep/a").read_bytes() == b"a"
        finally:
            programs.run(["umount", str(place / "deep/mnt")], timeout_s=30)


# --- databases, stopped while their files are read


def members_of(layout: Layout) -> list[Member]:
    """What a backup of a database at rest would hold."""
    found: list[Member] = []
    for root in (*layout.roots, *layout.outside):
        gone: tuple[bytes, ...] = ()
        for member in tree(Path(os.fsdecode(root.path)), root.name):
            if member.name.startswith(gone):
                continue
            keep = layout.keep(member.name)
            if keep in (Keep.LEAVE, Keep.EMPTY):
                gone += (member.name + b"/",)
            if keep is not Keep.LEAVE:
                found.append(member)
    return found


def write_layout(tape: VirtualTape, database: Database, layout: Layout) -> Made:
    trees = [(root.name, root.path) for root in layout.roots]
    return write_set(tape, [members_of(layout)], trees=trees, facts=database.facts())


def rows(dsn: str) -> list[tuple[int, str]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute("select id, note from kept order by id").fetchall()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Cluster]:
    with cluster(own_wal=True, outside=True) as found:
        space = found.directory("space")
        with psycopg.connect(found.dsn(), autocommit=True) as connection:
            connection.execute(f"create tablespace elsewhere location '{space}'")
            connection.execute("create table kept (id int, note text) tablespace elsewhere")
            connection.execute("insert into kept select i, 'n' || i from generate_series(1, 99) i")
        yield found


@pytest.fixture
def backed_up(postgres: Cluster, tape: VirtualTape, catalog: Catalog) -> tuple[Database, Made]:
    database = postgresql_driver.open_database(
        postgresql_driver.Settings(dsn=postgres.dsn(), bin_dir=str(postgres.bin_dir))
    )
    problems = [found.problem for found in database.preflight(Mode.FREEZE) if found.problem]
    assert problems == []
    postgres.stop()
    made = recorded(catalog, write_layout(tape, database, database.layout()))
    postgres.start()
    return database, made


def test_a_drill_of_a_cluster_with_everything_elsewhere_leaves_the_running_original_untouched(
    postgres: Cluster,
    backed_up: tuple[Database, Made],
    tape: VirtualTape,
    catalog: Catalog,
    tmp_path: Path,
) -> None:
    database, made = backed_up
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("insert into kept values (100, 'after the backup')")
    before = look_at_rest(postgres)
    report = drill(
        OneVolume(tape),
        catalog,
        made.set_id,
        database,
        scratch=tmp_path,
        probe=lambda copy: rows(copy.dsn),
    )
    report.require_passed()
    assert report.checks and report.probed == [(i, f"n{i}") for i in range(1, 100)]
    assert look_at_rest(postgres) == before
    assert len(rows(postgres.dsn())) == 100
    assert [path.name for path in tmp_path.iterdir() if "drill" in path.name] == []
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("delete from kept where id = 100")


def look_at_rest(postgres: Cluster) -> dict[bytes, tuple[object, ...]]:
    """The original's links, configuration and tablespace, which a careless copy would change."""
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("checkpoint")
    found = look(postgres.home / "space") | look(postgres.config_file.parent)
    links = [*(postgres.data / "pg_tblspc").iterdir(), postgres.data / "pg_wal"]
    return found | {os.fsencode(path): (path.readlink(),) for path in links}


def test_a_cluster_comes_back_at_its_original_place_once_it_is_stopped(
    postgres: Cluster, backed_up: tuple[Database, Made], tape: VirtualTape, catalog: Catalog
) -> None:
    database, made = backed_up
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("insert into kept values (100, 'after the backup')")
        connection.execute("create table stale (id int)")
    with pytest.raises(Busy, match=r"postmaster\.pid"):
        restore(OneVolume(tape), catalog, made.set_id, (), None, original=True, database=database)
    assert len(rows(postgres.dsn())) == 100
    postgres.stop()
    (postgres.data / "standby.signal").touch()
    (postgres.data / "PG_VERSION").unlink()
    another = postgres.home / "space/PG_9_other"  # another server's files in the same tablespace
    another.mkdir(exist_ok=True)
    report = restore(
        OneVolume(tape), catalog, made.set_id, (), None, original=True, database=database
    )
    assert report.mismatches == () and report.removed > 0 and another.is_dir()
    assert not (postgres.data / "standby.signal").exists()
    postgres.start()
    assert rows(postgres.dsn()) == [(i, f"n{i}") for i in range(1, 100)]
    with psycopg.connect(postgres.dsn()) as connection:
        assert connection.execute("select to_regclass('stale')").fetchone() == (None,)


def test_a_cluster_restored_elsewhere_can_be_started_there(
    postgres: Cluster, backed_up: tuple[Database, Made], tape: VirtualTape, catalog: Catalog
) -> None:
    database, made = backed_up
    target = postgres.home / "elsewhere"
    restore(OneVolume(tape), catalog, made.set_id, (), target, database=database)
    programs.run(["chmod", "0711", str(target), str(target / "tblspc")], timeout_s=10)
    argv = [str(postgres.bin_dir / "pg_controldata"), str(target / "data")]
    assert "shut down" in programs.run(argv, timeout_s=10, user="postgres")
    links = [*(target / "data/pg_tblspc").iterdir(), target / "data/pg_wal"]
    assert all(path.readlink().is_relative_to(target) for path in links) and len(links) == 2
    owner = (target / "data/base").stat()
    assert owner.st_uid == (postgres.data / "base").stat().st_uid
    assert stat.S_IMODE(owner.st_mode) == 0o700


def test_sqlite_files_come_back_in_place_without_their_stale_siblings_and_pass_a_drill(
    tape: VirtualTape, catalog: Catalog, tmp_path: Path
) -> None:
    path = tmp_path / "srv/app.db"
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("create table kept (id int)")
        connection.executemany("insert into kept values (?)", [(i,) for i in range(99)])
    connection.close()
    database = sqlite_driver.open_database(sqlite_driver.Settings(paths=[str(path)]))
    made = recorded(catalog, write_layout(tape, database, database.layout()))
    report: DrillReport[None] = drill(
        OneVolume(tape), catalog, made.set_id, database, scratch=tmp_path
    )
    report.require_passed()
    assert path.exists() and (tmp_path / "srv").is_dir()
    path.write_bytes(b"")
    stale = [path.with_name("app.db" + ending) for ending in ("-journal", "-wal", "-shm")]
    for sibling in stale:
        sibling.write_bytes(b"stale")
    (tmp_path / "srv/other.db").write_bytes(b"of another application")
    restore(OneVolume(tape), catalog, made.set_id, (), None, original=True, database=database)
    assert sorted(found.name for found in path.parent.iterdir()) == ["app.db", "other.db"]
    with sqlite3.connect(path) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (99,)
    connection.close()
