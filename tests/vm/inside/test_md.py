"""What is md's own: which arrays are refused, what takes a leg back, what a rejoin copies."""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tests.vm.inside.md_lab import (
    KIB,
    MIB,
    A,
    B,
    C,
    D,
    array,
    level_mirror,
    mirror_of,
    real,
    run,
    sysfs_of,
    taken_away,
    until,
    wait_until_level,
    write_durably,
    written_to,
)

from splitmirror.errors import (
    Busy,
    LegError,
    MirrorError,
    MirrorNotReady,
    ProgramFailed,
    UnsafeMirror,
)
from splitmirror.mirrors.md import MdMirror
from splitmirror.progress import silent
from splitmirror.system import mdsuper
from splitmirror.testing.mirror_case import contents

DEADLINE_S = 10.0


def problem_of(mirror: MdMirror) -> MirrorError:
    """What preflight holds against a split."""
    problems = [f.problem for f in mirror.preflight([]) if f.problem and not f.warning]
    assert len(problems) == 1
    assert isinstance(problems[0], MirrorError)
    return problems[0]


def refused_everywhere(mirror: MdMirror, kind: type[MirrorError]) -> MirrorError:
    with pytest.raises(kind):
        mirror.synchronize(silent)
    with pytest.raises(kind):
        mirror.split("s")
    problem = problem_of(mirror)
    assert isinstance(problem, kind)
    return problem


@pytest.mark.parametrize("metadata", ["0.90", "1.0"])
def test_metadata_by_which_a_leg_would_show_what_it_holds_is_refused(
    metadata: str, tmp_path: Path
) -> None:
    with array(metadata=metadata) as device:
        problem = refused_everywhere(mirror_of(tmp_path, device), UnsafeMirror)
    assert f"metadata {metadata}" in str(problem)
    assert "--metadata=1.2" in problem.hint


@pytest.mark.parametrize("metadata", ["1.1", "1.2"])
def test_the_leg_begins_where_the_members_data_begin(metadata: str, tmp_path: Path) -> None:
    with array(metadata=metadata) as device:
        data = os.urandom(MIB)
        write_durably(Path(device), data)
        mirror = level_mirror(tmp_path, device)
        mirror.split("s")
        write_durably(Path(device), bytes(MIB))
        (run_of_leg,) = mirror.leg("s", DEADLINE_S).volumes["md0"]
        assert run_of_leg.path == real(B)
        with Path(B).open("rb") as leg:
            leg.seek(run_of_leg.offset)
            assert leg.read(MIB) == data
        assert run_of_leg.length == int((sysfs_of(device).parent / "size").read_text()) * 512
        mirror.rejoin("s")


