"""Fixtures that several modules of this folder use: filesystems, a mirror, a session to end."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.real.loopfs import FSTYPES, LoopFs, loop_filesystems
from tests.real.qsd_lab import attached, settings_in

from splitmirror.mirrors.qsd import QsdMirror
from splitmirror.model import Session
from splitmirror.progress import silent
from splitmirror.system import process


@pytest.fixture(params=FSTYPES)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoopFs]:
    """A filesystem of each kind."""
    with loop_filesystems(tmp_path, request.param) as (made,):
        yield made


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[list[LoopFs]]:
    """One of each at once."""
    with loop_filesystems(tmp_path, *FSTYPES) as made:
        yield made


@pytest.fixture
def session() -> Iterator[Session]:
    """A process that stands for the database's session."""
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        ticks = process.start_ticks(sleeper.pid)
        assert ticks is not None
        yield Session(what="the session", pid=sleeper.pid, start_ticks=ticks, signal=15)
        sleeper.kill()


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[QsdMirror]:
    """Two disks of 16 MiB, attached and level."""
    with attached(settings_in(tmp_path)) as mirror:
        mirror.synchronize(silent)
        yield mirror
