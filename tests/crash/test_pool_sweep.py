"""A backup onto a pool of volumes, in a virtual library and by the configuration alone, is killed
behind the first record of every kind in its journal; `recover` puts it right.

Each time: nothing is left over, every set that was whole before is whole, and so is the next one.
(test_crash_sweep kills at every record, test_spanning_sweep with every kind of stream.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.crash.files_lab import lab_with_files
from tests.crash.killed_backup import was_killed

from splitmirror import config, journal
from splitmirror.backup import backup
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.demo.lab import Lab, configuration
from splitmirror.model import BackupSet
from splitmirror.recover import recover
from splitmirror.run import unfinished
from splitmirror.system import loop
from splitmirror.verify import verify

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]

FILES = 12
CARTRIDGES = 8
KINDS = {"begin", "freeze intended", "split intended", "released", "trusted", "plan", "writing",
         "part", "volume full", "read", "catalogue", "written", "cleaned up", "recorded",
         "end"}  # fmt: skip


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_with_files(FILES, 400_000) as made:
        yield made


def configured(lab: Lab) -> Config:
    """Cartridges that take less than a set, and a pool that keeps the last two."""
    shelf = lab.base / "shelf"
    shelf.mkdir()
    for number in range(1, CARTRIDGES + 1):
        (shelf / f"SM{number:04d}L8").touch()
    (shelf / "CLN001L1").touch()
    options = {"mode": "freeze", "check": "released", "part_size": "512KiB", "block_size": "16KiB"}
    paths = {"driver": "none", "paths": [str(lab.mountpoint("data") / "files")]}
    text = configuration(lab, paths, options).replace(
        f'path = "{lab.tape}"\n',
        f'shelf = "{shelf}"\nslots = 12\ncapacity = "3MiB"\nearly_warning = "128KiB"\n',
    )
    text = text.replace(f'"{lab.base}/state"\n', f'"{lab.base}/state"\npool = "daily"\n')
    lab.config_path.write_text(f"{text}\n[pools.daily]\nkeep_sets = 2\n")
    return config.load(lab.config_path)


def whole(loaded: Config, made: BackupSet) -> None:
    volumes = [use.volume for use in made.volumes]
    assert made.complete and len(volumes) >= 2
    report = verify(loaded.open_supply(), made.set_id, among=volumes)
    report.require_sound()
    assert report.files == FILES + 1


def nothing_is_left(lab: Lab, loaded: Config) -> None:
    assert unfinished(loaded.state, loaded.source) == []
    with closing(loaded.open_mirror()) as mirror:
        assert mirror.state().split_id is None
    assert loop.find(lab.image("data", "mirror")) == []
    with loaded.open_library() as library, library.lease(len(library.bays)) as leased:
        assert len(leased) == len(library.bays)
    with Catalog.open(loaded.catalog_path) as catalog:
        assert [(v.serial, v.held) for v in catalog.volumes() if v.held or v.recycling] == []


def test_a_backup_onto_a_pool_killed_behind_a_record_of_each_kind_is_put_right(lab: Lab) -> None:
    loaded = configured(lab)
    earlier = backup(loaded)
    records = journal.read(loaded.state / "runs" / earlier.set_id)
    kinds = list(dict.fromkeys(record.kind for record in records))
    assert {*kinds} >= KINDS
    finished = thrown_away = 0
    for kind in kinds:
        assert was_killed(lab.config_path, kind, "after")
        sets = [earlier]
        for run in recover(loaded):
            finished += run.finished is not None
            thrown_away += run.finished is None
            sets += [run.finished] if run.finished is not None else []
        nothing_is_left(lab, loaded)
        sets.append(backup(loaded))
        for made in sets:  # none had expired before the last one was whole
            whole(loaded, made)
        earlier = sets[-1]
    assert finished >= 8
    assert thrown_away >= 5
    with Catalog.open(loaded.catalog_path) as catalog:
        assert sum(volume.recycled for volume in catalog.volumes()) > CARTRIDGES
