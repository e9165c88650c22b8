"""What LVM, the kernel and failing disks do to a mirror of raid1 volumes."""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.vm.inside.lvm_lab import (
    BY_ID,
    MIB,
    Lv,
    PairWriter,
    Writer,
    health,
    lvs,
    mirror,
    read,
    run,
    same_bytes,
    until,
    volumes,
    written_bytes,
)

from splitmirror.errors import LegError, MirrorError, MirrorNotReady, UnsafeMirror
from splitmirror.freeze import Freeze
from splitmirror.guard import Guard
from splitmirror.mirrors import Feature, Mirror
from splitmirror.mirrors.lvm import LvmMirror
from splitmirror.progress import silent
from splitmirror.system import programs
from splitmirror.system.devicemapper import DeviceMapper
from splitmirror.system.dmraid import Array
from splitmirror.system.lvmchecks import FOREIGN

DATA = Lv(group="va", name="data", mib=48, disks=("a", "b"))
WAL = Lv(group="vb", name="wal", mib=32, disks=("c", "d"))
WAYS = pytest.mark.parametrize("way", ["device-mapper", "lvconvert"])
Open = Callable[..., LvmMirror]


@pytest.fixture(scope="module")
def made() -> Iterator[None]:
    run("modprobe", "-a", "dm-mod", "dm-raid", "raid1", "ext4", "xfs")
    with volumes(DATA, WAL):
        yield


@pytest.fixture
def opened(made: None, tmp_path: Path) -> Iterator[Open]:
    """Opens mirrors of both volumes, or of those named; afterwards nothing is split."""

    def one(*some: Lv, **settings: object) -> LvmMirror:
        return mirror(tmp_path, *(some or (DATA, WAL)), **settings)

    yield one
    for some in ((DATA, WAL), (DATA,)):
        left = one(*some)
        if (split_id := left.state().split_id) is not None:
            left.rejoin(split_id)
        left.close()
    both = one()
    both.synchronize(silent)
    both.close()


# --- putting a leg back


@WAYS
def test_a_leg_put_back_under_a_steady_load_is_brought_up_to_date(opened: Open, way: str) -> None:
    engine = opened(DATA, split=way)
    engine.synchronize(silent)
    with Writer(DATA.device, DATA.mib * MIB):
        engine.split("one")
        engine.leg("one", 10)
        time.sleep(1)  # the load that matters: none of it may be lost to the leg
        engine.rejoin("one")
    assert engine.prove(silent) == 0
    assert same_bytes(DATA.image(0), DATA.image(1))


def test_a_leg_put_back_by_hand_under_a_steady_load_differs_and_is_found(opened: Open) -> None:
    """What the kernel does by itself. Should this fail one day, it has been mended there."""
    engine = opened(DATA)
    engine.synchronize(silent)
    with Writer(DATA.device, DATA.mib * MIB):
        run("lvconvert", "-y", "--splitmirrors", "1", "--trackchanges", DATA.full)
        time.sleep(1)
        run("lvconvert", "--merge", f"{DATA.full}_rimage_1")
    assert health(DATA) == "AA"
    found = engine.prove(silent)
    run("lvchange", "--syncaction", "repair", DATA.full)
    until(lambda: lvs(DATA.full, "raid_sync_action") == "idle")
    assert found > 0
    assert engine.prove(silent) == 0


@WAYS
def test_only_what_changed_is_copied_back(opened: Open, way: str) -> None:
    engine = opened(DATA, split=way)
    engine.synchronize(silent)
    engine.split("one")
    with open(DATA.device, "r+b", buffering=0) as primary:  # noqa: PTH123
        primary.write(os.urandom(MIB))
        os.fsync(primary.fileno())
    before = written_bytes(BY_ID + "b")
    engine.rejoin("one")
    copied = written_bytes(BY_ID + "b") - before
    assert MIB <= copied <= 6 * MIB, copied  # regions of 2 MiB


