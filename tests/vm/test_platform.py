"""The guest itself: commands and files, what it stands on, and what a cut of power leaves."""

from __future__ import annotations

import os

import pytest
from tests.vm.conftest import Inside
from tests.vm.guest import MIB, CommandFailed, Disk, Guest

DISKS = (Disk(name="a", size=300 * MIB), Disk(name="b", size=300 * MIB))


def test_a_command_tells_its_words_and_how_it_ended(guest: Guest) -> None:
    ended = guest.shell("cat /proc/sys/kernel/hostname; echo no >&2; exit 3", check=False)
    assert (ended.status, ended.out, ended.err) == (3, "guest\n", "no\n")
    with pytest.raises(CommandFailed, match="status 3"):
        guest.shell("exit 3")
    with pytest.raises(CommandFailed, match="no-such-program"):
        guest.run(["no-such-program"])


def test_a_command_out_of_time_is_killed_and_the_next_one_runs(guest: Guest) -> None:
    assert guest.run(["sleep", "100"], timeout_s=0.5, check=False).status == 124
    assert guest.run(["echo", "next"]).out == "next\n"


def test_a_daemon_that_keeps_the_pipes_is_not_waited_for(guest: Guest) -> None:
    left = guest.shell("(sleep 1; echo late; sleep 100) & echo $!")
    assert left.took_s < 10
    assert guest.shell(f"sleep 2; kill {left.out}").out == ""


def test_bytes_go_in_and_come_out_unchanged(guest: Guest) -> None:
    data = os.urandom(3 * MIB)
    guest.put("/root/deep/file", data, mode=0o600)
    assert guest.get("/root/deep/file") == data
    assert guest.run(["stat", "-c%a", "/root/deep/file"]).out == "600\n"
    size = guest.run(["wc", "-c"], stdin=data).out
    assert size.strip() == str(len(data))
    with pytest.raises(CommandFailed, match="FileNotFoundError"):
        guest.get("/root/none")


def test_the_platform(inside: Inside) -> None:
    inside("test_platform.py")


def test_a_reset_keeps_what_was_on_the_disks_and_nothing_else(guest: Guest) -> None:
    disk = DISKS[0].path
    guest.shell(
        f"echo disk | dd of={disk} conv=fsync; echo root >/root/kept; sync; touch /run/gone"
    )
    guest.reset()
    assert guest.shell(f"head -c5 {disk}; cat /root/kept").out == "disk\nroot\n"
    assert guest.shell("ls /run/gone", check=False).status != 0
