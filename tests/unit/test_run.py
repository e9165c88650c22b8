"""A run: one at a time for a source, phases timed and bounded, a cut-off one is noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Self

import pytest

from splitmirror import journal
from splitmirror import run as run_module
from splitmirror.errors import Busy, DeadlineExceeded, NeedsRecovery
from splitmirror.run import KEPT_RUNS, Run, unfinished


def test_a_second_run_of_a_source_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    with Run.begin(tmp_path, "prod"), pytest.raises(Busy, match=str(os.getpid())):
        Run.begin(tmp_path, "prod")


def test_runs_of_two_sources_go_on_side_by_side(tmp_path: Path) -> None:
    with Run.begin(tmp_path, "prod"), Run.begin(tmp_path, "test"):
        pass


def test_the_lock_is_gone_when_the_run_is_left(tmp_path: Path) -> None:
    with Run.begin(tmp_path, "prod"):
        pass
    with Run.begin(tmp_path, "prod"):
        pass


def test_a_run_whose_process_was_killed_must_be_recovered_first(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from splitmirror.run import Run\n"
        "Run.begin(Path(sys.argv[1]), 'prod'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(NeedsRecovery, match="cut off"):
        Run.begin(tmp_path, "prod")
    (directory,) = unfinished(tmp_path, "prod")
    with Run.again(tmp_path, "prod", directory):
        pass
    assert unfinished(tmp_path, "prod") == []


def test_a_recovery_that_fails_leaves_the_run_to_be_recovered(tmp_path: Path) -> None:
    run = Run.begin(tmp_path, "prod")
    run.journal.close()
    os.close(run._lock_fd)
    with pytest.raises(RuntimeError), Run.again(tmp_path, "prod", run.directory):
        raise RuntimeError
    assert unfinished(tmp_path, "prod") == [run.directory]


def test_a_failed_run_is_journalled_with_its_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError), Run.begin(tmp_path, "prod") as run:
        raise ValueError("no such thing")
    last = journal.read(run.directory)[-1]
    assert last.kind == "end"
    assert last.facts == {"ok": False, "error": "ValueError: no such thing"}


def test_phases_are_kept_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    with Run.begin(tmp_path, "prod") as run:
        for name in ("map", "split"):
            with run.phase(name):
                pass
    assert [phase.name for phase in run.phases] == ["map", "split"]
    assert run.phases[0].began_s + run.phases[0].seconds <= run.phases[1].began_s


def test_a_phase_that_waits_beyond_its_limit_is_cut_short_by_name(tmp_path: Path) -> None:
    with (
        Run.begin(tmp_path, "prod") as run,
        pytest.raises(DeadlineExceeded, match="phase quiesce took longer"),
        run.phase("quiesce", 0.05),
    ):
        threading.Event().wait(20)


def test_old_runs_are_forgotten_but_never_one_that_was_cut_off(tmp_path: Path) -> None:
    cut_off = tmp_path / "runs" / "00000000T000000-00000000"
    cut_off.mkdir(parents=True)
    journal.Journal(cut_off).record("begin", source="other")
    for _ in range(KEPT_RUNS + 3):
        with Run.begin(tmp_path, "prod") as run:
            pass
        run.clear()
    left = sorted((tmp_path / "runs").iterdir())
    assert left[0] == cut_off
    assert len(left) == KEPT_RUNS + 1


class AnHourAgo(datetime):
    """The clock on the wall as it was."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) - timedelta(hours=1)


def test_a_run_that_is_taken_up_again_keeps_its_clock_and_its_phases(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in (journal, run_module):
            patch.setattr(module, "datetime", AnHourAgo)
        run = Run.begin(tmp_path, "prod")
        with run.phase("map"):
            pass
        run.journal.record("phase begins", name="backup")  # cut off in it
        run.journal.close()
        os.close(run._lock_fd)
    with Run.again(tmp_path, "prod", run.directory) as again:
        assert [phase.name for phase in again.phases] == ["map"]
        assert again.phases[0].seconds == pytest.approx(run.phases[0].seconds, abs=1e-5)
        assert again.phases[0].began_s == pytest.approx(run.phases[0].began_s, abs=60)
        assert abs((again.began - run.began).total_seconds()) < 60
        with again.phase("backup"):
            pass
        assert again.phases[-1].began_s == pytest.approx(3600, abs=60)
