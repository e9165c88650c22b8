"""What doctor says of a run that has not ended: one that goes on is let be, one that was cut off is
recovered."""

from __future__ import annotations

from pathlib import Path

from splitmirror import doctor
from splitmirror.errors import Busy, NeedsRecovery
from splitmirror.journal import Journal
from splitmirror.run import Run


def test_a_run_that_goes_on_is_not_to_be_recovered(tmp_path: Path) -> None:
    with Run.begin(tmp_path, "db") as run:
        told = doctor._unfinished(run.directory)
    assert isinstance(told, Busy)
    assert "recover" not in told.hint


def test_a_run_whose_process_is_gone_is_to_be_recovered(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.record("begin", source="db", pid=1, start_ticks=-1)
    journal.close()
    told = doctor._unfinished(tmp_path)
    assert isinstance(told, NeedsRecovery)
    assert "splitmirror recover" in told.hint
