"""The bench end to end, tiny; and what of a backup can be counted instead of timed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import sets
from bench.order import Order
from bench.ours import Backups, ordered

from splitmirror.demo.lab import Disk, lab_at, leftovers

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
SMALL, LARGE = 2000, 16 * MIB
# Reads and writes: of the leg in stretches of several files, of the medium in batches, of journals.
MOST_CALLS_A_SMALL_FILE = 0.3
# One small file comes back with: read its record, write it; what else is done is done once.
MOST_CALLS_A_RESTORED_FILE = 2.0


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Not pytest's own place, for that may be memory, and another user must get through it."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sm-bench-") as directory:
        Path(directory).chmod(0o711)
        yield Path(directory)


def bench(scratch: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "bench", "--json", "--pairs", "1"]
    options = [f"--directory={scratch}", f"--media={scratch}", *words]
    return subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def figures(scratch: Path, *words: str) -> dict[str, Any]:
    """The last line of a run; nothing of it is left."""
    process = bench(scratch, *words)
    said = process.communicate()[0].splitlines()
    assert process.returncode == 0, said
    assert "about" in said[0]  # time and room come first
    assert [left for left in leftovers(scratch) if left != f"directory {scratch}"] == []
    assert list(scratch.iterdir()) == []
    found: dict[str, Any] = json.loads(said[-1])
    return found


def test_a_tiny_run_of_files_measures_both_sides_and_leaves_nothing(scratch: Path) -> None:
    name = "large-to-null-against-dd"
    found = figures(scratch, "--scale", "0.004", "--only", name)
    (row,) = found["rows"]
    assert (row["name"], row["goal"], row["pairs"]) == (name, 0.95, 1)
    assert row["value"] > 0
    assert min(row["cpu_s_per_gib"].values()) > 0
    assert row["dd_written_share"] > 0.99
    assert found["peak_rss_mib"] > 10
    assert found["scale"] == 0.004


def test_a_tiny_run_of_a_database_measures_the_pause_at_each_number_of_files(
    scratch: Path,
) -> None:
    found = figures(scratch, "--scale", "0.001", "--only", "pause-growth")
    (row,) = found["rows"]
    assert [int(count) for count in row["by_files"]] == [10, 20, 100, 1000]
    for each in row["by_files"].values():
        assert 0 < each["pause_ms"] < 10_000
        assert set(each["parts_ms"]) == {"freeze", "split", "thaw"}


def test_one_file_comes_back_without_the_rest_of_its_set_being_read(scratch: Path) -> None:
    (row,) = figures(scratch, "--scale", "0.03", "--only", "one-file-bytes-read")["rows"]
    assert row["value"] > 1  # the file itself
    assert row["met"]


@pytest.mark.parametrize("when", ["making the large set", "  large to null"])
def test_ctrl_c_takes_everything_away_again(scratch: Path, when: str) -> None:
    words = ("--scale", "0.004", "--pairs", "9", "--only", "large-to-null-against-dd")
    process = bench(scratch, *words)
    assert process.stdout is not None
    for line in process.stdout:
        if when in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert [left for left in leftovers(scratch) if left != f"directory {scratch}"] == []
    assert list(scratch.iterdir()) == []


def test_small_files_are_backed_up_and_restored_with_few_calls_each(scratch: Path) -> None:
    disk = Disk(name="data", fstype="ext4", size=160 * MIB, inodes=2 * SMALL + 4096)
    with lab_at(scratch / "lab", (disk,)) as lab:
        source = lab.mountpoint("data") / "set"
        size = sets.make_mixed(source, SMALL, LARGE, LARGE)
        database = {"driver": "none", "paths": [str(source)]}
        options = {"mode": "freeze", "check": "released"}
        backups = Backups(lab, database, options, lab.tape, [])
        backups.level()
        made = backups.make(null=True)
        assert made.stored_bytes == size
        assert made.calls["backup"] / SMALL < MOST_CALLS_A_SMALL_FILE
        backups.make()
        target = scratch / "target"
        target.mkdir()
        order = Order(config=str(lab.config_path), names=["set"], target=str(target))
        restored = ordered(order)
        backups.rejoin()
    assert restored.stored_bytes == size
    assert restored.calls["restore"] / SMALL < MOST_CALLS_A_RESTORED_FILE
    assert sum(len(files) for _, _, files in os.walk(target / "metered")) == SMALL + 1
