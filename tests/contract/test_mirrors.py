"""Every mirror engine passes the contract suite, and each check of it has been seen to fail."""

from __future__ import annotations

import os
import pkgutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.real.directories_lab import directories_on
from tests.real.reflink_lab import HOSTS, images_on

from splitmirror import mirrors
from splitmirror.errors import DeadlineExceeded, LegError, MirrorError
from splitmirror.mirrors import (
    Feature,
    Mirror,
    MirrorState,
    directories,
    group,
    memory,
    qsd,
    reflink,
)
from splitmirror.mirrors.memory import MemoryMirror, MemoryVolume
from splitmirror.model import Filesystem, Finding, Folder, Leg, Run, Volume
from splitmirror.progress import Progress, silent
from splitmirror.testing import mirrors as contract
from splitmirror.testing.mirror_case import QUICK_S, ContractBroken, MirrorHarness
from splitmirror.testing.mirrors import CHECKS, Check

VOLUMES = (MemoryVolume(name="data", size="1MiB"), MemoryVolume(name="wal", size="1088KiB"))


def name_of(check: Check) -> str:
    return check.__name__


# --- the engines


@pytest.fixture(params=[False, True], ids=["whole", "scattered"])
def memory_harness(request: pytest.FixtureRequest, tmp_path: Path) -> MirrorHarness:
    settings = memory.Settings(volumes=VOLUMES, scattered=request.param)
    return MirrorHarness(open=lambda: memory.open_mirror(settings, tmp_path))


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_memory(check: Check, memory_harness: MirrorHarness) -> None:
    contract.run(check, memory_harness)


@pytest.fixture
def group_harness(tmp_path: Path) -> MirrorHarness:
    members = []
    for volume in VOLUMES:
        (tmp_path / volume.name).mkdir()
        members.append((memory.Settings(volumes=(volume,)), tmp_path / volume.name))

    def opened() -> Mirror:
        return group.GroupMirror([memory.open_mirror(*member) for member in members])

    return MirrorHarness(open=opened)


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_group(check: Check, group_harness: MirrorHarness) -> None:
    contract.run(check, group_harness)


@pytest.fixture(scope="module")
def qsd_harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MirrorHarness]:
    place = tmp_path_factory.mktemp("qsd")
    disks = tuple(
        qsd.Disk(name=n, primary=f"{place}/{n}.img", mirror=f"{place}/{n}.mir", size=size)
        for n, size in (("data", "16MiB"), ("wal", "8MiB"))
    )
    settings = qsd.Settings(dir=str(place / "qsd"), disks=disks)
    yield MirrorHarness(open=lambda: qsd.open_mirror(settings, place))
    qsd.open_mirror(settings, place).detach()


@pytest.mark.real
@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_qsd(check: Check, qsd_harness: MirrorHarness) -> None:
    contract.run(check, qsd_harness)


@pytest.fixture(scope="module", params=HOSTS)
def reflink_harness(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MirrorHarness]:
    place = tmp_path_factory.mktemp("reflink")
    sizes = {"data": 16 << 20, "wal": 8 << 20}
    with images_on(place, request.param, sizes, host_size=512 << 20) as images:
        yield MirrorHarness(open=lambda: reflink.open_mirror(images.settings, place))
        assert images.legs() == []


@pytest.mark.real
@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_reflink(check: Check, reflink_harness: MirrorHarness) -> None:
    contract.run(check, reflink_harness)


# --- an engine that copies files: what the checks write and read is one in each volume

BLOCKS = "blocks"
FILE_SIZE = 1 << 20


def write_to_file(volume: Volume, offset: int, data: bytes) -> None:
    (folder,) = volume.folders
    with Path(folder.path, BLOCKS).open("r+b") as file:
        file.seek(offset % FILE_SIZE)
        file.write(data)
        os.fsync(file.fileno())


def read_files(volumes: Sequence[Volume]) -> dict[str, bytes]:
    return _blocks({volume.name: volume.folders for volume in volumes})


def read_copies(leg: Leg) -> dict[str, bytes]:
    return _blocks(leg.folders)


def _blocks(folders: Mapping[str, Sequence[Folder]]) -> dict[str, bytes]:
    return {name: Path(each.path, BLOCKS).read_bytes() for name, (each,) in folders.items()}


