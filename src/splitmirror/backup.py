"""The recipe: how a running database is backed up from a split mirror.

`backup` reads from top to bottom as the mission does: synchronize, map, quiesce, discover, prepare,
split, check, release, back up, clean up. The steps themselves are below it, in that order. The last
two are shared with `recover`, which goes on with a backup that was cut off.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import cast

from splitmirror import writing
from splitmirror.beside import copy_outside
from splitmirror.catalog import Catalog
from splitmirror.config import BackupOptions, Config
from splitmirror.databases import Database, Layout, RedoFile
from splitmirror.errors import (
    LegError,
    NoRoom,
    NotOnMirror,
    SplitmirrorError,
    UnsupportedStack,
)
from splitmirror.extents.changes import Changes
from splitmirror.extents.check import Checked, Shortened, check, check_changed, check_maps
from splitmirror.extents.confirm import strange_directory
from splitmirror.extents.known import Known
from splitmirror.extents.renew import Patch, renew
from splitmirror.extents.rescan import rescan
from splitmirror.extents.scan import scan
from splitmirror.extents.table import FileTable
from splitmirror.extents.trees import plan_trees
from splitmirror.extents.views import LegView, PrimaryView
from splitmirror.freeze import Freeze
from splitmirror.guard import Guard
from splitmirror.hold import Hold
from splitmirror.leaving import kept_when_the_drive_is_lost, left_in_words, said_to_be_whole
from splitmirror.media.supply import Supply
from splitmirror.mirrors import Feature, Mirror, Preparing, Suspending
from splitmirror.model import (
    BackupSet,
    Check,
    Cleanup,
    Filesystem,
    Leg,
    MapCounts,
    Mode,
    Phase,
    Tree,
)
from splitmirror.notes import Trusted, json_of
from splitmirror.preflight import (
    attached,
    fits,
    frozen,
    require_root,
    stop_at_first,
    would_freeze,
)
from splitmirror.progress import Progress, Watch, unwatched
from splitmirror.run import Run
from splitmirror.stream.plan import Plan, plan_parts
from splitmirror.stream.speed import measured_rate
from splitmirror.stretches import Job
from splitmirror.supplying import supply_of
from splitmirror.system import filesystems
from splitmirror.system.deadline import deadline
from splitmirror.system.process import boot_id
from splitmirror.units import parse_size, show_size
from splitmirror.volumes import require_destination, require_streams

# A member's headers, its padding, its line in the manifest and again in the set's catalogue.
MEMBER_TAKES = 2560


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The drivers of one run, opened."""

    mirror: Mirror
    database: Database
    supply: Supply
    catalog: Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The set as it was at one look: what belongs to it, where it lies, what is there."""

    layout: Layout
    trees: tuple[Tree, ...]
    table: FileTable | Patch


@dataclass(frozen=True, slots=True, kw_only=True)
class Early(Seen):
    """The look before the quiesce, `known` by name so that the next one is a difference."""

    table: FileTable
    known: Known


def backup(config: Config, watch: Watch = unwatched) -> BackupSet:
    """Back up the source once. Gives the set as it was recorded.

    Raises a SplitmirrorError with what to do. Whatever is raised, nothing stays quiesced, frozen
    or mounted, and the mirror is rejoined, or the error says that `recover` must do it.
    """
    require_root()
    options = config.backup
    with (
        Run.begin(config.state, config.source) as run,
        opened(config) as tools,
        Changes() as changes,
    ):
        look_first(config, tools)
        with run.phase("synchronize", options.synchronize_deadline_s):
            tools.mirror.synchronize(watch("synchronize"))
        with run.phase("map", options.map_deadline_s):
            early = map_early(tools, changes, watch("map"))
            off_roots = (*early.layout.outside, *early.layout.bare)
            outside = copy_outside(off_roots, run.directory / "outside")
        with thrown_away_on_failure(run, tools):
            with standstill(config, run, tools, early.trees) as hold:
                with run.phase("quiesce", options.quiesce_deadline_s):
                    hold.quiesce()
                with run.phase("discover", options.quiesce_deadline_s):
                    found = discover(run, tools, early, changes, options.mode)
                with run.phase("prepare", options.quiesce_deadline_s):
                    prepare(config, run, tools, found)
                with run.phase("split", options.quiesce_deadline_s):  # the guard bounds the freeze
                    hold.split(tools.mirror, run.set_id, thaw=options.check is Check.RELEASED)
                checked = None
                if options.check is Check.QUIESCED:
                    with run.phase("check", options.quiesce_deadline_s):
                        checked = check_quiesced(config, tools, run.set_id, early, found)
                with run.phase("release", options.quiesce_deadline_s):
                    redo = hold.release(run.directory / "redo")
            changes.close()
            trusted = trust(config, run, tools, hold, found, outside + redo, changes.state)
            if checked is None:
                with run.phase("check", options.leg_deadline_s):
                    checked = check_released(config, tools, run.set_id, early, found)
            elif isinstance(checked, Shortened):
                with deadline(options.leg_deadline_s, "confirming the maps against the leg"):
                    checked = confirm(config, run, tools, early, found, checked)
            plan, counts = plan_writing(run, trusted, found.layout, checked), checked.counts
            del early, found, checked  # their tables; what is read stands in the plan's
            written = write(config, run, tools, trusted, counts, plan, watch)
        return clean_up(config, run, tools, written)


def write(
    config: Config,
    run: Run,
    tools: Tools,
    trusted: Trusted,
    counts: MapCounts,
    plan: Plan,
    watch: Watch,
) -> writing.Written:
    """The files off the leg, one by one, onto the medium, from the first part that is not yet
    whole there; then the set's own catalogue."""
    with kept_when_the_drive_is_lost(run), run.phase("backup", config.backup.write_deadline_s):
        leg = tools.mirror.leg(run.set_id, config.backup.leg_deadline_s)
        to_measure = parse_size(config.backup.measure_leg)
        job = Job(
            trusted=trusted,
            backup_set=replace(trusted.backup_set, maps=counts, phases=tuple(run.phases)),
            plan=plan,
            leg=leg,
            titles=tools.database.titles(plan.table.names),
            leg_rate=measured_rate(leg, to_measure) if to_measure else None,
        )
        return writing.write_set(
            job,
            supply=tools.supply,
            directory=run.directory,
            journal=run.journal,
            progress=watch("backup"),
            confirm=lambda: confirm_leg(tools.mirror, run.set_id),
        )