def test_a_refresh_by_someone_ends_the_split_and_is_told(opened: Open) -> None:
    engine = opened(DATA)
    engine.synchronize(silent)
    engine.split("one")
    leg = engine.leg("one", 10)
    run("lvchange", "--refresh", DATA.full)
    assert engine.state().split_id is None
    with pytest.raises(LegError, match="put back"):
        engine.leg("one", 10)
    with DeviceMapper() as dm:  # parted once more: it is not the leg that was split
        devno = os.stat(DATA.device).st_rdev
        until(lambda: health(DATA) == "AA")
        dm.load(devno, [Array.of(dm.table(devno)).without(1)])
        dm.resume(devno)
    assert leg.volumes
    with pytest.raises(LegError, match="put back"):
        engine.leg("one", 10)


def test_a_split_by_someone_else_is_left_alone_until_it_is_asked_for(opened: Open) -> None:
    engine = opened(DATA)
    engine.synchronize(silent)
    run("lvconvert", "-y", "--splitmirrors", "1", "--trackchanges", DATA.full)
    assert engine.state().split_id == FOREIGN
    with pytest.raises(MirrorError, match="not by splitmirror"):
        engine.synchronize(silent)
    assert any(f.problem and not f.warning for f in engine.preflight([]))
    engine.rejoin(FOREIGN)
    assert engine.state().level


def test_a_leg_that_was_parted_past_lvm_is_put_back(opened: Open, tmp_path: Path) -> None:
    engine = opened(DATA)
    engine.synchronize(silent)
    engine.split("one")
    for record in tmp_path.glob("lvm-*.json"):
        record.unlink()  # as if the state directory were lost
    assert not engine.state().level
    engine.synchronize(silent)
    assert engine.state().level and engine.prove(silent) == 0


# --- several volumes at one instant


def numbers(engine: Mirror, split_id: str) -> tuple[int, int]:
    leg = engine.leg(split_id, 10)
    runs = [leg.volumes[lv.full][0] for lv in (DATA, WAL)]
    first, second = (struct.unpack("<Q", read(r.path, 0, 8))[0] for r in runs)
    return first, second


def test_two_volumes_split_one_after_the_other_are_of_two_instants(opened: Open) -> None:
    """So the tests of one instant can fail, and lvconvert needs the freeze."""
    engine = opened(split="lvconvert")
    assert Feature.GROUP_SPLIT not in engine.features
    engine.synchronize(silent)
    with PairWriter([DATA.device, WAL.device]) as writer:
        writer.wait_for(20)
        engine.split("one")
        writer.wait_for(20)
    first, second = numbers(engine, "one")
    assert second > first, "B is ahead of A, though A is always written first"


@pytest.fixture
def mounted(opened: Open) -> Iterator[tuple[Path, Path]]:
    """A filesystem on each of the two volumes."""
    where = Path("/run/lvm-data"), Path("/run/lvm-wal")
    for path, lv in zip(where, (DATA, WAL), strict=True):
        path.mkdir(exist_ok=True)
        run("mkfs.ext4", "-q", "-F", lv.device)
        run("mount", lv.device, str(path))
    yield where
    for path in where:
        run("umount", str(path))