@pytest.fixture(scope="module", params=HOSTS)
def directories_harness(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MirrorHarness]:
    with ExitStack() as stack:
        made = [
            stack.enter_context(
                directories_on(tmp_path_factory.mktemp(name), request.param, [name])
            )
            for name in ("data", "wal")
        ]
        for each in made:
            (each.path(each.directories[0].name) / BLOCKS).write_bytes(os.urandom(FILE_SIZE))
        named = tuple(directory for each in made for directory in each.directories)
        settings = directories.Settings(directories=named)
        yield MirrorHarness(
            open=lambda: directories.open_mirror(settings, made[0].base),
            write=write_to_file,
            read=read_files,
            read_leg=read_copies,
        )
        assert [each.legs() for each in made] == [[], []]


@pytest.mark.real
@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_directories(check: Check, directories_harness: MirrorHarness) -> None:
    contract.run(check, directories_harness)


def test_every_engine_passes_the_suite_here_or_in_the_guest() -> None:
    modules = {module.name for module in pkgutil.iter_modules(mirrors.__path__)}
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    guest = Path(__file__).parents[1] / "vm" / "inside"
    tested |= {path.stem.removeprefix("test_contract_") for path in guest.glob("test_contract_*")}
    assert modules <= tested, f"no contract test for {modules - tested}"


# --- mirrors that are broken on purpose, each in one way


class SameNames(MemoryMirror):
    def volumes(self) -> tuple[Volume, ...]:
        first, *_ = super().volumes()
        return (first, first)


class WrongSize(MemoryMirror):
    def volumes(self) -> tuple[Volume, ...]:
        return tuple(
            Volume(name=v.name, device=v.device, size=v.size - 4096) for v in super().volumes()
        )


class NeverLevel(MemoryMirror):
    def state(self) -> MirrorState:
        return MirrorState(attached=True, level=False, dirty_bytes=1, why="broken")


class ProgressGoesBack(MemoryMirror):
    def synchronize(self, progress: Progress) -> None:
        super().synchronize(lambda done, total: progress(total - done, total))


class HidesTheSplit(MemoryMirror):
    def state(self) -> MirrorState:
        return MirrorState(attached=True, level=True, dirty_bytes=0)


class PreflightSynchronizes(MemoryMirror):
    def preflight(self, filesystems: Sequence[Filesystem]) -> list[Finding]:
        if self.state().split_id is None:
            self.synchronize(silent)
        return []


class PreflightFindsFault(MemoryMirror):
    def preflight(self, filesystems: Sequence[Filesystem]) -> list[Finding]:
        return [Finding(what="weather", problem=MirrorError("rain", hint="Wait."))]


class PreflightIsSlow(MemoryMirror):
    def preflight(self, filesystems: Sequence[Filesystem]) -> list[Finding]:
        time.sleep(QUICK_S)
        return []


class LegFollowsThePrimary(MemoryMirror):
    def leg(self, split_id: str, deadline_s: float) -> Leg:
        super().leg(split_id, deadline_s)
        runs = {v.name: (Run(path=v.device, offset=0, length=v.size),) for v in self.volumes()}
        return Leg(split_id=split_id, volumes=runs)


class CopiesTooLate(MemoryMirror):
    """The leg is complete and still, but of the instant of `leg`, not of `split`."""

    def leg(self, split_id: str, deadline_s: float) -> Leg:
        leg = super().leg(split_id, deadline_s)
        mark = self._directory / split_id
        if not mark.exists():
            self._copy(silent)
            mark.touch()
        return leg


class StateCopies(MemoryMirror):
    def state(self) -> MirrorState:
        self._copy(silent)
        return super().state()


class ShortLeg(MemoryMirror):
    def leg(self, split_id: str, deadline_s: float) -> Leg:
        leg = super().leg(split_id, deadline_s)
        short = {n: (Run(path=r.path, offset=0, length=4096),) for n, (r,) in leg.volumes.items()}
        return Leg(split_id=split_id, volumes=short)


class AnotherLegEachTime(MemoryMirror):
    def leg(self, split_id: str, deadline_s: float) -> Leg:
        leg = super().leg(split_id, deadline_s)
        return Leg(split_id=f"{split_id}-{time.monotonic_ns()}", volumes=leg.volumes)


class SplitIsSlow(MemoryMirror):
    def split(self, split_id: str) -> None:
        super().split(split_id)
        time.sleep(QUICK_S)


class SecondSplitMakesANewLeg(MemoryMirror):
    def split(self, split_id: str) -> None:
        super().split(split_id)
        self._copy(silent)


class SecondSplitRaises(MemoryMirror):
    def split(self, split_id: str) -> None:
        if self.state().split_id is not None:
            raise MirrorError("split already", hint="Rejoin.")
        super().split(split_id)


