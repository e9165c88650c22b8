"""Which files make up a PostgreSQL cluster, which are left out, and their order and names.

Sources: PostgreSQL documentation, "Database File Layout", "Making a Base Backup Using the Low Level
API" (what may be left out); src/backend/backup/basebackup.c (excludeDirContents, excludeFiles).
Reads directories and links only: no query.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from splitmirror.databases import Keep, Layout, Root, SortKey
from splitmirror.model import Mode

DATA = b"data"
WAL = b"wal"
TABLESPACES = b"tblspc"
OUTSIDE = b"outside"

# Their contents are of a running server only; it makes them anew, but not the directories.
EMPTIED = (
    b"pg_dynshmem",
    b"pg_notify",
    b"pg_replslot",  # a copied slot would keep WAL for a standby that follows the original
    b"pg_serial",
    b"pg_snapshots",
    b"pg_stat_tmp",
    b"pg_subtrans",
)

_LEFT_OUT = frozenset(
    [
        b"postmaster.pid",
        b"postmaster.opts",
        # A label on disk is of another backup (exclusive, 13 and 14) or stale. This backup's own
        # is given by pg_backup_stop and goes into the set as a file of the redo log.
        b"backup_label",
        b"backup_label.old",
        b"tablespace_map",
        b"tablespace_map.old",
        b"backup_manifest",
        b"postgresql.auto.conf.tmp",
        b"current_logfiles.tmp",
        b"lost+found",  # of ext4, where the directory is a mount point
    ]
)
_LEFT_OUT_PREFIXES = (b"pgsql_tmp", b"pg_internal.init")
_TEMPORARY_RELATION = re.compile(rb"t\d+_\d+(_(fsm|vm|init))?(\.\d+)?")
_RELATION = re.compile(rb"(\d+)(_fsm|_vm|_init)?(?:\.(\d+))?")

_GLOBAL_SPACE = 1664  # catalog/pg_tablespace_d.h
_DEFAULT_SPACE = 1663


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where a cluster lies, as its server told. `version_directory`: the only directory of a
    tablespace that is this server's, such as b"PG_15_202209061"."""

    data: Path  # links resolved
    version_directory: bytes
    outside: tuple[Path, ...] = ()
    stats_temp: bytes = b"pg_stat_tmp"  # inside the data directory; gone in 15

    def wal(self) -> Path | None:
        """Where pg_wal lies, when it is a link."""
        link = self.data / "pg_wal"
        return Path(os.path.realpath(link)) if link.is_symlink() else None

    def wal_apart(self) -> Root | None:
        """pg_wal, where it is a link or a filesystem of its own; by its name in the set."""
        place = self.data / "pg_wal"
        if place.is_symlink():
            return Root(name=WAL, path=os.fsencode(os.path.realpath(place)))
        if place.is_mount():
            return Root(name=DATA + b"/pg_wal", path=os.fsencode(place))
        return None

    def tablespaces(self) -> dict[int, Path]:
        """oid: where it lies, links resolved. Without those inside the data directory, which belong
        to that tree already."""
        return {oid: place for oid, place in self._linked() if not place.is_relative_to(self.data)}

    def tablespaces_inside(self) -> dict[int, Path]:
        """The tablespaces that someone put into the data directory itself, by a link."""
        return {oid: place for oid, place in self._linked() if place.is_relative_to(self.data)}

    def tablespaces_seen(self) -> tuple[frozenset[int], int]:
        """Differs from an earlier look once a tablespace was made or dropped meanwhile, also when
        it was made and dropped again: every link changes the directory's times."""
        changed_ns = (self.data / "pg_tblspc").stat().st_ctime_ns
        return frozenset(oid for oid, _ in self._linked()), changed_ns

    def _linked(self) -> Iterator[tuple[int, Path]]:
        for entry in sorted(os.scandir(self.data / "pg_tblspc"), key=lambda entry: entry.name):
            if entry.name.isdigit() and entry.is_symlink():
                yield int(entry.name), Path(os.path.realpath(entry.path))