def clean_up(config: Config, run: Run, tools: Tools, written: writing.Written) -> BackupSet:
    """Enter the set into the catalogue and rejoin the mirror. It is whole on the medium: should
    this fail, the run stays open for `recover`."""
    run.keep_open = True
    limit_s = config.backup.cleanup_deadline_s
    with run.phase("cleanup", limit_s), said_to_be_whole(run.set_id):
        tools.catalog.record(written.backup_set, written.parts, written.members())
        if config.backup.cleanup is Cleanup.REJOIN:
            tools.mirror.rejoin(run.set_id)
        run.journal.record("cleaned up")
    ended = replace(written.backup_set, phases=tuple(run.phases), ended=datetime.now(UTC))
    with said_to_be_whole(run.set_id):
        tools.catalog.amend(ended)
        run.journal.record("recorded", set=json_of(ended))
    run.clear()
    return ended


def confirm_leg(mirror: Mirror, split_id: str) -> None:
    """What was read came from the leg of this split, for it is parted still. Raises LegError."""
    parted = mirror.state().split_id
    if parted != split_id:
        raise LegError(
            "what was written is void: the leg was given back while it was read (split now: "
            f"{parted or 'none'})",
            hint="Someone rejoined the mirror, for instance with `splitmirror resync`. Run the "
            "backup again.",
        )


# --- the steps, in the order of the recipe


@contextmanager
def opened(config: Config) -> Iterator[Tools]:
    """The drivers that the configuration names."""
    with ExitStack() as stack:
        mirror = config.open_mirror()
        stack.callback(mirror.close)
        catalog = Catalog.open(config.catalog_path)
        stack.callback(catalog.close)
        supply = supply_of(config, catalog)
        stack.callback(supply.close)
        yield Tools(mirror=mirror, database=config.open_database(), supply=supply, catalog=catalog)


def look_first(config: Config, tools: Tools) -> None:
    """Stop at whatever would stop the backup later, while nothing has been touched."""
    stop_at_first([attached(tools.mirror)])
    stop_at_first([fits(tools.mirror, tools.database, config.backup.mode)])
    stop_at_first(tools.database.preflight(config.backup.mode))
    layout = tools.database.layout()
    trees = plan_trees(layout.roots, tools.mirror.volumes(), layout.keep)
    stop_at_first(would_freeze(config, frozen(tools.mirror, filesystems_of(trees))))
    stop_at_first(tools.mirror.preflight(filesystems_of(trees)))
    require_destination(config, tools.catalog)
    require_streams(config, tools.supply.streams)
    tools.supply.look()


def map_early(tools: Tools, changes: Changes, progress: Progress) -> Early:
    """Map every file of the set to its extents, before the database is quiesced.

    In this order: what changes from now on is watched; what was written before is flushed, for a
    map of it could change later without a trace; then it is mapped.
    """
    layout = tools.database.layout()
    trees = plan_trees(layout.roots, tools.mirror.volumes(), layout.keep)
    changes.arm(trees)
    for filesystem in filesystems_of(trees):
        filesystems.flush(filesystem.mountpoint)
    with PrimaryView(trees) as view:
        table = scan(view, trees, layout.keep, progress=progress)
    stop_at_first(tools.mirror.preflight(filesystems_of(trees)))
    tools.supply.take()
    return Early(layout=layout, trees=trees, table=table, known=Known(table))


