"""What would stop a backup, found before it does: every check that the recipe makes, all of them
even when one fails, and some that only a person can weigh."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable

from splitmirror import preflight, writing
from splitmirror.backup import filesystems_of
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.errors import NeedsRecovery, NoRoom, NoSuchVolume, SplitmirrorError
from splitmirror.extents.trees import plan_trees
from splitmirror.model import Finding
from splitmirror.run import unfinished
from splitmirror.units import show_size

STATE_ROOM = 64 << 20  # journal, plan and catalogue of a small set


def examine(config: Config) -> list[Finding]:
    """Look at everything that a backup of this configuration needs. Changes nothing.

    What depends on something that already failed is left out rather than reported twice.
    """
    findings = [preflight.privileges()]
    if findings[0].problem is not None:
        return findings
    findings += _looked("the state directory", lambda: _state(config))
    findings += _looked("earlier runs", lambda: _earlier(config))
    findings += _looked("the catalogue", lambda: _catalog(config))
    findings += _looked("the mirror and the database", lambda: _source(config))
    findings += _looked("the medium", lambda: _medium(config))
    return findings


def _looked(what: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(look())
    except SplitmirrorError as problem:
        return [Finding(what=what, problem=problem)]


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
        problem = NeedsRecovery(
            f"the backup {directory.name} was cut off, or is going on now",
            hint="Unless one is running, run `splitmirror recover`.",
        )
        yield Finding(what="earlier runs", problem=problem)


def _catalog(config: Config) -> Iterable[Finding]:
    if not config.catalog_path.exists():
        yield Finding(what=f"catalogue {config.catalog_path}: will be made by the first backup")
        return
    Catalog.open(config.catalog_path).close()
    yield Finding(what=f"catalogue {config.catalog_path}")


def _source(config: Config) -> Iterable[Finding]:
    mirror, database = config.open_mirror(), config.open_database()
    try:
        looked = database.preflight(config.backup.mode)
        yield from looked
        state = preflight.attached(mirror)
        yield state
        if state.problem is not None or any(f.problem and not f.warning for f in looked):
            return
        layout = database.layout()
        trees = plan_trees(layout.roots, mirror.volumes(), layout.keep)
        for tree in trees:
            where = f"{tree.filesystem.fstype} {tree.filesystem.mountpoint}"
            name = tree.name.decode(errors="backslashreplace")
            yield Finding(what=f"{name}: on {where}, volume {tree.filesystem.volume}")
        yield from preflight.would_freeze(config, filesystems_of(trees))
        yield from mirror.preflight(filesystems_of(trees))
    finally:
        mirror.close()


def _medium(config: Config) -> Iterable[Finding]:
    medium = config.open_medium()
    try:
        try:
            writing.look_at_volume(medium, config.volume)
        except NoSuchVolume:
            yield Finding(what=f"volume {config.volume}: will be made by the first backup")
            return
        left = medium.capacity.left
        room = "room not known" if left is None else f"{show_size(left)} left"
        yield Finding(what=f"volume {config.volume}: {room}")
    finally:
        medium.unload()
