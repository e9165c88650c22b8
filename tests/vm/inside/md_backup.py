"""Whole backups off an array, by the command, some of them killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splitmirror import config
from splitmirror.config import Config
from splitmirror.system import programs
from splitmirror.verify import verify

_ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def configured(
    place: Path, device: str, database: Mapping[str, str], *, mode: str, leg: str = ""
) -> Path:
    """A configuration in a directory that no backup freezes; state, medium and catalogue there."""
    place.mkdir(parents=True, exist_ok=True)
    table = "".join(f"{key} = {value}\n" for key, value in database.items())
    path = place / "splitmirror.toml"
    path.write_text(
        f"""source = "md"
state_dir = "{place}/state"
[database]
{table}
[mirror]
driver = "md"
[[mirror.arrays]]
device = "{device}"
leg = "{leg}"
[medium]
driver = "virtualtape"
path = "{place}/SM0001.tap"
[backup]
mode = "{mode}"
part_size = "16MiB"
block_size = "64KiB"
"""
    )
    return path


def command(path: Path, *words: str) -> Any:
    """What a command of splitmirror answers with --json."""
    argv = [sys.executable, "-m", "splitmirror", *words, "--json", "--config", str(path)]
    return json.loads(programs.run(argv, timeout_s=170, env=_ENVIRONMENT))


_KILLED = """
import os, signal, sys
from pathlib import Path
from splitmirror import config
from splitmirror.backup import backup
from splitmirror.journal import Journal
if sys.argv[2] == "split":
    from splitmirror.mirrors.md import MdMirror
    split = MdMirror.split
    def deadly_split(mirror, split_id):
        split(mirror, split_id)
        os.kill(os.getpid(), signal.SIGKILL)
    MdMirror.split = deadly_split
record = Journal.record
def deadly(journal, kind, **facts):
    record(journal, kind, **facts)
    if kind == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
Journal.record = deadly
backup(config.load(Path(sys.argv[1])))
"""


def killed_behind(record: str, path: Path) -> None:
    """A backup that a kill -9 ends right behind the first record of that kind in its journal; with
    "split" right behind the split, under the freeze."""
    argv = [sys.executable, "-c", _KILLED, str(path), record]
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **_ENVIRONMENT},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def require_sound(loaded: Config, set_id: str) -> None:
    verify(loaded.open_medium(), set_id).require_sound()


def load(path: Path) -> Config:
    return config.load(path)
