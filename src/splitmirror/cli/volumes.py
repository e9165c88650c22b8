"""The `media` commands for volumes: what is known of them and on them, what may become of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitmirror import config
from splitmirror.cli.options import DEFAULT, ConfigPath, Json
from splitmirror.cli.output import plain, print_json, printable, terminal_watch
from splitmirror.cli.show import print_sets, print_table
from splitmirror.units import show_size

if TYPE_CHECKING:
    from splitmirror.media.dump import Told
    from splitmirror.media.shelf import Stock, VolumeRecord
    from splitmirror.verify import VolumeReport
    from splitmirror.volumes import Scanned

Serial = Annotated[str, typer.Argument(help="A volume's serial.")]
Serials = Annotated[list[str], typer.Argument(help="Volumes' serials.")]
MaybeSerial = Annotated[
    str | None, typer.Argument(help="A volume's serial; without one what is in the drive.")
]
MaybeCartridge = Annotated[
    str | None,
    typer.Argument(
        help="A volume's serial, a cartridge's barcode or a slot's address; without one what is in "
        "the drive."
    ),
]
IntoPool = Annotated[
    str | None, typer.Option("--pool", help="The pool that it belongs to from now on.")
]


def list_volumes(path: ConfigPath = DEFAULT, json: Json = False) -> None:
    """List the volumes that the catalogue knows: what is on them, what may become of them."""
    from splitmirror.catalog import Lookup
    from splitmirror.media.shelf import Shelf
    from splitmirror.volumes import stock as stock_of

    loaded = config.load(path, needed=())
    with Lookup.open_to_read(loaded.catalog_path) as catalog:
        stock = stock_of(loaded, catalog)
    coming = {name: Shelf(name, stock).next() for name in loaded.pools}
    if json:
        volumes = [_volume(record, stock) for record in stock.volumes.values()]
        chosen = {
            name: {"volume": c.serial, "how": c.how.name.lower()} for name, c in coming.items()
        }
        print_json({"volumes": volumes, "next": chosen})
        return
    _print_volumes(stock)
    for name, choice in coming.items():
        print(f"next in the pool {name}: {choice.serial or 'a blank volume'} ({choice.how.value})")


def label(
    serial: Annotated[str, typer.Argument(help="The serial that it gets: six characters.")],
    cartridge: Annotated[
        str | None,
        typer.Option("--cartridge", help="Its barcode or slot, if that is not the serial."),
    ] = None,
    pool: IntoPool = None,
    lose: Annotated[
        str | None,
        typer.Option(
            "--lose",
            metavar="NAME",
            help="Lose what is on it: the serial in its label, or `unlabelled`.",
        ),
    ] = None,
    path: ConfigPath = DEFAULT,
    json: Json = False,
) -> None:
    """Make a volume ours: a blank one, one of ours with nothing on it to keep, or any by name."""
    from splitmirror import volumes
    from splitmirror.catalog import Catalog

    loaded = config.load(path, needed=config.TO_READ)
    into = volumes.require_pool(loaded, loaded.pool if pool is None else pool)
    with Catalog.open(loaded.catalog_path) as catalog:
        made = volumes.label(loaded, catalog, serial, cartridge=cartridge, pool=into, losing=lose)
    _say_volumes([made], json, "labelled")


def scan(
    serial: MaybeSerial = None,
    pool: IntoPool = None,
    path: ConfigPath = DEFAULT,
    json: Json = False,
) -> None:
    """Read a volume into the catalogue, by its labels and its sets' own catalogues."""
    from splitmirror import volumes
    from splitmirror.catalog import Catalog
    from splitmirror.media.supply import OneVolume

    loaded = config.load(path, needed=config.TO_READ)
    if pool is not None:
        volumes.require_pool(loaded, pool)
    with volumes.in_drive(loaded, serial) as found:
        supply = OneVolume(found.medium)
        # the volume first: without one no empty catalogue is left that looks like a good one
        serials = supply.at_hand()
        with Catalog.open(loaded.catalog_path) as catalog:
            scanned = volumes.scan(
                supply,
                catalog,
                serials,
                driver=loaded.medium["driver"],
                pool=pool,
                new_pool=loaded.pool,
                progress=terminal_watch("scan"),
            )
    say_scanned(scanned, json)


