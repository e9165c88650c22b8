"""Whole backups off an array, by the command, some of them killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from splitmirror import config
from splitmirror.config import Config
from splitmirror.mirrors import MirrorState
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


_DISTURBED = """
import os, signal, sys
from pathlib import Path
from splitmirror import config
from splitmirror.backup import backup
from splitmirror.journal import Journal
from splitmirror.mirrors.md import MdMirror

path, when, disk = sys.argv[1:]

def act():
    if not disk:
        os.kill(os.getpid(), signal.SIGKILL)
    Path("/sys/bus/virtio/drivers/virtio_blk/unbind").write_text(disk)

def after(function, wanted):
    def disturbed(*arguments, **facts):
        function(*arguments, **facts)
        if wanted(*arguments):
            act()
    return disturbed

if when == "split":
    MdMirror.split = after(MdMirror.split, lambda *arguments: True)
else:
    Journal.record = after(Journal.record, lambda journal, kind: kind == when)
try:
    backup(config.load(Path(path)))
except Exception as error:
    print(type(error).__name__, error, getattr(error, "hint", ""))
    sys.exit(getattr(error, "exit_code", 99))
"""


def killed_behind(record: str, path: Path) -> None:
    """A backup that a kill -9 ends right behind the first record of that kind in its journal; with
    "split" right behind the split, under the freeze."""
    done = _disturbed(path, record, "")
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def without_leg_behind(record: str, path: Path, disk: str) -> tuple[int, str]:
    """A backup whose leg's disk vanishes there (a virtio device, by its name); its exit code and
    what it said."""
    done = _disturbed(path, record, disk)
    return done.returncode, done.stdout


def _disturbed(path: Path, when: str, disk: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", _DISTURBED, str(path), when, disk]
    environment = {**os.environ, **_ENVIRONMENT}
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=120, env=environment
    )


def require_sound(loaded: Config, set_id: str) -> None:
    verify(loaded.open_supply(), set_id).require_sound()


def load(path: Path) -> Config:
    return config.load(path)


def state_of(path: Path) -> MirrorState:
    """What the mirror is doing."""
    with closing(load(path).open_mirror()) as mirror:
        return mirror.state()