def layout(places: Places, mode: Mode) -> Layout:
    """The cluster's files right now.

    In hot mode the WAL of the window is copied through the primary: a pg_wal apart from the data
    need not be on the mirror, is not frozen, and of itself only the directory is in the set.
    """
    roots = [Root(name=DATA, path=os.fsencode(places.data))]
    for oid, place in places.tablespaces().items():
        roots.append(Root(name=b"%s/%d" % (TABLESPACES, oid), path=os.fsencode(place)))
    outside = tuple(
        Root(name=OUTSIDE + os.fsencode(path), path=os.fsencode(path)) for path in places.outside
    )
    wal = places.wal_apart()
    if mode is Mode.FREEZE and wal is not None and wal.name == WAL:
        roots.append(wal)  # one that is mounted is met below the data
    bare = () if mode is Mode.FREEZE or wal is None else tuple(_bare(wal))
    rules = Rules(
        wal=DATA + b"/pg_wal" if wal is None else wal.name,
        wal_apart=wal is not None,
        version_directory=places.version_directory,
        mode=mode,
        emptied=frozenset(DATA + b"/" + name for name in (*EMPTIED, places.stats_temp)),
    )
    return Layout(roots=tuple(roots), outside=outside, bare=bare, keep=rules.keep, order=order)


def _bare(wal: Root) -> Iterator[Root]:
    """The WAL's directory and the one in it. A restore in place empties that too: what it says of
    segments was said of others of the same names."""
    yield wal
    status = Root(name=wal.name + b"/archive_status", path=wal.path + b"/archive_status")
    if os.path.isdir(status.path):
        yield status


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What becomes of each file. `wal`: the member name of the WAL's directory; `wal_apart`: it is
    a link or a filesystem of its own."""

    wal: bytes
    wal_apart: bool
    version_directory: bytes
    mode: Mode
    emptied: frozenset[bytes]

    def keep(self, name: bytes) -> Keep:
        """Whether a member belongs to the set."""
        parent, _, own = name.rpartition(b"/")
        if own.startswith(_LEFT_OUT_PREFIXES) or (own in _LEFT_OUT and self._top(parent)):
            return Keep.LEAVE
        if _TEMPORARY_RELATION.fullmatch(own) and parent.rpartition(b"/")[2].isdigit():
            return Keep.LEAVE
        if parent.startswith(TABLESPACES + b"/") and parent.count(b"/") == 1:
            return Keep.KEEP if own == self.version_directory else Keep.LEAVE
        if name in self.emptied:
            return Keep.EMPTY
        if name == self.wal and self.wal_apart and self.mode is Mode.HOT:
            return Keep.LEAVE  # copied from the primary
        if parent == self.wal:
            return self._keep_wal(own)
        return Keep.KEEP

    def _top(self, parent: bytes) -> bool:
        """Only there have these names a meaning: a schema's extension may have such a file."""
        return parent in (DATA, WAL)

    def _keep_wal(self, own: bytes) -> Keep:
        """In freeze mode the WAL on the leg is what recovery reads. In hot mode it is the window's,
        copied from the primary after the backup has been stopped."""
        if self.mode is Mode.HOT:
            return Keep.EMPTY if own == b"archive_status" else Keep.LEAVE
        return Keep.LEAVE if own.startswith(b"xlogtemp.") else Keep.KEEP


# --- order

_ROOT_RANK = {DATA: 0, TABLESPACES: 1, WAL: 2, OUTSIDE: 3}
_NUMBERED = ([b"base"], [b"global"], [b"pg_tblspc"])  # elsewhere digits are hexadecimal: pg_wal
_LAST = 9
_CONTROL = DATA + b"/global/pg_control"


def order(name: bytes) -> SortKey:
    """By tablespace, database, relation, fork and segment, numbers as numbers.

    Four elements for each component, always of the same types, so that any two keys compare, and a
    directory's key begins that of what it holds. pg_control comes last of all, as in pg_basebackup:
    the order decides nothing about consistency, for all is of one instant, but a restore that was
    cut off leaves a cluster without it, which refuses to start, rather than one that starts with
    files missing.
    """
    if name == _CONTROL:
        return (_LAST,)
    components = name.split(b"/")
    key: list[int | bytes] = [_ROOT_RANK.get(components[0], _LAST - 1)]
    numbered = components[0] == TABLESPACES or components[1:2] in _NUMBERED
    for component in components:
        key += _component_key(component, numbered)
    return tuple(key)


def _component_key(component: bytes, numbered: bool) -> tuple[int, int, bytes, int]:
    relation = _RELATION.fullmatch(component) if numbered else None
    if relation is not None:
        return (0, int(relation[1]), relation[2] or b"", int(relation[3] or 0))
    return (1, 0, component, 0)


# --- names


@dataclass(frozen=True, slots=True)
class RelationFile:
    """Whose file it is: tablespace, database (0: shared by all) and relfilenode."""

    space: int
    database: int
    filenode: int


