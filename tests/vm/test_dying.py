"""What the host tells of scenarios that fail and of guests that die; and that nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.vm.image import PROJECT, Image

TAKES_S = 45


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
