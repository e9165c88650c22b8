"""A person is asked: on a terminal, by a notice, or nobody can be."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.library_lab import Operator

from splitmirror.errors import ConfigError, MissingProgram, NoSuchVolume, ProgramFailed, WrongMedium
from splitmirror.media import asking
from splitmirror.media.asking import AskByNotice, AskSettings, ask_by, ask_nobody
from splitmirror.media.bays import Bay
from splitmirror.media.byhand import ByHand, next_serial
from splitmirror.media.library import Library
from splitmirror.media.memory import Cartridge, Memory
from splitmirror.media.virtualtape import VirtualTape
from splitmirror.media.volume import label_volume
from splitmirror.media.walking import VolumeReader


def notice(tmp_path: Path, *more: str) -> list[str]:
    """A program that writes down what it is told."""
    script = tmp_path / "notice"
    script.write_text(f"#!/bin/sh\ncat >> {tmp_path}/told\n")
    script.chmod(0o755)
    return [str(script), *more]


# --- not on a terminal


def test_without_a_notice_nobody_can_be_asked() -> None:
    assert ask_by(AskSettings()) is ask_nobody  # the tests' standard input is no terminal
    with pytest.raises(NoSuchVolume, match="Put volume SM0001") as told:
        ask_nobody("Put volume SM0001 into drive 1.")
    assert "notify" in told.value.hint


def test_a_notice_is_given_once_for_each_thing_that_is_wanted(tmp_path: Path) -> None:
    ask = ask_by(AskSettings(notify=notice(tmp_path, "an argument"), notify_poll_s=0.01))
    assert isinstance(ask, AskByNotice)
    for wanted in ("SM0001, please", "SM0001, please", "SM0002, please"):
        ask(wanted)
    told = (tmp_path / "told").read_text()
    assert told.count("SM0001, please") == told.count("SM0002, please") == 1
    assert told.startswith("splitmirror waits for a volume.\n")


def test_a_notice_is_given_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "REMIND_S", 0.03)
    ask = AskByNotice(notice(tmp_path), poll_s=0.02, deadline_s=60)
    for _ in range(4):
        ask("SM0001")
    assert (tmp_path / "told").read_text().count("SM0001") == 2


def test_the_wait_is_bounded_over_all_that_is_wanted(tmp_path: Path) -> None:
    ask = AskByNotice(notice(tmp_path), poll_s=0.02, deadline_s=0.05)
    ask("SM0001")
    ask("SM0002")
    ask("SM0002")
    with pytest.raises(NoSuchVolume, match=r"nobody answered in 50.0 ms: SM0002"):
        ask("SM0002")


@pytest.mark.parametrize(
    ("command", "error"), [("/nowhere/notice", MissingProgram), ("false", ProgramFailed)]
)
def test_a_notice_that_cannot_be_given_is_an_error(command: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        AskByNotice([command], poll_s=1, deadline_s=1)("SM0001")


@pytest.mark.parametrize("key", ["notify_poll_s", "notify_deadline_s"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_times_that_are_none_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        AskSettings(**{key: value})  # type: ignore[arg-type]


# --- on a terminal

ON_TERMINAL = """
from splitmirror.errors import NoSuchVolume
from splitmirror.media.asking import AskSettings, ask_by
ask = ask_by(AskSettings(notify="/nowhere/notice"))
try:
    ask("Put volume SM0001 into drive 1.")
    print("tried again")
except NoSuchVolume as error:
    print("gave up:", error)
