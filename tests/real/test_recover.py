"""What `recover` makes of runs that were cut off, when the world has changed meanwhile."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from tests.crash.files_lab import lab_with_files

from splitmirror import config, writing
from splitmirror.backup import backup
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.demo.lab import Lab, configuration
from splitmirror.errors import Busy, CatalogError, JournalDamaged, LegError, WrongMedium
from splitmirror.guard import wait_for_guards
from splitmirror.media import supply
from splitmirror.media.volume import open_for_append
from splitmirror.recover import recover, release
from splitmirror.run import Run, unfinished
from splitmirror.verify import verify

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

FILES = 12


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_with_files(FILES, 700_000) as made:
        yield made


@pytest.fixture
def loaded(lab: Lab) -> Iterator[Config]:
    yield configured(lab)
    for left in unfinished(lab.base / "state", "demo"):
        with Run.again(lab.base / "state", "demo", left):
            pass
    with closing(configured(lab).open_mirror()) as mirror:
        if (parted := mirror.state().split_id) is not None:
            mirror.rejoin(parted)
    for tape in lab.tape.parent.iterdir():
        tape.unlink()


def configured(lab: Lab, **more: object) -> Config:
    table: dict[str, object] = {
        "mode": "freeze", "check": "released", "part_size": "2MiB", "block_size": "64KiB"
    }  # fmt: skip
    paths = {"driver": "none", "paths": [str(lab.mountpoint("data") / "files")]}
    lab.config_path.write_text(configuration(lab, paths, table | more))
    return config.load(lab.config_path)


def killed_behind(lab: Lab, kind: str, count: int = 1) -> None:
    """A backup that is killed right behind the record of that kind (its `count`th)."""
    code = (
        "import os, signal, sys; from pathlib import Path; from splitmirror import config\n"
        "from splitmirror.backup import backup; from splitmirror.journal import Journal\n"
        "record, left = Journal.record, [int(sys.argv[3])]\n"
        "def deadly(journal, kind, **facts):\n"
        "    record(journal, kind, **facts)\n"
        "    left[0] -= kind == sys.argv[2]\n"
        "    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Journal.record = deadly\n"
        "backup(config.load(Path(sys.argv[1])))\n"
    )
    argv = [sys.executable, "-c", code, str(lab.config_path), kind, str(count)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def is_whole(loaded: Config, set_id: str) -> bool:
    verify(loaded.open_supply(), set_id).require_sound()
    with Catalog.open(loaded.catalog_path) as catalog:
        found = catalog.get(set_id)
        names = {record.name for _, record in catalog.members(set_id)}
    return found.complete and len(names) == FILES + 1 and found.ended is not None


def test_it_goes_on_as_the_run_began_whatever_the_configuration_says_now(
    lab: Lab, loaded: Config
) -> None:
    killed_behind(lab, "part", 2)
    (recovered,) = recover(configured(lab, part_size="64MiB", block_size="128KiB"))
    assert recovered.finished is not None
    assert is_whole(loaded, recovered.set_id)


def test_a_tape_that_is_in_use_keeps_the_split_for_a_second_try(lab: Lab, loaded: Config) -> None:
    killed_behind(lab, "part", 1)
    reader = loaded.open_medium()
    reader.load(writable=False)
    with pytest.raises(Busy):
        recover(loaded)
    reader.unload()
    (recovered,) = recover(loaded)
    assert recovered.finished is not None
    assert is_whole(loaded, recovered.set_id)


def test_another_tape_is_not_labelled_in_the_place_of_the_one_that_was_begun(
    lab: Lab, loaded: Config
) -> None:
    killed_behind(lab, "part", 1)
    aside = lab.base / "aside.tap"
    lab.tape.rename(aside)
    with pytest.raises(WrongMedium):
        recover(loaded)
    lab.tape.unlink(missing_ok=True)
    aside.rename(lab.tape)
    (recovered,) = recover(loaded)
    assert recovered.finished is not None
    assert is_whole(loaded, recovered.set_id)


@pytest.mark.parametrize("kind", ["written", "cleaned up", "recorded"])
def test_a_set_that_is_whole_is_told_to_be_finished_without_its_leg(
    lab: Lab, loaded: Config, kind: str
) -> None:
    killed_behind(lab, kind)
    with closing(loaded.open_mirror()) as mirror:
        if (parted := mirror.state().split_id) is not None:
            mirror.rejoin(parted)
    (recovered,) = recover(loaded)
    assert recovered.finished is not None
    assert is_whole(loaded, recovered.set_id)


def test_a_leg_that_was_left_split_stays_split_when_the_end_was_cut_off(
    lab: Lab, loaded: Config
) -> None:
    loaded = configured(lab, cleanup="leave-split")
    killed_behind(lab, "recorded")
    (recovered,) = recover(loaded)
    with closing(loaded.open_mirror()) as mirror:
        assert mirror.state().split_id == recovered.set_id


def test_a_catalogue_that_cannot_be_written_leaves_the_run_to_recover_and_the_set_whole(
    lab: Lab, loaded: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise CatalogError("disk full", hint="Make room.")

    with monkeypatch.context() as patched:
        patched.setattr(Catalog, "record", broken)
        with pytest.raises(CatalogError) as caught:
            backup(loaded)
        assert "whole on its volume" in caught.value.__notes__[0]
    (recovered,) = recover(loaded)
    assert recovered.finished is not None
    assert is_whole(loaded, recovered.set_id)


def test_giving_up_throws_a_trusted_split_away(lab: Lab, loaded: Config) -> None:
    killed_behind(lab, "part", 1)
    (recovered,) = recover(loaded, give_up=True)
    assert recovered.finished is None
    assert backup(loaded).complete


def test_a_leg_that_was_given_back_meanwhile_makes_the_set_void(
    lab: Lab, loaded: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after_a_resync(*arguments: Any, **more: Any) -> Any:
        with closing(loaded.open_mirror()) as mirror:
            parted = mirror.state().split_id
            assert parted is not None
            mirror.rejoin(parted)
        return open_for_append(*arguments, **more)

    monkeypatch.setattr(supply, "open_for_append", after_a_resync)
    with pytest.raises(LegError, match="given back"):
        backup(loaded)
    with Catalog.open(loaded.catalog_path) as catalog:
        left = max(catalog.sets(), key=lambda found: found.started)
    assert not left.complete
    assert "void" in left.facts["warning"]


def test_a_damaged_journal_stops_neither_release_nor_another_source(
    lab: Lab, loaded: Config
) -> None:
    killed_behind(lab, "split intended")
    (directory,) = unfinished(loaded.state, loaded.source)
    path = directory / "journal"
    text = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(text[0] + b"damaged\n" + b"".join(text[2:]))
    release(loaded.state, loaded.source)
    with Run.begin(loaded.state, "another"):
        pass
    with pytest.raises(JournalDamaged, match="line 2"):
        recover(loaded)
    path.write_bytes(b"".join(text))


def test_a_failed_run_keeps_nothing_but_its_journal(
    lab: Lab, loaded: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise LegError("a bad disk", hint="Replace it.")

    monkeypatch.setattr(writing, "whole_set", broken)
    before = set((loaded.state / "runs").iterdir())
    with pytest.raises(LegError, match="bad disk"):
        backup(loaded)
    (failed,) = set((loaded.state / "runs").iterdir()) - before
    assert [path.name for path in failed.iterdir()] == ["journal"]
    assert unfinished(loaded.state, loaded.source) == []


def test_it_waits_for_the_dead_runs_guard_which_leaves_its_record_last(
    lab: Lab, loaded: Config
) -> None:
    killed_behind(lab, "part", 1)
    (directory,) = unfinished(loaded.state, loaded.source)
    assert wait_for_guards(directory, 15)  # its own; a slower one in its place
    slow = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(slow, fcntl.LOCK_SH)

    def ends() -> None:
        (directory / "guard.json").write_text("{}")
        os.close(slow)

    threading.Timer(0.5, ends).start()
    (recovered,) = recover(loaded)
    assert recovered.finished is not None
    assert [path.name for path in directory.iterdir()] == ["journal"]
