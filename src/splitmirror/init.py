"""Look at this host and propose a configuration for a database's directory or file.

What can be seen is written down as settings; what only a person can decide stands beside it as a
comment. Nothing is changed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from splitmirror.errors import ConfigError, NoSuchFile
from splitmirror.system import filesystems
from splitmirror.system.filesystems import Mount
from splitmirror.units import show_size

SQLITE_MAGIC = b"SQLite format 3\0"  # sqlite.org/fileformat2.html, 1.3
MARGIN = 1.25  # a mirrored disk is proposed a quarter larger than the filesystem it replaces


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A filesystem that holds part of the database."""

    name: str
    mount: Mount
    size: int


def propose(directory: Path) -> str:
    """A configuration file for what lies in `directory`. Raises NoSuchFile when it is not there."""
    if not directory.exists():
        raise NoSuchFile(
            f"{directory} does not exist",
            hint="Name the data directory of a PostgreSQL cluster, a SQLite file, or a directory.",
        )
    directory = directory.resolve()
    places = _places(directory)
    return (
        f"# Proposed by `splitmirror init {directory}`. Look through it, then run `splitmirror "
        f'doctor`.\n\nsource = "{_source(directory)}"\nstate_dir = "/var/lib/splitmirror"\n\n'
        + _database(directory)
        + _mirror(places)
        + _medium()
    )


def write_new(path: Path, text: str) -> None:
    """Write a configuration that does not exist yet. Raises ConfigError when it does."""
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            f"{path} exists already", hint="Choose another name, or print to compare: no --write."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}",
            hint="Run as root or choose another one.",
        ) from error


def _source(directory: Path) -> str:
    """A name from the last part of the path, as the configuration takes it."""
    name = "".join(c if c.isalnum() and c.isascii() else "-" for c in directory.stem).strip("-")
    return name[:32] or "database"


def _database(directory: Path) -> str:
    if (directory / "PG_VERSION").exists():
        version = (directory / "PG_VERSION").read_text().strip()
        return (
            f'[database]\ndriver = "postgresql"  # version {version} in {directory}\n'
            "# a role that may back up: superuser, or granted EXECUTE on pg_backup_start/stop\n"
            'dsn = "host=/run/postgresql user=postgres dbname=postgres"\n\n'
        )
    if directory.is_file() and directory.read_bytes()[:16] == SQLITE_MAGIC:
        return f'[database]\ndriver = "sqlite"\npaths = ["{directory}"]\n\n'
    return (
        "[database]\n# no PostgreSQL cluster and no SQLite file: files only, under a freeze\n"
        f'driver = "none"\npaths = ["{directory}"]\n\n[backup]\nmode = "freeze"\n\n'
    )


def _places(directory: Path) -> list[Place]:
    """The filesystems of the directory itself, its WAL and its tablespaces."""
    paths = {"data": directory}
    if (directory / "pg_wal").is_symlink():
        paths["wal"] = (directory / "pg_wal").resolve()
    for link in sorted(directory.glob("pg_tblspc/*")):
        paths[f"tblspc-{link.name}"] = link.resolve()
    found: dict[int, Place] = {}
    for name, path in paths.items():
        mount = filesystems.mount_of(path)
        status = os.statvfs(path)
        place = Place(name=name, mount=mount, size=status.f_blocks * status.f_frsize)
        found.setdefault(mount.devno, place)
    return list(found.values())


def _mirror(places: list[Place]) -> str:
    lines = [
        "# The embedded mirror: two image files a disk, nothing to set up. Put the mirrors on",
        "# other disks than the primaries. `splitmirror mirror start` makes and starts them; then",
        "# make the filesystems on the devices it prints, and move the database onto them:",
    ]
    for place in places:
        mount = place.mount
        lines.append(
            f"#   {place.name}: now {mount.fstype} {mount.mountpoint} on {mount.source}, "
            f"{show_size(place.size)}"
        )
    lines += ["[mirror]", 'driver = "qsd"', 'dir = "/var/lib/splitmirror/mirror"']
    for place in places:
        size = -(-int(place.size * MARGIN) // (1 << 20))
        lines += [
            "",
            "[[mirror.disks]]",
            f'name = "{place.name}"',
            f'primary = "/srv/primary/{place.name}.img"',
            f'mirror = "/srv/mirror/{place.name}.img"',
            f'size = "{size}MiB"',
        ]
    return "\n".join(lines) + "\n\n"


def _medium() -> str:
    return (
        '[medium]\ndriver = "virtualtape"\n'
        "# on a disk that is neither primary nor mirror\n"
        'path = "/srv/backup/SM0001.tap"\n'
    )
