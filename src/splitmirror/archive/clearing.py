"""Before files are put where others are: is the place empty, in use, large enough; and what has to
go from the original place so that afterwards only the set is there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from splitmirror.archive.ground import Anchor, Ground, refused
from splitmirror.errors import Busy, NoRoom, TargetNotEmpty
from splitmirror.model import Kind
from splitmirror.system import process
from splitmirror.units import show_size

PID_FILE = "postmaster.pid"  # PostgreSQL, "Creating a Database Cluster"; its first line is the pid
# Without it no PostgreSQL server starts ("Database File Layout"); it comes back after all data
CONTROL_FILE = b"global/pg_control"
SPARE = 16 << 20  # what a filesystem needs for itself beside the files
PER_FILE = 512  # an inode and a directory entry, roughly

KindOf = Callable[[bytes], Kind | None]


def require_empty(target: Path) -> None:
    """Raises TargetNotEmpty when something is there already. Absent is fine."""
    try:
        with os.scandir(target) as entries:
            first = next(entries, None)
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise TargetNotEmpty(
            f"{target} is no directory", hint="Name a directory that is empty or not there yet."
        ) from error
    if first is not None:
        raise TargetNotEmpty(
            f"{target} is not empty: it holds {first.name!r}",
            hint="Name a directory that is empty or not there yet. (To put files back where they "
            "came from, say so with --in-place.)",
        )


def needed(stored: int, files: int) -> int:
    """Bytes that so many files with so much data take on a filesystem, roughly."""
    return stored + files * PER_FILE + SPARE


def room(place: Path) -> int:
    """Bytes left for this process on the filesystem of an existing directory."""
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def require_room(target: Path, stored: int, files: int) -> None:
    """Raises NoRoom when the target's filesystem has less than the set will take."""
    place = next(path for path in (target, *target.parents) if path.is_dir())
    left, wanted = room(place), needed(stored, files)
    if left < wanted:
        raise NoRoom(
            f"{place} has {show_size(left)} left, the restore needs {show_size(wanted)}",
            hint="Make room, or name a target on a larger filesystem.",
            path=str(place),
            needed=wanted,
            left=left,
        )


def require_unused(anchors: Sequence[Anchor]) -> None:
    """Raises Busy when a database server, or any process, works in one of the places.

    Sees what this process may see: all of them as root, only its own user's otherwise.
    """
    for anchor in anchors:
        place = anchor.directory / os.fsdecode(anchor.base)
        for pid, what in (*_servers(place), *_users(place)):
            raise Busy(
                f"{place} is in use: process {pid} has {what}",
                hint="Stop the database (and whatever else works there) before you restore over "
                "it, or restore to an empty directory.",
                pid=pid,
            )


