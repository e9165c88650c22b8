"""The journal: what was recorded is there after a crash, and damage is told from a torn tail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitmirror import journal
from splitmirror.errors import JournalDamaged
from splitmirror.journal import Journal


def recorded(directory: Path) -> list[str]:
    return [record.kind for record in journal.read(directory)]


def test_a_record_is_in_the_file_when_record_returns(tmp_path: Path) -> None:
    Journal(tmp_path).record("split intended", split_id="x")
    (found,) = journal.read(tmp_path)
    assert (found.kind, found.facts) == ("split intended", {"split_id": "x"})


def test_a_journal_that_is_opened_again_goes_on_behind_its_last_record(tmp_path: Path) -> None:
    Journal(tmp_path).record("one")
    Journal(tmp_path).record("two")
    assert recorded(tmp_path) == ["one", "two"]


def test_nothing_reaches_the_file_inside_a_silent_block(tmp_path: Path) -> None:
    opened = Journal(tmp_path)
    with opened.silent():
        with opened.silent():
            opened.record("inner")
        opened.record("outer")
        assert recorded(tmp_path) == []
    assert recorded(tmp_path) == ["inner", "outer"]


def test_what_was_recorded_in_a_silent_block_is_kept_when_it_raises(tmp_path: Path) -> None:
    opened = Journal(tmp_path)
    with pytest.raises(KeyError), opened.silent():
        opened.record("frozen")
        raise KeyError
    assert recorded(tmp_path) == ["frozen"]


def test_every_prefix_of_a_journal_reads_as_the_records_that_are_whole_in_it(
    tmp_path: Path,
) -> None:
    opened = Journal(tmp_path)
    for number in range(4):
        opened.record("step", number=number)
    whole = (tmp_path / journal.NAME).read_bytes()
    for cut in range(len(whole) + 1):
        (tmp_path / journal.NAME).write_bytes(whole[:cut])
        assert len(journal.read(tmp_path)) == whole[:cut].count(b"\n")


def test_a_torn_tail_is_cut_off_before_the_next_record(tmp_path: Path) -> None:
    Journal(tmp_path).record("one")
    with (tmp_path / journal.NAME).open("ab") as file:
        file.write(b"0badc0de {half")
    Journal(tmp_path).record("two")
    assert recorded(tmp_path) == ["one", "two"]


def test_a_damaged_line_before_the_last_is_an_error_that_names_it(tmp_path: Path) -> None:
    opened = Journal(tmp_path)
    opened.record("one")
    opened.record("two")
    path = tmp_path / journal.NAME
    path.write_bytes(path.read_bytes().replace(b'"one"', b'"0ne"'))
    with pytest.raises(JournalDamaged, match="line 1"):
        journal.read(tmp_path)


def test_lines_are_a_checksum_and_a_json_object(tmp_path: Path) -> None:
    Journal(tmp_path).record("step", name="map")
    line = (tmp_path / journal.NAME).read_bytes()
    assert json.loads(line[9:])["name"] == "map"
