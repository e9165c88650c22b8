"""The configuration file (TOML), read at the edge and handed on as values.

A table `[database]`, `[mirror]` or `[medium]` names its driver; the rest of it belongs to that
driver, whose module says what it takes (`Settings`). So a new driver edits nothing here.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from splitmirror.drivers import Seam, convert, driver
from splitmirror.errors import ConfigError
from splitmirror.media.pools import Pool
from splitmirror.model import Check, Cleanup, Mode
from splitmirror.units import parse_size, size_setting

if TYPE_CHECKING:
    from splitmirror.databases import Database
    from splitmirror.media import Medium
    from splitmirror.media.library import Library
    from splitmirror.media.supply import ReadSupply
    from splitmirror.mirrors import Mirror

DEFAULT_PATH = Path("/etc/splitmirror.toml")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}"  # what the errors below say of it
_LONGEST_S = 1e9  # 31 years; a timer's clock counts nanoseconds in 63 bits
_MOST_STREAMS = 16  # each has three windows of 64 MiB, two processes and some threads
SEAMS: Final[dict[Seam, str]] = {"mirrors": "mirror", "databases": "database", "media": "medium"}
"""The table of each seam's driver."""
TO_READ: Final[tuple[Seam, ...]] = ("media",)
TO_START: Final[tuple[Seam, ...]] = ("media", "databases")


class BackupOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[backup]`: how a backup is made. Deadlines in seconds. `measure_leg`: so much of the leg is
    read by itself before the files are, to tell how much of its rate the backup reached; 0: not.
    `streams`: so many volumes are written at once, each with its stretch of the set."""

    mode: Mode = Mode.HOT
    check: Check = Check.QUIESCED
    cleanup: Cleanup = Cleanup.REJOIN
    part_size: str | int = "1GiB"
    block_size: str | int = "256KiB"
    measure_leg: str | int = 0
    streams: int = 1
    freeze_deadline_s: float = 10.0
    quiesce_deadline_s: float = 600.0
    synchronize_deadline_s: float = 86_400.0
    map_deadline_s: float = 3_600.0
    leg_deadline_s: float = 3_600.0
    write_deadline_s: float = 7 * 86_400.0
    cleanup_deadline_s: float = 86_400.0

    def __post_init__(self) -> None:
        block = size_setting("[backup] block_size", self.block_size)
        part = size_setting("[backup] part_size", self.part_size)
        size_setting("[backup] measure_leg", self.measure_leg)
        if block % 512 or not 4096 <= block <= 1 << 20:
            raise ConfigError(
                f"[backup] block_size is {self.block_size}",
                hint="Take a multiple of 512 from 4 KiB to 1 MiB; 256 KiB serves most drives.",
            )
        if part < 16 * block:
            raise ConfigError(
                f"[backup] part_size {self.part_size} is below 16 blocks of {self.block_size}",
                hint="Take 1GiB for files, 8GiB for tape.",
            )
        if not 1 <= self.streams <= _MOST_STREAMS:
            raise ConfigError(
                f"[backup] streams is {self.streams}",
                hint=f"Take 1, or the number of drives, {_MOST_STREAMS} at most.",
            )
        for key in self.__struct_fields__:
            limit_s = getattr(self, key)
            if key.endswith("_deadline_s") and not 0 < limit_s <= _LONGEST_S:
                raise ConfigError(
                    f"[backup] {key} is {limit_s:g}",
                    hint="Give it a number of seconds above 0, a thousand million at most.",
                )


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. `mirror`, `database`, `medium`: the driver's name and its own settings.

    With `pool` volumes are chosen from that one of `pools`; else it is always `volume`.
    """

    source: str
    mirror: dict[str, Any]
    database: dict[str, Any]
    medium: dict[str, Any]
    state_dir: str = "/var/lib/splitmirror"
    catalog: str = ""
    volume: str = "SM0001"  # label of the medium's volume, six characters
    pool: str = ""
    pools: dict[str, Pool] = {}
    backup: BackupOptions = BackupOptions()

    def __post_init__(self) -> None:
        if not re.fullmatch(_NAME, self.source):
            raise ConfigError(
                f"source = {self.source!r} cannot name a lock and a directory",
                hint="Take 1 to 32 letters, digits, dots, dashes and underscores.",
            )
        if not re.fullmatch(r"[A-Z0-9]{6}", self.volume):
            raise ConfigError(
                f"volume = {self.volume!r} is no volume label",
                hint="Take six capital letters and digits, for example SM0001.",
            )
        for name in self.pools:
            if not re.fullmatch(_NAME, name):
                raise ConfigError(
                    f"[pools.{name}] cannot be the name of a pool",
                    hint="Take 1 to 32 letters, digits, dots, dashes and underscores.",
                )
        if self.pool and self.pool not in self.pools:
            near = difflib.get_close_matches(self.pool, self.pools, n=1)
            raise ConfigError(
                f"pool = {self.pool!r}, but there is no [pools.{self.pool}]",
                hint=f"Did you mean {near[0]!r}?"
                if near
                else "Add that table: what of each source is kept, for example keep_sets = 7.",
            )
        if not Path(self.state_dir).is_absolute():
            raise ConfigError(
                f"state_dir = {self.state_dir!r} is not absolute", hint="Begin it with a slash."
            )

    @property
    def state(self) -> Path:
        return Path(self.state_dir)

    @property
    def catalog_path(self) -> Path:
        return Path(self.catalog) if self.catalog else self.state / "catalog.sqlite"

    @property
    def part_size(self) -> int:
        return parse_size(self.backup.part_size)

    @property
    def block_size(self) -> int:
        return parse_size(self.backup.block_size)

    @property
    def programs(self) -> list[str]:
        """The system's programs that the drivers run, as their modules declare them."""
        found = [driver(seam, table, getattr(self, table)) for seam, table in SEAMS.items()]
        return [name for module, settings in found for name in _programs(module, settings)]

    def open_mirror(self) -> Mirror:
        """The mirror engine, connected to nothing yet."""
        module, settings = driver("mirrors", "mirror", self.mirror)
        opened: Mirror = module.open_mirror(settings, self.state)
        return opened

    def open_database(self) -> Database:
        module, settings = driver("databases", "database", self.database)
        opened: Database = module.open_database(settings)
        return opened

    def open_medium(self) -> Medium:
        module, settings = driver("media", "medium", self.medium)
        opened: Medium = module.open_medium(settings)
        return opened

    def open_drives(self) -> list[Medium]:
        module, settings = driver("media", "medium", self.medium)
        if not hasattr(module, "open_drives"):
            return [self.open_medium()]
        opened: list[Medium] = module.open_drives(settings)
        return opened

    def open_library(self) -> Library:
        """The drives, and the changer that they have or the person who is asked. Raises
        ChangerError."""
        from splitmirror.media.asking import ask_by
        from splitmirror.media.library import Library

        module, settings = driver("media", "medium", self.medium)
        drives = self.open_drives()
        changer = module.open_changer(settings) if hasattr(module, "open_changer") else None
        leases = self.state / "leases"
        return Library(drives, changer, leases=leases, ask=ask_by(settings))

    def open_bringing(self) -> Library | None:
        """The library, where volumes have to be brought; None: there is one volume in one drive.
        Raises ChangerError."""
        library = self.open_library()
        if self.pool or library.has_changer:
            return library
        library.close()
        return None

    def open_supply(self) -> ReadSupply:
        """Volumes to read, whichever are wanted. Raises ChangerError."""
        from splitmirror.media.librarysupply import LibraryVolumes
        from splitmirror.media.supply import OneVolume

        library = self.open_bringing()
        if library is None:
            return OneVolume(self.open_medium(), self.volume)
        return LibraryVolumes(library)


def load(path: Path, *, needed: Collection[Seam] = SEAMS.keys()) -> Config:
    """Read and check a configuration, drivers' settings included. Raises ConfigError.

    `needed`: the seams whose drivers will be opened; others are not looked at, so that a restore
    needs no mirror, and does not wait for the libraries of a database.
    """
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"there is no configuration {path}",
            hint=f"Write one with `splitmirror init DIRECTORY --write {path}` (the database's "
            "directory or file), or name another with --config.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="Check its owner.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}", hint="Correct that line.") from error
    if "pool" in table and "volume" in table:
        raise ConfigError(
            f"{path} has both `volume` and `pool`",
            hint="Keep `pool` to have volumes chosen, or `volume` to write to one only.",
        )
    config: Config = convert(table, Config, str(path))
    for seam in needed:
        driver(seam, SEAMS[seam], getattr(config, SEAMS[seam]))
    return config


def _programs(module: ModuleType, settings: object) -> Sequence[str]:
    """What a driver runs: it may depend on its settings (`programs`), mostly not (`PROGRAMS`)."""
    found: Sequence[str] = getattr(settings, "programs", getattr(module, "PROGRAMS", ()))
    return found
