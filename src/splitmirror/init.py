"""Look at this host and propose a configuration for a database's directory or file.

What can be seen is written down as settings; what only a person can decide stands beside it as a
comment, with the commands that come next. Nothing is changed.

Source: PostgreSQL documentation, "Database File Layout" (postmaster.pid: miscadmin.h, LOCK_FILE_*).
"""

from __future__ import annotations

import json
import os
import pwd
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import make_conninfo

from splitmirror import mirrors
from splitmirror.errors import ConfigError, SplitmirrorError
from splitmirror.mirror_proposal import propose_mirror
from splitmirror.system import blockdev, filesystems
from splitmirror.system.blockdev import Layer
from splitmirror.system.filesystems import Mount
from splitmirror.units import show_size

SQLITE_MAGIC = b"SQLite format 3\0"  # sqlite.org/fileformat2.html, 1.3
WAL = "wal"  # the name of a disk for pg_wal alone
GROWTH = 2  # a mirrored disk is proposed for twice what lies there now
SMALLEST = 1 << 30  # bytes; below it the WAL alone (max_wal_size) fills a disk
PORT_LINE, SOCKET_LINE = 3, 4  # of postmaster.pid, counted from 0
STANDARD_SOCKET = "/run/postgresql"  # Debian's; where the server does not run, it cannot be asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A part of the database that gets a mirrored disk. `used`: bytes that lie there now."""

    name: str
    path: Path
    mount: Mount
    used: int

    @property
    def size_mib(self) -> int:
        """What is proposed for its disk."""
        return -(-max(SMALLEST, self.used * GROWTH) // (1 << 20))


def propose(directory: Path) -> str:
    """A configuration file for what lies in `directory`. Raises ConfigError when it is not there
    or cannot be read."""
    try:
        directory = directory.resolve(strict=True)
        places = _places(directory)
        return "".join((_head(directory), _database(directory), _mirror(places), _medium()))
    except OSError as error:
        raise ConfigError(
            f"{error.filename or directory} cannot be looked at: {error.strerror}",
            hint="Name the data directory of a PostgreSQL cluster, a SQLite file, or a directory; "
            "run as root.",
        ) from error


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
            hint="Run as root, or choose another path in a directory that exists.",
        ) from error


def _head(directory: Path) -> str:
    return (
        f"# Proposed by `splitmirror init {shlex.quote(str(directory))}`: look through it.\n\n"
        f'source = "{_source(directory)}"  # names the backups of this database\n'
        'state_dir = "/var/lib/splitmirror"  # journal and catalogue: not on a mirrored disk\n\n'
    )


def _source(directory: Path) -> str:
    """A name from the path, as the configuration takes it; `15-main` for Debian's 15/main."""
    name = directory.stem
    if directory.parent.name.isdigit():
        name = f"{directory.parent.name}-{name}"
    name = "".join(c if c.isalnum() and c.isascii() else "-" for c in name).strip("-")
    return name[:32] or "database"


# --- [database]


def _database(directory: Path) -> str:
    if (directory / "PG_VERSION").exists():
        return _postgresql(directory)
    if directory.is_file() and _begins_as_sqlite(directory):
        return f'[database]\ndriver = "sqlite"\npaths = [{_quoted(directory)}]\n\n'
    return (
        "[database]\n# no PostgreSQL cluster and no SQLite file: files only, under a freeze\n"
        f'driver = "none"\npaths = [{_quoted(directory)}]\n\n[backup]\nmode = "freeze"\n\n'
    )


def _begins_as_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC


def _quoted(text: object) -> str:
    """A string as TOML has it: a JSON string is one (toml.io, basic strings)."""
    return json.dumps(str(text), ensure_ascii=False)


def _postgresql(directory: Path) -> str:
    version = (directory / "PG_VERSION").read_text().strip()
    owner = _owner(directory)
    server = _server(directory)
    note = "" if server else "# no server runs there: socket directory and port are a guess\n"
    where = server or {"host": STANDARD_SOCKET}
    dsn = make_conninfo(**where, user=owner, dbname="postgres")
    return (
        f'[database]\ndriver = "postgresql"  # version {version} in {directory}\n{note}'
        "# a role that may back up: superuser, or granted EXECUTE on pg_backup_start/stop\n"
        f"dsn = {_quoted(dsn)}\n"
        f'os_user = {_quoted(owner)}  # who connects, for "peer" authentication\n\n'
    )


