"""The `media` commands for drives and the changer: what is where, into a drive and out of it, to
the door and from it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from splitmirror import config
from splitmirror.cli.options import DEFAULT, ConfigPath, Json
from splitmirror.cli.output import plain, print_json
from splitmirror.cli.show import print_table
from splitmirror.errors import ChangerError, WrongMedium
from splitmirror.media.changer import Slot, SlotKind
from splitmirror.media.library import Bay, Library

Volume = Annotated[
    str, typer.Argument(help="A volume's serial, a cartridge's barcode, or a slot's address.")
]
MaybeVolume = Annotated[
    str | None,
    typer.Argument(help="A volume's serial, a cartridge's barcode, or a slot's address."),
]
Drive = Annotated[
    str | None, typer.Option("--drive", help="That drive: its name, or its number from 1.")
]


def inventory(
    look: Annotated[
        bool, typer.Option("--look", help="Have the changer look into every slot anew.")
    ] = False,
    path: ConfigPath = DEFAULT,
    json: Json = False,
) -> None:
    """List what is in the drives and the slots of the library."""
    with _library(path) as library:
        slots = library.inventory(look=look)
        drives = [_drive(library, bay) for bay in library.bays]
    if json:
        print_json({"drives": drives, "slots": slots})
    elif slots:
        _print_slots(slots, drives)
    else:
        for drive in drives:
            print(f"{drive['name']}: {_said(drive)}")


def load(
    volume: Volume, drive: Drive = None, path: ConfigPath = DEFAULT, json: Json = False
) -> None:
    """Bring a volume into a drive and read its label."""
    with _library(path) as library, library.lease(rather=[volume], name=drive) as (bay,):
        if library.has_changer:
            library.fetch(bay, volume)
            slot = library.slot_of(bay)
            barcode = slot.barcode if slot is not None else ""
        else:
            library.bring(bay, volume, writable=False)
            barcode = ""
        label = library.look(bay)
        _require_agreement(barcode, label)
        told = {"drive": bay.name, "barcode": barcode, "label": label}
    if json:
        print_json(told)
    else:
        print(f"{barcode or volume} is in {bay.name}: {_label(label)}")


def unload(
    volume: MaybeVolume = None, drive: Drive = None, path: ConfigPath = DEFAULT, json: Json = False
) -> None:
    """Put a volume back into its slot; without a name what is in the drives that nobody uses."""
    with _library(path) as library:
        name = _drive_with(library, volume) if volume is not None else drive
        every = len(library.bays) if name is None else 1
        with library.lease(every, name=name) as bays:
            moved = [each for bay in bays if (each := _put_away(library, bay)) is not None]
    if json:
        print_json({"unloaded": moved})
        return
    for each in moved:
        what = each["barcode"] or "what was in it"
        where = "let out" if each["slot"] is None else f"in slot {each['slot']}"
        print(f"{each['drive']}: {what} is {where}")
    if not moved:
        print("nothing to unload: the drives that nobody uses are empty")


def eject(
    volume: MaybeVolume = None, drive: Drive = None, path: ConfigPath = DEFAULT, json: Json = False
) -> None:
    """Lay a cartridge into an import/export slot, to be taken out; without a changer let out what
    is in the drive."""
    with _library(path) as library:
        if library.has_changer:
            if volume is None:
                raise typer.BadParameter("say which: a serial, a barcode, or a slot's address")
            slot = library.to_door(volume)
            told: dict[str, Any] = {"barcode": slot.barcode, "slot": slot.address}
        else:
            with library.lease(name=drive) as (bay,):
                library.put_away(bay)
                told = {"drive": bay.name}
    if json:
        print_json(told)
    elif "slot" in told:
        print(f"{told['barcode'] or volume} is in import/export slot {told['slot']}: take it out")
    else:
        print(f"{told['drive']}: let out")


def import_(path: ConfigPath = DEFAULT, json: Json = False) -> None:
    """Take what was laid into the import/export slots into storage slots."""
    with _library(path) as library:
        moved = library.from_door()
    if json:
        print_json({"imported": [{"from": a.address, **plain(b)} for a, b in moved]})
        return
    for _, slot in moved:
        print(f"{slot.barcode or slot.cartridge} is in slot {slot.address}")
    if not moved:
        print("nothing to import: the import/export slots are empty")


def add_commands(app: typer.Typer) -> None:
    for command in (inventory, load, unload, eject):
        app.command()(command)
    app.command(name="import")(import_)


# --- inside


def _library(path: Any) -> Library:
    return config.load(path, needed=config.TO_READ).open_library()


def _drive(library: Library, bay: Bay) -> dict[str, Any]:
    """What is told of a drive. Without a changer only its label tells what is in it: where nobody
    uses the drive, that is read."""
    told: dict[str, Any] = {"name": bay.name, "slot": bay.address, "user": library.user_of(bay)}
    if not library.has_changer:
        told["label"] = None
        if told["user"] is None:
            with library.lease(name=bay.name):
                told["label"] = library.look(bay)
    return told


def _said(drive: dict[str, Any]) -> str:
    return f"{drive['user']} uses it" if drive["user"] is not None else _label(drive["label"])


def _label(label: str) -> str:
    """What the label says, in words."""
    return f"volume {label}" if _is_serial(label) else label


def _is_serial(label: str) -> bool:
    return re.fullmatch(r"[A-Z0-9]{6}", label) is not None


def _print_slots(slots: Sequence[Slot], drives: Sequence[dict[str, Any]]) -> None:
    names = {drive["slot"]: drive for drive in drives}
    rows = [("slot", "kind", "cartridge", "")]
    for slot in slots:
        cartridge = slot.cartridge if slot.full else "-"
        rows.append((str(slot.address), str(slot.kind), cartridge, _notes(slot, names)))
    print_table(rows, right=frozenset({0}))


def _notes(slot: Slot, names: dict[int, dict[str, Any]]) -> str:
    notes = []
    if (drive := names.get(slot.address)) is not None:
        notes.append(drive["name"])
        if drive["user"] is not None:
            notes.append(f"{drive['user']} uses it")
    elif slot.kind is SlotKind.DRIVE:
        notes.append("not in the configuration")
    if slot.kind is SlotKind.DRIVE and slot.source is not None:
        notes.append(f"from slot {slot.source}")
    if slot.cleaning:
        notes.append("for cleaning")
    if not slot.accessible and slot.kind is not SlotKind.DRIVE:
        notes.append("out of the arm's reach")
    if slot.trouble:
        notes.append(slot.trouble)
    return ", ".join(notes)


def _require_agreement(barcode: str, label: str) -> None:
    """A label of ours is what the barcode says. Raises WrongMedium."""
    if barcode and _is_serial(label) and not barcode.startswith(label):
        raise WrongMedium(
            f"the cartridge {barcode} is not what its barcode says: its label says {label}",
            hint="Put the right barcode on it; until then it is not used.",
            serial=label,
            barcode=barcode,
        )


def _put_away(library: Library, bay: Bay) -> dict[str, Any] | None:
    """None: the drive is empty."""
    before = library.slot_of(bay)
    if before is not None and not before.full:
        return None
    barcode = before.barcode if before is not None else ""
    return {"drive": bay.name, "barcode": barcode, "slot": library.put_away(bay)}


def _drive_with(library: Library, volume: str) -> str:
    """The name of the drive that a volume is in. Raises ChangerError."""
    bay = library.bay_with(volume)
    if bay is None:
        raise ChangerError(
            f"{volume} is in none of the drives",
            hint="`splitmirror media inventory` shows what is where.",
        )
    return bay.name
