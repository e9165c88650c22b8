"""Rows of a PostgreSQL cluster that is backed up while pgbench runs.

splitmirror in hot mode, pg_basebackup and pgBackRest take turns: the same server, disk and place
for the copies. Each begins with cold caches, the mirror level; for a while the clients are watched
alone, then the command runs, from its start to its exit. Primary and mirror are images on one disk
here, so our reading disturbs the server as much as theirs does; on two disks it would not.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import psycopg

from bench import cost, ours, profiles, rivals
from bench.cost import Cost, cpu_of, drop_caches, processes_of, reaped_cpu_of
from bench.ours import Backups
from bench.pairs import ratios, take_turns
from bench.rivals import POSTGRES, PgBackRest
from bench.rows import Row, both, rounded
from bench.stage import MIB, Needs, Sizes, Stage
from splitmirror.demo.lab import Disk, Lab, lab_at
from splitmirror.errors import ProgramFailed
from splitmirror.system import programs
from splitmirror.testing.clusters import Cluster, cluster

_BYTES_A_SCALE = 15.2 * MIB  # of pgbench's tables and their indexes, measured
_CLIENTS = 4
_FILL_S = 1800.0
_NEXT_NUMBER = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text"
_SETTLE_S = 0.5  # a server process that has done its work needs a moment to be gone
_FILLING = {
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "wal_level": "minimal",  # the tables are filled without writing them to the log
    "max_wal_senders": "0",
}
_RUNNING = {
    "wal_level": "replica",
    "max_wal_senders": "4",
    "archive_mode": "on",
    "archive_command": "/bin/true",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "1h",  # no checkpoint but those that the backups ask for
}
_PHASE = "phase "  # what the facts of our command begin with that are seconds of its phases
OURS, BASEBACKUP, PGBACKREST = "splitmirror", "pg_basebackup", "pgBackRest"
RIVALS = (BASEBACKUP, PGBACKREST)


class Database:
    """A Scene."""

    THROUGHPUT = "postgresql-throughput"
    rows = (
        *(f"postgresql-time-against-{rival}" for rival in RIVALS),
        *(f"postgresql-cpu-against-{rival}" for rival in RIVALS),
        THROUGHPUT,
    )

    def needs(self, sizes: Sizes) -> Needs:
        return Needs(
            scratch=3 * _disk(sizes).size,
            media=int(1.5 * sizes.cluster) + 256 * MIB,
            seconds=10
            + 55 * sizes.scale
            + 3 * sizes.pairs * (sizes.watched_s + 2 + 30 * sizes.scale),
        )

    def run(self, stage: Stage, wanted: frozenset[str]) -> Iterator[Row]:
        with ExitStack() as undo:
            made = _Made(stage, undo)
            sides = {name: partial(made.measured, name) for name in made.contenders}
            found = take_turns(sides, dict.fromkeys(sides, stage.sizes.pairs))
            more = {"media": stage.media_is, "one_disk": True, **made.profile()}
            rows = [_time_row(found, rival, more) for rival in RIVALS]
            rows += [_cpu_row(found, rival, more) for rival in RIVALS]
            rows.append(_throughput_row(found, more))
            yield from (row for row in rows if row.name in wanted)


# --- the rows


def _time_row(found: Mapping[str, list[Cost]], rival: str, more: Mapping[str, Any]) -> Row:
    our, theirs = found[OURS], found[rival]
    paired = ratios((cost.seconds for cost in theirs), (cost.seconds for cost in our))
    return Row(
        name=f"postgresql-time-against-{rival}",
        what=f"hot backup of a PostgreSQL cluster under pgbench, from the command's start to its "
        f"exit, against {rival}; synchronize and rejoin included",
        value=paired.median,
        goal=1,
        unit="× as fast",
        allows_noise=True,
        more={**both(our, theirs, paired), "phases_s": _phases(our), **more},
    )


def _phases(our: list[Cost]) -> dict[str, float]:
    """Seconds of each phase of our command, and of what comes before and behind them: the loading
    of modules and the opening of sessions."""
    names = [name for name in our[0].facts if name.startswith(_PHASE)]
    seconds = {
        name.removeprefix(_PHASE): rounded(median(cost.facts[name] for cost in our))
        for name in names
    }
    others = (cost.seconds - sum(cost.facts[name] for name in names) for cost in our)
    return {**seconds, "other": rounded(median(others))}


def _cpu_row(found: Mapping[str, list[Cost]], rival: str, more: Mapping[str, Any]) -> Row:
    our, theirs = found[OURS], found[rival]
    paired = ratios((cost.cpu_s_per_gib for cost in theirs), (c.cpu_s_per_gib for c in our))
    parts = ("command_cpu_s", "server_cpu_s", "mirror_cpu_s")
    return Row(
        name=f"postgresql-cpu-against-{rival}",
        what="CPU seconds a GiB of the command and of the server's processes that worked for it, "
        f"against {rival}; the mirror's own, above what the transactions take of it, apart",
        value=paired.median,
        goal=1,
        unit="× fewer CPU seconds",
        allows_noise=True,
        more={
            **both(our, theirs, paired),
            **{part: _sides(our, theirs, part) for part in parts},
            "with_mirror": rounded(
                ratios(map(_with_mirror, theirs), map(_with_mirror, our)).median
            ),
            **more,
        },
    )


def _with_mirror(cost: Cost) -> float:
    """CPU seconds, those of the mirror included."""
    return cost.cpu_s + max(0.0, cost.facts["mirror_cpu_s"])


def _throughput_row(found: Mapping[str, list[Cost]], more: Mapping[str, Any]) -> Row:
    """What is left of the throughput, against the rival that leaves more of it."""
    kept = {side: [cost.facts["kept"] for cost in costs] for side, costs in found.items()}
    against = {rival: ratios(kept[OURS], kept[rival]) for rival in RIVALS}
    hardest = min(against.values(), key=lambda paired: paired.median)
    return Row(
        name=Database.THROUGHPUT,
        what="what is left of pgbench's throughput during the backup, against the better of "
        "pg_basebackup and pgBackRest",
        value=hardest.median,
        goal=1,
        unit="× the better's",
        allows_noise=True,
        more={
            "pairs": len(hardest.values),
            "spread": [rounded(value) for value in hardest.spread],
            "kept": {side: rounded(median(shares)) for side, shares in kept.items()},
            "lost_transactions": {
                side: round(median(cost.facts["lost"] for cost in costs))
                for side, costs in found.items()
            },
            **more,
        },
    )


def _sides(our: list[Cost], theirs: list[Cost], fact: str) -> dict[str, float]:
    return {
        "ours": rounded(median(cost.facts[fact] for cost in our)),
        "theirs": rounded(median(cost.facts[fact] for cost in theirs)),
    }


# --- the cluster and who backs it up


def _disk(sizes: Sizes) -> Disk:
    size = (int(sizes.cluster * 1.3) + 1536 * MIB) // MIB * MIB  # room for the log, too
    return Disk(name="data", fstype="ext4", size=size)


@dataclass(frozen=True, slots=True)
class Contender:
    """`prepare` is not measured; `command` is run as `user`."""

    command: Callable[[], list[str]]
    prepare: Callable[[], None]
    tidy: Callable[[], None]
    user: str | None = None


class _Made:
    """The cluster, its clients, and those who back it up."""

    def __init__(self, stage: Stage, undo: ExitStack) -> None:
        self.stage = stage
        stage.tell(f"making a cluster of {stage.sizes.cluster // MIB} MiB")
        place = stage.scratch / "postgresql"
        self._lab = undo.enter_context(lab_at(place, (_disk(stage.sizes),)))
        home = self._lab.mountpoint("data") / "pg"
        home.mkdir()
        self._server = undo.enter_context(cluster(_FILLING, home=home))
        _fill(self._server, max(1, round(stage.sizes.cluster / _BYTES_A_SCALE)))
        self._backups = _backups(self._lab, self._server, stage)
        self.contenders = self._all()
        undo.callback(self._backups.rejoin)
        self._backups.level()
        self._size = _size_of(self._server.data)
        self._load = undo.enter_context(Load(self._server))

    def _all(self) -> dict[str, Contender]:
        media = self.stage.media
        copy = media / "basebackup"
        pgbackrest = PgBackRest(self._server, media, processes=1)
        path = str(self._lab.config_path)
        return {
            OURS: Contender(
                command=lambda: ours.command("backup", "--json", f"--config={path}"),
                prepare=self._backups.level,
                tidy=self._backups.forget,
            ),
            BASEBACKUP: Contender(
                command=lambda: rivals.basebackup(self._server, copy),
                prepare=lambda: None,
                tidy=lambda: shutil.rmtree(copy, ignore_errors=True),
            ),
            PGBACKREST: Contender(
                command=lambda: pgbackrest.command("backup", "--type=full"),
                prepare=lambda: self._archive(pgbackrest),
                tidy=lambda: self._unarchive(pgbackrest),
                user=POSTGRES,
            ),
        }

    def profile(self) -> dict[str, list[str]]:
        """Of our command, in a run that is not measured."""
        if not self.stage.profile:
            return {}
        self._backups.forget()
        found = profiles.of_command("backup", f"--config={self._lab.config_path}")
        self._backups.forget()
        return {"profile": found}

    def _archive(self, pgbackrest: PgBackRest) -> None:
        """A new repository, and the server's log goes into it."""
        pgbackrest.make_ready()
        _set(self._server, "archive_command", pgbackrest.archive_command)

    def _unarchive(self, pgbackrest: PgBackRest) -> None:
        _set(self._server, "archive_command", _RUNNING["archive_command"])
        pgbackrest.forget()

    def measured(self, name: str) -> Cost:
        """One backup by one of them, with what the clients did before and meanwhile."""
        contender = self.contenders[name]
        contender.tidy()
        contender.prepare()
        drop_caches()
        alone = self._watch(lambda: time.sleep(self.stage.sizes.watched_s))
        made = self._watch(partial(self._run, contender))
        contender.tidy()
        cpu_s = {
            "command_cpu_s": made.cpu_s,
            "server_cpu_s": made.server_cpu_s,
            "mirror_cpu_s": made.mirror_cpu_s
            - made.transactions * alone.mirror_cpu_s / alone.transactions,
        }
        kept = made.rate / alone.rate
        self.stage.tell(
            f"  {name}: {made.seconds:.2f} s, {cpu_s['command_cpu_s']:.2f} + "
            f"{cpu_s['server_cpu_s']:.2f} CPU s, {alone.rate:.0f} transactions/s, {kept:.2f} kept"
        )
        return Cost(
            seconds=made.seconds,
            cpu_s=made.cpu_s + made.server_cpu_s,
            bytes=self._size,
            facts={
                **cpu_s,
                **made.phases,
                "kept": kept,
                "lost": (alone.rate - made.rate) * made.seconds,
            },
        )

    def _run(self, contender: Contender) -> tuple[float, dict[str, float]]:
        """CPU seconds of the command, and the seconds of its phases, where it tells them."""
        with tempfile.TemporaryFile("w+") as words:
            made = cost.run(contender.command(), user=contender.user, output=words)
            words.seek(0)
            last = (words.read().splitlines() or [""])[-1]
        phases = msgspec.json.decode(last).get("phases", []) if last.startswith("{") else []
        return made.cpu_s, {f"{_PHASE}{phase['name']}": phase["seconds"] for phase in phases}

    def _watch(self, act: Callable[[], tuple[float, dict[str, float]] | None]) -> _Watched:
        """What the clients, the server and the mirror did while something was done."""
        mirror, server = processes_of(self._lab.base / "mirror"), self._load.server_pid
        mirror_s, server_s = cpu_of(mirror), reaped_cpu_of(server)
        transactions, began_s = self._load.transactions(), time.monotonic()
        done = act()
        seconds, transactions = time.monotonic() - began_s, self._load.transactions() - transactions
        mirror_s = cpu_of(mirror) - mirror_s
        time.sleep(_SETTLE_S)
        command_s, phases = done or (0.0, {})
        return _Watched(
            seconds=seconds,
            transactions=transactions,
            cpu_s=command_s,
            server_cpu_s=reaped_cpu_of(server) - server_s,
            mirror_cpu_s=mirror_s,
            phases=phases,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched:
    """`server_cpu_s`: of server processes that ended meanwhile: the clients' go on, so these are
    those that worked for the backup. `mirror_cpu_s`: of the mirror's processes, which work for
    every transaction too."""

    seconds: float
    transactions: int
    cpu_s: float
    server_cpu_s: float
    mirror_cpu_s: float
    phases: Mapping[str, float]

    @property
    def rate(self) -> float:
        """Transactions a second."""
        return self.transactions / self.seconds


class Load:
    """pgbench's own transactions, as fast as they go, until the block is left."""

    def __init__(self, server: Cluster) -> None:
        self._server = server
        first_line = (server.data / "postmaster.pid").read_text().splitlines()[0]
        self.server_pid = int(first_line)

    def __enter__(self) -> Load:
        self._session = psycopg.connect(self._server.dsn(), autocommit=True)
        self._clients = subprocess.Popen(
            [*_pgbench(self._server), "-n", "-M", "prepared", "-c", str(_CLIENTS), "-T", "86400"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self._clients.terminate()
        self._clients.wait()
        self._session.close()

    def transactions(self) -> int:
        """The number of the server's next one that writes: each of pgbench's takes one number.
        Raises ProgramFailed when pgbench has ended."""
        if self._clients.poll() is not None:
            raise ProgramFailed("pgbench has ended", hint="The server's log may tell why.")
        row = self._session.execute(_NEXT_NUMBER).fetchone()
        assert row is not None
        return int(row[0])


def _pgbench(server: Cluster) -> list[str]:
    return [str(server.bin_dir / "pgbench"), "-h", str(server.home), "-U", POSTGRES, "postgres"]


def _fill(server: Cluster, scale: int) -> None:
    """pgbench's tables, and the server's settings for the measurement."""
    programs.run([*_pgbench(server), "-i", "-q", "-s", str(scale)], timeout_s=_FILL_S)
    server.stop()
    server.set(_RUNNING)
    server.start()
    with psycopg.connect(server.dsn(), autocommit=True) as session:
        session.execute("CHECKPOINT")


def _backups(lab: Lab, server: Cluster, stage: Stage) -> Backups:
    database = {"driver": "postgresql", "dsn": server.dsn()}
    options = {"mode": "hot", "cleanup": "rejoin"}
    return Backups(lab, database, options, stage.media / "SM0001.tap", stage.peaks)


def _set(server: Cluster, name: str, value: str) -> None:
    """Change a setting of the running server."""
    with psycopg.connect(server.dsn(), autocommit=True) as session:
        session.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        session.execute("SELECT pg_reload_conf()")


def _size_of(data: Path) -> int:
    """Bytes of a data directory without its log, which every tool handles in its own way."""
    log = data / "pg_wal"
    files = (path for path in data.rglob("*") if path.is_file() and not path.is_relative_to(log))
    return sum(path.stat().st_size for path in files)