class SplitsOverASplit(MemoryMirror):
    def split(self, split_id: str) -> None:
        self._save(memory._Known(level=True))
        super().split(split_id)


class SynchronizesWhileSplit(MemoryMirror):
    def synchronize(self, progress: Progress) -> None:
        self._copy(progress)
        self._save(memory._Known(level=True, split_id=self._known().split_id))


class RefusesWithoutAHint(MemoryMirror):
    def synchronize(self, progress: Progress) -> None:
        if self.state().split_id is not None:
            raise MirrorError("no")
        super().synchronize(progress)


class InventsLegs(MemoryMirror):
    def leg(self, split_id: str, deadline_s: float) -> Leg:
        known = self._known().split_id
        leg = super().leg(known, deadline_s) if known else Leg(split_id=split_id, volumes={})
        return Leg(split_id=split_id, volumes=leg.volumes)


class KeepsTheLegOfARejoinedSplit(MemoryMirror):
    def leg(self, split_id: str, deadline_s: float) -> Leg:
        if split_id == "never-made":
            raise LegError("no such split", hint="Back up again.")
        return Leg(split_id=split_id, volumes={})


class NotInstantAtAll(MemoryMirror):
    def leg(self, split_id: str, deadline_s: float) -> Leg:
        if deadline_s < 1:
            raise LegError("not complete yet", hint="Wait.")
        return super().leg(split_id, deadline_s)


class RejoinForgetsChanges(MemoryMirror):
    """Once rejoined, it takes what it has for level."""

    def _copy(self, progress: Progress) -> None:
        if not (self._directory / "rejoined").exists():
            super()._copy(progress)

    def rejoin(self, split_id: str) -> None:
        super().rejoin(split_id)
        (self._directory / "rejoined").touch()


class RejoinsAnything(MemoryMirror):
    def rejoin(self, split_id: str) -> None:
        super().rejoin(self._known().split_id or split_id)


class RejoinMustKnowTheSplit(MemoryMirror):
    def rejoin(self, split_id: str) -> None:
        if self._known().split_id != split_id:
            raise MirrorError("no such split", hint="Name another one.")
        super().rejoin(split_id)


class RemembersInThisProcessOnly(MemoryMirror):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._here = memory._Known()

    def _known(self) -> memory._Known:
        return self._here

    def _save(self, known: memory._Known) -> None:
        self._here = known


class CloseEndsTheSplit(MemoryMirror):
    def close(self) -> None:
        self._save(memory._Known(level=True))


class SplitsOneAfterTheOther(MemoryMirror):
    features = frozenset({Feature.GROUP_SPLIT, Feature.INSTANT_LEG})

    def _copy_volume(self, volume: Volume, progress: Progress, done: int, total: int) -> int:
        done = super()._copy_volume(volume, progress, done, total)
        time.sleep(0.05)  # so that the writer surely comes in between
        return done


class SplitsWhenPrepared(MemoryMirror):
    features = frozenset({Feature.PREPARES, Feature.INSTANT_LEG})

    def prepare_split(self, split_id: str) -> None:
        self.split(split_id)


class PreparedForOneOnly(MemoryMirror):
    """Once a split was prepared, no other one is made."""

    features = frozenset({Feature.PREPARES, Feature.INSTANT_LEG})

    def prepare_split(self, split_id: str) -> None:
        self._prepared = split_id

    def split(self, split_id: str) -> None:
        if getattr(self, "_prepared", split_id) != split_id:
            raise MirrorError("another split was prepared", hint="Make that one.")
        super().split(split_id)


class DetachedForEver(MemoryMirror):
    """Attachable, but a detached one goes on giving its volumes."""

    features = frozenset({Feature.ATTACHES})

    def attach(self) -> tuple[Volume, ...]:
        return self.volumes()

    def detach(self) -> None:
        """Forget to."""


class SuspendsWhatIsNoDevice(MemoryMirror):
    features = frozenset({Feature.SUSPENDS})

    def suspends(self) -> tuple[int, ...]:
        return (0,)


class ProvesASplitMirror(MemoryMirror):
    def prove(self, progress: Progress) -> int:
        return 0


class FindsDifferencesEverywhere(MemoryMirror):
    def prove(self, progress: Progress) -> int:
        return super().prove(progress) + 4096


class SeesNoScribble(MemoryMirror):
    def prove(self, progress: Progress) -> int:
        super().prove(progress)
        return 0


