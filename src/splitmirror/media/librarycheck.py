"""What would keep a library from bringing volumes, found beforehand. Nothing is moved."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from splitmirror.errors import ChangerError, NoSuchVolume
from splitmirror.media.changer import Slot, SlotKind, free_slot, holding, of_kind, serial_of
from splitmirror.media.library import Library
from splitmirror.model import Finding


def examine(
    library: Library, volumes: Collection[str], taken: Collection[str] | None = None
) -> Iterator[Finding]:
    """Of a library with a changer. One at least of `volumes` (serials) must be in it. With `taken`
    (the serials that the catalogue knows) a cartridge of another serial, which may be blank, will
    do. Raises ChangerError."""
    slots = library.inventory()
    full = sum(slot.full for slot in slots)
    storage, doors = (len(of_kind(slots, kind)) for kind in (SlotKind.STORAGE, SlotKind.DOOR))
    yield Finding(
        what=f"changer: {storage} storage and {doors} import/export slots, {full} cartridges"
    )
    yield from _drives(library, slots)
    yield from _troubles(slots)
    yield _volumes(slots, volumes, taken)


def _drives(library: Library, slots: Sequence[Slot]) -> Iterator[Finding]:
    there = {slot.address: slot for slot in slots}
    for bay in library.bays:
        assert bay.address is not None
        slot = there[bay.address]
        user = library.user_of(bay)
        known = f" ({slot.device})" if slot.device not in ("", bay.name) else ""
        used = f", {user} uses it" if user is not None else ""
        yield Finding(what=f"drive {bay.name}: the changer's {bay.address}{known}{used}")
        if slot.full and not slot.cleaning and free_slot(slots, SlotKind.STORAGE) is None:
            problem = ChangerError(
                f"there is no free storage slot for {slot.cartridge}, which is in {bay.name}",
                hint="Take a cartridge out: `splitmirror media eject VOLUME`.",
            )
            yield Finding(what=f"drive {bay.name}", problem=problem, warning=True)


def _troubles(slots: Sequence[Slot]) -> Iterator[Finding]:
    unread = [str(slot.address) for slot in slots if slot.full and not slot.barcode]
    if unread:
        problem = ChangerError(
            f"no barcode can be read in slot {', '.join(unread)}",
            hint="Put a readable barcode on it: volumes are found by theirs.",
        )
        yield Finding(what="barcodes", problem=problem, warning=True)
    for slot in slots:
        if slot.trouble:
            problem = ChangerError(
                f"the changer says of slot {slot.address}: {slot.trouble}",
                hint="Look at the library's panel.",
            )
            yield Finding(what=f"slot {slot.address}", problem=problem, warning=True)


def _volumes(
    slots: Sequence[Slot], volumes: Collection[str], taken: Collection[str] | None
) -> Finding:
    what = f"volume {' or '.join(sorted(volumes))}" if volumes else "a blank volume"
    found = [slot for serial in volumes if (slot := holding(slots, serial)) is not None]
    if not found and taken is not None:
        found = [slot for slot in slots if _may_be_blank(slot, taken)]
    if found:
        where = ", ".join(f"{slot.barcode} in {slot.kind} slot {slot.address}" for slot in found)
        return Finding(what=f"{what}: {where}")
    if any(slot.full for slot in slots) and not any(slot.barcode for slot in slots):
        return Finding(what=f"{what}: looked for by labels, for the changer reads no barcodes")
    problem = NoSuchVolume(
        f"{what} is not in the library",
        hint="Lay it into an import/export slot and run `splitmirror media import`.",
    )
    return Finding(what=what, problem=problem)


def _may_be_blank(slot: Slot, taken: Collection[str]) -> bool:
    serial = serial_of(slot.barcode)
    return slot.full and not slot.cleaning and bool(serial) and serial not in taken
