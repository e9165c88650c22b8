"""What every mirror engine must do, as checks that an engine's own tests run.

A test file declares its engine as a `MirrorHarness` and runs each of `CHECKS` on it:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(check, harness):
        run(check, harness)

Each check says in its name what holds, begins with an attached, level mirror and leaves an
attached one without a split. Volumes of 1 MiB or more, two of them at least, or the checks of
groups see nothing. What does not hold is a ContractBroken. The suite shows on mirrors that are
broken on purpose that each check can fail (tests/contract/test_mirrors.py).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from splitmirror.errors import MirrorError, MirrorNotReady
from splitmirror.mirrors import Attachable, Feature, Mirror, Preparing, Proving, Suspending
from splitmirror.model import Volume
from splitmirror.progress import silent
from splitmirror.testing.mirror_case import (
    LEG_DEADLINE_S,
    Case,
    MirrorHarness,
    PairWriter,
    claim,
    harmless,
    number_in,
    refused,
    write_through_device,
)

_ROUNDS = 3  # of the race between a writer and the split of a group
_HEAD_START = 20  # pairs that the writer has written before the split


Check = Callable[["Case"], None]
_checks: list[Check] = []


def _contract(check: Check) -> Check:
    _checks.append(check)
    return check


def run(check: Check, harness: MirrorHarness) -> None:
    """Run one check; what it left split is rejoined."""
    mirror = harness.open()
    try:
        if isinstance(mirror, Attachable):
            mirror.attach()
        mirror.synchronize(silent)
        check(Case(mirror=mirror, harness=harness))
    finally:
        _tidy(mirror)


def _tidy(mirror: Mirror) -> None:
    # A broken engine may fail here as well; what its check found counts.
    with contextlib.suppress(MirrorError):
        split_id = mirror.state().split_id
        if split_id is not None:
            mirror.rejoin(split_id)
    mirror.close()


# --- volumes and state


@_contract
def volumes_have_names_of_their_own_and_their_true_size(case: Case) -> None:
    volumes = case.volumes()
    claim(bool(volumes), "there is no volume")
    claim(len({v.name for v in volumes}) == len(volumes), "two volumes have the same name")
    for volume in volumes:
        fd = os.open(volume.device, os.O_RDONLY | os.O_CLOEXEC)
        size = os.lseek(fd, 0, os.SEEK_END)
        os.close(fd)
        claim(size == volume.size, f"{volume.name} says {volume.size} bytes, has {size}")


@_contract
def synchronize_makes_it_level(case: Case) -> None:
    case.scribble()
    case.mirror.synchronize(silent)
    state = case.mirror.state()
    claim(state.attached, "an attached mirror says that it is not")
    claim(state.level, f"not level after synchronize: {state.why}")
    claim(state.split_id is None, "a mirror that was never split says that it is")
    case.mirror.synchronize(silent)
    claim(case.mirror.state().level, "not level after a second synchronize")


@_contract
def progress_never_goes_back_and_ends_complete(case: Case) -> None:
    case.scribble()
    told: list[tuple[int, int]] = []
    case.mirror.synchronize(lambda done, total: told.append((done, total)))
    done = [step[0] for step in told]
    claim(done == sorted(done), f"progress goes back: {done}")
    claim(all(d <= t for d, t in told if t), f"more than all is done: {told}")
    claim(not told or told[-1][0] == told[-1][1], f"progress ends at {told[-1:]}")


@_contract
def state_names_the_split_until_it_is_rejoined(case: Case) -> None:
    split_id = case.split()
    claim(case.mirror.state().split_id == split_id, "the state does not name the split")
    case.leg(split_id)
    claim(case.mirror.state().split_id == split_id, "the state forgets the split with its leg")
    case.mirror.rejoin(split_id)
    claim(case.mirror.state().split_id is None, "the state names a split that was rejoined")


@_contract
def preflight_is_quick_and_changes_nothing(case: Case) -> None:
    case.scribble()
    before = case.mirror.state()
    began = time.monotonic()
    findings = case.mirror.preflight([])
    seconds = time.monotonic() - began
    problems = [f.problem for f in findings if f.problem is not None and not f.warning]
    claim(not problems, f"preflight finds fault with a healthy mirror: {problems}")
    claim(seconds < case.harness.quick_s, f"preflight took {seconds:.2f} s")
    claim(case.mirror.state() == before, "preflight changed the mirror")


# --- split and leg


@_contract
def the_leg_is_the_primary_at_the_split(case: Case) -> None:
    case.scribble()
    expected = case.primary()
    split_id = case.split()
    case.scribble()  # before the copies, if there are any, are done
    claim(case.leg(split_id) == expected, "the leg is not the primary as it was at the split")


@_contract
def the_leg_holds_still_while_the_primary_goes_on(case: Case) -> None:
    split_id = case.split()
    before = case.leg(split_id)
    case.scribble()
    case.mirror.state()
    case.mirror.preflight([])
    case.scribble()
    claim(case.leg(split_id) == before, "the leg changes after the split")


@_contract
def the_legs_runs_cover_every_volume(case: Case) -> None:
    leg = case.mirror.leg(case.split(), LEG_DEADLINE_S)
    lengths = {name: sum(run.length for run in runs) for name, runs in leg.volumes.items()}
    sizes = {volume.name: volume.size for volume in case.volumes()}
    claim(lengths == sizes, f"the runs have {lengths} bytes, the volumes {sizes}")


@_contract
def a_second_look_gives_the_same_leg(case: Case) -> None:
    split_id = case.split()
    first = case.mirror.leg(split_id, LEG_DEADLINE_S)
    second = case.mirror.leg(split_id, LEG_DEADLINE_S)
    claim(first == second, "asked twice, the leg is another one")


@_contract
def a_split_is_quick(case: Case) -> None:
    began = time.monotonic()
    case.split()
    seconds = time.monotonic() - began
    claim(
        seconds < case.harness.quick_s, f"the split took {seconds:.2f} s, and writers wait for it"
    )


@_contract
def the_same_split_again_changes_nothing(case: Case) -> None:
    split_id = case.split()
    before = case.leg(split_id)
    case.scribble()
    with harmless("the same split again"):
        case.mirror.split(split_id)
    claim(case.leg(split_id) == before, "the same split again made another leg")


@_contract
def another_split_is_refused_while_one_is_parted(case: Case) -> None:
    split_id = case.split()
    before = case.leg(split_id)
    case.scribble()
    with refused("another split"):
        case.split()
    claim(case.leg(split_id) == before, "a refused split changed the leg")


@_contract
def synchronize_is_refused_while_a_leg_is_parted(case: Case) -> None:
    split_id = case.split()
    before = case.leg(split_id)
    case.scribble()
    with refused("synchronize while split"):
        case.mirror.synchronize(silent)
    claim(case.leg(split_id) == before, "a refused synchronize changed the leg")


@_contract
def a_leg_that_is_not_parted_is_refused(case: Case) -> None:
    with refused("the leg of a split that was never made"):
        case.mirror.leg("never-made", LEG_DEADLINE_S)
    split_id = case.split()
    case.mirror.rejoin(split_id)
    with refused("the leg of a split that was rejoined"):
        case.mirror.leg(split_id, LEG_DEADLINE_S)


@_contract
def an_instant_leg_is_complete_at_once(case: Case) -> None:
    if Feature.INSTANT_LEG not in case.mirror.features:
        return
    split_id = case.split()
    with harmless("asking an engine with INSTANT_LEG for its leg at once"):
        case.mirror.leg(split_id, 0.0)


# --- a split that is prepared


def _prepare(case: Case) -> str | None:
    """Prepare a split under a new id; None for an engine that has nothing to prepare."""
    if Feature.PREPARES not in case.mirror.features:
        return None
    split_id = f"check-{secrets.token_hex(4)}"
    cast(Preparing, case.mirror).prepare_split(split_id)
    return split_id


@_contract
def a_prepared_split_is_of_the_instant_of_the_split(case: Case) -> None:
    if (split_id := _prepare(case)) is None:
        return
    case.scribble()
    expected = case.primary()
    case.mirror.split(split_id)
    case.scribble()
    claim(case.leg(split_id) == expected, "the leg is not of the split but of its preparation")


@_contract
def preparing_parts_nothing_and_binds_to_nothing(case: Case) -> None:
    if (split_id := _prepare(case)) is None:
        return
    claim(case.mirror.state().split_id is None, "preparing a split has split the mirror")
    with harmless("to prepare a split twice"):
        cast(Preparing, case.mirror).prepare_split(split_id)
    with harmless("to rejoin a split that was only prepared"):
        case.mirror.rejoin(split_id)
    with harmless("to synchronize after a split was prepared"):
        case.mirror.synchronize(silent)
    expected = case.primary()
    with harmless("another split than the one that was prepared"):
        other = case.split()
    claim(case.leg(other) == expected, "a split that was prepared spoils another one")


@_contract
def a_split_is_not_prepared_while_another_is_parted(case: Case) -> None:
    if Feature.PREPARES not in case.mirror.features:
        return
    case.split()
    with refused("to prepare a split while another one is parted"):
        _prepare(case)


# --- rejoin


@_contract
def the_next_leg_has_what_changed_while_split(case: Case) -> None:
    first = case.split()
    case.leg(first)
    case.scribble()
    case.mirror.rejoin(first)
    expected = case.primary()
    claim(case.leg(case.split()) == expected, "changes made while split are lost to the next leg")


@_contract
def a_split_that_was_not_waited_for_can_be_rejoined(case: Case) -> None:
    case.scribble()
    case.mirror.rejoin(case.split())
    case.scribble()
    case.mirror.synchronize(silent)
    expected = case.primary()
    claim(case.leg(case.split()) == expected, "a split that was given up spoils the next leg")


@_contract
def rejoin_of_another_split_leaves_this_one(case: Case) -> None:
    with harmless("a rejoin of a split that was never made"):
        case.mirror.rejoin("never-made")
    split_id = case.split()
    before = case.leg(split_id)
    case.scribble()
    with harmless("a rejoin of another split"):
        case.mirror.rejoin("never-made")
    claim(case.mirror.state().split_id == split_id, "a rejoin of another split ended this one")
    claim(case.leg(split_id) == before, "a rejoin of another split changed the leg")


@_contract
def rejoin_twice_is_harmless(case: Case) -> None:
    split_id = case.split()
    case.mirror.rejoin(split_id)
    with harmless("a second rejoin"):
        case.mirror.rejoin(split_id)
    case.mirror.synchronize(silent)
    claim(case.mirror.state().level, "not level after a second rejoin")


# --- other processes


@_contract
def another_process_finds_the_split(case: Case) -> None:
    split_id = case.split()
    other = case.harness.open()
    try:
        found = other.state().split_id
        claim(found == split_id, f"another handle sees the split {found}, not {split_id}")
        leg = case.harness.read_leg(other.leg(split_id, LEG_DEADLINE_S))
        claim(leg == case.leg(split_id), "another handle sees another leg")
        other.rejoin(split_id)
    finally:
        other.close()
    claim(case.mirror.state().split_id is None, "a rejoin through another handle is not seen")


@_contract
def the_mirror_goes_on_when_a_handle_is_closed(case: Case) -> None:
    other = case.harness.open()
    other.split("by-another")
    before = case.harness.read_leg(other.leg("by-another", LEG_DEADLINE_S))
    other.close()
    state = case.mirror.state()
    claim(state.attached, "closing a handle detached the mirror")
    claim(state.split_id == "by-another", "closing a handle ended its split")
    case.scribble()
    claim(case.leg("by-another") == before, "closing a handle changed the leg")


# --- features


@_contract
def a_group_is_split_at_one_instant(case: Case) -> None:
    if Feature.GROUP_SPLIT not in case.mirror.features or len(case.volumes()) < 2:
        return
    for _ in range(_ROUNDS):
        with PairWriter(case) as writer:
            writer.wait_for(_HEAD_START)
            split_id = case.split()
            writer.wait_for(_HEAD_START)
        leg = case.leg(split_id)
        case.mirror.rejoin(split_id)
        first, second = (number_in(leg[volume.name]) for volume in case.volumes()[:2])
        # Each number is written to the first volume, then to the second.
        claim(
            second <= first <= second + 1,
            f"the legs are of different instants: {first} on the first, {second} on the second",
        )


@_contract
def attach_and_detach_can_be_repeated(case: Case) -> None:
    mirror = case.mirror
    if Feature.ATTACHES not in mirror.features or not isinstance(mirror, Attachable):
        return
    volumes = mirror.volumes()
    claim(mirror.attach() == volumes, "a second attach gives other volumes")
    for what in ("detach", "a second detach"):
        with harmless(what):
            mirror.detach()
    claim(not mirror.state().attached, "a detached mirror says that it is attached")
    with refused("asking a detached mirror for its volumes", MirrorNotReady):
        mirror.volumes()
    again = {(volume.name, volume.size) for volume in mirror.attach()}
    claim(again == {(v.name, v.size) for v in volumes}, "attached again, it has other volumes")
    mirror.synchronize(silent)
    claim(mirror.state().level, "attached again, it does not become level")


@_contract
def what_a_split_suspends_is_told_and_goes_on(case: Case) -> None:
    if Feature.SUSPENDS not in case.mirror.features:
        return
    devices = cast(Suspending, case.mirror).suspends()
    claim(
        all(_suspended(devno) is not None for devno in devices),
        f"not all of {devices} are device-mapper devices",
    )
    case.split()
    left = [devno for devno in devices if _suspended(devno)]
    claim(not left, f"the split is over, and {left} are still suspended")


def _suspended(devno: int) -> bool | None:
    """Whether a device-mapper device is suspended (sysfs); None when it is no such device."""
    sysfs = Path(f"/sys/dev/block/{os.major(devno)}:{os.minor(devno)}/dm/suspended")
    try:
        return sysfs.read_text().strip() == "1"
    except FileNotFoundError:
        return None


@_contract
def a_level_mirror_is_proven_equal(case: Case) -> None:
    if Feature.PROVES not in case.mirror.features:
        return
    split_id = case.split()
    with refused("to prove a mirror whose leg is split"):
        cast(Proving, case.mirror).prove(silent)
    case.scribble()
    case.mirror.rejoin(split_id)
    case.mirror.synchronize(silent)
    differing = cast(Proving, case.mirror).prove(silent)
    claim(differing == 0, f"{differing} bytes of a level mirror are said to differ")


@_contract
def a_scribble_on_the_split_leg_is_found(case: Case) -> None:
    if Feature.PROVES not in case.mirror.features:
        return
    split_id = case.split()
    leg = case.mirror.leg(split_id, LEG_DEADLINE_S)
    volume = case.volumes()[0]
    where = volume.size // 4 // 4096 * 4096  # where nothing else is written while split
    (run,) = leg.locate(volume.name, where, 4096)
    write_through_device(Volume(name="", device=run.path, size=0), run.offset, os.urandom(4096))
    case.mirror.rejoin(split_id)
    found = cast(Proving, case.mirror).prove(silent)
    case.harness.write(volume, where, bytes(4096))  # goes to both, so they are equal again
    case.mirror.synchronize(silent)
    claim(found >= 4096, f"4096 bytes were changed on the leg, {found} are said to differ")


CHECKS: tuple[Check, ...] = tuple(_checks)
