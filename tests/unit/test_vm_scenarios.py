"""Of the guest's scenarios, which need a guest to be run: what can be seen without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSIDE = ROOT / "tests" / "vm" / "inside"
FILES = sorted(INSIDE.glob("test_*.py"))
# A plugin that one file names is there for all that follow it: those are looked at each alone.
ALONE = [file for file in FILES if "pytest_plugins" in file.read_text()]
GROUPS = [[file] for file in ALONE] + [[file for file in FILES if file not in ALONE]]


@pytest.mark.parametrize("files", GROUPS, ids=lambda files: files[0].stem)
def test_scenarios_find_all_their_fixtures(files: list[Path]) -> None:
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(INSIDE / "pytest.ini"),
        "--rootdir",
        str(ROOT),
    ]
    argv += ["-o", f"pythonpath={ROOT} {ROOT / 'src'}", "--setup-plan", "-q", *map(str, files)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