def test_a_member_may_be_a_partition(tmp_path: Path) -> None:
    entry = struct.pack("<B3sB3sII", 0, bytes(3), 0xFD, bytes(3), 2048, 20 * MIB // 512)
    partitioned(bytes(446) + entry + bytes(48) + b"\x55\xaa", A, B)
    try:
        with array(members=(f"{A}-part1", f"{B}-part1")) as device:
            mirror = level_mirror(tmp_path, device)
            expected = Path(device).read_bytes()
            mirror.split("s")
            write_durably(Path(device), os.urandom(MIB))
            leg = mirror.leg("s", DEADLINE_S)
            assert leg.volumes["md0"][0].path == f"{real(B)}1"
            assert contents(leg)["md0"] == expected
            mirror.rejoin("s")
            assert mirror.state().level
    finally:
        partitioned(bytes(512), A, B)


def partitioned(table: bytes, *disks: str) -> None:
    """Write a partition table; udev may look at the old partitions for a moment longer."""
    for disk in disks:
        write_durably(Path(disk), table)
        until(partial(read_again, disk))
    run("udevadm", "settle")


def read_again(disk: str) -> bool:
    try:
        run("blockdev", "--rereadpt", disk)
    except ProgramFailed:
        return False
    return True


def test_without_a_bitmap_it_says_what_to_type(tmp_path: Path) -> None:
    with array(bitmap="none") as device:
        problem = refused_everywhere(mirror_of(tmp_path, device), UnsafeMirror)
        command = re.search(r"mdadm --grow --bitmap=internal \S+", problem.hint)
        assert command
        wait_until_level(device)  # md takes no bitmap while it copies
        run(*command.group().split())
        level_mirror(tmp_path, device).split("s")
        mirror_of(tmp_path, device).rejoin("s")


def test_a_degraded_array_is_refused(tmp_path: Path) -> None:
    with array() as device:
        run("mdadm", device, "--fail", B, "--remove", B)
        problem = refused_everywhere(mirror_of(tmp_path, device), MirrorNotReady)
        assert "--add" in problem.hint
        allowed = mirror_of(tmp_path, device, allow_degraded=True)
        with pytest.raises(MirrorNotReady, match="one copy only"):
            allowed.split("s")


def test_of_three_mirrors_one_may_lack_where_that_is_allowed(tmp_path: Path) -> None:
    with array(members=(A, B, C)) as device:
        run("mdadm", device, "--fail", A, "--remove", A)
        problem = refused_everywhere(mirror_of(tmp_path, device), MirrorNotReady)
        assert "allow_degraded" in problem.hint
        allowed = mirror_of(tmp_path, device, allow_degraded=True)
        allowed.synchronize(silent)
        allowed.split("s")
        assert allowed.leg("s", DEADLINE_S).volumes["md0"][0].path == real(C)
        allowed.rejoin("s")
        allowed.synchronize(silent)
        assert allowed.state().level


@pytest.mark.parametrize(("members", "warned"), [((A, B), True), ((A, B, C), False)])
def test_the_redundancy_that_is_left_while_split_is_told(
    members: tuple[str, ...], warned: bool, tmp_path: Path
) -> None:
    with array(members=members) as device:
        told = [f for f in mirror_of(tmp_path, device).preflight([]) if "redundancy" in f.what]
    assert [(f.problem is not None, f.warning) for f in told] == [(warned, warned)]


def test_only_what_changed_is_copied_back(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with array() as device:
        mirror = level_mirror(tmp_path, device)
        until(lambda: mdsuper.dirty_bytes(A) == 0)  # md clears its bitmap some seconds after
        mirror.split("s")
        mirror.leg("s", DEADLINE_S)
        write_durably(Path(device), os.urandom(MIB), 20 * MIB)
        dirty = mirror.state().dirty_bytes
        before = written_to(B)
        mirror.rejoin("s")
        copied = written_to(B) - before
        record_property("changed_bytes", MIB)
        record_property("copied_bytes", copied)
        assert mirror.state().level
    assert MIB <= dirty <= MIB + 128 * KIB
    assert MIB <= copied < 2 * MIB


def test_a_leg_that_was_re_added_by_hand_is_not_read(tmp_path: Path) -> None:
    with array() as device:
        mirror = level_mirror(tmp_path, device)
        mirror.split("s")
        mirror.leg("s", DEADLINE_S)
        run("mdadm", device, "--re-add", B)
        with pytest.raises(LegError, match="in /dev/md0 again"):
            mirror.leg("s", DEADLINE_S)
        wait_until_level(device)
        run("mdadm", device, "--fail", B, "--remove", B)
        with pytest.raises(LegError, match="in an array again since"):
            mirror.leg("s", DEADLINE_S)
        mirror.rejoin("s")
        assert mirror.state().level


def test_a_leg_that_was_never_looked_at_and_re_added_is_not_read(tmp_path: Path) -> None:
    with array() as device:
        mirror = level_mirror(tmp_path, device)
        mirror.split("s")
        until(lambda: "blocked" not in (sysfs_of(device) / f"dev-{name(B)}/state").read_text())
        run("mdadm", device, "--remove", B)
        run("mdadm", device, "--re-add", B)
        wait_until_level(device)
        run("mdadm", device, "--fail", B, "--remove", B)
        with pytest.raises(LegError, match="in an array again since"):
            mirror.leg("s", DEADLINE_S)
        mirror.rejoin("s")


def name(member: str) -> str:
    return os.path.basename(real(member))


def test_a_leg_whose_marks_a_crash_lost_is_not_read(tmp_path: Path) -> None:
    with array() as device:
        mirror = level_mirror(tmp_path, device)
        mirror.split("s")
        (marks,) = tmp_path.glob("md-*/marks.json")
        marks.write_bytes(bytes(4096))  # what a host that lost power has of a file not synced
        with pytest.raises(LegError, match="not known any more"):
            mirror.leg("s", DEADLINE_S)
        assert mirror.state().split_id == "s"
        mirror.rejoin("s")
        assert mirror.state().level


def test_a_leg_that_cannot_be_re_added_is_copied_in_full_and_that_is_said(tmp_path: Path) -> None:
    with array() as device:
        mirror = level_mirror(tmp_path, device)
        mirror.split("s")
        leg = mirror.leg("s", DEADLINE_S)
        # a new bitmap knows nothing of what was written before it
        run("mdadm", "--grow", device, "--bitmap=none")
        write_durably(Path(device), os.urandom(MIB))
        run("mdadm", "--grow", device, "--bitmap=internal", "--bitmap-chunk=64K")
        (sysfs_of(device) / "sync_speed_max").write_text("2000")
        before = written_to(B)
        mirror.rejoin("s")
        assert "copied in full" in mirror.state().why
        (sysfs_of(device) / "sync_speed_max").write_text("system")
        mirror.synchronize(silent)
        assert mirror.state().level
        assert written_to(B) - before > leg.volumes["md0"][0].length
        mirror.split("again")
        expected = Path(device).read_bytes()
        assert contents(mirror.leg("again", DEADLINE_S))["md0"] == expected
        mirror.rejoin("again")


def test_a_leg_that_vanishes_is_an_error_and_the_primary_goes_on(tmp_path: Path) -> None:
    with array() as device:
        mirror = level_mirror(tmp_path, device)
        mirror.split("s")
        mirror.leg("s", DEADLINE_S)
        with taken_away(B):
            with pytest.raises(LegError, match="vanished"):
                mirror.leg("s", DEADLINE_S)
            write_durably(Path(device), os.urandom(MIB))
            with pytest.raises(LegError, match="vanished") as lost:
                mirror.rejoin("s")
            assert "--add" in lost.value.hint
            assert mirror.state().split_id is None
            mirror.rejoin("s")
        mirror.synchronize(silent)  # it is there again, and given back
        assert mirror.state().level


def test_a_split_of_some_arrays_only_is_taken_back(tmp_path: Path) -> None:
    with array("/dev/md0", (A, B)) as one, array("/dev/md1", (C, D)) as two:
        mirror = level_mirror(tmp_path, one, two)
        mirror.prepare_split("s")
        run("mdadm", two, "--fail", C, "--remove", C)  # its leg is the only copy now
        with pytest.raises(MirrorNotReady, match="cannot be parted"):
            mirror.split("s")
        assert mirror.state().split_id == "s"
        with pytest.raises(MirrorError, match="some of the arrays only"):
            mirror.split("s")
        mirror.rejoin("s")
        run("mdadm", two, "--re-add", C)
        mirror.synchronize(silent)
        assert mirror.state().level


def test_a_check_that_goes_on_stops_for_a_split(tmp_path: Path) -> None:
    with array() as device:
        mirror = level_mirror(tmp_path, device)
        expected = Path(device).read_bytes()
        (sysfs_of(device) / "sync_speed_max").write_text("1000")
        (sysfs_of(device) / "sync_action").write_text("check")
        mirror.synchronize(silent)
        mirror.split("s")
        write_durably(Path(device), os.urandom(MIB))
        assert contents(mirror.leg("s", DEADLINE_S))["md0"] == expected
        (sysfs_of(device) / "sync_speed_max").write_text("system")
        mirror.rejoin("s")
        assert mirror.state().level


def test_a_proof_that_is_cut_short_proves_nothing(tmp_path: Path) -> None:
    with array() as device:
        mirror = level_mirror(tmp_path, device)
        (sysfs_of(device) / "sync_speed_max").write_text("1000")

        def cut_short(done: int, total: int) -> None:
            if done > MIB:
                (sysfs_of(device) / "sync_action").write_text("idle")

        with pytest.raises(MirrorError, match="cut short"):
            mirror.prove(cut_short)
        (sysfs_of(device) / "sync_speed_max").write_text("system")
        assert mirror.prove(silent) == 0


def test_a_leg_in_use_is_not_given_back(tmp_path: Path) -> None:
    with array() as device:
        mirror = level_mirror(tmp_path, device)
        mirror.split("s")
        leg = mirror.leg("s", DEADLINE_S)
        path = Path(leg.volumes["md0"][0].path)
        with path.open("rb"), pytest.raises(Busy, match="in use"):
            mirror.rejoin("s")
        assert mirror.state().split_id == "s"
        mirror.rejoin("s")
        assert mirror.state().level


def test_an_array_put_together_from_the_leg_is_stopped_while_nothing_wrote_to_it(
    tmp_path: Path,
) -> None:
    with array() as device:
        mirror = level_mirror(tmp_path, device)
        mirror.split("s")
        mirror.leg("s", DEADLINE_S)
        before = contents(mirror.leg("s", DEADLINE_S))
        run("mdadm", "--stop", device)
        run("mdadm", "--assemble", "--run", "--readonly", "/dev/md9", B)
        assert mirror.state().split_id == "s"
        assert contents(mirror.leg("s", DEADLINE_S)) == before
        assert "md9" not in Path("/proc/mdstat").read_text()
        run("mdadm", "--assemble", "--run", device, A)
        mirror.rejoin("s")
        assert mirror.state().level


def test_an_array_that_was_written_to_without_its_primary_is_not_mixed_with_it(
    tmp_path: Path,
) -> None:
    with array() as device:
        mirror = level_mirror(tmp_path, device)
        mirror.split("s")
        mirror.leg("s", DEADLINE_S)
        run("mdadm", "--stop", device)
        run("mdadm", "--assemble", "--run", "/dev/md9", B)
        write_durably(Path("/dev/md9"), os.urandom(MIB))
        with pytest.raises(LegError, match="in /dev/md9 again"):
            mirror.leg("s", DEADLINE_S)
        with pytest.raises(UnsafeMirror, match="without the disks"):
            mirror.rejoin("s")


def test_a_split_is_no_slower_than_mdadms(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    ours, bare = [], []
    with array() as device:
        mirror = level_mirror(tmp_path, device)
        for number in range(5):
            mirror.prepare_split(f"s{number}")
            began = time.perf_counter()
            mirror.split(f"s{number}")
            ours.append(time.perf_counter() - began)
            mirror.rejoin(f"s{number}")
            began = time.perf_counter()
            run("mdadm", device, "--fail", B)
            run("mdadm", device, "--remove", B)
            bare.append(time.perf_counter() - began)
            run("mdadm", device, "--re-add", B)
            wait_until_level(device)
    record_property("split_ms", [round(1000 * each, 1) for each in ours])
    record_property("mdadm_ms", [round(1000 * each, 1) for each in bare])
    assert sorted(ours)[2] < 1.3 * sorted(bare)[2]
