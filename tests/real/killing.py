"""Backups that are killed at a place in the code."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

_CODE = """
import importlib, os, signal, sys
from pathlib import Path
from splitmirror import backup, config
module, _, path = sys.argv[2].partition(":")
*owner, name = path.split(".")
place = importlib.import_module(module)
for each in owner:
    place = getattr(place, each)
setattr(place, name, lambda *arguments, **named: os.kill(os.getpid(), signal.SIGKILL))
backup.backup(config.load(Path(sys.argv[1])))
"""


def killed_at(config_path: Path, place: str) -> None:
    """A backup, in a process of its own, that is killed when it calls `place`: "module:function"
    or "module:Class.method"."""
    argv = [sys.executable, "-c", _CODE, str(config_path), place]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
