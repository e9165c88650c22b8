"""Rows of finding and restoring one file: from a tape of one large set, against tar from a pipe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench import cost, ours, profiles, rivals, sets
from bench.cost import Cost, drop_caches
from bench.order import Order
from bench.ours import Backups, ordered
from bench.pairs import take_turns
from bench.rows import Row, compared, rounded
from bench.stage import MIB, Needs, Sizes, Stage
from splitmirror.demo.lab import Disk, lab_at

_A_FILE = MIB
_OTHERS = 64 * MIB  # the rest of the set is made of such
_SHARE = 10  # a tenth of the set are files of 1 MiB
_SLACK = 128 * MIB
_MOST_READ = 4.0
_FASTER = 20.0


class OneFile:
    """A Scene."""

    TIME, READ = "one-file", "one-file-bytes-read"
    rows = (TIME, READ)

    def needs(self, sizes: Sizes) -> Needs:
        """Everything lies on the disk: such a set is too large for memory."""
        return Needs(scratch=4 * _disk(sizes).size, seconds=_seconds(sizes))

    def run(self, stage: Stage, wanted: frozenset[str]) -> Iterator[Row]:
        with ExitStack() as undo:
            made = _Made(stage, undo)
            if self.TIME in wanted:
                yield made.timed(self.TIME)
            if self.READ in wanted:
                yield made.counted(self.READ)


def _seconds(sizes: Sizes) -> float:
    """About how long all of it takes: as it was measured once."""
    return 5 + 120 * sizes.scale + sizes.pairs * (2 + 12 * sizes.scale)


def _disk(sizes: Sizes) -> Disk:
    size = (int(sizes.one_set * 1.02) + _SLACK) // MIB * MIB
    return Disk(name="data", fstype="ext4", size=size, inodes=2 * sizes.one_set // MIB + 4096)


class _Made:
    """The set on tape, and as a tar beside it."""

    def __init__(self, stage: Stage, undo: ExitStack) -> None:
        self.stage = stage
        size = stage.sizes.one_set
        stage.tell(f"making one set of {size // MIB} MiB, its tape and its tar")
        self.place = stage.scratch / "onefile"
        self.lab = undo.enter_context(lab_at(self.place, (_disk(stage.sizes),)))
        source = self.lab.mountpoint("data") / "set"
        few = sets.make_large(source / "few", size // _SHARE, _A_FILE)
        sets.make_large(source / "rest", size - few, min(_OTHERS, size - few))
        # In the middle of the small ones, and these come before the large ones.
        self.name = f"set/few/large{few // _A_FILE // 2:04d}"
        database = {"driver": "none", "paths": [str(source)]}
        options = {"mode": "freeze", "check": "released"}
        tape = self.place / "SM0001.tap"
        self._backups = Backups(self.lab, database, options, tape, stage.peaks)
        undo.callback(self._backups.rejoin)
        self._report = self._backups.make()
        self._archive = self.place / "set.tar"
        with rivals.mounted(self.lab.image("data", "mirror"), self.place / "leg") as leg:
            rivals.tar(leg / "set", self._report.stored_bytes, self._archive)

    def timed(self, name: str) -> Row:
        target = self.place / "target"
        command = ours.command("restore", "latest", self.name, f"--to={target}")
        command.append(f"--config={self.lab.config_path}")

        def restore() -> Cost:
            drop_caches()
            return cost.run(command, moved=_A_FILE, then=lambda: rivals.sync(self.place))

        def untar() -> Cost:
            return rivals.untar_one(self._archive, self.name, target, _A_FILE)

        sides = {
            "restore": lambda: self._cleared(target, restore()),
            "tar": lambda: self._cleared(target, untar()),
        }
        found = take_turns(sides, dict.fromkeys(sides, self.stage.sizes.pairs))
        return compared(
            name,
            f"one file of 1 MiB out of a set of {self.stage.sizes.one_set / (1 << 30):.3g} GiB on "
            "a virtual tape, by the command, start-up included, against tar from a pipe",
            found["restore"],
            found["tar"],
            goal=_FASTER,
            unit="× tar's rate",
            more={"files": self._report.files, **self._profile(target)},
        )

    def _profile(self, target: Path) -> dict[str, list[str]]:
        """In a run that is not measured."""
        if not self.stage.profile:
            return {}
        words = (self.name, f"--to={target}", f"--config={self.lab.config_path}")
        found = profiles.of_command("restore", "latest", *words)
        shutil.rmtree(target)
        return {"profile": found}

    def _cleared(self, target: Path, measured: Cost) -> Cost:
        """Raises OSError when the file did not come back."""
        if (target / self.name).stat().st_size != _A_FILE:
            raise AssertionError(f"{self.name} did not come back whole")
        shutil.rmtree(target)
        self.stage.tell(f"  {measured.seconds:.2f} s, {measured.cpu_s:.2f} CPU s")
        return measured

    def counted(self, name: str) -> Row:
        """Everything that the process reads while it restores: the medium and the catalogue. By
        calls or from the disk, whichever is more: a mapped file is read without calls."""
        target = self.place / "counted"
        target.mkdir()
        order = Order(config=str(self.lab.config_path), names=[self.name], target=str(target))
        report = ordered(order)
        by_calls, from_disk = report.read["restore"], report.fetched["restore"]
        return Row(
            name=name,
            what="what the restore of that file reads: from the medium, and all else that is read "
            "once the program is loaded",
            value=max(by_calls, from_disk) / MIB,
            goal=_MOST_READ,
            unit="MiB",
            at_most=True,
            more={
                "calls": report.calls["restore"],
                "read_by_calls_mib": rounded(by_calls / MIB),
                "read_from_disk_mib": rounded(from_disk / MIB),
            },
        )
