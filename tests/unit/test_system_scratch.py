"""Scratch directories: gone with their process, and taken away after it when it was killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from splitmirror.errors import SplitmirrorError
from splitmirror.system.scratch import scratch, sweep

MAKES_ONE = """
import sys
from pathlib import Path
from splitmirror.system.scratch import scratch
with scratch(Path(sys.argv[1])) as directory:
    (directory / "deep").mkdir()
    (directory / "deep/file").touch()
    print(directory, flush=True)
    sys.stdin.read()
"""


def left_by_a_killed_process(place: Path) -> Path:
    argv = [sys.executable, "-c", MAKES_ONE, str(place)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        left = Path(os.fsdecode(maker.stdout.readline().strip()))
        assert sweep([place]) == [], "its process lives"
        assert (left / "deep/file").exists()
        maker.send_signal(signal.SIGKILL)
    return left


def test_one_is_private_and_gone_in_the_end(tmp_path: Path) -> None:
    with scratch(tmp_path) as directory:
        assert directory.parent == tmp_path
        assert directory.stat().st_mode & 0o777 == 0o700
        (directory / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_taken_away_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    left = left_by_a_killed_process(tmp_path)
    with scratch(tmp_path) as ours:
        assert sweep([tmp_path, tmp_path, tmp_path / "nowhere"]) == [left]
        assert ours.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_link_or_a_file_of_that_name_is_let_be(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "splitmirror-drill-link").symlink_to(target)
    (tmp_path / "splitmirror-drill-file").touch()
    assert sweep([tmp_path]) == []
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_directory_is_let_be(tmp_path: Path) -> None:
    theirs = tmp_path / "splitmirror-drill-theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    assert sweep([tmp_path]) == []
    assert theirs.exists()


def test_one_that_is_swept_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def mkdtemp(prefix: str, dir: Path) -> str:
        made.append(dir / f"{prefix}{len(made)}")
        made[-1].mkdir(mode=0o700)
        if len(made) == 1:
            assert sweep([tmp_path]) == made
        return str(made[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    with scratch(tmp_path) as directory:
        assert [directory] == made[1:]


def test_a_failure_to_remove_it_never_hides_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rmtree(path: Path) -> None:
        raise OSError("busy")

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with pytest.raises(ValueError, match="the first") as caught, scratch(tmp_path):
        raise ValueError("the first")
    assert "could not be removed: busy" in "".join(caught.value.__notes__)
    with pytest.raises(SplitmirrorError, match="could not be removed"), scratch(tmp_path):
        pass
