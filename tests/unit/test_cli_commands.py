"""The command line itself: what ends where, one document with --json, nothing imported in vain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit import made_sets

from splitmirror.cli import DEFECT, INTERRUPTED, WRONG_USAGE
from splitmirror.cli.show import print_next, print_sets
from splitmirror.model import BackupSet

HEAVY = ("sqlalchemy", "psycopg", "splitmirror.backup", "splitmirror.demo", "splitmirror.catalog")


def command(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; `before` is run in it first."""
    code = f"import sys; sys.argv[1:] = {list(arguments)!r}\n{before}\n"
    code += "from splitmirror.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


def document(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """The only line of standard output."""
    (line,) = done.stdout.splitlines()
    found: dict[str, object] = json.loads(line)["error"]
    return found


def a_set(**changed: object) -> BackupSet:
    values = {"source": "a-source-with-the-longest-of-names", "database": "postgresql"} | changed
    return made_sets.a_set("20260101T000000-00000001", **values)


def test_the_version_imports_no_library_of_a_recipe() -> None:
    seen = (
        f"import atexit; atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules]))"
    )
    done = command("--version", before=seen)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout


def test_every_command_has_help() -> None:
    from splitmirror.cli.app import app, catalog_app, mirror_app
    from splitmirror.cli.media import media_app

    for each in (app, catalog_app, media_app, mirror_app):
        for registered in each.registered_commands:
            assert registered.callback is not None
            assert registered.callback.__doc__


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_for(shell: str) -> None:
    # Whose shell it is depends on what started the tests: make's, or a person's.
    calling = f"import shellingham\nshellingham.detect_shell = lambda *_: ({shell!r}, {shell!r})"
    done = command("--show-completion", before=calling)
    assert done.returncode == 0
    assert "_SPLITMIRROR_COMPLETE" in done.stdout or "complete" in done.stdout


def test_wrong_usage_is_a_document_too() -> None:
    done = command("restore", "--json")
    assert done.returncode == WRONG_USAGE
    assert document(done)["kind"] == "WrongUsage"
    assert "set_id" in done.stderr


def test_an_error_of_the_program_itself_is_told_in_full_and_as_a_document(tmp_path: Path) -> None:
    broken = "import splitmirror.config as c\ndef fail(path, **_): raise OSError(5, 'surprise')\n"
    done = command("list", "--json", before=broken + "c.load = fail")
    assert done.returncode == DEFECT
    assert "Traceback" in done.stderr and "surprise" in done.stderr
    assert "Please report it" in done.stderr
    assert document(done)["kind"] == "Defect"


def test_an_interrupt_says_what_could_not_be_put_right() -> None:
    broken = (
        "import splitmirror.config as c\n"
        "def fail(path, **_):\n"
        "    error = KeyboardInterrupt(); error.add_note('the leg is still split'); raise error\n"
    )
    done = command("list", "--json", before=broken + "c.load = fail")
    assert done.returncode == INTERRUPTED
    assert "but: the leg is still split" in done.stderr
    assert document(done)["kind"] == "Interrupted"


def test_an_interrupt_while_modules_are_imported_ends_with_its_code_too(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, types\n"
        "def app(**_): exec('raise KeyboardInterrupt')\n"
        "module = sys.modules['splitmirror.cli.app'] = types.ModuleType('app')\n"
        "module.app = app\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "splitmirror", "list"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == INTERRUPTED, done.stderr
    assert "interrupted" in done.stderr


def test_a_table_keeps_its_columns_whatever_is_in_them(capsys: pytest.CaptureFixture[str]) -> None:
    print_sets([a_set(), a_set(source="b", complete=False)])
    head, first, second = capsys.readouterr().out.splitlines()
    at = head.index("database")
    assert first[at:].startswith("postgresql")
    assert second[at:].startswith("postgresql")
    assert second.endswith("INCOMPLETE")


def test_a_restored_cluster_is_told_how_to_start_away_from_the_original(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"bin_dir": "/usr/lib/postgresql/15/bin", "config_file": "/etc/pg/postgresql.conf"}
    facts |= {"ssl_key_file": "/etc/pg/key", "ssl_cert_file": "/pg/server.crt"}
    own = tmp_path / "outside" / "etc" / "pg" / "postgresql.conf"
    own.parent.mkdir(parents=True)
    own.touch()
    own.with_name("key").touch()
    print_next(a_set(facts=facts, trees=((b"data", b"/pg"),)), tmp_path)
    said = capsys.readouterr().out
    assert f"/usr/lib/postgresql/15/bin/pg_ctl start -D {tmp_path}/data" in said
    assert f"-c config_file={own}" in said
    assert f"-c data_directory={tmp_path}/data" in said
    assert f"-c ssl_key_file={own.with_name('key')}" in said
    assert "ssl_cert_file" not in said  # that came back in the data directory
    assert "archive_mode=off" in said


def test_a_cluster_restored_in_place_starts_as_it_always_did(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_next(a_set(trees=((b"data", b"/pg"),)), None)
    assert "-D /pg" in capsys.readouterr().out
