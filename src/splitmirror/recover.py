"""After a crash: put right what a run left, and go on with it where its split is trusted.

The order is the one that cannot hurt: thaw, end what held the database, and only then look at
mirror and medium. The journal says what was intended; the world is asked what came of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from splitmirror import journal, writing
from splitmirror.backup import Seen, Tools, check_leg, finish, opened, plan_writing
from splitmirror.config import Config
from splitmirror.errors import SplitmirrorError
from splitmirror.extents.table import FileTable
from splitmirror.guard import release_by_hand
from splitmirror.journal import Record
from splitmirror.model import BackupSet, MapCounts, Session
from splitmirror.progress import Watch, unwatched
from splitmirror.run import Run, unfinished
from splitmirror.stream.plan import Plan


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
        records = journal.read(directory)
        done += release_by_hand(frozen_by(records), sessions_of(records), holder_of(records))
    return done


def recover(config: Config, watch: Watch = unwatched) -> list[Recovered]:
    """Put right every run of the source that was cut off. Raises Busy while one goes on; whatever
    else fails is raised after everything that holds the database up has been released."""
    return [
        _recover_one(config, directory, watch)
        for directory in unfinished(config.state, config.source)
    ]


def _recover_one(config: Config, directory: Path, watch: Watch) -> Recovered:
    records = journal.read(directory)
    with Run.again(config.state, config.source, directory) as run:
        done = release_by_hand(frozen_by(records), sessions_of(records), None)
        with opened(config) as tools:
            trusted = _fact(records, "trusted", "digest")
            if trusted is not None:
                try:
                    finished = _go_on(config, run, tools, records, trusted, watch)
                except SplitmirrorError as error:
                    done.append(f"could not go on with the backup: {error}")
                else:
                    done.append("went on with the backup to its end")
                    return Recovered(set_id=run.set_id, finished=finished, done=tuple(done))
            done.append(_throw_away(run, tools))
    return Recovered(set_id=directory.name, finished=None, done=tuple(done))


def _go_on(
    config: Config, run: Run, tools: Tools, records: list[Record], digest: str, watch: Watch
) -> BackupSet:
    """Resume a backup whose split is trusted."""
    trusted = writing.Trusted.load(run.directory / "trusted", digest)
    planned = next((record for record in reversed(records) if record.kind == "plan"), None)
    if planned is not None:
        plan = Plan.load(run.directory / "plan", planned.facts["digest"])
        counts = MapCounts(**planned.facts["maps"])
    else:
        with run.phase("check", config.backup.leg_deadline_s):
            plan, counts = _plan_anew(config, run, tools, trusted)
    return finish(config, run, tools, trusted, counts, plan, watch)


def _plan_anew(
    config: Config, run: Run, tools: Tools, trusted: writing.Trusted
) -> tuple[Plan, MapCounts]:
    """The check against the leg was cut off: make it again, from the leg's metadata alone."""
    leg = tools.mirror.leg(run.set_id, config.backup.leg_deadline_s)
    for finding in tools.database.preflight(trusted.backup_set.mode):
        if finding.problem is not None and not finding.warning:
            raise finding.problem
    layout = tools.database.layout()
    seen = Seen(layout=layout, trees=trusted.trees, table=FileTable())
    checked = check_leg(leg, FileTable(), seen)
    return plan_writing(config, run, layout, checked), checked.counts


def _throw_away(run: Run, tools: Tools) -> str:
    """The split was not trusted: give the leg back."""
    if not tools.mirror.state().attached:
        return (
            "the mirror is not attached: nothing to rejoin, its next start will say what it needs"
        )
    tools.mirror.rejoin(run.set_id)
    run.journal.record("rejoined")
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


def sessions_of(records: list[Record]) -> list[Session]:
    """The processes that kept the database quiesced."""
    return [Session(**record.facts) for record in records if record.kind == "session"]


def holder_of(records: list[Record]) -> Session | None:
    """The run's own process."""
    facts = next((record.facts for record in records if record.kind == "begin"), None)
    if facts is None or "start_ticks" not in facts:
        return None
    return Session(what="the backup", pid=facts["pid"], start_ticks=facts["start_ticks"], signal=9)