@WAYS
def test_under_the_freeze_both_legs_are_of_one_instant(
    opened: Open,
    way: str,
    mounted: tuple[Path, Path],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    engine = opened(split=way)
    engine.synchronize(silent)
    paths = [str(path) for path in mounted]
    with (
        PairWriter([f"{path}/number" for path in paths]) as writer,
        Guard(paths, tmp_path / "guard.json", engine.suspends()) as guard,
        Freeze(paths, guard, 60) as freeze,
    ):
        writer.wait_for(20)
        engine.prepare_split("one")
        freeze.flush()
        freeze.freeze()
        began = time.monotonic()
        engine.split("one")
        split_s = time.monotonic() - began
        freeze.thaw()
        writer.wait_for(20)
    record_property(f"split_of_two_ms_{way}", round(1000 * split_s))
    leg = engine.leg("one", 10)
    found = []
    for lv in (DATA, WAL):
        run("mkdir", "-p", "/run/lvm-leg")
        run("mount", "-o", "ro,noload", leg.volumes[lv.full][0].path, "/run/lvm-leg")
        found.append(struct.unpack("<Q", Path("/run/lvm-leg/number").read_bytes()[:8])[0])
        run("umount", "/run/lvm-leg")
    assert found[1] <= found[0] <= found[1] + 1


def test_the_stops_beside_lvms_own(
    opened: Open, record_property: Callable[[str, object], None]
) -> None:
    """Figures for docs/mirrors.md: one volume, not written to meanwhile."""
    times: dict[str, float] = {}
    for way in ("device-mapper", "lvconvert"):
        engine = opened(DATA, split=way)
        engine.synchronize(silent)
        engine.prepare_split(way)
        began = time.monotonic()
        engine.split(way)
        times[way] = time.monotonic() - began
        engine.rejoin(way)
    began = time.monotonic()
    run("lvconvert", "-y", "--splitmirrors", "1", "--trackchanges", DATA.full)
    times["bare lvconvert"] = time.monotonic() - began
    run("lvconvert", "--merge", f"{DATA.full}_rimage_1")
    for name, seconds in times.items():
        record_property(f"{name.replace(' ', '_')}_ms", round(1000 * seconds))
    assert times["device-mapper"] < times["bare lvconvert"]
    assert times["lvconvert"] < 1.3 * times["bare lvconvert"] + 0.3


# --- the guard

_HOLDER = """
import sys, time
from pathlib import Path
from splitmirror.guard import Guard
from splitmirror.system.devicemapper import DeviceMapper

record, *devices = sys.argv[1:]
devices = [int(each) for each in devices]
with Guard([], Path(record), devices) as guard, DeviceMapper() as dm:
    guard.arm("freeze", 30)
    for devno in devices:
        dm.suspend(devno)
    print("suspended", flush=True)
    time.sleep(1000)
"""


def test_a_killed_backup_leaves_nothing_suspended(opened: Open, tmp_path: Path) -> None:
    engine = opened()
    devices = engine.suspends()
    told = (str(tmp_path / "guard.json"), *map(str, devices))
    log = tmp_path / "said"
    holder = programs.start([sys.executable, "-c", _HOLDER, *told], log=log)
    until(lambda: "suspended" in log.read_text())
    with DeviceMapper() as dm:
        assert all(dm.info(devno).suspended for devno in devices)
        holder.kill()
        holder.wait()
        until(lambda: not any(dm.info(devno).suspended for devno in devices), limit_s=5)


def test_the_guard_leaves_a_prepared_split_alone(opened: Open, tmp_path: Path) -> None:
    """To resume a device that is not suspended would part it."""
    engine = opened()
    engine.synchronize(silent)
    engine.prepare_split("one")
    with Guard([], tmp_path / "guard.json", engine.suspends()) as guard:
        guard.arm("freeze", 30)  # leaving while it is armed: the guard steps in
    assert health(DATA) == "AA"
    assert engine.state().split_id is None


# --- disks that fail, and mirrors that are none


def test_a_leg_whose_disk_vanishes_is_told_and_comes_back(opened: Open) -> None:
    engine = opened(DATA)
    engine.synchronize(silent)
    engine.split("one")
    engine.leg("one", 10)
    with gone("b"):
        with pytest.raises(LegError, match="cannot be read"):
            engine.leg("one", 10)
        with pytest.raises(MirrorNotReady, match="missing") as told:
            engine.rejoin("one")
        assert "vgextend --restoremissing va" in told.value.hint
        problems = [f.problem for f in opened(DATA).preflight([]) if f.problem and not f.warning]
        assert isinstance(problems[0], MirrorNotReady)
    with open(DATA.device, "r+b", buffering=0) as primary:  # noqa: PTH123
        primary.write(os.urandom(MIB))
        os.fsync(primary.fileno())
    engine.rejoin("one")
    assert engine.prove(silent) == 0


def test_a_degraded_mirror_is_refused_until_its_disk_is_back(opened: Open) -> None:
    engine = opened(DATA)
    engine.synchronize(silent)
    with gone("b"):
        with open(DATA.device, "r+b", buffering=0) as primary:  # noqa: PTH123
            primary.write(os.urandom(MIB))
            os.fsync(primary.fileno())
        assert health(DATA) == "AD"
        for attempt in (engine.synchronize, lambda _: engine.split("one")):
            with pytest.raises(MirrorNotReady):
                attempt(silent)
    engine.synchronize(silent)
    assert engine.prove(silent) == 0


class gone:
    """A disk is pulled out for a block, and put in again after it."""

    def __init__(self, disk: str) -> None:
        self._disk = disk
        self._name = os.path.basename(os.path.realpath(BY_ID + disk))

    def __enter__(self) -> None:
        device = Path(f"/sys/block/{self._name}/device").resolve()
        (device.parent / "remove").write_text("1")
        until(lambda: not Path(f"/sys/block/{self._name}").exists())

    def __exit__(self, *error: object) -> None:
        Path("/sys/bus/pci/rescan").write_text("1")
        until(lambda: Path(BY_ID + self._disk).exists())
        run("udevadm", "settle")
        if run("vgs", "--noheadings", "-o", "vg_missing_pv_count", "va").strip() != "0":
            run("vgextend", "--restoremissing", "va", BY_ID + self._disk)


def test_three_legs_keep_redundancy_and_may_be_degraded(opened: Open) -> None:
    three = Lv(group="va", name="three", mib=16, disks=("a", "b", "e"))
    run("vgextend", "va", BY_ID + "e")
    try:
        run(*["lvcreate", "-y", "--type", "raid1", "-m2", "-L", "16M", "-n", "three", "va"])
        until(lambda: lvs(three.full, "copy_percent") == "100.00")
        engine = opened(three)
        findings = engine.preflight([])
        assert not any(finding.problem for finding in findings)
        assert any("2 legs stay" in finding.what for finding in findings)
        engine.synchronize(silent)
        engine.split("one")
        assert health(three) == "AA-"
        engine.rejoin("one")
        may = opened(three, allow_degraded=True)
        with gone("e"):
            with open(three.device, "r+b", buffering=0) as primary:  # noqa: PTH123
                primary.write(os.urandom(MIB))
                os.fsync(primary.fileno())
            assert health(three) == "AAD"
            with pytest.raises(MirrorNotReady, match="missing"):
                engine.synchronize(silent)
            may.synchronize(silent)
            may.split("two")
            assert health(three)[:2] == "A-"
            assert may.leg("two", 10).volumes[three.full][0].path == three.image(1)
            may.rejoin("two")
            assert health(three)[:2] == "AA"
        engine.synchronize(silent)
        assert health(three) == "AAA" and engine.prove(silent) == 0
        for each in (engine, may):
            each.close()
    finally:
        run("lvremove", "-y", three.full)
        run("vgreduce", "va", BY_ID + "e")


@pytest.mark.parametrize(
    ("command", "kind", "advice"),
    [
        ("lvcreate -y -L 8M -n other va", "linear", "lvconvert --type raid1 -m1 va/other"),
        ("lvcreate -y --type striped -i2 -L 8M -n other va", "striped", "lvcreate --type raid1"),
        ("lvcreate -y --type mirror -m1 --mirrorlog core -L 8M -n other va", "mirror", "raid1"),
    ],
)
def test_what_is_no_raid1_is_refused_by_name(
    opened: Open, command: str, kind: str, advice: str
) -> None:
    run(*command.split())
    try:
        engine = opened(replace(DATA, name="other"))
        (finding,) = engine.preflight([])
        assert isinstance(finding.problem, UnsafeMirror)
        assert f"va/other is {kind}" in str(finding.problem)
        assert advice in finding.problem.hint
        with pytest.raises(UnsafeMirror):
            engine.synchronize(silent)
    finally:
        run("lvremove", "-y", "va/other")


def test_a_mirror_of_two_legs_warns_that_nothing_is_redundant_while_split(opened: Open) -> None:
    warnings = [f for f in opened(DATA).preflight([]) if f.warning]
    assert [str(f.problem) for f in warnings] == [
        "va/data has no redundancy while its leg is split"
    ]
