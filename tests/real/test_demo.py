"""The demo as a stranger runs it: its document, its judgement; it leaves nothing behind."""

from __future__ import annotations

import json
import math
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.real.loopfs import until

from splitmirror import demo
from splitmirror.backup import backup
from splitmirror.config import Config
from splitmirror.demo import Options, run_demo
from splitmirror.demo.lab import leftovers
from splitmirror.demo.ledger import acknowledged
from splitmirror.errors import ConfigError

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

PHASES = ["synchronize", "map", "quiesce", "discover", "prepare", "split", "check", "release",
          "backup", "cleanup"]  # fmt: skip
INTERRUPTED = 130


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scratch directory that the database's user gets through to."""
    directory = tmp_path_factory.mktemp("demo")
    for parent in (directory, *directory.parents[:-2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    return directory


def command(place: Path, *arguments: str) -> list[str]:
    directory = ["--directory", str(place)]
    return [sys.executable, "-m", "splitmirror", "demo", "--size", "24M", *directory, *arguments]


def left(place: Path) -> list[str]:
    """What is left below the scratch directory, beside the directory itself."""
    return [what for what in leftovers(place) if what != f"directory {place}"] + [
        str(path) for path in place.iterdir()
    ]


@pytest.mark.parametrize("mode", ["hot", "freeze"])
@pytest.mark.parametrize("database", ["postgresql", "sqlite"])
def test_nothing_is_lost_torn_different_or_left(place: Path, database: str, mode: str) -> None:
    argv = command(place, "--json", "--database", database, "--mode", mode)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert document["ok"]
    assert (document["database"], document["mode"]) == (database, mode)
    assert [phase["name"] for phase in document["phases"]] == PHASES
    assert document["ledger"]["lost"] == document["ledger"]["torn"] == 0
    assert document["ledger"]["acknowledged_before_split"] > 0
    assert document["ledger"]["restored"] >= document["ledger"]["acknowledged_before_split"]
    assert document["restore"]["mismatches"] == 0
    assert document["leftovers"] == []
    assert 0 < document["write_pause_ms"] <= document["quiesce_window_ms"] + 1000
    assert document["pause_floor_ms"] > 0
    assert left(place) == []


@pytest.mark.parametrize("mirror", ["reflink", "directories"])
def test_a_snapshot_instead_of_a_mirror_is_shown_as_well(place: Path, mirror: str) -> None:
    argv = command(place, "--json", "--mirror", mirror)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert document["ok"] and document["mirror"] == mirror
    assert document["ledger"]["restored"] >= document["ledger"]["acknowledged_before_split"] > 0
    assert (document["write_pause_ms"] > 0) == (mirror == "reflink")
    assert left(place) == []


@pytest.mark.parametrize("wrong", [("--database", "sqlite"), ("--mode", "freeze")])
def test_what_directories_cannot_show_is_refused_at_once(
    place: Path, wrong: tuple[str, str]
) -> None:
    argv = command(place, "--mirror", "directories", *wrong)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == ConfigError.exit_code, done.stderr
    assert "another --mirror" in done.stderr
    assert left(place) == []


def test_a_set_that_is_older_than_the_ledger_is_seen_to_have_lost_transactions(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_commits_behind_it(loaded: Config, *watch: Any) -> Any:
        made = backup(loaded, *watch)
        ledger, now_s = loaded.state.parent / "ledger", time.monotonic()
        before = acknowledged(ledger, now_s)
        assert until(lambda: acknowledged(ledger, math.inf) != before)  # the writers go on
        return made

    monkeypatch.setattr(demo, "backup", with_commits_behind_it)
    monkeypatch.setattr(demo, "consistent_s", lambda *_: time.monotonic())
    shown = run_demo(Options(database="sqlite", size=8 << 20, directory=place), lambda line: None)
    assert shown.ledger.lost > 0
    assert not shown.ok


def test_what_is_kept_is_the_labs_files_and_nothing_runs(place: Path) -> None:
    argv = command(place, "--keep", "--database", "sqlite")
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    (kept,) = place.iterdir()
    assert f"kept: {kept}" in done.stdout
    assert (kept / "splitmirror.toml").exists()
    assert (kept / "media" / "SM0001.tap").exists()
    assert [what for what in leftovers(kept) if not what.startswith("directory")] == []


@pytest.mark.parametrize(
    "moment", ["making a lab", "filling", "backing up", "level:", "restoring to another place"]
)
def test_ctrl_c_at_any_step_leaves_nothing(place: Path, moment: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        argv = command(place, "--database", "postgresql")
        os.execv(argv[0], argv)
    said = b""
    interrupted = False
    while True:
        try:
            said += os.read(terminal, 65536)
        except OSError:  # EIO: the other end is closed
            break
        if not interrupted and moment.encode() in said:
            os.write(terminal, b"\x03")
            interrupted = True
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert interrupted, said.decode()
    assert os.waitstatus_to_exitcode(status) == INTERRUPTED, said.decode()
    assert left(place) == []


def test_without_root_it_says_at_once_what_it_needs(place: Path) -> None:
    code = (
        "import os, sys; from splitmirror.cli import main\n"
        "os.geteuid = lambda: 65534; sys.argv[1:] = ['demo']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 11
    assert "needs root" in done.stderr