def relation_of(name: bytes) -> RelationFile | None:
    """The relation that a member belongs to, as its path says; None when it is no relation's."""
    components = name.split(b"/")
    relation = _RELATION.fullmatch(components[-1])
    if relation is None:
        return None
    match components[:-1]:
        case [b"data", b"global"]:
            return RelationFile(_GLOBAL_SPACE, 0, int(relation[1]))
        case [b"data", b"base", database] if database.isdigit():
            return RelationFile(_DEFAULT_SPACE, int(database), int(relation[1]))
        case [b"tblspc", space, _, database] if space.isdigit() and database.isdigit():
            return RelationFile(int(space), int(database), int(relation[1]))
        case [b"data", b"pg_tblspc", space, _, database] if database.isdigit():
            return RelationFile(int(space), int(database), int(relation[1]))
    return None


# --- configuration outside the data directory

CONFIGURATION = ("config_file", "hba_file", "ident_file")
CERTIFICATES = (
    *("ssl_cert_file", "ssl_key_file", "ssl_ca_file", "ssl_crl_file"),
    "ssl_dh_params_file",
)
# Beside Debian's postgresql.conf, which start.conf marks; pg_createcluster(8).
_DEBIAN_MARK = "start.conf"
_DEBIAN = (_DEBIAN_MARK, "environment", "pg_ctl.conf")

_INCLUDE = re.compile(
    r"^\s*(include_if_exists|include_dir|include)\s*[=\s]\s*(?:'([^']+)'|([^\s#']+))", re.MULTILINE
)
_MOST_INCLUDES = 10  # levels; PostgreSQL's own limit (guc-file.l)
_COMMENT = re.compile(r"#[^\n]*")
_LIST_FILE = re.compile(r'(?:^|[\s,])@(?:"([^"\n]+)"|([^\s,"]+))', re.MULTILINE)


def outside_files(settings: Mapping[str, str], data: Path) -> tuple[Path, ...]:
    """The configuration files, and what they include and name, that lie off the data directory."""
    files: dict[Path, None] = {}
    for name in CONFIGURATION:
        if settings.get(name):
            files.update(dict.fromkeys(_with_included(Path(settings[name]), _MOST_INCLUDES)))
            if name != "config_file":
                files.update(dict.fromkeys(_with_lists(tuple(files))))
    files.update(dict.fromkeys(_debians(settings)))
    files.update(dict.fromkeys(certificates(settings, data).values()))
    return tuple(path for path in files if path.is_file() and not _inside(path, data))


def certificates(settings: Mapping[str, str], data: Path) -> dict[str, Path]:
    """The certificates and keys that the configuration names and that are there, by setting; links
    resolved, so that a restore puts back the file and not the link to it."""
    named = {name: settings[name] for name in CERTIFICATES if settings.get(name)}
    files = {name: Path(os.path.realpath(data / path)) for name, path in named.items()}
    return {name: path for name, path in files.items() if path.is_file()}


def _debians(settings: Mapping[str, str]) -> Iterator[Path]:
    """What Debian's programs read beside postgresql.conf."""
    beside = Path(settings.get("config_file", "")).parent
    if (beside / _DEBIAN_MARK).is_file():
        yield from (beside / name for name in _DEBIAN)


def _inside(path: Path, data: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(data)


def _with_included(path: Path, levels: int) -> Iterator[Path]:
    if not path.is_file() or levels < 0:
        return
    yield path
    for kind, place in _included(path):
        for included in _configuration_in(place) if kind == "include_dir" else (place,):
            yield from _with_included(included, levels - 1)


def _included(path: Path) -> Iterator[tuple[str, Path]]:
    """What a configuration file includes: how, and from where."""
    for kind, quoted, bare in _INCLUDE.findall(os.fsdecode(path.read_bytes())):
        yield kind, path.parent / (quoted or bare)


def included_directories(path: Path) -> list[Path]:
    """The directories of a configuration file's include_dir; a server does not start without."""
    return [place for kind, place in _included(path) if kind == "include_dir"]


def _with_lists(files: Iterable[Path]) -> Iterator[Path]:
    """The files, and the lists of databases or users (@name in pg_hba.conf) that they name."""
    todo = [(path, 0) for path in files]
    while todo:
        path, level = todo.pop(0)
        yield path
        if path.is_file() and level < _MOST_INCLUDES:
            text = _COMMENT.sub("", os.fsdecode(path.read_bytes()))
            named = (path.parent / (quoted or bare) for quoted, bare in _LIST_FILE.findall(text))
            todo += [(place, level + 1) for place in named]


def _configuration_in(directory: Path) -> Iterable[Path]:
    """What include_dir takes: names that end in .conf and do not begin with a dot."""
    return sorted(path for path in directory.glob("*.conf") if not path.name.startswith("."))
