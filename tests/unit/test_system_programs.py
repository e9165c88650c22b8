from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from splitmirror.errors import ConfigError, MissingProgram, ProgramFailed
from splitmirror.system import programs


def test_standard_output_is_given_and_input_passed() -> None:
    assert programs.run(["cat"], timeout_s=5, input=b"one\ntwo") == "one\ntwo"


def test_nothing_is_read_from_our_own_standard_input() -> None:
    assert programs.run(["cat"], timeout_s=5) == ""


def test_a_failed_program_tells_its_status_and_last_words() -> None:
    with pytest.raises(ProgramFailed, match=r"exit status 2: .*nowhere") as caught:
        programs.run(["ls", "/nowhere"], timeout_s=5)
    assert caught.value.facts["status"] == 2
    assert "ls /nowhere" in caught.value.hint


def test_the_words_of_a_failed_program_do_not_flood() -> None:
    with pytest.raises(ProgramFailed) as caught:
        programs.run(["sh", "-c", "yes | head -c 100000 >&2; exit 1"], timeout_s=10)
    assert len(str(caught.value)) < 2100


def test_a_program_that_takes_too_long_is_killed() -> None:
    began = time.monotonic()
    with pytest.raises(ProgramFailed, match=r"no answer in 0\.1 s"):
        programs.run(["sleep", "1000"], timeout_s=0.1)
    assert time.monotonic() - began < 5


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingProgram, match="no-such-program is not installed"):
        programs.run(["no-such-program"], timeout_s=1)
    with pytest.raises(MissingProgram) as caught:
        programs.need("/nowhere/bin/nbdfuse")
    assert caught.value.hint == "apt install libnbd-bin"


def test_programs_in_sbin_are_found_without_it_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert programs.find("losetup") is not None
    assert programs.find("no-such-program") is None


def test_messages_are_in_english_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert programs.run(["printenv", "LC_ALL"], timeout_s=5) == "C.UTF-8\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")
def test_another_users_program_has_his_groups_only() -> None:
    assert programs.run(["id", "-un"], timeout_s=5, user="nobody") == "nobody\n"
    assert "root" not in programs.run(["id", "-Gn"], timeout_s=5, user="nobody")


def test_an_unknown_user_is_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ConfigError, match="no such user"):
        programs.run(["id"], timeout_s=5, user="no-such-user")


def test_a_daemon_stands_apart_and_logs(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("earlier\n")
    inherited = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    script = f"test -e /proc/self/fd/{inherited} || echo closed; pwd; exec sleep 1000"
    daemon = programs.start(["sh", "-c", script], log=log)
    try:
        assert os.getsid(daemon.pid) == daemon.pid
        deadline = time.monotonic() + 5
        while log.read_text().count("\n") < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert log.read_text() == "earlier\nclosed\n/\n"
    finally:
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
        os.close(inherited)
