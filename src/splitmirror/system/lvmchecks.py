"""What a raid1 volume of LVM must be so that a leg of it can be split, and what to say where it is
not. Sources: lvmraid(7), lvconvert(8), lvchange(8).
"""

from __future__ import annotations

from collections.abc import Sequence

from splitmirror.errors import MirrorError, MirrorNotReady
from splitmirror.model import Finding
from splitmirror.system import dmraid
from splitmirror.system.dmraid import ArrayStatus
from splitmirror.system.lvm import Image, RaidVolume

FOREIGN = "made-without-splitmirror"  # the id of a split that stands in no record of ours


def leg_of(volume: RaidVolume, state: ArrayStatus, wanted: int | None) -> Image:
    """The image that is split: the one that is wanted, or the last one that is in sync."""
    good = [image for image in volume.images if state.health[image.position] == dmraid.IN_SYNC]
    chosen = [image for image in good if wanted is None or image.position == wanted]
    if len(good) < 2 or not chosen:
        which = f"leg {wanted}" if wanted is not None else "a leg"
        raise MirrorNotReady(
            f"{volume.name} has no {which} to split: its legs are {state.health}",
            hint="`lvs -a -o+devices` shows them; `splitmirror resync` puts back what it can.",
        )
    return chosen[-1]


def redundancy(volume: RaidVolume, state: ArrayStatus) -> Finding:
    """What is left of it while a leg is split."""
    stay = state.health.count(dmraid.IN_SYNC) - 1
    what = f"redundancy of {volume.name} while it is split"
    if stay > 1:
        return Finding(what=f"{what}: {stay} legs stay in the mirror")
    problem = MirrorError(
        f"{volume.name} has no redundancy while its leg is split",
        hint=f"A third leg keeps it: lvconvert -m2 {volume.name} PV",
    )
    return Finding(what=what, problem=problem, warning=True)


def why_not_level(volume: RaidVolume, state: ArrayStatus) -> str:
    share = f", {state.action} {100 * state.done // max(1, state.total)} %"
    return f"{volume.name} is not level: legs {state.health}" + share


def refuse_split_off(volume: RaidVolume) -> None:
    for image in volume.images:
        if image.tracked:
            raise MirrorError(
                f"{image.name} is split from {volume.name}, not by splitmirror",
                hint="If nobody needs it any more, `splitmirror resync` or "
                f"`lvconvert --merge {image.name}` gives it back.",
                split_id=FOREIGN,
            )


def disk_missing(volume: RaidVolume, image: Image) -> MirrorNotReady:
    group = volume.name.partition("/")[0]
    return MirrorNotReady(
        f"{volume.name} is degraded: the disk below {image.name} is missing",
        hint=f"If it comes back: vgextend --restoremissing {group} PV, then `splitmirror resync`. "
        f"If not: lvconvert --repair {volume.name}. To back up all the same from a mirror of three "
        "legs: allow_degraded = true.",
    )


def stalled(found: Sequence[RaidVolume], states: Sequence[ArrayStatus]) -> MirrorError:
    pairs = zip(found, states, strict=True)
    told = [why_not_level(volume, state) for volume, state in pairs if not state.level]
    return MirrorError(
        f"the resynchronization does not go on: {'; '.join(told)}",
        hint="Look at dmesg and `lvs -a -o+raid_sync_action`; `lvchange --syncaction repair` or "
        "`lvconvert --repair` may be needed.",
    )