def verify(serial: MaybeSerial = None, path: ConfigPath = DEFAULT, json: Json = False) -> None:
    """Read a whole volume back and check every hash, set by set."""
    from splitmirror.media.supply import OneVolume
    from splitmirror.verify import verify_volume
    from splitmirror.volumes import in_drive

    loaded = config.load(path, needed=config.TO_READ)
    with in_drive(loaded, serial) as found:
        supply = OneVolume(found.medium)
        (name,) = supply.at_hand()
        report = verify_volume(supply, name, progress=terminal_watch("verify"))
    if not json:
        _print_verified(report)
    report.require_sound()  # its error's document holds the report
    if json:
        print_json(report)


def dump(cartridge: MaybeCartridge = None, path: ConfigPath = DEFAULT, json: Json = False) -> None:
    """Tell in words everything that is on a volume, label by label, each with its position."""
    from splitmirror.media.dump import dump as told_of
    from splitmirror.volumes import in_drive

    loaded = config.load(path, needed=config.TO_READ)
    with in_drive(loaded, cartridge, labelled=False) as found:
        found.medium.load(writable=False)
        if json:
            print_json({"barcode": found.barcode, "objects": list(told_of(found.medium))})
            return
        print(f"{'object':>10} {'file':>5}  what")
        for told in told_of(found.medium):
            _print_told(told)


