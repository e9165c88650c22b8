"""A mirror for tests: plain files, on a filesystem in memory if the tests like, and no daemon.

It does what the seam asks in the simplest way that is right: it compares primary and mirror block
by block. The split copies what differs before it returns, so the primary must stand still that
long (frozen, or nobody writes); it is complete at once. What it knows lies in one small file, so
that another process finds the split, as with a real engine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from splitmirror.errors import ConfigError, MirrorError, MirrorNotReady
from splitmirror.mirrors import Feature, MirrorState, is_split, no_such_split
from splitmirror.model import Filesystem, Finding, Leg, Run, Volume
from splitmirror.progress import Progress, silent
from splitmirror.units import parse_size

FOR_TESTS = True  # never taken from a configuration file

_BLOCK = 64 << 10
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class MemoryVolume(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A volume. `device`: where the primary is written, if not to its file: a loop device on it."""

    name: str
    size: str | int
    device: str = ""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The files lie in `dir`, by default the state directory.
    `scattered`: the leg is several runs in another order than the volume, as on md."""

    volumes: tuple[MemoryVolume, ...]
    dir: str = ""
    scattered: bool = False

    def __post_init__(self) -> None:
        names = [volume.name for volume in self.volumes]
        if len(set(names)) < len(names) or not all(_NAME.fullmatch(name) for name in names):
            raise ConfigError(
                f"[mirror] volumes have the names {names}", hint="Give each its own plain name."
            )


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    """What outlives this object."""

    level: bool = False
    split_id: str | None = None


def open_mirror(settings: Settings, state_dir: Path) -> MemoryMirror:
    """The mirror; its files are made when they are not there yet."""
    return MemoryMirror(settings, Path(settings.dir) if settings.dir else state_dir)


class MemoryMirror:
    """See `Mirror` and `Proving`."""

    features = frozenset({Feature.INSTANT_LEG, Feature.PROVES})

    def __init__(self, settings: Settings, directory: Path) -> None:
        self._settings = settings
        self._directory = directory
        for volume in settings.volumes:
            for path in (self.primary_file(volume.name), self.mirror_file(volume.name)):
                if not path.exists():
                    path.touch()
                    os.truncate(path, parse_size(volume.size))

    def primary_file(self, name: str) -> Path:
        """What a test writes to, or puts a loop device on."""
        return self._directory / f"{name}.primary"

    def mirror_file(self, name: str) -> Path:
        """The leg, in the order of its runs' offsets."""
        return self._directory / f"{name}.mirror"

    def volumes(self) -> tuple[Volume, ...]:
        return tuple(
            Volume(
                name=volume.name,
                device=volume.device or str(self.primary_file(volume.name)),
                size=parse_size(volume.size),
            )
            for volume in self._settings.volumes
        )

    def state(self) -> MirrorState:
        known = self._known()
        why = "never synchronized" if not known.level else ""
        if known.split_id is not None:
            why = f"split as {known.split_id}"
        return MirrorState(
            attached=True,
            level=not why,
            dirty_bytes=sum(self._differing(volume) for volume in self.volumes()),
            split_id=known.split_id,
            why=why,
        )

    def preflight(self, filesystems: Sequence[Filesystem]) -> list[Finding]:
        names = {volume.name for volume in self._settings.volumes}
        return [
            Finding(
                what=f"place of {filesystem.mountpoint}",
                problem=None
                if filesystem.volume in names
                else MirrorError(f"no volume {filesystem.volume}", hint="Name it in [mirror]."),
            )
            for filesystem in filesystems
        ]

    def synchronize(self, progress: Progress) -> None:
        split_id = self._known().split_id
        if split_id is not None:
            raise is_split(split_id)
        self._copy(progress)
        self._save(_Known(level=True))

    def split(self, split_id: str) -> None:
        known = self._known()
        if known.split_id == split_id:
            return
        if known.split_id is not None:
            raise is_split(known.split_id)
        if not known.level:
            raise MirrorNotReady("the mirror was never synchronized", hint="Synchronize it first.")
        self._copy(silent)
        self._save(_Known(level=True, split_id=split_id))

    def leg(self, split_id: str, deadline_s: float) -> Leg:
        if self._known().split_id != split_id:
            raise no_such_split(split_id)
        runs = {volume.name: tuple(self._runs(volume)) for volume in self.volumes()}
        return Leg(split_id=split_id, volumes=runs)

    def rejoin(self, split_id: str) -> None:
        known = self._known()
        if known.split_id == split_id:
            self._save(_Known(level=known.level))

    def prove(self, progress: Progress) -> int:
        split_id = self._known().split_id
        if split_id is not None:
            raise is_split(split_id)
        return sum(self._differing(volume) for volume in self.volumes())

    def close(self) -> None:
        """Nothing is held."""

    # --- the files

    def _runs(self, volume: Volume) -> Iterator[Run]:
        """The leg's runs in the volume's order: the whole file, or its halves exchanged."""
        path = str(self.mirror_file(volume.name))
        half = volume.size // 2 // _BLOCK * _BLOCK
        if not self._settings.scattered or not half:
            yield Run(path=path, offset=0, length=volume.size)
            return
        yield Run(path=path, offset=volume.size - half, length=half)
        yield Run(path=path, offset=0, length=volume.size - half)

    def _copy(self, progress: Progress) -> None:
        done, total = 0, sum(volume.size for volume in self.volumes())
        for volume in self.volumes():
            done = self._copy_volume(volume, progress, done, total)

    def _copy_volume(self, volume: Volume, progress: Progress, done: int, total: int) -> int:
        with self.mirror_file(volume.name).open("r+b") as mirror:
            for at, primary, old in self._blocks(volume):
                if primary != old:
                    mirror.seek(at)
                    mirror.write(primary)
                done += len(primary)
                progress(done, total)
        return done

    def _differing(self, volume: Volume) -> int:
        return sum(len(primary) for _, primary, old in self._blocks(volume) if primary != old)

    def _blocks(self, volume: Volume) -> Iterator[tuple[int, bytes, bytes]]:
        """(where in the mirror's file, the primary's bytes, the mirror's), block by block."""
        address = 0
        with (
            self.primary_file(volume.name).open("rb") as primary,
            self.mirror_file(volume.name).open("rb") as mirror,
        ):
            for run in self._runs(volume):
                for at in range(run.offset, run.offset + run.length, _BLOCK):
                    length = min(_BLOCK, run.offset + run.length - at)
                    primary.seek(address)
                    mirror.seek(at)
                    yield at, primary.read(length), mirror.read(length)
                    address += length

    # --- what is known

    @property
    def _file(self) -> Path:
        return self._directory / "memory.json"

    def _known(self) -> _Known:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Known)
        except FileNotFoundError:
            return _Known()

    def _save(self, known: _Known) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(known))
        fresh.replace(self._file)
