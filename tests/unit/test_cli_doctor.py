"""What doctor says of a run that has not ended: one that goes on is let be, one that was cut off is
recovered."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitmirror import doctor
from splitmirror.cli.show import print_findings
from splitmirror.errors import Busy, NeedsRecovery
from splitmirror.journal import Journal
from splitmirror.model import Finding
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


@pytest.mark.parametrize(
    ("levels", "summary"),
    [
        ("", "ready for a backup"),
        ("w", "ready for a backup (1 warning)"),
        ("ww", "ready for a backup (2 warnings)"),
        ("ewe", "2 of these would stop a backup (1 warning)"),
    ],
)
def test_the_last_line_counts_what_stops_a_backup_and_what_is_only_told(
    levels: str, summary: str, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = Busy("something", hint="wait")
    found = [Finding(what="x", problem=problem, warning=level == "w") for level in levels]
    print_findings([Finding(what="well"), *found])
    assert capsys.readouterr().out.splitlines()[-1] == summary