"""


@pytest.mark.parametrize(("key", "came"), [(b"\n", "tried again"), (b"\x04", "gave up: ")])
def test_on_a_terminal_the_question_waits_for_enter(key: bytes, came: str) -> None:
    controller, terminal = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL],
            stdin=terminal,
            stderr=terminal,
            stdout=subprocess.PIPE,
            text=True,
        ) as asked:
            said = b""
            while b"press Enter" not in said:
                said += os.read(controller, 1000)
            assert b"Put volume SM0001 into drive 1." in said
            os.write(controller, key)
            assert came in asked.communicate(timeout=30)[0]
    finally:
        os.close(controller)
        os.close(terminal)


# --- drives without a changer


class HandFed(Memory):
    """A drive that an operator feeds; it can be empty."""

    name, device = "/dev/nst0", ""

    def __init__(self) -> None:
        super().__init__(Cartridge())
        self.fed: Cartridge | None = None
        self.loads: list[bool] = []
        self.ejected = 0
        self.protected = False

    def feed(self, cartridge: Cartridge) -> Callable[[], None]:
        def act() -> None:
            self.fed = self._cartridge = cartridge

        return act

    def load(self, *, writable: bool) -> None:
        if self.fed is None:
            raise NoSuchVolume("no cartridge is in it", hint="Put one in.")
        self.loads.append(writable)
        if writable and self.protected:
            raise WrongMedium("the tab is set", hint="Slide the tab.")
        super().load(writable=writable)

    def eject(self) -> None:
        self.unload()
        self.fed = None
        self.ejected += 1


def volume(serial: str) -> Cartridge:
    cartridge = Cartridge()
    medium = Memory(cartridge)
    label_volume(medium, serial)
    medium.unload()
    return cartridge


def alien() -> Cartridge:
    cartridge = Cartridge()
    cartridge.objects = [b"something else" * 10]
    return cartridge


def test_the_operator_is_asked_until_the_volume_is_in_the_drive() -> None:
    drive = HandFed()
    acts = [drive.feed(volume("SM0002")), drive.feed(alien()), drive.feed(volume("SM0001"))]
    operator = Operator(lambda: None, *acts)
    ByHand(operator).bring(Bay(name="/dev/nst0", medium=drive), "SM0001", writable=True)
    assert VolumeReader(drive).serial == "SM0001"
    empty, again, wrong, foreign = operator.asked
    assert empty == again == "Put volume SM0001 into drive /dev/nst0 (it is empty)."
    assert "SM0002 was in it" in wrong
    assert "does not begin with a label" in foreign
    assert drive.ejected == 2  # what is wrong is let out
    assert drive.loads == [False, False, False, True]  # and it was not loaded writable


def test_that_the_wrong_volume_was_let_out_gives_no_second_notice() -> None:
    drive = HandFed()
    drive.feed(volume("SM0002"))()
    operator = Operator(lambda: None, lambda: None, drive.feed(volume("SM0001")))
    ByHand(operator).bring(Bay(name="d", medium=drive), "SM0001", writable=False)
    assert set(operator.asked) == {"Put volume SM0001 into drive d (SM0002 was in it)."}


def test_the_volume_that_is_in_the_drive_is_not_asked_for() -> None:
    drive = HandFed()
    drive.feed(volume("SM0001"))()
    ByHand(Operator()).bring(Bay(name="d", medium=drive), "SM0001", writable=False)
    assert True not in drive.loads


def test_a_volume_that_is_protected_is_let_out_and_asked_for_again() -> None:
    drive = HandFed()
    drive.protected = True
    drive.feed(volume("SM0001"))()
    there = drive.fed
    assert there is not None

    def slide_the_tab() -> None:
        assert drive.fed is None
        drive.protected = False
        drive.feed(there)()

    operator = Operator(slide_the_tab)
    ByHand(operator).bring(Bay(name="d", medium=drive), "SM0001", writable=True)
    assert operator.asked == ["Put volume SM0001 into drive d (the tab is set)."]
    drive.write([b"it can be written"])


def test_nobody_who_answers_is_no_volume() -> None:
    with pytest.raises(NoSuchVolume, match="nobody answers"):
        ByHand(Operator()).bring(Bay(name="d", medium=HandFed()), "SM0001", writable=False)


def test_a_blank_is_asked_for_by_the_serial_that_it_gets() -> None:
    drive = HandFed()
    drive.feed(volume("SM0002"))()
    operator = Operator(drive.feed(Cartridge()))
    by_hand = ByHand(operator)
    bay = Bay(name="d", medium=drive)
    assert by_hand.bring_blank(bay, {"SM0001", "SM0002"}) == "SM0003"
    assert operator.asked == [
        "Put a blank volume into drive d and mark it SM0003 (SM0002 was in it)."
    ]
    drive.write([b"it can be written"])
    by_hand.put_away(bay)
    assert drive.fed is None


@pytest.mark.parametrize(
    ("taken", "wanted"),
    [
        ((), "SM0001"),
        (("SM0001", "SM0009"), "SM0010"),
        (("AA0001", "BACKUP"), "AA0002"),
        (("BACKUP",), "SM0001"),
        (("A00099",), "A00100"),
    ],
)
def test_the_next_serial_is_behind_the_last(taken: tuple[str, ...], wanted: str) -> None:
    assert next_serial(taken) == wanted


def test_there_is_an_end_of_serials() -> None:
    with pytest.raises(NoSuchVolume, match="AB9999"):
        next_serial(["AB9999"])


def test_a_library_without_a_changer_asks_and_leases(tmp_path: Path) -> None:
    tape = VirtualTape(tmp_path / "one.tap", capacity=None, early_warning=0)
    label_volume(tape, "SM0001")
    tape.unload()
    library = Library([tape], None, leases=tmp_path / "leases", ask=Operator())
    assert (library.inventory(), library.has_changer) == ([], False)
    with library.lease() as (bay,):
        assert library.look(bay) == "SM0001"
        library.bring(bay, "SM0001", writable=True)
        with pytest.raises(NoSuchVolume, match="Put volume SM0002"):
            library.bring(bay, "SM0002", writable=True)
        library.put_away(bay)
