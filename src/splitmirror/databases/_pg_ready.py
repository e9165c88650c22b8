"""Make a restored PostgreSQL cluster one that can be started where it lies now.

Every absolute path in it may lead to the original: the link pg_wal, the links in pg_tblspc, and
tablespace_map, from which the server makes those links anew when it recovers. Source: PostgreSQL
documentation, "Recovering Using a Continuous Archive Backup"; xlogrecovery.c, read_tablespace_map.

No recovery.signal is made: with backup_label present and the WAL of the window in pg_wal the server
replays to the end of that WAL and insists on the backup's end record. A set from a standby becomes
a server of its own, for standby.signal goes: two that stream through one slot harm one another.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from splitmirror.databases._pg_layout import (
    DATA,
    EMPTIED,
    OUTSIDE,
    TABLESPACES,
    WAL,
    included_directories,
)
from splitmirror.databases._pg_server import running_in
from splitmirror.errors import Busy, DatabaseError

_STALE = ("postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal")
_MAP_LINE = re.compile(rb"(\d+) ((?:\\.|[^\\\n\r])*)\n?", re.DOTALL)
_ALLOWED = 0o750  # the server refuses a data directory with more


def make_ready(roots: Mapping[bytes, Path], facts: Mapping[str, str]) -> None:
    """Links, tablespace_map, missing directories, modes and stale files. Harmless again.

    Raises Busy when a server runs there, DatabaseError when a part was not restored.
    """
    data = roots.get(DATA)
    if data is None or not (data / "PG_VERSION").exists():
        raise _incomplete("the data directory")
    if running_in(data) is not None:
        raise Busy(
            f"a PostgreSQL server is running in {data}",
            hint="Stop it, or restore to another place.",
            path=str(data),
        )
    for name in _STALE:
        (data / name).unlink(missing_ok=True)
    _link_wal(data, roots)
    tablespaces = _link_tablespaces(data, roots, facts)
    _rewrite_map(data / "tablespace_map", tablespaces)
    _make_directories(data, roots.get(WAL, data / "pg_wal"))
    _make_include_directories(data, roots)
    if str(data) != facts.get("data_directory"):
        _open_the_way(data, roots)


def _incomplete(what: str) -> DatabaseError:
    return DatabaseError(
        f"{what} of the cluster was not restored",
        hint="Restore the whole set: a cluster in parts cannot be started.",
    )


def _link_wal(data: Path, roots: Mapping[bytes, Path]) -> None:
    link = data / "pg_wal"
    if WAL in roots:
        _relink(link, roots[WAL])
    elif link.is_symlink():
        raise _incomplete("pg_wal")


def _relink(link: Path, place: Path) -> None:
    """Let `link` lead to `place`. Raises DatabaseError when something else stands there."""
    if link.is_symlink():
        if link.readlink() == place:
            return
        link.unlink()
    elif link.is_dir() and not any(link.iterdir()):
        link.rmdir()
    elif link.exists():
        raise DatabaseError(
            f"{link} is no link, but should lead to {place}",
            hint="Restore the set to an empty directory.",
        )
    link.symlink_to(place)
    os.chown(link, *_owner(link.parent), follow_symlinks=False)


def _owner(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid


def _link_tablespaces(
    data: Path, roots: Mapping[bytes, Path], facts: Mapping[str, str]
) -> dict[int, Path]:
    """oid: where each tablespace is now; the links are made to say so."""
    places = {
        int(name.removeprefix(TABLESPACES + b"/")): path
        for name, path in roots.items()
        if name.startswith(TABLESPACES + b"/")
    }
    links = data / "pg_tblspc"
    links.mkdir(exist_ok=True)
    for link in links.iterdir():
        if link.is_symlink() and int(link.name) not in places:
            places[int(link.name)] = _inside(data, link, facts)
    for oid, place in places.items():
        _relink(links / str(oid), place)
    return places


def _inside(data: Path, link: Path, facts: Mapping[str, str]) -> Path:
    """A tablespace that lies in the data directory itself, where that is now."""
    was = Path(facts.get(f"tablespace.{link.name}", str(link.readlink())))
    for home in (Path(facts.get("data_directory", "/")), data):
        if home != Path("/") and was.is_relative_to(home):
            return data / was.relative_to(home)
    raise _incomplete(f"tablespace {link.name} (once at {was})")


def _rewrite_map(path: Path, tablespaces: Mapping[int, Path]) -> None:
    if not path.exists():
        return
    lines = []
    for match in _MAP_LINE.finditer(path.read_bytes()):
        place = tablespaces.get(int(match[1]))
        if place is None:
            raise _incomplete(f"tablespace {int(match[1])} (once at {os.fsdecode(match[2])})")
        escaped = re.sub(rb"([\\\n\r])", rb"\\\1", os.fsencode(place))
        lines.append(b"%s %s\n" % (match[1], escaped))
    path.write_bytes(b"".join(lines))


def _make_directories(data: Path, wal: Path) -> None:
    """What the set holds empty, for a restore that leaves empty directories out."""
    mode = data.stat().st_mode & 0o777
    if mode & ~_ALLOWED:
        mode = 0o700
        data.chmod(mode)
    directories = [data / os.fsdecode(name) for name in EMPTIED]
    for directory in (*directories, wal, wal / "archive_status"):
        if not directory.exists():
            directory.mkdir(mode=mode)
            os.chown(directory, *_owner(data))


def _make_include_directories(data: Path, roots: Mapping[bytes, Path]) -> None:
    """A configuration that includes an empty directory, as Debian's does with conf.d: no file of
    the set lies in it, but the server does not start without. Those beside the file only: an
    absolute one may be the original's."""
    for path in [path for name, path in roots.items() if name.startswith(OUTSIDE + b"/")]:
        for place in included_directories(path):
            if place.parent == path.parent and not place.exists():
                place.mkdir(mode=0o700)
                os.chown(place, *_owner(data))


def _open_the_way(data: Path, roots: Mapping[bytes, Path]) -> None:
    """Give the server's user the directories between a target and the roots in it, which a restore
    has made for root alone. Only where every root lies under its own name in one target."""
    targets = {_above(name, path) for name, path in roots.items()}
    target = targets.pop()
    if target is None or targets:
        return
    between = {above for path in roots.values() for above in path.parents}
    for directory in (target, *(path for path in between if target in path.parents)):
        status = directory.stat()
        if status.st_uid == 0 and status.st_mode & 0o777 == 0o700:
            os.chown(directory, *_owner(data))


def _above(name: bytes, path: Path) -> Path | None:
    """The directory in which `path` stands under its name in the set; None: it does not."""
    parts = Path(os.fsdecode(name)).parts
    return path.parents[len(parts) - 1] if path.parts[-len(parts) :] == parts else None
