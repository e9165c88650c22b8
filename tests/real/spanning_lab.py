"""A leg full of files, and sets of it written to small virtual tapes on a shelf."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.real.loopfs import LoopFs

from splitmirror import journal
from splitmirror.catalog import Catalog
from splitmirror.databases import RedoFile, keep_all
from splitmirror.extents.scan import scan
from splitmirror.extents.table import FileTable
from splitmirror.extents.views import PrimaryView
from splitmirror.journal import Journal
from splitmirror.media import Block, Capacity, Medium
from splitmirror.media.supply import Supply
from splitmirror.media.volume import TapeFile, VolumeReader
from splitmirror.model import BackupSet, Check, Filesystem, Leg, Mode, Run, Tree
from splitmirror.notes import Trusted
from splitmirror.progress import silent
from splitmirror.stream.plan import Plan, plan_parts
from splitmirror.stretches import Job
from splitmirror.system import filesystems
from splitmirror.testing.supplies import TapeShelf
from splitmirror.writing import Written, write_set

KIB = 1 << 10
BLOCK = 16 * KIB
PART = 256 * KIB
SIZES = (0, 1, 700, 4096, 20_000, 40_000, 90_000, 500_000)  # the last one is cut into pieces
FILES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What was split: the leg, the plan for it, and the bytes of every file by its name."""

    leg: Leg
    trees: tuple[Tree, ...]
    plan: Plan
    copied: tuple[RedoFile, ...]
    files: dict[bytes, bytes]


@contextmanager
def content_at(folder: Path) -> Iterator[Content]:
    """A filesystem with some 4 MiB of files, split, and one file beside it."""
    disk = LoopFs(folder, "ext4", size=32 << 20)
    try:
        files = _filled(disk.path / "db")
        tree = _tree(disk)
        filesystems.flush(disk.mountpoint)
        with PrimaryView([tree]) as view:
            table: FileTable = scan(view, [tree], keep_all, xattrs=True)
        table.of_leg = True
    except BaseException:
        disk.close()
        raise
    leg = folder / "leg"
    shutil.copy(disk.image, leg)
    disk.close()
    beside = folder / "postgresql.conf"
    beside.write_bytes(b"port = 5432\n")
    redo = RedoFile(name=b"outside/etc/postgresql.conf", copy=beside)
    whole = Run(path=str(leg), offset=0, length=leg.stat().st_size)
    yield Content(
        leg=Leg(split_id="s", volumes={"v": (whole,)}),
        trees=(tree,),
        plan=plan_parts(table, table.ordered(lambda name: (name,)), PART),
        copied=(redo,),
        files={**files, redo.name: beside.read_bytes()},
    )


def _filled(place: Path) -> dict[bytes, bytes]:
    noise, files = random.Random(17), dict[bytes, bytes]()
    for number in range(FILES):
        path = place / f"{number % 4}" / f"{number:03d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise.randbytes(SIZES[number % len(SIZES)]))
        files[b"data/" + os.fsencode(path.relative_to(place))] = path.read_bytes()
    for name in ("0/linked", "3/linked"):  # in parts that are far from one another
        os.link(place / "0" / "004", place / name)
        files[b"data/" + name.encode()] = files[b"data/0/004"]
    return files


def _tree(disk: LoopFs) -> Tree:
    filesystem = Filesystem(
        mountpoint=disk.mountpoint,
        fstype="ext4",
        options=frozenset(),
        source=disk.device.path,
        devno=disk.path.stat().st_dev,
        volume="v",
        offset=0,
    )
    return Tree(
        name=b"data", path=os.fsencode(disk.path / "db"), filesystem=filesystem, inside=b"db"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A run of a set, in a directory of its own; `write` takes it up where it was cut off."""

    content: Content
    directory: Path
    set_id: str = "orders-1"
    streams: int = 1

    def write(self, supply: Supply) -> Written:
        self.directory.mkdir(exist_ok=True)
        backup_set = BackupSet(
            set_id=self.set_id,
            source="orders",
            host="db1",
            database="none",
            mode=Mode.FREEZE,
            check=Check.QUIESCED,
            mirror="memory",
            medium="virtualtape",
            started=datetime(2024, 5, 17, 3, 0, tzinfo=UTC),
            trees=((b"data", b"/srv/data"),),
        )
        trusted = Trusted(
            backup_set=backup_set,
            trees=self.content.trees,
            copied=self.content.copied,
            block_size=BLOCK,
            part_size=PART,
            streams=self.streams,
        )
        job = Job(
            trusted=trusted,
            backup_set=backup_set,
            plan=self.content.plan,
            leg=self.content.leg,
            titles={},
        )
        kept = Journal(self.directory)
        try:
            return write_set(
                job,
                supply=supply,
                directory=self.directory,
                journal=kept,
                progress=silent,
                confirm=lambda: None,
            )
        finally:
            kept.close()
            supply.close()

    def journalled(self, kind: str) -> list[dict[str, Any]]:
        return [one.facts for one in journal.read(self.directory) if one.kind == kind]


def recorded(catalog: Catalog, written: Written) -> BackupSet:
    catalog.record(written.backup_set, written.parts, written.members())
    return written.backup_set


def files_on(shelf: TapeShelf, serial: str) -> list[TapeFile]:
    medium = shelf.drive(serial)
    medium.load(writable=False)
    try:
        return list(VolumeReader(medium).files())
    finally:
        medium.unload()


def all_files(shelf: TapeShelf) -> dict[str, list[TapeFile]]:
    """The complete tape files of every volume that was written."""
    return {serial: files_on(shelf, serial) for serial in shelf.at_hand()}


def same_as(content: Content, target: Path) -> bool:
    """Whether all that was split, and nothing else, is below a directory."""
    found = {
        os.fsencode(path.relative_to(target)): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file()
    }
    return found == content.files


class Unsure:
    """A drive that does not know how much room is left; `blind`: nor that it becomes scarce."""

    def __init__(self, inner: Medium, *, blind: bool = False) -> None:
        self._inner, self._blind = inner, blind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def capacity(self) -> Capacity:
        return Capacity(total=None, left=None)

    def write(self, blocks: Sequence[Block]) -> bool:
        return self._inner.write(blocks) and not self._blind


def shelf_at(directory: Path, **more: object) -> TapeShelf:
    """Tapes of 1 MiB that give the early warning 64 KiB before their end."""
    directory.mkdir(exist_ok=True)
    known: dict[str, object] = {"capacity": 1024 * KIB, "early_warning": 64 * KIB}
    serials = [f"SM{number:04d}" for number in range(1, 12)]
    return TapeShelf(directory, serials, **(known | more))  # type: ignore[arg-type]
