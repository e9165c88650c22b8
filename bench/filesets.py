"""Rows of plain files: to a null medium against dd and tar, to tape against tar, and back.

Two sets, large files and a mixed one, each on a lab of its own. The database is the driver `none`
with `check = "released"`: the check then looks at the leg, as it does in the hot mode that a
PostgreSQL server is backed up in. (With `quiesced` plain files are checked on the frozen primary.)
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from bench import cost, ours, profiles, rivals, sets
from bench.cost import Cost, drop_caches
from bench.ours import LOGICAL_BLOCK, Backups
from bench.pairs import ratios, take_turns
from bench.rows import MOST_NOISE, Row, both, compared, rounded
from bench.stage import MIB, Needs, Sizes, Stage
from splitmirror.demo.lab import Disk, Lab, lab_at
from splitmirror.errors import SplitmirrorError

NOISE = "dd-against-dd"
_BACKUP = {"mode": "freeze", "check": "released"}
_SLACK = 128 * MIB  # journal, directories, and a few blocks that must stay free


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """Times the rate of the other side."""

    dd: float
    tar_null: float = 0  # there is such a row of the mixed set only
    tar_tape: float
    untar: float


GOALS = {
    "large": Goals(dd=0.95, tar_tape=1, untar=1),
    "mixed": Goals(dd=0.8, tar_null=2.5, tar_tape=2, untar=1.5),
}


@dataclass(frozen=True, slots=True)
class FileSet:
    """A Scene: one of the two sets."""

    kind: Literal["large", "mixed"]

    @property
    def rows(self) -> tuple[str, ...]:
        names = [f"{self.kind}-to-null-against-dd", f"{self.kind}-to-tape", f"{self.kind}-restore"]
        if self.kind == "large":
            return (NOISE, *names)
        return (names[0], f"{self.kind}-to-null-against-tar", *names[1:])

    def needs(self, sizes: Sizes) -> Needs:
        disk = self._disk(sizes)
        return Needs(
            scratch=3 * disk.size,  # primary, mirror, and what is restored
            media=2 * disk.size,  # a tape and a tar
            seconds=15 + sizes.scale * self._seconds(sizes),
        )

    def _seconds(self, sizes: Sizes) -> float:
        """About how long all of it takes at scale 1 with so many pairs: as it was measured once."""
        if self.kind == "large":
            return 60 + 13 * sizes.rate_pairs + 31 * sizes.pairs
        return 75 + 13 * sizes.rate_pairs + 80 * sizes.pairs

    def run(self, stage: Stage, wanted: frozenset[str]) -> Iterator[Row]:
        with ExitStack() as undo:
            made = _Made(self, stage, undo)
            if wanted & set(self.rows[:-2]):
                yield from _to_null(made, wanted)
            if wanted & set(self.rows[-2:]):
                yield from _to_tape_and_back(made, wanted)

    def _disk(self, sizes: Sizes) -> Disk:
        if self.kind == "large":
            return Disk(name="data", fstype="ext4", size=_room(sizes.large), inodes=4096)
        # A small file takes half the largest on average, and half a block more than it has.
        total = sizes.small * (sets.SMALL_MOST // 2 + 2048) + sizes.mixed_large
        return Disk(name="data", fstype="ext4", size=_room(total), inodes=2 * sizes.small + 4096)

    def make(self, directory: Path, sizes: Sizes) -> int:
        """The files; how many bytes they have."""
        if self.kind == "large":
            return sets.make_large(directory, sizes.large, sizes.large_file)
        return sets.make_mixed(directory, sizes.small, sizes.mixed_large, sizes.large_file)


def _room(total: int) -> int:
    """The size of a disk for so many bytes of files, in whole MiB."""
    return (int(total * 1.08) + _SLACK) // MIB * MIB


class _Made:
    """A set on its lab, the mirror level, ways to back it up, and where dd reads as many bytes."""

    def __init__(self, scene: FileSet, stage: Stage, undo: ExitStack) -> None:
        self.kind, self.stage, self.goals = scene.kind, stage, GOALS[scene.kind]
        self.rows = frozenset(scene.rows)
        self.place = stage.scratch / scene.kind
        stage.tell(f"making the {scene.kind} set")
        disk = scene._disk(stage.sizes)
        self.lab: Lab = undo.enter_context(lab_at(self.place, (disk,)))
        source = self.lab.mountpoint("data") / "set"
        sets.fill_and_empty(source.parent)
        self.size = scene.make(source, stage.sizes)
        database = {"driver": "none", "paths": [str(source)]}
        self.tape = stage.media / "SM0001.tap"
        self.backups = Backups(self.lab, database, _BACKUP, self.tape, stage.peaks)
        undo.callback(self.backups.rejoin)
        self.backups.level()
        self.leg = self.lab.image("data", "mirror")
        self.dd_size = self.size // LOGICAL_BLOCK * LOGICAL_BLOCK
        self.dd_begin, self.dd_written = rivals.written_stretch(self.leg, self.dd_size)

    def backup(self, *, null: bool) -> Cost:
        """Raises SplitmirrorError when it is not the set that was made."""
        made = self.backups.phase(null=null)
        if made.bytes != self.size:
            raise SplitmirrorError(f"{made.bytes} bytes were backed up, {self.size} are there")
        return made

    def dd(self) -> Cost:
        return rivals.dd(self.leg, self.dd_begin, self.dd_size)

    def tar(self, into: Path | None = None) -> Cost:
        with rivals.mounted(self.leg, self.place / "leg") as mountpoint:
            return rivals.tar(mountpoint / "set", self.size, into)

    @property
    def config(self) -> Path:
        return self.lab.config_path

    def dd_facts(self) -> dict[str, float]:
        """How much of what dd reads was ever written; the rest costs a disk nothing."""
        return {"dd_written_share": rounded(self.dd_written)}

    def profile(self, *, null: bool) -> dict[str, list[str]]:
        """In a run that is not measured."""
        return {"profile": self.backups.profile(null=null)} if self.stage.profile else {}

    def restore_profile(self, target: Path) -> dict[str, list[str]]:
        """In a run that is not measured."""
        if not self.stage.profile:
            return {}
        found = profiles.of_command(
            "restore", "latest", f"--to={target}", f"--config={self.config}"
        )
        shutil.rmtree(target)
        return {"profile": found}

    def told(self, side: str, measured: Cost) -> Cost:
        """The measurement, said aloud."""
        self.stage.tell(
            f"  {self.kind} {side}: {measured.seconds:.2f} s, {measured.rate / MIB:.0f} MiB/s, "
            f"{measured.cpu_s:.2f} CPU s"
        )
        return measured


# --- to a null medium


def _to_null(made: _Made, wanted: frozenset[str]) -> Iterator[Row]:
    sizes = made.stage.sizes
    against_dd, against_tar = f"{made.kind}-to-null-against-dd", f"{made.kind}-to-null-against-tar"
    with_dd = sizes.rate_pairs if against_dd in wanted else 0
    with_tar = sizes.pairs if against_tar in wanted else 0
    noise = sizes.rate_pairs if NOISE in wanted & made.rows else 0
    made.backup(null=True)  # not counted; from here on the leg is parted
    sides = {
        "backup": lambda: made.told("to null", made.backup(null=True)),
        "dd": lambda: made.told("dd", made.dd()),
        "tar": lambda: made.told("tar", made.tar()),
        "dd again": lambda: made.told("dd again", made.dd()),
    }
    rounds = {"backup": max(with_dd, with_tar), "dd": max(with_dd, noise)}
    found = take_turns(sides, {**rounds, "tar": with_tar, "dd again": noise})
    what = f"backup of the {made.kind} set to a null medium, hashing on, against"
    profile = made.profile(null=True) if with_dd or with_tar else {}
    if noise:
        yield _noise_row(found["dd"], found["dd again"])
    if with_dd:
        what_dd = f"{what} dd bs=4M with direct I/O of as many bytes from the same leg"
        more = {**made.dd_facts(), **profile}
        yield _phase_row(against_dd, what_dd, found, "dd", made.goals.dd, more)
    if with_tar:
        what_tar = f"{what} GNU tar on the leg mounted read-only, through a pipe to cat"
        yield _phase_row(against_tar, what_tar, found, "tar", made.goals.tar_null, profile)


def _phase_row(
    name: str,
    what: str,
    found: Mapping[str, list[Cost]],
    rival: str,
    goal: float,
    more: Mapping[str, Any],
) -> Row:
    """The backup phase against a rival."""
    our, theirs = found["backup"], found[rival]
    more = {**_facts(our), **_with_check(our, theirs), **more}
    return compared(name, what, our, theirs, goal=goal, unit=f"× {rival}'s rate", more=more)


def _noise_row(once: list[Cost], again: list[Cost]) -> Row:
    paired = ratios((cost.rate for cost in once), (cost.rate for cost in again))
    return Row(
        name=NOISE,
        what="dd against dd: how far a median of as many pairs is off on this machine",
        value=paired.noise,
        goal=MOST_NOISE,
        unit="share",
        at_most=True,
        more={**both(once, again, paired), "median": rounded(paired.median)},
    )


def _facts(costs: list[Cost]) -> dict[str, float]:
    """Of our side, what else there is to know: medians."""
    names = ("files", "check_s", "all_phases_s", "cpu_us_a_file", "calls_a_file", "peak_rss_mib")
    return {name: rounded(median(cost.facts[name] for cost in costs)) for name in names}


def _with_check(our: list[Cost], theirs: list[Cost]) -> dict[str, float]:
    """The same ratio if the check of the maps, which comes before the phase, were counted too."""
    rates = (cost.bytes / (cost.seconds + cost.facts["check_s"]) for cost in our)
    return {"with_check": rounded(ratios(rates, (cost.rate for cost in theirs)).median)}


# --- to tape, and back


def _to_tape_and_back(made: _Made, wanted: frozenset[str]) -> Iterator[Row]:
    stage, archive = made.stage, made.stage.media / f"{made.kind}.tar"
    to_tape, back = f"{made.kind}-to-tape", f"{made.kind}-restore"
    rounds = stage.sizes.pairs if to_tape in wanted else 1
    try:
        made.backup(null=False)  # not counted; from here on the leg is parted
        sides = {
            "backup": lambda: made.told("to tape", made.backup(null=False)),
            "tar": lambda: made.told("tar to a file", made.tar(archive)),
        }
        found = take_turns(sides, {"backup": rounds, "tar": rounds})
        if to_tape in wanted:
            what = (
                f"backup phase of the {made.kind} set to a virtual tape, against tar to a file in "
                "the same place, both synced"
            )
            more = {**made.profile(null=False), "media": stage.media_is}
            yield _phase_row(to_tape, what, found, "tar", made.goals.tar_tape, more)
        if back in wanted:
            yield _restored(made, archive)
    finally:
        archive.unlink(missing_ok=True)
        made.backups.forget()


def _restored(made: _Made, archive: Path) -> Row:
    """Both sides read what the last round wrote."""
    target = made.place / "target"
    command = ours.command("restore", "latest", f"--to={target}", f"--config={made.config}")

    def restore() -> Cost:
        drop_caches()
        return cost.run(command, moved=made.size, then=lambda: rivals.sync(made.place))

    def cleared(measured: Cost) -> Cost:
        shutil.rmtree(target)
        return measured

    sides = {
        "restore": lambda: made.told("restore", cleared(restore())),
        "tar": lambda: made.told("tar -x", cleared(rivals.untar(archive, target, made.size))),
    }
    pairs = made.stage.sizes.pairs
    found = take_turns(sides, {"restore": pairs, "tar": pairs})
    return compared(
        f"{made.kind}-restore",
        f"restore of the {made.kind} set by the command, start-up included, against tar -x of the "
        "same files, both synced",
        found["restore"],
        found["tar"],
        goal=made.goals.untar,
        unit="× tar's rate",
        more={"media": made.stage.media_is, **made.restore_profile(target)},
    )
