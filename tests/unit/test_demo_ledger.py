"""The demo's own judge: it sees every way in which a restored database can be wrong."""

from __future__ import annotations

from pathlib import Path

from splitmirror.demo.ledger import Verdict, acknowledged, judge
from splitmirror.demo.timeline import timeline
from splitmirror.model import Phase


def verdict(noted: set[int], first: set[int], second: set[int]) -> Verdict:
    return judge({"alpha": noted}, {"alpha": first}, {"alpha": second})


def test_all_acknowledged_and_whole_is_well() -> None:
    assert verdict({1, 2, 3}, {1, 2, 3, 4}, {1, 2, 3, 4}) == Verdict(
        acknowledged_before_split=3, restored=4, lost=0, torn=0
    )


def test_an_acknowledged_transaction_that_is_not_there_is_lost() -> None:
    assert verdict({1, 2, 3}, {1, 2}, {1, 2}).lost == 1


def test_a_writer_of_whom_nothing_came_back_lost_everything() -> None:
    assert judge({"alpha": {1, 2}}, {}, {}).lost == 2


def test_a_transaction_that_is_there_in_part_is_torn_and_lost() -> None:
    found = verdict({1, 2}, {1, 2}, {1})
    assert (found.lost, found.torn) == (1, 1)


def test_a_later_transaction_without_an_earlier_one_is_torn() -> None:
    assert verdict(set(), {1, 3}, {1, 3}).torn == 1


def test_what_was_acknowledged_after_the_split_is_not_expected(tmp_path: Path) -> None:
    (tmp_path / "alpha.acknowledged").write_text("1 10.0\n2 11.0\n3 12.5\n")
    assert acknowledged(tmp_path, 12.0) == {"alpha": {1, 2}}


def test_a_torn_last_line_of_the_ledger_is_not_an_acknowledgement(tmp_path: Path) -> None:
    (tmp_path / "alpha.acknowledged").write_text("1 10.0\n2 1")
    assert acknowledged(tmp_path, 12.0) == {"alpha": {1}}


def test_the_timeline_puts_each_phase_at_its_place() -> None:
    lines = list(
        timeline(
            [
                Phase(name="map", began_s=1.0, seconds=1.0),
                Phase(name="split", began_s=2.0, seconds=0.001),
                Phase(name="backup", began_s=2.0, seconds=2.0),
            ],
            width=30,
        )
    )
    assert lines[0].index("█") < lines[1].index("█")
    assert lines[0].count("█") == 10
    assert lines[1].count("█") == 1
    assert lines[2].count("█") == 20
