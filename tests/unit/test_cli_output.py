"""What the commands print, and that docs/errors.md is what the code has."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from splitmirror import errors
from splitmirror.cli import output
from splitmirror.cli.output import Line, plain, print_error, printable
from splitmirror.errors import NoRoom, SplitmirrorError
from splitmirror.model import Attributes, Kind

ROOT = Path(__file__).parents[2]


def kinds() -> list[type[SplitmirrorError]]:
    found = (cls for _, cls in inspect.getmembers(errors, inspect.isclass))
    return [
        cls for cls in found if issubclass(cls, SplitmirrorError) and cls is not SplitmirrorError
    ]


def test_no_two_errors_share_an_exit_code() -> None:
    codes = [kind.exit_code for kind in kinds()]
    assert len(codes) == len(set(codes))
    assert not {0, 1, 2, 130} & set(codes)


def test_every_error_is_in_the_document_with_its_code() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    missing = [k for k in kinds() if f"| {k.exit_code} | {k.__name__} |" not in text]
    assert missing == []


def test_an_error_says_what_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    error = NoRoom("the tape is full", hint="Take another.")
    error.add_note("the mirror is rejoined")
    print_error(error, as_json=True)
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "splitmirror: the tape is full",
        "  what to do: Take another.",
        "  also: the mirror is rejoined",
    ]
    assert json.loads(said.out)["error"]["exit_code"] == NoRoom.exit_code


def test_the_error_that_came_first_is_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        try:
            raise NoRoom("first")
        finally:
            raise errors.Busy("second")
    except errors.Busy as error:
        print_error(error, as_json=False)
    assert "before that: first" in capsys.readouterr().err


def test_names_of_any_bytes_become_text_and_come_back() -> None:
    name = b"caf\xe9\n"
    attributes = Attributes(
        kind=Kind.SYMLINK, mode=0o777, uid=0, gid=0, size=0, mtime_ns=0, link=name
    )
    document = json.loads(json.dumps(plain(attributes)))
    assert document["link"].encode(errors="surrogateescape") == name


def test_a_name_cannot_write_to_the_terminal() -> None:
    assert printable(b"a\x1b[2Jb\xff\n") == "a\\x1b[2Jb\\xff\\n"


def test_the_progress_line_ends_once_and_says_rate_share_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = iter((0.0, 0.0, 10.0, 20.0, 20.0))
    monkeypatch.setattr("splitmirror.cli.output.time.monotonic", lambda: next(now_s))
    line = Line("backup")
    line(0, 100 << 20)
    line(50 << 20, 100 << 20)
    line(100 << 20, 100 << 20)
    line(100 << 20, 100 << 20)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "50.0 MiB of 100.0 MiB (50 %), 5.0 MiB/s, 10.0 s left" in said
    assert said.endswith("100.0 MiB of 100.0 MiB (100 %), 5.0 MiB/s\n")


def test_a_step_that_reads_nothing_is_told_in_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "REDRAW_S", 0)
    line = Line("map")
    line(12_345, 0)
    line(23_456, 23_456)

    told = capsys.readouterr().err
    assert "map: 12,345 files" in told
    assert "map: 23,456 files of 23,456 files (100 %)" in told
    assert told.endswith("\n")


def test_the_first_bytes_are_no_ground_for_a_guess(capsys: pytest.CaptureFixture[str]) -> None:
    line = Line("backup")
    line(3, 100 << 30)
    said = capsys.readouterr().err
    assert "3 B of 100.0 GiB (0 %)" in said
    assert "left" not in said


def test_an_error_that_replaces_another_does_not_repeat_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        try:
            raise OSError("the foreign one")
        except OSError:
            raise NoRoom("the tape is full") from None
    except NoRoom as error:
        print_error(error, as_json=False)
    assert "the foreign one" not in capsys.readouterr().err
