"""Whole backups of PostgreSQL in the guest, on one kind of mirror: what the files `test_whole_*` of
this folder have in common. Each of them gives a `scene`, and takes its tests from here.

One lab and one cluster serve all tests of a file: making them is what takes long here.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.vm.inside import forked
from tests.vm.recipe import CLUSTER

from splitmirror import config
from splitmirror.backup import backup
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.demo import consistent_s, frozen, writer
from splitmirror.demo.below import Below
from splitmirror.demo.lab import Disk, Lab, configuration, lab_at, leftovers
from splitmirror.demo.ledger import acknowledged, judge
from splitmirror.demo.subjects import PostgreSQL, entries
from splitmirror.doctor import examine
from splitmirror.drill import drill
from splitmirror.hold import Hold
from splitmirror.init import propose, write_new
from splitmirror.journal import Journal
from splitmirror.model import Mode
from splitmirror.recover import recover
from splitmirror.run import unfinished
from splitmirror.system import filesystems
from splitmirror.verify import verify

WORK = Path("/work")  # where the host's test file has the guest mount a disk of its own
MIB = 1 << 20
FILL = 2 * MIB
_WRITERS_REST_S = 0.25  # or they have all of the processor, and what is measured waits for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A lab with a cluster that runs in it. `bare_split` and `bare_rejoin`: what one would type for
    a disk of the lab, without splitmirror."""

    lab: Lab
    subject: PostgreSQL
    bare_split: Callable[[Lab, Disk], None]
    bare_rejoin: Callable[[Lab, Disk], None]

    def configured(self, mode: Mode, **more: str) -> Config:
        table = {"mode": str(mode), "part_size": "16MiB", "block_size": "64KiB", **more}
        self.lab.config_path.write_text(configuration(self.lab, self.subject.table(), table))
        return config.load(self.lab.config_path)

    @contextmanager
    def load(self) -> Iterator[None]:
        """Writers that commit some four times a second."""
        with ExitStack() as writers:
            for told in self.subject.writers():
                writers.enter_context(
                    forked.meanwhile(writer.write, *told, self.lab.ledger, rest_s=_WRITERS_REST_S)
                )
            yield

    def scribble(self, size: int) -> None:
        """Change as many bytes of the database, durably."""
        with psycopg.connect(self.subject.dsn, autocommit=True) as session:
            session.execute(
                "CREATE TABLE IF NOT EXISTS scribbled AS SELECT ''::text AS t WHERE false"
            )
            session.execute("TRUNCATE scribbled")
            rows = "SELECT repeat(md5(g::text), 250) FROM generate_series(1, %s) g"
            session.execute("ALTER TABLE scribbled ALTER t SET STORAGE external")
            session.execute(f"INSERT INTO scribbled {rows}", [size // 8000])
            session.execute("CHECKPOINT")


@contextmanager
def scene_on(
    below: Below,
    disks: Sequence[Disk],
    bare_split: Callable[[Lab, Disk], None],
    bare_rejoin: Callable[[Lab, Disk], None],
) -> Iterator[Scene]:
    """A lab on a kind of mirror, and a small cluster that runs in it."""
    with lab_at(WORK / "lab", tuple(disks), below) as lab:
        subject = PostgreSQL(lab, Path(CLUSTER))
        subject.create()
        with subject.running():
            subject.fill(FILL)
            yield Scene(lab=lab, subject=subject, bare_split=bare_split, bare_rejoin=bare_rejoin)
    assert leftovers(lab.base) == [f"directory {lab.base}"]
    shutil.rmtree(lab.base)


# --- the tests


def test_init_proposes_what_is_there_and_doctor_finds_it_well(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "proposed.toml"
    write_new(path, propose(scene.subject.data))
    proposed, ours = config.load(path), scene.configured(Mode.HOT)
    assert proposed.mirror["driver"] == ours.mirror["driver"]
    with closing(proposed.open_mirror()) as mirror, closing(ours.open_mirror()) as same:
        found = {os.stat(volume.device).st_rdev for volume in mirror.volumes()}
        assert found == {os.stat(volume.device).st_rdev for volume in same.volumes()}
        same.synchronize(lambda done, total: None)
    findings = examine(ours)
    assert [f.problem for f in findings if f.problem is not None and not f.warning] == []
    assert any(f.warning and "redundancy" in f.what for f in findings), [f.what for f in findings]


@pytest.mark.parametrize("mode", [Mode.HOT, Mode.FREEZE])
def test_a_backup_comes_back_with_every_acknowledged_transaction(
    scene: Scene, mode: Mode, record_property: Callable[[str, object], None]
) -> None:
    loaded = scene.configured(mode)
    with closing(loaded.open_mirror()) as mirror:
        mirror.synchronize(lambda done, total: None)
    with scene.load():
        floor_s = bare_floor(scene, loaded)
        made = backup(loaded)
        pause_s = made.write_pause_s
        if pause_s > longest(floor_s):  # the emulator may have been held up itself: once more
            record_property(f"{mode}_pause_at_first_ms", round(pause_s * 1000, 1))
            record_property("bare_floor_at_first_ms", round(floor_s * 1000, 1))
            floor_s, pause_s = bare_floor(scene, loaded), backup(loaded).write_pause_s
    record_property(f"{mode}_pause_ms", round(pause_s * 1000, 1))
    record_property("bare_floor_ms", round(floor_s * 1000, 1))
    with Catalog.open(loaded.catalog_path) as catalog:
        report = drill(
            loaded.open_supply(),
            catalog,
            made.set_id,
            loaded.open_database(),
            scratch=scene.lab.base,
            probe=lambda copy: entries("postgresql", copy.dsn),
        )
    report.require_passed()
    assert report.probed is not None
    verdict = judge(
        acknowledged(scene.lab.ledger, consistent_s(loaded, made.set_id)), *report.probed
    )
    assert verdict.acknowledged_before_split > 10
    assert (verdict.lost, verdict.torn) == (0, 0)
    assert verdict.restored >= verdict.acknowledged_before_split
    nothing_is_left(scene, loaded)
    assert pause_s <= longest(floor_s)


def longest(floor_s: float) -> float:
    """How long a pause may be beside the bare commands."""
    return 1.3 * floor_s + 0.05


def bare_floor(scene: Scene, loaded: Config) -> float:
    """Seconds of a freeze of what such a backup freezes, of the bare commands that split its disks,
    and of the thaw."""
    with closing(loaded.open_mirror()) as mirror:
        mountpoints = frozen(loaded, mirror)
        disks = [d for d in scene.lab.disks if str(scene.lab.mountpoint(d.name)) in mountpoints]
        with ExitStack() as undo, ExitStack() as thaw:
            fds = [filesystems.open_mountpoint(path) for path in mountpoints]
            for fd in fds:
                undo.callback(os.close, fd)
                filesystems.syncfs(fd)
            began_s = time.monotonic()
            for fd in fds:
                thaw.callback(filesystems.thaw, fd)
                filesystems.freeze(fd)
            for disk in disks:
                scene.bare_split(scene.lab, disk)
            thaw.close()
            took_s = time.monotonic() - began_s
        for disk in disks:
            scene.bare_rejoin(scene.lab, disk)
        mirror.synchronize(lambda done, total: None)
    return took_s


def nothing_is_left(scene: Scene, loaded: Config) -> None:
    """Nothing is frozen, locked, in backup mode or split, and no run is unfinished."""
    assert unfinished(loaded.state, loaded.source) == []
    with psycopg.connect(scene.subject.dsn, autocommit=True) as session:
        session.execute("INSERT INTO first VALUES ('probe', 1, '')")
        assert session.execute("SELECT count(*) FROM pg_replication_slots").fetchone() == (0,)
        session.execute("DELETE FROM first WHERE writer = 'probe'")
    for disk in scene.lab.disks:
        (scene.lab.mountpoint(disk.name) / "probe").write_bytes(b"not frozen")
    with closing(loaded.open_mirror()) as mirror:
        assert mirror.state().split_id is None, mirror.state()


def test_only_what_changed_is_copied_to_the_mirror_again(
    scene: Scene, record_property: Callable[[str, object], None]
) -> None:
    loaded = scene.configured(Mode.HOT, cleanup="leave-split")
    made = backup(loaded)
    scene.scribble(4 * MIB)
    before = written_to_mirrors(scene)
    with closing(loaded.open_mirror()) as mirror:
        mirror.rejoin(made.set_id)
        mirror.synchronize(lambda done, total: None)
        assert mirror.state().level
    copied = written_to_mirrors(scene) - before
    record_property("copied_mib", round(copied / MIB, 1))
    size = sum(disk.size for disk in scene.lab.disks)
    assert 4 * MIB <= copied < size // 4
    nothing_is_left(scene, loaded)


def written_to_mirrors(scene: Scene) -> int:
    """Bytes that the mirror disks of the lab ever took (sectors written, field 7 of
    Documentation/admin-guide/iostats.rst)."""
    total = 0
    for device in Path("/sys/block").glob("loop*"):
        backing = device / "loop" / "backing_file"
        if backing.exists() and backing.read_text().strip().endswith(".mirror"):
            total += int((device / "stat").read_text().split()[6]) * 512
    return total


PHASES = ("synchronize", "map", "quiesce", "discover", "prepare", "split", "check", "release",
          "backup", "cleanup")  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
def test_a_backup_killed_in_a_phase_is_put_right(scene: Scene, phase: str) -> None:
    mode = Mode.FREEZE if PHASES.index(phase) % 2 else Mode.HOT
    loaded = scene.configured(mode)
    killed_in(phase, scene.lab.config_path)
    (recovered,) = recover(loaded)
    trusted = PHASES.index(phase) >= PHASES.index("backup")
    assert (recovered.finished is not None) == trusted, recovered.done
    if recovered.finished is not None:
        verify(loaded.open_supply(), recovered.set_id).require_sound()
    nothing_is_left(scene, loaded)


def killed_in(phase: str, config_path: Path) -> None:
    """A backup in a process of its own, killed with -9 right behind the record that `phase` begins;
    the phase split, when the mirror was just split."""
    done = forked.call(_killed_backup, phase, config_path)
    assert done.status == forked.KILLED, done.out + done.err


def _killed_backup(phase: str, config_path: Path) -> None:
    record, thaw = Journal.record, Hold.thaw

    def deadly(self: Journal, kind: str, **facts: Any) -> None:
        record(self, kind, **facts)
        if kind == "phase begins" and facts["name"] == phase and phase != "split":
            os.kill(os.getpid(), signal.SIGKILL)

    def before_the_thaw(self: Hold) -> None:
        if phase == "split":
            os.kill(os.getpid(), signal.SIGKILL)
        thaw(self)

    Journal.record = deadly
    Hold.thaw = before_the_thaw
    backup(config.load(config_path))