@contextmanager
def standstill(config: Config, run: Run, tools: Tools, trees: tuple[Tree, ...]) -> Iterator[Hold]:
    """The guard, and under its eyes the holds that the recipe takes. In freeze mode the split is
    prepared first, for `quiesce` freezes."""
    to_freeze = frozen(tools.mirror, filesystems_of(trees))
    mountpoints = [filesystem.mountpoint for filesystem in to_freeze]
    devices: tuple[int, ...] = ()
    if Feature.SUSPENDS in tools.mirror.features:
        devices = cast(Suspending, tools.mirror).suspends()
    run.journal.record("split intended", split_id=run.set_id, boot=boot_id(), devices=devices)
    with (
        Guard(mountpoints, run.directory / "guard.json", devices) as guard,
        Freeze(mountpoints, guard, config.backup.freeze_deadline_s) as freeze,
        Hold(
            database=tools.database,
            freeze=freeze,
            guard=guard,
            journal=run.journal,
            mode=config.backup.mode,
            deadline_s=config.backup.quiesce_deadline_s,
        ) as hold,
    ):
        if config.backup.mode is Mode.FREEZE:  # in hot mode `prepare` does it
            prepare_split(tools.mirror, run.set_id)
        yield hold


def prepare_split(mirror: Mirror, split_id: str) -> None:
    """What an engine can do for a split before writers wait for it."""
    if Feature.PREPARES in mirror.features:
        cast(Preparing, mirror).prepare_split(split_id)


def discover(run: Run, tools: Tools, early: Early, changes: Changes, mode: Mode) -> Seen:
    """Which files make up the database right now, and is each of them on the mirror.

    A difference to the early look, not a look at everything: in freeze mode writers wait for it.
    Where it is known what changed, only that is looked at.
    """
    layout = tools.database.layout()
    trees = plan_trees(layout.roots, tools.mirror.volumes(), layout.keep)
    known = {filesystem.devno for filesystem in filesystems_of(early.trees)}
    for tree in trees:
        if tree.filesystem.devno not in known:
            raise NotOnMirror(
                f"{tree.path!r} lies on {tree.filesystem.mountpoint}, which joined the set after "
                "the backup began",
                hint="Start the backup again; it will include that filesystem.",
            )
    changed = changes.told(trees)
    run.journal.record("watched", state=changes.state, names=len(changed.names) if changed else 0)
    table: FileTable | Patch
    with PrimaryView(trees, live=mode is Mode.HOT) as view:
        if changed is None:
            table = rescan(view, trees, layout.keep, early.known)
        else:
            table = renew(view, trees, layout.keep, early.known, changed)
    return Seen(layout=layout, trees=trees, table=table)


def prepare(config: Config, run: Run, tools: Tools, found: Seen) -> None:
    """Is there room on the media for what was found? An estimate, on the large side.

    In hot mode writers go on, and the split is prepared now: what the quiesce itself wrote, a
    checkpoint mostly, is on the mirror then, and the split's copies do not hold up the thaw.
    """
    left = tools.supply.left
    needed = found.table.stored_bytes + len(found.table) * MEMBER_TAKES
    needed += needed // config.part_size * config.block_size + 2 * config.block_size
    if left is not None and needed > left:
        raise NoRoom(
            f"the set needs {show_size(needed)}, the medium has {show_size(left)} left",
            hint="Take another volume (change `volume` and the medium's path) or a larger one.",
        )
    if config.backup.mode is Mode.HOT:
        prepare_split(tools.mirror, run.set_id)


def check_quiesced(
    config: Config, tools: Tools, split_id: str, early: Early, found: Seen
) -> Checked | Shortened:
    """Find the stale maps while the database is held.

    In hot mode the leg is asked, which costs writers nothing. In freeze mode writers wait: where it
    is known what changed, that was mapped under the freeze when it was discovered, and `confirm`
    follows when nobody waits any more; else the leg is asked, if it is ready at once, or the frozen
    primary.
    """
    if config.backup.mode is Mode.FREEZE and isinstance(found.table, Patch):
        return check_changed(found.table)
    if config.backup.mode is Mode.HOT or Feature.INSTANT_LEG in tools.mirror.features:
        try:
            return check_released(config, tools, split_id, early, found)
        except UnsupportedStack:
            if config.backup.mode is Mode.HOT:
                raise
    assert isinstance(found.table, FileTable)
    with PrimaryView(found.trees, live=False) as view:
        return check_maps(view, found.table, early=early.table)


