"""What would stop a backup, found before it does: every check that the recipe makes, all of them
even when one fails, and some that only a person can weigh."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from splitmirror import journal, preflight
from splitmirror.backup import filesystems_of
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.errors import (
    Busy,
    MediumError,
    MirrorNotReady,
    NeedsRecovery,
    NoRoom,
    NoSuchVolume,
    SplitmirrorError,
)
from splitmirror.extents.trees import plan_trees
from splitmirror.media import Identified, Telling, librarycheck
from splitmirror.media.volume import look_at_volume
from splitmirror.mirrors import Mirror
from splitmirror.model import Filesystem, Finding
from splitmirror.recover import holder_of
from splitmirror.run import unfinished
from splitmirror.supplying import examine_pool
from splitmirror.system import process, programs
from splitmirror.units import show_size
from splitmirror.volumes import require_pool, require_streams, stock

STATE_ROOM = 64 << 20  # journal, plan and catalogue of a small set


def examine(config: Config) -> list[Finding]:
    """Look at everything that a backup of this configuration needs. Changes nothing.

    What depends on something that already failed is left out rather than reported twice.
    """
    findings = [preflight.privileges()]
    if findings[0].problem is not None:
        return findings
    driver, options = config.database["driver"], config.backup
    what = f"source {config.source}: {driver}, {options.mode} mode, check {options.check}"
    findings.append(Finding(what=what))
    findings += _looked("programs", lambda: _programs(config))
    findings += _looked("the state directory", lambda: _state(config))
    findings += _looked("earlier runs", lambda: _earlier(config))
    findings += _looked("the catalogue", lambda: _catalog(config))
    findings += _looked("the mirror and the database", lambda: _source(config))
    findings += _looked("the medium", lambda: _medium(config))
    findings += _alerts(config)
    findings += _looked("the streams", lambda: _streams(config))
    return findings


def _looked(what: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(look())
    except SplitmirrorError as problem:
        return [Finding(what=what, problem=problem)]


def _programs(config: Config) -> Iterable[Finding]:
    for program in config.programs:
        try:
            yield Finding(what=f"program {programs.need(program)}")
        except SplitmirrorError as problem:
            yield Finding(what=f"program {program}", problem=problem)


def _state(config: Config) -> Iterable[Finding]:
    directory = config.state
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    if free < STATE_ROOM:
        problem = NoRoom(
            f"{directory} has {show_size(free)} free for the state directory",
            hint=f"Free at least {show_size(STATE_ROOM)} there or move state_dir.",
        )
        yield Finding(what="room for the state directory", problem=problem)
    else:
        yield Finding(what=f"state directory {config.state}: {show_size(free)} free")


def _earlier(config: Config) -> Iterable[Finding]:
    for directory in unfinished(config.state, config.source):
        yield Finding(what="earlier runs", problem=_unfinished(directory))


def _unfinished(directory: Path) -> SplitmirrorError:
    """A run that goes on, or one that was cut off: what to do is not the same."""
    holder = holder_of(journal.read(directory))
    if holder is not None and process.alive(holder.pid, holder.start_ticks):
        return Busy(
            f"the backup {directory.name} is going on (process {holder.pid})",
            hint="Wait for it to end; `splitmirror release` ends it if it must not go on.",
        )
    return NeedsRecovery(
        f"the backup {directory.name} was cut off",
        hint="Run `splitmirror recover`: it goes on with the backup where it can.",
    )


def _catalog(config: Config) -> Iterable[Finding]:
    if not config.catalog_path.exists():
        yield Finding(what=f"catalogue {config.catalog_path}: will be made by the first backup")
        return
    Catalog.open(config.catalog_path).close()
    yield Finding(what=f"catalogue {config.catalog_path}")


def _known(config: Config) -> contextlib.AbstractContextManager[Catalog | None]:
    """The catalogue, if there is one yet."""
    if not config.catalog_path.exists():
        return contextlib.nullcontext()
    return contextlib.closing(Catalog.open(config.catalog_path))


def _source(config: Config) -> Iterable[Finding]:
    mirror, database = config.open_mirror(), config.open_database()
    try:
        looked = database.preflight(config.backup.mode)
        looked.append(_attached(config, mirror))
        if looked[-1].problem is None:
            looked.append(preflight.fits(mirror, database, config.backup.mode))
        yield from looked
        if any(each.problem and not each.warning for each in looked):
            return
        layout = database.layout()
        trees = plan_trees(layout.roots, mirror.volumes(), layout.keep)
        for tree in trees:
            where = f"{tree.filesystem.fstype} {tree.filesystem.mountpoint}"
            name = tree.name.decode(errors="backslashreplace")
            yield Finding(what=f"{name}: on {where}, mirrored volume {tree.filesystem.volume}")
        for root in layout.apart:
            name, where = os.fsdecode(root.name), os.fsdecode(root.path)
            yield Finding(what=f"{name}: {where}, copied from there; neither frozen nor split")
        to_freeze = preflight.frozen(mirror, filesystems_of(trees))
        yield from preflight.would_freeze(config, to_freeze)
        yield from mirror.preflight(filesystems_of(trees))
        yield from _room_for_set(config, filesystems_of(trees))
    finally:
        mirror.close()


def _attached(config: Config, mirror: Mirror) -> Finding:
    """As the recipe sees it. A leg that an unfinished run may still be finished from is that run's:
    to give it back, as is advised otherwise, would throw a good backup away."""
    found = preflight.attached(mirror)
    split_id = found.problem.facts.get("split_id") if found.problem is not None else None
    if split_id not in {directory.name for directory in unfinished(config.state, config.source)}:
        return found
    problem = MirrorNotReady(
        f"the leg of backup {split_id} is still split: it belongs to the unfinished run",
        hint="See what to do about that run; it gives the leg back.",
    )
    return Finding(what="mirror", problem=problem)


def _room_for_set(config: Config, filesystems: list[Filesystem]) -> Iterable[Finding]:
    """Whether all that is used on the mirrored filesystems would fit on the medium: more than the
    set, so that a lack is a warning."""
    left = _left_on_medium(config)
    if left is None:
        return
    stats = [os.statvfs(filesystem.mountpoint) for filesystem in filesystems]
    used = sum((each.f_blocks - each.f_bfree) * each.f_frsize for each in stats)
    what = f"room for the set: at most {show_size(used)}, {show_size(left)} left"
    if used <= left:
        yield Finding(what=what)
        return
    problem = NoRoom(
        f"the set may need {show_size(used)}; the medium has {show_size(left)} left",
        hint="Make room, or take another volume (change `volume` and the medium's path).",
    )
    yield Finding(what="room for the set", problem=problem, warning=True)


def _left_on_medium(config: Config) -> int | None:
    """Bytes left on the volume, or where it will be made. None: not known, or not without moving
    the volume into a drive."""
    try:
        library = config.open_bringing()
        if library is None:
            return _left_on_volume(config)
        library.close()
    except SplitmirrorError:
        pass  # told by the look at the medium itself
    return None


def _left_on_volume(config: Config) -> int | None:
    medium = config.open_medium()
    try:
        look_at_volume(medium, config.volume)
        return medium.capacity.left
    except NoSuchVolume:
        place = _place_of_volume(config)
        return None if place is None or not place.is_dir() else shutil.disk_usage(place).free
    finally:
        medium.unload()


def _place_of_volume(config: Config) -> Path | None:
    """The directory of a medium that is a file."""
    path = config.medium.get("path")
    return Path(path).parent if isinstance(path, str) else None


def _medium(config: Config) -> Iterable[Finding]:
    library = config.open_bringing()
    if library is not None:
        with library, _known(config) as catalog:
            if config.pool:
                require_pool(config, config.pool)
                yield from examine_pool(library, config.pool, stock(config, catalog))
            else:
                yield from librarycheck.examine(library, [config.volume])
        return
    medium = config.open_medium()
    try:
        try:
            look_at_volume(medium, config.volume)
        except NoSuchVolume as problem:
            place = _place_of_volume(config)
            if place is not None and not place.is_dir():
                yield Finding(what=f"volume {config.volume}", problem=problem)
                return
            yield Finding(what=f"volume {config.volume}: will be made by the first backup")
            return
        left = medium.capacity.left
        room = "room not known" if left is None else f"{show_size(left)} left"
        yield Finding(what=f"volume {config.volume}: {room}")
    finally:
        medium.unload()


def _alerts(config: Config) -> Iterable[Finding]:
    """What the drives say of themselves. What keeps one from being asked is told by the look at the
    medium."""
    for number, drive in enumerate(config.open_drives()):
        if not isinstance(drive, Telling):
            continue
        name = drive.name if isinstance(drive, Identified) else f"drive {number}"
        with contextlib.suppress(SplitmirrorError):
            for alert in drive.alerts():
                hint = "See to it before the next backup; docs/tape.md."
                problem = MediumError(f"{name} says: {alert}", hint=hint)
                yield Finding(what=name, problem=problem, warning=True)


def _streams(config: Config) -> Iterable[Finding]:
    if config.backup.streams == 1:
        return
    require_streams(config, len(config.open_drives()))
    yield Finding(what=f"streams: {config.backup.streams} volumes at once")
