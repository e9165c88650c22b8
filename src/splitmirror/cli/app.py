"""The commands. Each opens what it needs, calls one recipe and prints what came of it.

A recipe is imported by the command that calls it: with all of them `--version`, a completed word or
a wrong option would wait half a second for a database's and a catalogue's libraries.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from splitmirror import __version__, config
from splitmirror.cli import library, volumes
from splitmirror.cli import show as words
from splitmirror.cli.demo import demo
from splitmirror.cli.media import media_app
from splitmirror.cli.options import DEFAULT, ConfigPath, Json
from splitmirror.cli.output import plain, print_json, terminal_watch
from splitmirror.config import Config
from splitmirror.errors import MirrorError, NeedsRecovery, UnsafeMirror
from splitmirror.mirrors import Attachable, Feature, Mirror, Proving
from splitmirror.preflight import require_root
from splitmirror.units import show_size

if TYPE_CHECKING:
    from splitmirror.catalog import Lookup

app = typer.Typer(
    name="splitmirror",
    help="Back up a running database, file by file, from a split mirror.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
catalog_app = typer.Typer(no_args_is_help=True, help="The index of what was backed up.")
mirror_app = typer.Typer(no_args_is_help=True, help="Start and stop a mirror that is ours to run.")
app.add_typer(catalog_app, name="catalog")
app.add_typer(mirror_app, name="mirror")
app.add_typer(media_app, name="media")
library.add_commands(media_app)
volumes.add_commands(media_app)
app.command()(demo)

SetId = Annotated[str, typer.Argument(help="A set's id, the beginning of one, or `latest`.")]
Patterns = Annotated[
    list[str] | None,
    typer.Argument(help="Names or globs in the set; a directory means all below it."),
]


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"splitmirror {__version__}")
        raise typer.Exit


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="The database's data directory or file.")],
    write: Annotated[
        Path | None, typer.Option("--write", help="Write it there; else it is printed.")
    ] = None,
) -> None:
    """Look at this host and propose a configuration."""
    from splitmirror.init import propose, write_new

    text = propose(directory)
    if write is None:
        print(text, end="")
    else:
        write_new(write, text)
        print(f"wrote {write}; look through it, it says what comes next")


@app.command()
def doctor(path: ConfigPath = DEFAULT, json: Json = False) -> None:
    """Find what would stop a backup, before it does."""
    from splitmirror.doctor import examine

    findings = examine(config.load(path))
    problems = [f.problem for f in findings if f.problem is not None and not f.warning]
    if json:
        print_json({"ok": not problems, "findings": [words.finding(f) for f in findings]})
    else:
        words.print_findings(findings)
    if problems:
        raise typer.Exit(problems[0].exit_code)


@app.command()
def backup(path: ConfigPath = DEFAULT, json: Json = False) -> None:
    """Back up the source once."""
    from splitmirror.backup import backup as run_backup

    made = run_backup(config.load(path), terminal_watch)
    if json:
        print_json(made)
    else:
        words.print_set(made)


@app.command(name="list")
def list_sets(path: ConfigPath = DEFAULT, json: Json = False) -> None:
    """List the backup sets, newest last."""
    with _catalog(config.load(path, needed=())) as catalog:
        sets = catalog.sets()
    if json:
        print_json({"sets": sets})
    else:
        words.print_sets(sets)


@app.command()
def show(
    set_id: SetId = "latest",
    patterns: Patterns = None,
    files: Annotated[bool, typer.Option("--files", help="List the files too.")] = False,
    path: ConfigPath = DEFAULT,
    json: Json = False,
) -> None:
    """Show a set: phases, write pause, and with --files or PATTERNS what is in it."""
    with _catalog(config.load(path, needed=())) as catalog:
        found = catalog.get(set_id)
        wanted = [pattern.encode(errors="surrogateescape") for pattern in patterns or ()]
        members = catalog.members(found.set_id, wanted) if files or wanted else iter(())
        if json:
            print_json({"set": found, "members": [words.member(each) for each in members]})
            return
        words.print_set(found)
        words.print_members(members)


@app.command()
def restore(
    set_id: SetId,
    patterns: Patterns = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="An empty or new directory to restore into.")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Restore to the original place, replacing files.")
    ] = False,
    keep_damaged: Annotated[
        bool, typer.Option(help="Keep what can be read of a damaged file, as NAME.damaged.")
    ] = False,
    path: ConfigPath = DEFAULT,
    json: Json = False,
) -> None:
    """Restore one file, a subtree, a glob or the whole set."""
    from splitmirror.restore import restore as run_restore

    if (to is None) == (not in_place):
        raise typer.BadParameter("say where: --to DIRECTORY, or --in-place for the original place")
    loaded = config.load(path, needed=config.TO_READ if patterns else config.TO_START)
    with _catalog(loaded) as catalog, closing(loaded.open_supply()) as supply:
        found = catalog.get(set_id)
        report = run_restore(
            supply,
            catalog,
            found.set_id,
            [pattern.encode(errors="surrogateescape") for pattern in patterns or ()],
            to,
            original=in_place,
            database=None if patterns else loaded.open_database(),
            keep_damaged=keep_damaged,
            progress=terminal_watch("restore"),
        )
    if json:
        print_json(report)
    else:
        words.print_restored(report)
        if not patterns:
            words.print_next(found, to)


@app.command()
def verify(set_id: SetId = "latest", path: ConfigPath = DEFAULT, json: Json = False) -> None:
    """Read a set back and check every hash."""
    from splitmirror.verify import verify as run_verify

    loaded = config.load(path, needed=config.TO_READ)
    with _catalog(loaded) as catalog:
        found = catalog.get(set_id)
    with closing(loaded.open_supply()) as supply:
        report = run_verify(
            supply,
            found.set_id,
            among=[use.volume for use in found.volumes],
            progress=terminal_watch("verify"),
        )
    if not json:
        words.print_verified(report)
    report.require_sound()  # its error's document holds the report
    if json:
        print_json(report)


@app.command()
def drill(set_id: SetId = "latest", path: ConfigPath = DEFAULT, json: Json = False) -> None:
    """Restore a set to a scratch place, start the database there, check it, take it away."""
    from splitmirror.drill import DrillReport
    from splitmirror.drill import drill as run_drill

    require_root()
    loaded = config.load(path, needed=config.TO_START)
    with _catalog(loaded) as catalog, closing(loaded.open_supply()) as supply:
        report: DrillReport[None] = run_drill(
            supply,
            catalog,
            catalog.get(set_id).set_id,
            loaded.open_database(),
            progress=terminal_watch("drill"),
        )
    if json:
        print_json(report)
    else:
        words.print_drilled(report)
    report.require_passed()


@catalog_app.command()
def rebuild(path: ConfigPath = DEFAULT, json: Json = False) -> None:
    """Make the catalogue anew from the media alone; volumes are held then until released."""
    from splitmirror.catalog import Catalog
    from splitmirror.volumes import scan

    loaded = config.load(path, needed=config.TO_READ)
    with closing(loaded.open_supply()) as supply:
        # the volumes first: without any no empty catalogue is left that looks like a good one
        serials = supply.at_hand()
        with Catalog.open(loaded.catalog_path) as catalog:
            scanned = scan(
                supply,
                catalog,
                serials,
                driver=loaded.medium["driver"],
                new_pool=loaded.pool,
                progress=terminal_watch("rebuild"),
            )
    volumes.say_scanned(scanned, json)


@mirror_app.command()
def start(path: ConfigPath = DEFAULT, json: Json = False) -> None:
    """Start the mirror engine and print the devices to mount."""
    require_root()
    volumes = _attachable(config.load(path).open_mirror()).attach()
    if json:
        print_json({"volumes": volumes})
        return
    for volume in volumes:
        print(f"{volume.name}: {volume.device}")
    print("mount them before the database starts; a new one gets its filesystem first")


@mirror_app.command()
def stop(path: ConfigPath = DEFAULT, json: Json = False) -> None:
    """Stop the mirror engine; its devices must not be mounted."""
    require_root()
    mirror = config.load(path).open_mirror()
    attached = mirror.state().attached
    _attachable(mirror).detach()
    if json:
        print_json({"stopped": attached, "state": mirror.state()})
    else:
        print("stopped" if attached else "nothing to stop: the mirror was not attached")


@mirror_app.command()
def status(path: ConfigPath = DEFAULT, json: Json = False) -> None:
    """What the mirror is doing now."""
    state = config.load(path).open_mirror().state()
    if json:
        print_json(state)
    else:
        words.print_mirror(state)


@app.command()
def resync(
    prove: Annotated[
        bool, typer.Option("--prove", help="Then read all of primary and mirror and compare them.")
    ] = False,
    path: ConfigPath = DEFAULT,
    json: Json = False,
) -> None:
    """Rejoin a leg that was left split, and bring the mirror level."""
    require_root()
    loaded = config.load(path)
    with _alone(loaded), closing(loaded.open_mirror()) as mirror:
        proving = _proving(mirror) if prove else None
        parted = mirror.state().split_id
        if parted is not None:
            mirror.rejoin(parted)
        mirror.synchronize(terminal_watch("synchronize"))
        if proving is not None:
            _require_equal(proving.prove(terminal_watch("prove")))
        state = mirror.state()
    if json:
        print_json({**plain(state), "proven": prove})
        return
    words.print_mirror(state)
    if prove:
        print("proven: every block of the mirror is equal to the primary's")


@app.command()
def recover(
    give_up: Annotated[
        bool, typer.Option("--give-up", help="Do not go on with the backup: throw its split away.")
    ] = False,
    path: ConfigPath = DEFAULT,
    json: Json = False,
) -> None:
    """After a crash: release everything, then go on with the backup or throw its split away; take
    away what a drill has left that was killed."""
    from splitmirror.drill import sweep
    from splitmirror.recover import recover as run_recover

    require_root()
    recovered = run_recover(config.load(path), terminal_watch, give_up=give_up)
    swept = sweep()
    if json:
        print_json({"runs": recovered, "scratch": swept})
    else:
        words.print_recovered(recovered, swept)


@app.command()
def release(path: ConfigPath = DEFAULT, json: Json = False) -> None:
    """Thaw and unlock by hand whatever an unfinished backup holds; a running one is ended."""
    from splitmirror.recover import release as run_release

    require_root()
    loaded = config.load(path)
    done = run_release(loaded.state, loaded.source)
    if json:
        print_json({"done": done})
    else:
        print("\n".join(done) or "nothing was held")


def _catalog(loaded: Config) -> Lookup:
    from splitmirror.catalog import Lookup

    return Lookup.open_to_read(loaded.catalog_path)


@contextmanager
def _alone(loaded: Config) -> Iterator[None]:
    """No backup of the source goes on, and none that was cut off still needs its leg. Raises Busy,
    NeedsRecovery."""
    from splitmirror.run import take_lock, unfinished

    lock_fd = take_lock(loaded.state, loaded.source)
    try:
        if cut_off := unfinished(loaded.state, loaded.source):
            raise NeedsRecovery(
                f"the backup {cut_off[0].name} was cut off; it may still be finished from its leg",
                hint="Run `splitmirror recover`: it goes on with the backup where it can, and "
                "rejoins the leg.",
            )
        yield
    finally:
        os.close(lock_fd)


def _proving(mirror: Mirror) -> Proving:
    """Raises MirrorError, before anything is changed, for an engine that cannot compare."""
    if Feature.PROVES not in mirror.features:
        raise MirrorError(
            "this mirror engine cannot compare the mirror with its primary",
            hint="Leave out --prove. `splitmirror verify` and `drill` prove a backup instead.",
        )
    return cast(Proving, mirror)


def _require_equal(differing: int) -> None:
    if differing:
        raise UnsafeMirror(
            f"{show_size(differing)} of the mirror are not what the primary holds",
            hint="Sets that were read from this mirror may hold the wrong bytes: `splitmirror "
            "drill` them. The chapter on mirrors (docs/mirrors.md) says how to copy it anew.",
            differing_bytes=differing,
        )


def _attachable(mirror: Mirror) -> Attachable:
    if not isinstance(mirror, Attachable):
        raise MirrorError(
            "this mirror engine is run by the system, not by splitmirror",
            hint="`splitmirror mirror start` and `stop` are for the embedded mirror (qsd).",
        )
    return mirror
