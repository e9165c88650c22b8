"""The legs of a split of md arrays: which members they are, where they are now, whether they still
are what was parted. Sources: md(4), mdadm(8); docs/adr/0015 says what takes a member back unasked.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from splitmirror.errors import Busy, LegError, MirrorError, MirrorNotReady, UnsafeMirror
from splitmirror.system import blockdev, dmlinear, md, mdadm, mdsuper
from splitmirror.system.md import Array, Member
from splitmirror.system.mdrecord import Marks, MarksFile, Parted, Piece, Split
from splitmirror.system.openers import openers

_REMOVE_S = 10.0  # md lets a failed member go within milliseconds, unless its disk hangs
_BEGIN_S = 10.0  # a copy to a member that came back begins within as much
_POLL_S = 0.1


def parted_of(array: Array, leg: Member) -> Parted:
    """That member as a leg. Raises MirrorNotReady."""
    carried = mdsuper.superblock(leg.path)
    if carried is None or not leg.device:
        raise MirrorNotReady(f"{leg.path} has no superblock", hint="See the kernel log.")
    return Parted(
        array=array.uuid,
        array_path=array.path,
        device=leg.device,
        path=leg.path,
        data_offset=leg.data_offset,
        size=array.size,
        others=tuple(member.device for member in array.in_sync if member != leg),
        events=carried.events,
    )


def pieces(arrays: Mapping[str, Array]) -> dict[str, tuple[Piece, ...]]:
    """What each volume consists of."""
    uuids = {array.devno: array.uuid for array in arrays.values()}
    found: dict[str, tuple[Piece, ...]] = {
        name: (Piece(array=array.uuid, offset=0, length=array.size),)
        for name, array in arrays.items()
    }
    for lv in dmlinear.scattered(uuids):
        found[lv.name] = tuple(
            Piece(array=uuids[piece.below], offset=piece.offset, length=piece.length)
            for piece in lv.pieces
        )
    return found


def events(legs: Sequence[Parted]) -> dict[str, int]:
    """The count of events on each leg, by its device. Raises LegError."""
    found = {}
    for leg in legs:
        try:
            carried = mdsuper.superblock(leg.path)
        except OSError as error:
            raise _vanished(leg, error.strerror or "") from None
        if carried is None or carried.device_uuid != leg.device:
            raise _vanished(leg, "it has another superblock")
        found[leg.device] = carried.events
    return found


def is_in(leg: Parted, arrays: Iterable[Array], *, was_parted: bool) -> bool:
    """Whether a leg is a working member, or becomes one: beside its primary, if it `was_parted`;
    else it may be the only copy that is left."""
    array = array_of(leg, arrays)
    member = array.member(leg.device)
    if member is None or "faulty" in member.state:
        return False
    if was_parted and not _with_primary(leg, array):
        return False
    return not _only_held(array, member)


def _with_primary(leg: Parted, array: Array) -> bool:
    """Not so: the array was put together from the leg alone, at boot or by hand."""
    return any(member.device in leg.others for member in array.members)


def _only_held(array: Array, member: Member) -> bool:
    """At boot a parted leg is put beside its array as a spare, and copied to from the array's first
    write on; until then it is untouched."""
    return member.slot is None and member.joining and array.state == "read-auto"


def array_of(leg: Parted, arrays: Iterable[Array]) -> Array:
    """The array that a leg belongs to. Raises MirrorNotReady."""
    for array in arrays:
        if array.uuid == leg.array:
            return array
    raise MirrorNotReady(
        f"the array of the leg {leg.path}, {leg.array_path}, is not there",
        hint="Assemble it: mdadm --assemble --scan. `cat /proc/mdstat` shows what there is.",
    )


def taken_out(leg: Parted, split_id: str) -> str:
    """The path of a leg, by whatever name it goes now, when no array holds it any more. What still
    holds it and has not written to it lets it go. Raises LegError."""
    path = md.device_of(leg.array, leg.device, leg.path)
    if path is None:
        raise _vanished(leg, "no device has its superblock", split_id)
    if (held := md.holding(path)) is None:
        return path
    array, member = held
    primary = _with_primary(leg, array)
    if primary and ("faulty" in member.state or _only_held(array, member)):
        md.remove(array, member, _REMOVE_S)
    elif not primary and array.state in ("inactive", "read-auto", "readonly"):
        md.stop(array)
    else:
        raise _lost(split_id, f"{path} is in {array.path} again")
    return path


def check_unused(leg: Parted) -> None:
    """Raise Busy while somebody reads the leg: it would change under them."""
    path = md.device_of(leg.array, leg.device, leg.path)
    if path is not None and (found := openers(Path(path), patient=True)):
        raise Busy(
            f"the leg {path} is in use: {', '.join(found)}",
            hint="Unmount it, detach its loop device, or end that process.",
        )


def give_back(leg: Parted, array: Array) -> bool:
    """Have its array take a leg back. False: it is copied in full, for its bitmap does not serve.
    Raises LegError when it is gone, UnsafeMirror when the array goes on without its primary."""
    if not _with_primary(leg, array):
        raise UnsafeMirror(
            f"{array.path} runs without the disks that it had when it was split",
            hint="It may have been assembled from the leg alone: see `mdadm --detail "
            f"{array.path}`, stop it, and assemble it from its other disks.",
        )
    path = taken_out(leg, "that ended")
    if mdadm.re_add(array.path, path):
        return True
    mdadm.add(array.path, path)
    return False


def wait_copied(leg: Parted, array: Array) -> None:
    """Wait until what a leg lacked is copied to it. Raises MirrorError when that ends otherwise."""
    until = time.monotonic() + _BEGIN_S
    while not ((member := array.member(leg.device)) and member.in_sync):
        joins = member is not None and member.joining and time.monotonic() < until
        if not (array.syncing or joins):
            raise MirrorError(
                f"{array.path} does not copy to the leg {leg.path} that was given back to it",
                hint="Did its disk fail? See /proc/mdstat and the kernel log.",
            )
        md.go_on(array)
        time.sleep(_POLL_S)
        array = md.array(array.path)


def flush(path: str, split_id: str) -> None:
    """What is cached of the device may be older than what md wrote below. Raises LegError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _lost(split_id, f"{path} cannot be opened: {error.strerror}") from None
    try:
        blockdev.flush_buffers(fd)
    finally:
        os.close(fd)


