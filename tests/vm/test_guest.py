"""The guest itself: what the host tells of scenarios that fail and of guests that die; commands and
files, what it stands on, copies of directories, what a cut of power leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.vm.conftest import Inside
from tests.vm.guest import MIB, CommandFailed, Disk, Guest
from tests.vm.image import PROJECT, Image

TAKES_S = 75
DISKS = (Disk(name="a", size=300 * MIB), Disk(name="b", size=300 * MIB))


# --- what is broken on purpose, in a guest that is gone before ours is booted


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def told(image: Image, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a pytest of its own prints about the tests of unwell.py."""
    argv = [sys.executable, "-m", "pytest", "-v", "--color=no", "tests/vm/unwell.py"]
    ended = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    return ended.stdout


INSIDE = "tests/vm/inside/broken_on_purpose.py"


def test_each_scenario_is_told_by_name_with_how_it_ended(told: str) -> None:
    assert f"SUBPASSED[{INSIDE}::test_that_passes]" in told
    assert f"SUBFAILED[{INSIDE}::test_that_fails]" in told
    assert f"SUBFAILED[{INSIDE}::test_that_is_not_set_up]" in told
    assert f"SUBSKIPPED[{INSIDE}::test_that_is_skipped]" in told
    assert "broken_on_purpose.py:31: not in this guest" in told
    assert "test_that_passes: {'pause_ms': 12}" in told


def test_a_failure_comes_with_the_guests_own_traceback_and_kernel_log(told: str) -> None:
    assert "E       assert \"the guest's own words\" == 'others'" in told
    assert "OSError: no such fixture today" in told
    assert "The guest's kernel said last" in told
    assert "guest-init: starting the agent" in told


def test_the_calling_test_fails_with_the_names(told: str) -> None:
    assert "unwell.py::test_failures FAILED" in told
    assert "2 failed in the guest:" in told
    assert "file or directory not found: tests/vm/inside/none.py" in told


def test_a_guest_that_dies_is_told_with_what_ran_and_its_last_words(told: str) -> None:
    assert f"{INSIDE}::test_that_takes_the_kernel_down was running when the guest died" in told
    assert "Kernel panic - not syncing: sysrq triggered crash" in told


def test_a_guest_dies_with_the_process_that_booted_it_and_leaves_nothing(
    image: Image, tmp_path: Path
) -> None:
    argv = [sys.executable, "-m", "tests.vm.shell", "once", "--disk=a=100M", "echo up; sleep 1000"]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(argv, cwd=PROJECT, env=env, stdout=subprocess.PIPE) as booting:
        assert booting.stdout is not None
        assert booting.stdout.readline() == b"up\n"
        (emulator,) = children(booting.pid)
        assert "qemu" in Path(f"/proc/{emulator}/comm").read_text()
        booting.kill()
    limit = time.monotonic() + 10
    while Path(f"/proc/{emulator}").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    assert not Path(f"/proc/{emulator}").exists()
    assert list(tmp_path.iterdir()) == []


# --- what works


def test_a_command_tells_its_words_and_how_it_ended(guest: Guest) -> None:
    ended = guest.shell("cat /proc/sys/kernel/hostname; echo no >&2; exit 3", check=False)
    assert (ended.status, ended.out, ended.err) == (3, "guest\n", "no\n")
    with pytest.raises(CommandFailed, match="status 3"):
        guest.shell("exit 3")
    with pytest.raises(CommandFailed, match="no-such-program"):
        guest.run(["no-such-program"])


def test_a_command_out_of_time_is_killed_and_the_next_one_runs(guest: Guest) -> None:
    assert guest.run(["sleep", "100"], timeout_s=0.5, check=False).status == 124
    assert guest.run(["echo", "next"]).out == "next\n"


def test_a_daemon_that_keeps_the_pipes_is_not_waited_for(guest: Guest) -> None:
    left = guest.shell("(sleep 1; echo late; sleep 100) & echo $!")
    assert left.took_s < 10
    assert guest.shell(f"sleep 2; kill {left.out}").out == ""


def test_bytes_go_in_and_come_out_unchanged(guest: Guest) -> None:
    data = os.urandom(3 * MIB)
    guest.put("/root/deep/file", data, mode=0o600)
    assert guest.get("/root/deep/file") == data
    assert guest.run(["stat", "-c%a", "/root/deep/file"]).out == "600\n"
    size = guest.run(["wc", "-c"], stdin=data).out
    assert size.strip() == str(len(data))
    with pytest.raises(CommandFailed, match="FileNotFoundError"):
        guest.get("/root/none")


def test_the_platform_and_copies_of_directories(inside: Inside) -> None:
    inside("test_platform.py", "test_directories.py")


def test_a_reset_keeps_what_was_on_the_disks_and_nothing_else(guest: Guest) -> None:
    disk = DISKS[0].path
    guest.shell(
        f"echo disk | dd of={disk} conv=fsync; echo root >/root/kept; sync; touch /run/gone"
    )
    guest.reset()
    assert guest.shell(f"head -c5 {disk}; cat /root/kept").out == "disk\nroot\n"
    assert guest.shell("ls /run/gone", check=False).status != 0