BROKEN: list[tuple[type[MemoryMirror], Check]] = [
    (SameNames, contract.volumes_have_names_of_their_own_and_their_true_size),
    (WrongSize, contract.volumes_have_names_of_their_own_and_their_true_size),
    (NeverLevel, contract.synchronize_makes_it_level),
    (ProgressGoesBack, contract.progress_never_goes_back_and_ends_complete),
    (HidesTheSplit, contract.state_names_the_split_until_it_is_rejoined),
    (PreflightSynchronizes, contract.preflight_is_quick_and_changes_nothing),
    (PreflightFindsFault, contract.preflight_is_quick_and_changes_nothing),
    (PreflightIsSlow, contract.preflight_is_quick_and_changes_nothing),
    (LegFollowsThePrimary, contract.the_leg_is_the_primary_at_the_split),
    (CopiesTooLate, contract.the_leg_is_the_primary_at_the_split),
    (LegFollowsThePrimary, contract.the_leg_holds_still_while_the_primary_goes_on),
    (StateCopies, contract.the_leg_holds_still_while_the_primary_goes_on),
    (ShortLeg, contract.the_legs_runs_cover_every_volume),
    (AnotherLegEachTime, contract.a_second_look_gives_the_same_leg),
    (SplitIsSlow, contract.a_split_is_quick),
    (SecondSplitMakesANewLeg, contract.the_same_split_again_changes_nothing),
    (SecondSplitRaises, contract.the_same_split_again_changes_nothing),
    (SplitsOverASplit, contract.another_split_is_refused_while_one_is_parted),
    (SynchronizesWhileSplit, contract.synchronize_is_refused_while_a_leg_is_parted),
    (RefusesWithoutAHint, contract.synchronize_is_refused_while_a_leg_is_parted),
    (InventsLegs, contract.a_leg_that_is_not_parted_is_refused),
    (KeepsTheLegOfARejoinedSplit, contract.a_leg_that_is_not_parted_is_refused),
    (NotInstantAtAll, contract.an_instant_leg_is_complete_at_once),
    (RejoinForgetsChanges, contract.the_next_leg_has_what_changed_while_split),
    (RejoinForgetsChanges, contract.a_split_that_was_not_waited_for_can_be_rejoined),
    (RejoinsAnything, contract.rejoin_of_another_split_leaves_this_one),
    (RejoinMustKnowTheSplit, contract.rejoin_of_another_split_leaves_this_one),
    (RejoinMustKnowTheSplit, contract.rejoin_twice_is_harmless),
    (RemembersInThisProcessOnly, contract.another_process_finds_the_split),
    (CloseEndsTheSplit, contract.the_mirror_goes_on_when_a_handle_is_closed),
    (SplitsOneAfterTheOther, contract.a_group_is_split_at_one_instant),
    (SplitsWhenPrepared, contract.a_prepared_split_is_of_the_instant_of_the_split),
    (SplitsWhenPrepared, contract.preparing_parts_nothing_and_binds_to_nothing),
    (PreparedForOneOnly, contract.preparing_parts_nothing_and_binds_to_nothing),
    (PreparedForOneOnly, contract.a_split_is_not_prepared_while_another_is_parted),
    (DetachedForEver, contract.attach_and_detach_can_be_repeated),
    (SuspendsWhatIsNoDevice, contract.what_a_split_suspends_is_told_and_goes_on),
    (ProvesASplitMirror, contract.a_level_mirror_is_proven_equal),
    (FindsDifferencesEverywhere, contract.a_level_mirror_is_proven_equal),
    (SeesNoScribble, contract.a_scribble_on_the_split_leg_is_found),
]


@pytest.mark.parametrize(
    ("broken", "check"), BROKEN, ids=[f"{b.__name__}-{c.__name__}" for b, c in BROKEN]
)
def test_a_broken_mirror_is_caught(
    broken: type[MemoryMirror], check: Check, tmp_path: Path
) -> None:
    def opened() -> Mirror:
        return broken(memory.Settings(volumes=VOLUMES), tmp_path)

    with pytest.raises(ContractBroken):
        contract.run(check, MirrorHarness(open=opened))


def test_every_check_has_been_seen_to_fail() -> None:
    assert {check for _, check in BROKEN} == set(CHECKS)


def test_a_deadline_is_no_mirror_error() -> None:
    """Else `_refused` would take a hang for a refusal."""
    assert not issubclass(DeadlineExceeded, MirrorError)