def _servers(place: Path) -> Iterator[tuple[int, str]]:
    try:
        pid = int((place / PID_FILE).read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return
    try:
        # A server stands in its data directory: this tells it from a later process of its pid.
        working = Path(f"/proc/{pid}/cwd").readlink() == place
    except PermissionError:
        working = process.start_ticks(pid) is not None
    except OSError:
        return
    if working:
        yield pid, f"{PID_FILE} naming it"


def _users(place: Path) -> Iterator[tuple[int, str]]:
    below = os.fsencode(place)
    for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        if pid == os.getpid():
            continue
        for path in _open_files(pid):
            if path == below or path.startswith(below.rstrip(b"/") + b"/"):
                yield pid, f"{os.fsdecode(path)} open"
                break


def _open_files(pid: int) -> Iterator[bytes]:
    directory = b"/proc/%d/fd" % pid
    try:
        descriptors = os.listdir(directory)
    except OSError:
        return  # gone meanwhile, or not ours to see
    for descriptor in descriptors:
        try:
            yield os.readlink(directory + b"/" + descriptor)
        except OSError:
            continue


def clear(anchors: Sequence[Anchor], kind_of: KindOf) -> int:
    """Remove from the places of a whole set what the set does not hold, and what is of another
    kind there (a file where the set has a directory). `kind_of` gives a member's kind, None for
    what is none. Directories directly in a tree's root that the set lacks stay, for they may be
    someone else's: lost+found, another server version's in a tablespace. Never follows a link,
    never leaves the filesystem, never enters the place of another of the trees. Returns how many
    went. A database's CONTROL_FILE goes first of all, though the set holds it: a restore that is
    cut off leaves no database that starts half old and half restored.
    """
    places = {anchor.directory / os.fsdecode(anchor.base) for anchor in anchors}
    above = frozenset(path for place in places for path in (place, *place.parents))
    gone = 0
    for anchor in anchors:
        if anchor.directory.is_dir() and kind_of(anchor.prefix) is Kind.DIRECTORY:
            with Ground(anchor.directory, make=False) as ground:
                if kind_of(anchor.prefix + b"/" + CONTROL_FILE) is Kind.FILE:
                    _disable(ground, anchor)
                gone += _Clearing(ground, anchor, kind_of, above).run()
    return gone  # a tree of a single file: its neighbours are none of the set's business


def _disable(ground: Ground, anchor: Anchor) -> None:
    """The control file of the database at `anchor` is gone, durably. Gone before: harmless."""
    *above, base = anchor.path(anchor.prefix + b"/" + CONTROL_FILE)
    try:
        parent = ground.enter(above)
        os.unlink(base, dir_fd=parent)
        os.fsync(parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise refused(ground.where((*above, base)), error) from error


class _Clearing:
    """One tree's place. `above`: the trees' places and every directory above one."""

    def __init__(
        self, ground: Ground, anchor: Anchor, kind_of: KindOf, above: frozenset[Path]
    ) -> None:
        self._ground, self._anchor, self._kind_of, self._above = ground, anchor, kind_of, above
        self._device = -1

    def run(self) -> int:
        try:
            top = self._ground.enter(self._anchor.path(self._anchor.prefix))
        except FileNotFoundError:
            return 0
        self._device = os.fstat(top).st_dev
        gone, todo = 0, [self._anchor.prefix]
        while todo:
            name = todo.pop()
            for entry in sorted(os.listdir(self._ground.enter(self._anchor.path(name)))):
                child = name + b"/" + os.fsencode(entry)
                if self._enters(child):
                    todo.append(child)
                else:
                    gone += self._removed(child)
        return gone

    def _stat(self, name: bytes) -> os.stat_result:
        *above, base = self._anchor.path(name)
        return os.stat(base, dir_fd=self._ground.enter(above), follow_symlinks=False)

    def _enters(self, name: bytes) -> bool:
        """A directory on both sides, in which single entries may have to go."""
        found = self._stat(name)
        return (
            stat.S_ISDIR(found.st_mode)
            and found.st_dev == self._device
            and self._kind_of(name) is Kind.DIRECTORY
        )

    def _removed(self, name: bytes) -> int:
        kind, found = self._kind_of(name), self._stat(name)
        directory = stat.S_ISDIR(found.st_mode)
        same = kind is not None and (kind is Kind.DIRECTORY) == directory
        top = name.rpartition(b"/")[0] == self._anchor.prefix
        return 0 if same or (top and directory) else self._remove(self._anchor.path(name))

    def _remove(self, path: tuple[bytes, ...]) -> int:
        """One entry and all below it, as far as it is on this filesystem and of no other tree."""
        parent = self._ground.enter(path[:-1])
        try:
            found = os.stat(path[-1], dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                os.unlink(path[-1], dir_fd=parent)
                return 1
            place = Path(self._ground.where(path))
            if found.st_dev != self._device or place in self._above:
                return 0
            entries = os.listdir(self._ground.enter(path))
            gone = sum(self._remove((*path, os.fsencode(entry))) for entry in entries)
            os.rmdir(path[-1], dir_fd=self._ground.enter(path[:-1]))
        except OSError as error:
            raise refused(self._ground.where(path), error) from error
        return gone + 1
