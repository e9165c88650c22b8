"""Whole backups off an array, by the command, some of them killed on the way."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.vm.inside import forked
from tests.vm.inside.md_lab import VIRTIO

from splitmirror import config
from splitmirror.backup import backup
from splitmirror.config import Config
from splitmirror.errors import SplitmirrorError
from splitmirror.journal import Journal
from splitmirror.mirrors import MirrorState
from splitmirror.mirrors.md import MdMirror
from splitmirror.verify import verify


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
    done = forked.splitmirror(*words, "--json", "--config", str(path))
    assert done.status == 0, done.out + done.err
    return json.loads(done.out)


def killed_behind(record: str, path: Path) -> None:
    """A backup that a kill -9 ends right behind the first record of that kind in its journal; with
    "split" right behind the split, under the freeze."""
    done = forked.call(_disturbed_backup, path, record, "")
    assert done.status == forked.KILLED, done.out + done.err


def without_leg_behind(record: str, path: Path, disk: str) -> tuple[int, str]:
    """A backup whose leg's disk vanishes there (a virtio device, by its name); its exit code and
    what it said."""
    done = forked.call(_disturbed_backup, path, record, disk)
    return done.status, done.out


def _disturbed_backup(path: Path, when: str, disk: str) -> None:
    def after(function: Callable[..., None], wanted: Callable[..., bool]) -> Callable[..., None]:
        def disturbed(*arguments: Any, **facts: Any) -> None:
            function(*arguments, **facts)
            if wanted(*arguments):
                _act(disk)

        return disturbed

    if when == "split":
        MdMirror.split = after(MdMirror.split, lambda *_: True)
    else:
        record = after(Journal.record, lambda _, kind: kind == when)
        Journal.record = record
    try:
        backup(config.load(path))
    except SplitmirrorError as error:
        print(type(error).__name__, error, error.hint)
        sys.exit(error.exit_code)


def _act(disk: str) -> None:
    if disk:
        (VIRTIO / "unbind").write_text(disk)
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def require_sound(loaded: Config, set_id: str) -> None:
    verify(loaded.open_supply(), set_id).require_sound()


def load(path: Path) -> Config:
    return config.load(path)


def state_of(path: Path) -> MirrorState:
    """What the mirror is doing."""
    with closing(load(path).open_mirror()) as mirror:
        return mirror.state()
