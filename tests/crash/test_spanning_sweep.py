"""A backup over several small volumes is killed wherever something becomes of a volume; `recover`
carries it to its end. (tests/real/test_spanning.py kills the writing alone at every record.)"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.crash import shelf_config
from tests.crash.files_lab import lab_with_files
from tests.crash.killed_backup import was_killed
from tests.crash.shelf_config import ShelfConfig

from splitmirror import journal
from splitmirror.backup import backup
from splitmirror.catalog import Catalog
from splitmirror.demo.lab import Lab, configuration
from splitmirror.drill import drill
from splitmirror.recover import recover
from splitmirror.run import unfinished
from splitmirror.verify import verify

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]

FILES = 14
KINDS = ("plan", "writing", "volume full", "read", "catalogue", "written", "cleaned up")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_with_files(FILES, 330_000) as made:
        yield made


def configured(lab: Lab, streams: int) -> ShelfConfig:
    table: dict[str, object] = {
        "mode": "freeze", "check": "released", "part_size": "512KiB", "block_size": "16KiB",
        "streams": streams,
    }  # fmt: skip
    paths = {"driver": "none", "paths": [str(lab.mountpoint("data") / "files")]}
    lab.config_path.write_text(configuration(lab, paths, table))
    return shelf_config.load(lab.config_path)


def clear_shelf(lab: Lab) -> None:
    for tape in lab.tape.parent.iterdir():
        tape.unlink()


@pytest.mark.parametrize("streams", [1, 2])
def test_a_spanning_backup_killed_around_a_volume_is_recovered(lab: Lab, streams: int) -> None:
    loaded = configured(lab, streams)
    whole = backup(loaded)
    assert len(whole.volumes) >= 3 and whole.complete
    records = journal.read(loaded.state / "runs" / whole.set_id)
    numbers = [at for at, record in enumerate(records, 1) if record.kind in KINDS]
    assert len(numbers) >= len(KINDS) + 3
    clear_shelf(lab)
    for number in numbers:
        for when in ("before", "after"):
            assert was_killed(lab.config_path, number, when, "shelf")
            (run,) = recover(loaded)
            assert run.finished is not None, run.done
            volumes = [use.volume for use in run.finished.volumes]
            report = verify(loaded.open_supply(), run.set_id, among=volumes)
            report.require_sound()
            assert report.files == whole.files
            assert unfinished(loaded.state, loaded.source) == []
            with closing(loaded.open_mirror()) as mirror:
                assert mirror.state().split_id is None
            clear_shelf(lab)


def test_a_set_over_several_volumes_passes_a_drill(lab: Lab) -> None:
    loaded = configured(lab, 2)
    made = backup(loaded)
    assert len(made.volumes) >= 3
    with Catalog.open(loaded.catalog_path) as catalog:
        drill(
            loaded.open_supply(), catalog, made.set_id, loaded.open_database(), scratch=lab.base
        ).require_passed()
    clear_shelf(lab)
