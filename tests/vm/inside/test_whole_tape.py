"""A whole backup of PostgreSQL onto tape, by the kernel's own st and sch drivers: LVM raid1 below
the cluster, cartridges of a pool in two drives, brought by the changer.

It comes back whole and one file alone, by stock mt and tar, and with a catalogue that was made anew
from the tapes. The tests go on from one another, for one such backup takes a minute here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3
from tests.vm.inside.test_whole_lvm import DISKS, merge, split_tracking_changes
from tests.vm.inside.whole import WORK, Scene, nothing_is_left, scene_on
from tests.vm.vtl.cartridge import MIB
from tests.vm.vtl.library import Library, cartridges
from tests.vm.vtl.service import Shape

from splitmirror import config
from splitmirror.archive.manifest import MemberRecord
from splitmirror.backup import backup
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.demo import consistent_s
from splitmirror.demo.below import Lvm
from splitmirror.demo.lab import configuration
from splitmirror.demo.ledger import acknowledged, judge
from splitmirror.demo.subjects import entries
from splitmirror.drill import drill
from splitmirror.model import BackupSet
from splitmirror.model import Kind as FileKind
from splitmirror.restore import restore
from splitmirror.system import programs
from splitmirror.verify import verify

pytestmark = pytest.mark.timeout(900)

PART, BLOCK = 4 * MIB, 64 << 10
CARTRIDGE = 11 * MIB  # the set takes three
BARCODES = ("SM0001L8", "SM0002L8", "SM0003L8", "SM0004L8", "SM0005L8")
_PROGRAM_S = 300.0
_READ_6 = 0x08  # SSC-3, READ(6)
_LABELS = 60  # reads, at most, to prove a volume and a part by their labels


@dataclass
class Taped:
    """The scene with a tape library, and the set that the first test has written."""

    scene: Scene
    library: Library
    loaded: Config
    made: BackupSet | None = None

    @property
    def written(self) -> BackupSet:
        assert self.made is not None, "the first test did not come to its end"
        return self.made


@pytest.fixture(scope="module")
def taped() -> Iterator[Taped]:
    kinds = cartridges(*BARCODES, capacity=CARTRIDGE, early_warning=MIB)
    (WORK / "vtl").mkdir()
    with (
        Library(Shape(drives=2, cartridges=kinds), WORK / "vtl") as library,
        scene_on(Lvm(), DISKS, split_tracking_changes, merge) as scene,
    ):
        yield Taped(scene, library, configured(scene, library))


def configured(scene: Scene, library: Library) -> Config:
    options = {"mode": "hot", "part_size": str(PART), "block_size": str(BLOCK), "streams": 2}
    text = configuration(scene.lab, scene.subject.table(), options)
    before, medium, after = text.partition('driver = "virtualtape"\n')
    assert medium
    tape = (
        f'driver = "tape"\ndrives = ["{library.drives[0]}", "{library.drives[1]}"]\n'
        f'changer = "{library.changer}"\n'
    )
    after = after.partition("\n")[2]  # behind the path
    pool = "\n[pools.nightly]\nkeep_sets = 2\n"
    scene.lab.config_path.write_text(f'pool = "nightly"\n{before}{tape}{after}{pool}')
    return config.load(scene.lab.config_path)


def volumes_of(made: BackupSet) -> list[str]:
    return [use.volume for use in made.volumes]


def members_of(taped: Taped) -> list[tuple[int, MemberRecord]]:
    with Catalog.open(taped.loaded.catalog_path) as catalog:
        return [(one.part, one.record) for one in catalog.members(taped.written.set_id, [])]


def test_a_set_over_three_cartridges_in_two_drives(
    taped: Taped, record_property: Callable[[str, object], None]
) -> None:
    with taped.scene.load():
        taped.made = backup(taped.loaded)
    made = taped.written
    record_property("write_pause_ms", round(made.write_pause_s * 1000, 1))
    record_property("cartridges", len(volumes_of(made)))
    assert made.complete
    assert len(volumes_of(made)) >= 3
    nothing_is_left(taped.scene, taped.loaded)
    verify(taped.loaded.open_supply(), made.set_id, among=volumes_of(made)).require_sound()


def test_it_comes_back_with_every_acknowledged_transaction(taped: Taped) -> None:
    loaded, made, lab = taped.loaded, taped.written, taped.scene.lab
    with Catalog.open(loaded.catalog_path) as catalog:
        report = drill(
            loaded.open_supply(),
            catalog,
            made.set_id,
            loaded.open_database(),
            scratch=lab.base,
            probe=lambda copy: entries("postgresql", copy.dsn),
        )
    report.require_passed()
    assert report.probed is not None
    verdict = judge(acknowledged(lab.ledger, consistent_s(loaded, made.set_id)), *report.probed)
    assert verdict.acknowledged_before_split > 10
    assert (verdict.lost, verdict.torn) == (0, 0)


def test_one_file_alone_is_found_by_its_position(taped: Taped, tmp_path: Path) -> None:
    records = [record for _, record in members_of(taped) if record.attributes.kind is FileKind.FILE]
    wanted = max((r for r in records if r.piece is None), key=lambda record: record.stored)
    before = [taped.library.counts(drive) for drive in range(2)]
    with Catalog.open(taped.loaded.catalog_path) as catalog:
        restore(
            taped.loaded.open_supply(),
            catalog,
            taped.written.set_id,
            [wanted.name],
            tmp_path / "one",
        )
    (found,) = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert found.stat().st_size == wanted.size
    reads = sum(
        taped.library.counts(drive).get(_READ_6, 0) - before[drive].get(_READ_6, 0)
        for drive in range(2)
    )
    assert reads < wanted.size // BLOCK + _LABELS, "the tape was read, not located"


def test_stock_mt_and_tar_read_each_cartridge(taped: Taped, tmp_path: Path) -> None:
    made = taped.written
    with Catalog.open(taped.loaded.catalog_path) as catalog:
        parts = {part.number: part for part in catalog.parts(made.set_id)}
    members = members_of(taped)
    for serial in volumes_of(made):
        with taped.loaded.open_library() as lib, lib.lease(rather=[serial]) as (bay,):
            lib.bring(bay, serial, writable=False)
            drive = bay.name
        part = next(p for p in parts.values() if p.position and p.position.volume == serial)
        assert part.position is not None
        into = tmp_path / serial
        into.mkdir()
        _run("mt", "-f", drive, "rewind")
        _run("mt", "-f", drive, "fsf", str(3 * part.position.tape_file + 1))
        _run("tar", "-C", str(into), "-b", str(BLOCK // 512), "-xf", drive)
        of_part = [record for number, record in members if number == part.number]
        whole = [r for r in of_part if r.blake3 and r.piece is None and r.stored == r.size]
        assert whole
        for record in whole:
            content = (into / record.name.decode()).read_bytes()
            assert blake3(content).digest() == record.blake3, record.name


def test_a_catalogue_that_is_gone_is_made_anew_from_the_tapes(taped: Taped, tmp_path: Path) -> None:
    loaded, made = taped.loaded, taped.written
    before = members_of(taped)
    loaded.catalog_path.unlink()
    config_path = str(taped.scene.lab.config_path)
    _run(sys.executable, "-m", "splitmirror", "catalog", "rebuild", "--config", config_path)
    with Catalog.open(loaded.catalog_path) as catalog:
        assert [(one.set_id, one.complete) for one in catalog.sets()] == [(made.set_id, True)]
        held = {volume.serial: volume.held for volume in catalog.volumes()}
    assert members_of(taped) == before
    assert set(held) == set(volumes_of(made))
    assert all(held.values()), "a volume could be written anew, though holds may have been lost"


def _run(*argv: str) -> None:
    programs.run(list(argv), timeout_s=_PROGRAM_S)