def check_released(
    config: Config, tools: Tools, split_id: str, early: Early, found: Seen
) -> Checked:
    """Find the stale maps against the leg's own metadata, the leg mounted read-only."""
    leg = tools.mirror.leg(split_id, config.backup.leg_deadline_s)
    return check_leg(leg, early.table, found)


def check_leg(leg: Leg, early: FileTable, found: Seen) -> Checked:
    with LegView(leg, found.trees) as view:
        now = scan(view, found.trees, found.layout.keep, xattrs=True)
    now.of_leg = True
    return check(early, now, inodes_differ=leg.inodes_differ)


def confirm(
    config: Config, run: Run, tools: Tools, early: Early, found: Seen, checked: Shortened
) -> Checked:
    """Hold a shortened check against the leg: no directory on it has other names. That a map or a
    size is right is seen when the file is read. What the watch missed has everything checked."""
    leg = tools.mirror.leg(run.set_id, config.backup.leg_deadline_s)
    whole = checked.whole()
    with LegView(leg, found.trees) as view:
        strange = strange_directory(view, found.trees, found.layout.keep, Known(whole.table))
    if strange is None:
        return whole
    run.journal.record("missed by the watch", directory=os.fsdecode(strange))
    return check_leg(leg, early.table, found)


def trust(
    config: Config,
    run: Run,
    tools: Tools,
    hold: Hold,
    found: Seen,
    copied: tuple[RedoFile, ...],
    watched: str,
) -> Trusted:
    """The hold lasted and the redo log lies synced: from here on a crash resumes the backup."""
    backup_set = BackupSet(
        set_id=run.set_id,
        source=config.source,
        host=socket.gethostname(),
        database=config.database["driver"],
        mode=config.backup.mode,
        check=config.backup.check,
        mirror=config.mirror["driver"],
        medium=config.medium["driver"],
        started=run.began,
        write_pause_s=hold.pause_s,
        pause_parts=pause_parts(config.backup, hold, run.phases),
        quiesce_window_s=hold.ended_s - hold.began_s,
        trees=tuple((tree.name, tree.path) for tree in found.trees)
        + tuple((root.name, root.path) for root in found.layout.apart),
        facts=tools.database.facts(),
        watch=watched,
    )
    trusted = Trusted(
        backup_set=backup_set,
        trees=found.trees,
        copied=copied,
        block_size=config.block_size,
        part_size=config.part_size,
        streams=config.backup.streams,
    )
    run.journal.record("trusted", digest=trusted.save(run.directory / "trusted"))
    return trusted


def pause_parts(options: BackupOptions, hold: Hold, phases: list[Phase]) -> dict[str, float]:
    """What the write pause consists of, in seconds: in hot mode the split, in freeze mode every
    phase under the freeze."""
    parts = hold.pause_parts
    if not parts:
        return {}
    under = {"discover", "prepare", "split", "check"}
    held = {"split": parts["held"]}
    if options.mode is Mode.FREEZE:
        held = {phase.name: phase.seconds for phase in phases if phase.name in under}
        if options.check is Check.RELEASED:  # that phase thaws, and then writes its journal
            held["split"] = parts["held"] - held["discover"] - held["prepare"]
    return {"freeze": parts["freeze"], **held, "thaw": parts["thaw"]}


def plan_writing(run: Run, trusted: Trusted, layout: Layout, checked: Checked) -> Plan:
    """Which file goes where, durable before the first block is written."""
    plan = plan_parts(checked.table, checked.table.ordered(layout.order), trusted.part_size)
    digest = plan.save(run.directory / "plan")
    run.journal.record("plan", digest=digest, maps=asdict(checked.counts))
    return plan


@contextmanager
def thrown_away_on_failure(run: Run, tools: Tools) -> Iterator[None]:
    """Whatever fails after the split was intended, the mirror is whole again, unless the run is to
    be gone on with; if that fails too, it stays open for `recover`. The catalogue knows what is on
    the media. The first error is the one that is raised."""
    try:
        yield
    except BaseException as error:
        if run.keep_open:
            raise
        run.keep_open = True
        if told := left_in_words(run, tools.catalog, str(error) or type(error).__name__):
            error.add_note(told)
        try:
            tools.mirror.rejoin(run.set_id)
        except (SplitmirrorError, OSError) as second:
            error.add_note(
                f"The mirror could not be rejoined either: {second} Run `splitmirror recover`."
            )
            raise error from None
        run.keep_open = False
        raise


def filesystems_of(trees: tuple[Tree, ...]) -> list[Filesystem]:
    """The filesystems of the set, each once."""
    return list({tree.filesystem.devno: tree.filesystem for tree in trees}.values())
