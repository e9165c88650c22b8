"""What makes an md array unfit to be split, or worth a word. Sources: md(4), mdadm(8)."""

from __future__ import annotations

from collections.abc import Iterator

from splitmirror.errors import MirrorNotReady, SplitmirrorError, UnsafeMirror
from splitmirror.model import Finding
from splitmirror.system.md import Array, Member
from splitmirror.units import show_size

_METADATA = ("1.1", "1.2")


def check_kind(array: Array) -> None:
    """raid1 whose members show nothing of what they hold, with a bitmap. Raises UnsafeMirror,
    MirrorNotReady for an array that does not run."""
    if not array.active:
        raise MirrorNotReady(
            f"{array.path} does not run",
            hint=f"See why with `mdadm --detail {array.path}`; `mdadm --run {array.path}` starts "
            "it with the members that it has.",
        )
    if array.level != "raid1":
        raise UnsafeMirror(
            f"{array.path} is {array.level or 'of no level'}: a member of it holds no whole copy",
            hint="Only raid1 can be split.",
        )
    if array.metadata not in _METADATA:
        raise UnsafeMirror(
            f"{array.path} has metadata {array.metadata}: the data begin where a member begins, so "
            "that the whole host would see a parted leg as a second filesystem or physical volume "
            "of the same name",
            hint="Make the array anew with --metadata=1.2 and copy the data over.",
        )
    if array.bitmap != "internal":
        kept = "no bitmap" if array.bitmap == "none" else f"its bitmap in {array.bitmap}"
        raise UnsafeMirror(
            f"{array.path} has {kept}: after a split everything would be copied anew, with no "
            "second copy meanwhile",
            hint=f"Give it one: mdadm --grow --bitmap=internal {array.path}"
            + (" (--bitmap=none first)" if array.bitmap != "none" else ""),
        )


def check_leg(array: Array, leg: Member) -> None:
    """What the array says it has written is on that member, everywhere. Raises UnsafeMirror."""
    if leg.bad_blocks:
        raise UnsafeMirror(
            f"{leg.path} of {array.path} has bad blocks: the leg would have holes",
            hint="Replace that disk (mdadm --examine-badblocks shows them), or choose another leg.",
        )
    if array.write_behind and "write_mostly" in leg.state:
        raise UnsafeMirror(
            f"{array.path} writes to {leg.path} behind: what it says it has written may not be on "
            "the leg yet",
            hint=f"Turn that off: echo 0 > {array.sysfs}/bitmap/backlog; or choose another leg.",
        )


def why_not_level(array: Array, *, allow_degraded: bool) -> str:
    """Why the array is not fit to be split now, in words; empty when it is."""
    if not array.active:
        return f"{array.path} does not run"
    if array.syncing:
        share = f": {100 * array.done // array.total} %" if array.total else ""
        return f"{array.path} is copying to a member{share}"
    if len(array.in_sync) < 2:
        return f"{array.path} is degraded: it has one copy only"
    if array.missing and not allow_degraded:
        return f"{array.path} is degraded: {len(array.in_sync)} of {array.disks} mirrors"
    return ""


def not_level(array: Array, why: str) -> MirrorNotReady:
    """The error for `why_not_level`."""
    if array.syncing:
        hint = "Wait for it: /proc/mdstat shows how far it is."
    elif len(array.in_sync) < 2:
        hint = f"Give it a second disk: mdadm {array.path} --add DEVICE"
    else:
        hint = (
            f"Give it the missing disk: mdadm {array.path} --add DEVICE; or set allow_degraded in "
            "[mirror] to split it nevertheless."
        )
    return MirrorNotReady(why, hint=hint)


def findings(array: Array, leg: Member | None, *, allow_degraded: bool) -> Iterator[Finding]:
    """Everything that there is to say of an array before a split."""
    what = f"array {array.path}"
    try:
        check_kind(array)
        if leg is not None:
            check_leg(array, leg)
    except SplitmirrorError as problem:
        yield Finding(what=what, problem=problem)
        return
    if why := why_not_level(array, allow_degraded=allow_degraded):
        # a copy that is going on is waited for
        yield Finding(what=what, problem=not_level(array, why), warning=array.syncing)
    else:
        yield Finding(what=f"{what}: raid1, {len(array.in_sync)} of {array.disks} mirrors in sync")
    yield _redundancy(array)
    yield Finding(
        what=f"bitmap of {array.path}: after a split {show_size(array.chunk)} are copied for each "
        "place that was written to"
    )


def _redundancy(array: Array) -> Finding:
    left = len(array.in_sync) - 1
    what = f"redundancy of {array.path} while split"
    if left >= 2:
        return Finding(what=f"{what}: {left} copies go on")
    problem = MirrorNotReady(
        f"while a leg of {array.path} is split, its data lie on one disk only",
        hint=f"A third mirror keeps them safe: mdadm {array.path} --grow --raid-devices=3 "
        "--add DEVICE",
    )
    return Finding(what=what, problem=problem, warning=True)
