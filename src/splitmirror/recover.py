"""After a crash: put right what a run left, and go on with it where its split is trusted.

The order is the one that cannot hurt: thaw, end what held the database, and only then look at
mirror and medium. The journal says what was intended; the world is asked what came of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from splitmirror import journal, writing
from splitmirror.backup import Seen, Tools, check_leg, clean_up, opened, plan_writing, write
from splitmirror.config import Config
from splitmirror.errors import Busy, JournalDamaged, LegError
from splitmirror.extents.table import FileTable
from splitmirror.guard import release_by_hand, wait_for_guards
from splitmirror.journal import Record
from splitmirror.leaving import left_in_words
from splitmirror.model import BackupSet, MapCounts, Session
from splitmirror.notes import Notes, Trusted, from_json
from splitmirror.preflight import stop_at_first
from splitmirror.progress import Watch, unwatched
from splitmirror.run import Run, ended, unfinished
from splitmirror.stream.plan import Plan
from splitmirror.system import dmlinear
from splitmirror.system.process import boot_id

# It waits 2 s for the sessions that it ended; the rest takes milliseconds.
_GUARD_ENDS_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What became of one run that was cut off: the set, if it was finished, and each thing done."""

    set_id: str
    finished: BackupSet | None
    done: tuple[str, ...]


def release(state: Path, source: str) -> list[str]:
    """End every hold that an unfinished run of the source has; one that still goes on is killed.
    Gives what was done, in words. A second call is harmless."""
    done = []
    for directory in unfinished(state, source):
        records = journal.read(directory, lenient=True)
        holder, devices = holder_of(records), suspended_by(records)
        done += release_by_hand(frozen_by(records), sessions_of(records), holder, devices)
    return done


def recover(config: Config, watch: Watch = unwatched, *, give_up: bool = False) -> list[Recovered]:
    """Put right every run of the source that was cut off. A backup whose split is trusted is
    carried to its end, unless its leg or its plan is lost, or `give_up`.

    Raises Busy while a run goes on, and whatever keeps a backup from being carried on now (the tape
    in use, the database down): what held the database up is released by then, and a second call
    goes on from there.
    """
    dmlinear.sweep()
    return [
        _recover_one(config, directory, watch, give_up)
        for directory in unfinished(config.state, config.source)
    ]


def _recover_one(config: Config, directory: Path, watch: Watch, give_up: bool) -> Recovered:
    with Run.again(config.state, config.source, directory) as run:
        records = journal.read(directory)  # not before the lock: another recovery may have ended it
        if ended(records):
            return Recovered(set_id=run.set_id, finished=None, done=("it has ended meanwhile",))
        devices = suspended_by(records)
        done = release_by_hand(frozen_by(records), sessions_of(records), None, devices)
        see_the_guard_gone(directory)
        with opened(config) as tools:
            why = "it was not to be gone on with"
            try:
                finished = None if give_up else _finish(config, run, tools, records, watch)
            except (LegError, JournalDamaged) as error:
                finished, why = None, str(error)
                done.append(f"could not go on with the backup: {error}")
            if finished is not None:
                done.append("went on with the backup to its end")
            else:
                done += filter(None, [left_in_words(run, tools.catalog, why)])
                done.append(_throw_away(run, tools))
        return Recovered(set_id=run.set_id, finished=finished, done=tuple(done))


def see_the_guard_gone(directory: Path) -> None:
    """The dead run's guard may still be at work, and leaves its record in `directory` last. Raises
    Busy when it does not come to its end."""
    if not wait_for_guards(directory, _GUARD_ENDS_S):
        raise Busy(
            f"the guard of the run {directory.name} is still at work",
            hint="Everything was thawed and released. Look for a stopped process `split-guard` "
            "(`pgrep split-guard`), end it with `kill -9`, and run `splitmirror recover` again.",
        )


def _finish(
    config: Config, run: Run, tools: Tools, records: list[Record], watch: Watch
) -> BackupSet | None:
    """Carry a backup to its end from where it stood; None when its split was not trusted."""
    if (text := _fact(records, "recorded", "set")) is not None:
        run.clear()
        return from_json(text, BackupSet)
    if (text := _fact(records, "written", "set")) is not None:
        notes = Notes(run.directory, run.journal)
        written = writing.whole_set(from_json(text, BackupSet), notes)
        return clean_up(config, run, tools, written)
    if (digest := _fact(records, "trusted", "digest")) is None:
        return None
    trusted = Trusted.load(run.directory / "trusted", digest)
    planned = next((record for record in reversed(records) if record.kind == "plan"), None)
    if planned is not None:
        plan = Plan.load(run.directory / "plan", planned.facts["digest"])
        counts = MapCounts(**planned.facts["maps"])
    else:
        plan, counts = _plan_anew(config, run, tools, trusted)
    written = write(config, run, tools, trusted, counts, plan, watch)
    return clean_up(config, run, tools, written)


def _plan_anew(config: Config, run: Run, tools: Tools, trusted: Trusted) -> tuple[Plan, MapCounts]:
    """The check against the leg was cut off: make it again, from the leg's metadata alone."""
    with run.phase("check", config.backup.leg_deadline_s):
        leg = tools.mirror.leg(run.set_id, config.backup.leg_deadline_s)
        stop_at_first(tools.database.preflight(trusted.backup_set.mode))
        layout = tools.database.layout()
        seen = Seen(layout=layout, trees=trusted.trees, table=FileTable())
        checked = check_leg(leg, FileTable(), seen)
    return plan_writing(run, trusted, layout, checked), checked.counts


def _throw_away(run: Run, tools: Tools) -> str:
    """The split was not trusted: give the leg back."""
    if not tools.mirror.state().attached:
        return (
            "the mirror is not attached: nothing to rejoin, its next start will say what it needs"
        )
    tools.mirror.rejoin(run.set_id)
    run.journal.record("thrown away")
    run.clear()
    return "threw the unfinished split away and rejoined the mirror"


def _fact(records: list[Record], kind: str, name: str) -> str | None:
    """A fact of the last record of a kind."""
    return next((r.facts[name] for r in reversed(records) if r.kind == kind), None)


def frozen_by(records: list[Record]) -> list[str]:
    """The mountpoints that the run may have frozen."""
    found: dict[str, None] = {}
    for record in records:
        if record.kind == "freeze intended":
            found |= dict.fromkeys(record.facts["mountpoints"])
    return list(found)


def suspended_by(records: list[Record]) -> list[int]:
    """The numbers of the devices that the run may have suspended; none after a reboot."""
    intended = [r.facts for r in records if r.kind == "split intended"]
    now = boot_id()
    return [n for facts in intended if facts.get("boot") == now for n in facts["devices"]]


def sessions_of(records: list[Record]) -> list[Session]:
    """The processes that kept the database quiesced."""
    return [Session(**record.facts) for record in records if record.kind == "session"]


def holder_of(records: list[Record]) -> Session | None:
    """The run's own process."""
    facts = next((record.facts for record in records if record.kind == "begin"), None)
    if facts is None or "start_ticks" not in facts:
        return None
    return Session(what="the backup", pid=facts["pid"], start_ticks=facts["start_ticks"], signal=9)
