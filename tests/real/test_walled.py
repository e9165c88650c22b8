"""A walled-off process on a real kernel: what it is, what it cannot reach, when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from splitmirror.errors import ProgramFailed
from splitmirror.system import process, programs, walled
from splitmirror.system.walled import Wall

pytestmark = pytest.mark.real


def run(argv: list[str], *, hide: tuple[Path, ...] = (), show: tuple[Path, ...] = ()) -> str:
    uid = walled.unused_uid()
    wall = Wall(uid=uid, gid=uid, hide=hide, show=show)
    return programs.run(walled.command(argv, wall), timeout_s=30)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "original"
    (path / "deep").mkdir(parents=True)
    (path / "secret").write_text("secret")
    return path


def test_it_runs_under_a_uid_without_an_account_or_rights() -> None:
    words = run(["cat", "/proc/self/status"]).split()
    uid = words[words.index("Uid:") + 1]
    assert 61184 <= int(uid) <= 65519
    assert words[words.index("CapEff:") + 1].strip("0") == ""
    assert words[words.index("NoNewPrivs:") + 1] == "1"


def test_a_hidden_directory_is_empty_and_cannot_be_written(original: Path) -> None:
    wall = {"hide": (original,), "show": (original.parent,)}
    original.parent.chmod(0o755)
    original.chmod(0o777)
    assert run(["ls", "-A", str(original)], **wall) == ""
    with pytest.raises(ProgramFailed, match=r"Read-only|Permission"):
        run(["touch", str(original / "x")], **wall)
    assert (original / "secret").read_text() == "secret"


def test_a_hidden_file_reads_as_empty(original: Path) -> None:
    secret = original / "secret"
    assert run(["cat", str(secret)], hide=(secret,), show=(original,)) == ""


def test_what_is_shown_is_reached_below_a_directory_that_may_not_be_entered(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    shown = closed / "a" / "shown"
    shown.mkdir(parents=True)
    (shown / "file").write_text("here")
    (closed / "other").write_text("other")
    closed.chmod(0o700)
    assert run(["cat", str(shown / "file")], show=(shown,)) == "here"
    assert run(["ls", "-A", str(closed)], show=(shown,)) == "a\n"


def test_what_is_shown_is_reached_below_a_hidden_directory(original: Path) -> None:
    shown = original / "deep"
    (shown / "file").write_text("here")
    found = run(["ls", "-A", str(original), str(shown)], hide=(original,), show=(shown,))
    assert found.split() == [f"{original}:", "deep", f"{shown}:", "file"]


def test_nothing_is_mounted_outside_and_there_is_no_network(original: Path) -> None:
    interfaces = run(["cat", "/proc/net/dev"], hide=(original,)).splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    assert str(original) not in Path("/proc/self/mountinfo").read_text()


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "from splitmirror.system import walled\n"
        "wall = walled.Wall(uid=61999, gid=61999)\n"
        "child = subprocess.Popen(walled.command(['sleep', '600'], wall))\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}/comm").read_text().strip() != "sleep":
        assert time.monotonic() < until, "it never became the program"
    ticks = process.start_ticks(pid)
    assert ticks is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert process.wait_gone(pid, ticks, 10)


def test_root_and_a_path_both_hidden_and_shown_are_refused() -> None:
    with pytest.raises(ValueError, match="root"):
        Wall(uid=0, gid=0)
    with pytest.raises(ValueError, match="at once"):
        Wall(uid=61999, gid=61999, hide=(Path("/srv"),), show=(Path("/srv"),))