def check_untouched(split: Split, paths: Mapping[str, str], file: MarksFile) -> None:
    """Nothing has written to the leg since the split: its superblock is the one it had then.
    The first time the exact marks are made durable."""
    marks = file.read()
    now = events(tuple(dataclasses.replace(leg, path=paths[leg.array]) for leg in split.legs))
    if marks is None or marks.split_id != split.split_id:
        raise _lost(split.split_id, "what it carried at the split is not known any more")
    slack = 0 if marks.exact else 1
    for leg in split.legs:
        then = marks.events.get(leg.device)
        if then is None or abs(now[leg.device] - then) > slack:
            raise _lost(
                split.split_id,
                f"{paths[leg.array]} was in an array again since (events {now[leg.device]}, "
                f"then {then})",
            )
    if not marks.exact:
        file.save(Marks(split_id=split.split_id, events=now, exact=True))


# --- errors


def _lost(split_id: str, why: str) -> LegError:
    return LegError(
        f"the leg of split {split_id} is not what was split: {why}",
        hint="Back up again; the primary is unharmed.",
        split_id=split_id,
    )


def _vanished(leg: Parted, why: str, split_id: str = "") -> LegError:
    return LegError(
        f"the leg {leg.path} of {leg.array_path} has vanished: {why}",
        hint="See the kernel log. The primary goes on; give the array another disk with "
        f"`mdadm {leg.array_path} --add DEVICE`, then back up again.",
        split_id=split_id,
    )