def _owner(directory: Path) -> str:
    """The user that owns the cluster: the server's own, and by initdb's default its superuser."""
    try:
        return pwd.getpwuid(directory.stat().st_uid).pw_name
    except KeyError:
        return "postgres"


def _server(directory: Path) -> Mapping[str, str]:
    """Socket directory and port of the server that runs there; empty when none does."""
    try:
        lines = (directory / "postmaster.pid").read_text().splitlines()
        host, port = lines[SOCKET_LINE].strip(), lines[PORT_LINE].strip()
    except (FileNotFoundError, IndexError):
        return {}
    return {"host": host or "localhost", "port": port}


# --- [[mirror.disks]]


def _places(directory: Path) -> list[Place]:
    """The directory itself, its WAL and its tablespaces, those of one filesystem together."""
    paths = {"data": directory}
    if (directory / "pg_wal").is_symlink():
        paths[WAL] = (directory / "pg_wal").resolve(strict=True)
    for link in sorted(directory.glob("pg_tblspc/*")):
        paths[f"tblspc-{link.name}"] = link.resolve(strict=True)
    together: dict[int, dict[str, Path]] = {}
    for name, path in paths.items():
        together.setdefault(filesystems.mount_of(path).devno, {})[name] = path
    return [_place(found) for found in together.values()]


def _place(paths: Mapping[str, Path]) -> Place:
    name, path = next(iter(paths.items()))
    return Place(
        name=name,
        path=path,
        mount=filesystems.mount_of(path),
        used=_used(set(paths.values())),
    )


def _used(paths: Iterable[Path]) -> int:
    """Bytes allocated below the paths; what vanishes meanwhile is not counted."""
    total = 0
    for path in paths:
        if not path.is_dir():
            total += path.stat().st_blocks * 512
            continue
        os.listdir(path)  # os.walk would give nothing for one that may not be read
        for _, _, files, fd in os.fwalk(path):
            total += sum(_allocated(name, fd) for name in files)
    return total


def _allocated(name: str, fd: int) -> int:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks * 512
    except FileNotFoundError:
        return 0


_NEXT = """\
# The embedded mirror: two image files a disk. Put the mirrors on other disks than the primaries.
# Each mirror takes its whole size at once. Then, as root:
#   mkdir -p /srv/primary /srv/mirror /srv/backup
#   splitmirror mirror start            # makes the images and prints a device for each disk
#   mkfs.ext4 DEVICE; mount DEVICE DIR  # once for each new disk
#   stop the database, move to DIR what is named below, start it again
#   splitmirror doctor                  # until it finds nothing; then: splitmirror backup
"""


_WAL_ONLY = "# hot mode does without this disk: the WAL may stay where it is, and this table go\n"


def _mirror(places: list[Place]) -> str:
    stacks = [
        mirrors.Place(name=place.name, layers=_layers(place.mount), path=str(place.path))
        for place in places
    ]
    proposal = propose_mirror(stacks)
    if proposal.table:
        return f"# What lies below the database can be split as it is.\n{proposal.table}\n"
    advice = [line for words in proposal.advice.values() for line in words.splitlines()]
    return "".join(f"# {line}\n" for line in dict.fromkeys(advice)) + _embedded(places)


def _layers(mount: Mount) -> tuple[Layer, ...]:
    """The devices below a filesystem; none for one without a device of its own."""
    try:
        return tuple(blockdev.walk(mount.devno))
    except SplitmirrorError:
        return ()


def _embedded(places: list[Place]) -> str:
    lines = [_NEXT + '[mirror]\ndriver = "qsd"\ndir = "/var/lib/splitmirror/mirror"\n']
    for place in places:
        mount = place.mount
        lines.append(
            f"\n[[mirror.disks]]  # for {place.path}: {show_size(place.used)} there now,\n"
            f"# on {mount.mountpoint} ({mount.fstype} on {mount.source})\n"
            f"{_WAL_ONLY if place.name == WAL else ''}"
            f'name = "{place.name}"\n'
            f'primary = "/srv/primary/{place.name}.img"\n'
            f'mirror = "/srv/mirror/{place.name}.img"\n'
            f'size = "{place.size_mib}MiB"\n'
        )
    return "".join(lines) + "\n"


def _medium() -> str:
    return (
        '[medium]\ndriver = "virtualtape"\n'
        "# on a disk that is neither primary nor mirror; the sets are appended to this one file\n"
        'path = "/srv/backup/SM0001.tap"\n'
    )