def retire(
    serial: Serial,
    lost: Annotated[
        bool, typer.Option("--lost", help="It is gone for good: forget what was on it.")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take it back.")] = False,
    path: ConfigPath = DEFAULT,
    json: Json = False,
) -> None:
    """Write to a volume never again; what is on it can be read and restored."""
    from splitmirror.catalog import Catalog
    from splitmirror.media.shelf import VolumeState

    if lost and undo:
        raise typer.BadParameter("say --lost or --undo, not both")
    loaded = config.load(path, needed=())
    with Catalog.open(loaded.catalog_path, must_exist=True) as catalog:
        catalog.volume(serial)  # one that is not known is told with the nearest
        if lost:
            made = catalog.volume(serial)
            catalog.emptied(serial, forget=True)
        else:
            state = VolumeState.FULL if undo else VolumeState.RETIRED
            made = catalog.change_volume(serial, lambda known: replace(known, state=state))
    _say_volumes([made], json, "forgotten" if lost else "taken back" if undo else "retired")


def hold(
    serials: Serials,
    why: Annotated[str, typer.Option("--why", help="What the volumes are held for.")],
    path: ConfigPath = DEFAULT,
    json: Json = False,
) -> None:
    """Keep volumes as they are, whatever expires, until they are released."""
    if not why.strip():
        raise typer.BadParameter("say why: whoever releases them wants to know")
    changed = _changed(path, lambda known: serials, lambda known: replace(known, held=why))
    _say_volumes(changed, json, "held")


def release(
    serials: Annotated[list[str] | None, typer.Argument(help="Volumes' serials.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that are held.")] = False,
    path: ConfigPath = DEFAULT,
    json: Json = False,
) -> None:
    """Let held volumes be written to again, as far as their pool allows."""
    if bool(serials) == every:
        raise typer.BadParameter("name volumes, or say --all")

    def chosen(known: Sequence[VolumeRecord]) -> Sequence[str]:
        return [record.serial for record in known if record.held] if every else serials or []

    changed = _changed(path, chosen, lambda known: replace(known, held=""))
    _say_volumes(changed, json, "released")


def add_commands(app: typer.Typer) -> None:
    app.command(name="list")(list_volumes)
    for command in (label, scan, verify, dump, retire, hold, release):
        app.command()(command)


# --- what they print


def say_scanned(scanned: Scanned, json: bool) -> None:
    """What a scan came to; raises the damage at which it ended."""
    if json and scanned.damage is None:
        print_json({**plain(scanned), "damage": None})
    elif not json:
        print_sets(scanned.sets)
        for record in scanned.volumes:
            held = f"held: {record.held}" if record.held else "not held"
            print(f"volume {record.serial}: {show_size(record.bytes)}, {held}")
        for set_id in scanned.missing:
            print(f"the set {set_id} is not on the volume on which the catalogue had it")
        if any(record.held for record in scanned.volumes):
            print("a held volume is never written anew, and no pool writes to it, until it is")
            print("released: splitmirror media release SERIAL")
    if scanned.damage is not None:
        raise scanned.damage


def _changed(
    path: Path,
    chosen: Callable[[Sequence[VolumeRecord]], Sequence[str]],
    by: Callable[[VolumeRecord], VolumeRecord],
) -> list[VolumeRecord]:
    """The volumes that were changed; none of them where one is not known."""
    from splitmirror.catalog import Catalog

    loaded = config.load(path, needed=())
    with Catalog.open(loaded.catalog_path, must_exist=True) as catalog:
        serials = list(dict.fromkeys(chosen(catalog.volumes())))
        for serial in serials:
            catalog.volume(serial)
        return [catalog.change_volume(serial, by) for serial in serials]


def _say_volumes(records: Sequence[VolumeRecord], json: bool, what: str) -> None:
    if json:
        print_json({"volumes": records})
        return
    for record in records:
        print(f"{record.serial}: {what}")
    if not records:
        print("no volumes")


def _volume(record: VolumeRecord, stock: Stock) -> dict[str, Any]:
    """A volume as a JSON document."""
    sets = stock.on(record.serial)
    return {
        **plain(record),
        "write_once": stock.write_once(record.serial),
        "sets": [one.set_id for one in sets],
        "expired": [one.set_id for one in sets if stock.expired(one.set_id)],
        "kept_by": stock.keeps(record.serial),
    }


def _print_volumes(stock: Stock) -> None:
    if not stock.volumes:
        print("no volumes")
        return
    heads = ("volume", "pool", "state", "last written", "on it", "sets", "expired", "")
    rows = [heads]
    for record in stock.volumes.values():
        sets = stock.on(record.serial)
        expired = sum(stock.expired(one.set_id) for one in sets)
        last = f"{record.last_written:%Y-%m-%d %H:%M}" if record.last_written else "-"
        rows.append(
            (
                record.serial,
                record.pool or "-",
                str(record.state),
                last,
                show_size(record.bytes),
                str(len(sets)),
                str(expired),
                _remarks(record, stock),
            )
        )
    print_table(rows, right=frozenset({4, 5, 6}))


def _remarks(record: VolumeRecord, stock: Stock) -> str:
    remarks = []
    if cut := sum(not one.complete for one in stock.on(record.serial)):
        remarks.append("a set on it is incomplete" if cut == 1 else f"{cut} sets are incomplete")
    if record.held:
        remarks.append(f"held: {record.held}")
    if stock.write_once(record.serial):
        remarks.append("write-once")
    if record.recycling is not None:
        remarks.append("to be written anew, which was cut off")
    elif not stock.keeps(record.serial) and stock.on(record.serial):
        remarks.append("may be written anew")
    return "; ".join(remarks)


def _print_told(told: Told) -> None:
    name = told.label[:4] or str(told.thing)
    print(f"{told.object:>10} {told.file:>5}  {name:<8} {printable(told.words.encode())}")
    if told.label and told.words.endswith("not a label of ours"):
        print(f"{'':>18}{printable(told.label.encode())}")


def _print_verified(report: VolumeReport) -> None:
    for one in report.sets:
        state = "DAMAGED" if not one.sound else "whole"
        more = ", its catalogue is not on this volume" if one.set_id in report.elsewhere else ""
        print(
            f"set {one.set_id}: {one.parts} parts, {one.files} members, {show_size(one.bytes)}: "
            f"{state}{more}"
        )
    told = "all that is on it is whole" if report.sound else "DAMAGED"
    print(f"volume {report.serial}: {len(report.sets)} sets, {told}")
