"""Start a program walled off from the rest of the host: `python -m splitmirror.system.walled`.

For a restored copy of a database, which believes that it is the original: it must not be able to
read, write, signal or call the original, whatever its files say. The program runs

- in a mount namespace of its own in which every hidden path is covered by an empty read-only
  directory (a file by /dev/null), and only the shown ones can be reached;
- in a network namespace with nothing but a loopback, so that no replication, foreign server or
  notice leaves it (a Unix socket at a path that it can see still works, in both directions);
- in an IPC namespace of its own, under a uid and gid that nobody else has, without privileges and
  without a way to get them back (PR_SET_NO_NEW_PRIVS, prctl(2));
- no longer than the thread that started it (PR_SET_PDEATHSIG).

What must be reachable but lies below a directory that the new uid may not enter is shown through
a cover over that directory, so the copy may lie in root's own scratch place.
"""

from __future__ import annotations

import argparse
import os
import pwd
import resource
import signal
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from splitmirror.errors import PrivilegeError, ProgramFailed
from splitmirror.model import Session
from splitmirror.system import libc, namespaces, process

# systemd.exec(5), DynamicUser=: uids that no account, file or package is ever given for good.
_FIRST_UID = 61184
_LAST_UID = 65519
_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
_END_S = 10.0  # from SIGKILL to the end of a process
_NOT_STARTED = 125  # the exit code when the wall could not be built, as env(1) and chroot(1) do


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """What a walled-off process is, sees and does not see. Paths are absolute, links resolved.

    A path in `hide` that does not exist needs no cover. `death_signal` is what it gets when its
    parent ends.
    """

    uid: int
    gid: int
    hide: tuple[Path, ...] = ()
    show: tuple[Path, ...] = ()
    death_signal: int = signal.SIGKILL

    def __post_init__(self) -> None:
        if self.uid == 0 or self.gid == 0:
            raise ValueError("a walled-off process is never root")
        for path in (*self.hide, *self.show):
            if not path.is_absolute():
                raise ValueError(f"not an absolute path: {path}")
        both = set(self.hide) & set(self.show)
        if both:
            raise ValueError(f"hidden and shown at once: {sorted(both)[0]}")


def unused_uid() -> int:
    """A uid that has no account and runs no process. Raises PrivilegeError when there is none."""
    running = set(_uids_running())
    for uid in range(_FIRST_UID, _LAST_UID + 1):
        if uid not in running and not _has_account(uid):
            return uid
    raise PrivilegeError(
        f"every uid from {_FIRST_UID} to {_LAST_UID} is in use",
        hint="Stop services that run with DynamicUser=, or give some of these accounts other uids.",
    )


def _uids_running() -> Iterator[int]:
    """The owner of every process."""
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                with suppress(FileNotFoundError):  # it has ended since
                    yield entry.stat().st_uid


def end_inside(directory: Path) -> None:
    """End every walled-off process that works in `directory` or below it: what a process left that
    died without ending it. It is known by its uid and its current directory, whatever it sees of
    either. Raises ProgramFailed when one does not go."""
    while left := _working_in(directory):
        for session in left:
            if not process.end_and_wait(session, _END_S):
                raise ProgramFailed(
                    f"process {session.pid}, started walled off in {directory}, cannot be ended",
                    hint="It waits for a device that does not answer: see dmesg.",
                    pid=session.pid,
                )


def _working_in(directory: Path) -> list[Session]:
    """Those with a uid of the wall's whose current directory is there."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # it has ended since
            pid = int(entry.name)
            if not _FIRST_UID <= entry.stat().st_uid <= _LAST_UID:
                continue
            ticks = process.start_ticks(pid)
            if ticks is not None and _holds(directory, os.stat(f"/proc/{pid}/cwd")):
                what = "a walled-off process"
                found.append(Session(what=what, pid=pid, start_ticks=ticks, signal=signal.SIGKILL))
    return found


def _holds(directory: Path, works: os.stat_result) -> bool:
    """Whether a directory is `directory` or lies below it, by device and inode."""
    return any(os.path.samestat(os.fstat(fd), works) for _, _, _, fd in os.fwalk(directory))


def _has_account(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def command(argv: Sequence[str], wall: Wall) -> list[str]:
    """The command that runs `argv` behind `wall`; for system.programs, to be started as root by
    this process, from a thread that outlives it."""
    return [sys.executable, "-m", "splitmirror.system.walled", *options(wall), "--", *argv]


def options(wall: Wall) -> list[str]:
    """The wall as command line options that `given` understands, for a child of this process."""
    return [
        *(f"--parent={os.getpid()}", f"--uid={wall.uid}", f"--gid={wall.gid}"),
        f"--death-signal={int(wall.death_signal)}",
        *(f"--hide={path}" for path in wall.hide),
        *(f"--show={path}" for path in wall.show),
    ]


def given(arguments: Sequence[str]) -> tuple[Wall, int, list[str]]:
    """The wall, the parent's pid and what follows them on a command line made with `options`."""
    parser = argparse.ArgumentParser(prog="splitmirror.system.walled")
    for name in ("--parent", "--uid", "--gid", "--death-signal"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--hide", "--show"):
        parser.add_argument(name, type=Path, action="append", default=[])
    parser.add_argument("rest", nargs="+")
    found = parser.parse_args(arguments)
    wall = Wall(
        uid=found.uid,
        gid=found.gid,
        hide=tuple(found.hide),
        show=tuple(found.show),
        death_signal=found.death_signal,
    )
    return wall, found.parent, found.rest


def enter(wall: Wall, *, parent: int) -> None:
    """Put the calling process behind the wall; there is no way back. `parent`: who started it.

    Raises OSError when it cannot be built: then the process must end, half of it may stand.
    """
    os.umask(0o022)  # the new uid enters the directories that are made in the covers
    namespaces.unshare(namespaces.CLONE_NEWNS | namespaces.CLONE_NEWIPC | namespaces.CLONE_NEWNET)
    namespaces.make_mounts_slaves()
    namespaces.loopback_up()
    _cover(wall)
    _drop_privileges(wall)
    process.die_with_parent(wall.death_signal)  # after the change of uid, which clears it
    if os.getppid() != parent:
        raise ProcessLookupError("the process that started this one is gone")


def _cover(wall: Wall) -> None:
    """Hide what is to be hidden and keep what is to be shown within reach."""
    shown = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in wall.show}
    hidden = {path for path in wall.hide if path.exists()}
    outer = {path for path in hidden if not _inside(path, shown)}
    outer |= {path for path in (_barrier(path, wall) for path in shown) if path is not None}
    covers = _outermost(outer)
    for path in covers:
        _hide(path)
    for path in _outermost({path for path in shown if _inside(path, covers)}):
        _place(path, shown[path])
    for path in _outermost(path for path in hidden if _inside(path, shown)):
        _hide(path)
    for path in (*covers, *(path for path in hidden if _inside(path, shown))):
        if path.is_dir():
            namespaces.seal(str(path))
    for fd in shown.values():
        os.close(fd)


def _inside(path: Path, others: Iterable[Path]) -> bool:
    """Whether `path` lies below one of the others."""
    return any(other in path.parents for other in others)


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Those that lie below none of the others."""
    every = set(paths)
    return sorted(path for path in every if not _inside(path, every))


def _barrier(path: Path, wall: Wall) -> Path | None:
    """The first directory on the way to `path` that the wall's uid may not enter."""
    for parent in reversed(path.parents):
        status = parent.stat()
        if status.st_uid == wall.uid:
            needed = stat.S_IXUSR
        else:
            needed = stat.S_IXGRP if status.st_gid == wall.gid else stat.S_IXOTH
        if not status.st_mode & needed:
            return parent
    return None


def _hide(path: Path) -> None:
    if path.is_dir():
        namespaces.cover(str(path))
    else:
        null = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
        namespaces.bind(null, str(path))
        os.close(null)


def _place(path: Path, fd: int) -> None:
    """Bind what `fd` names to its old path, which a cover has emptied."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        path.mkdir(mode=0o755)
    else:
        path.touch(mode=0o644)
    namespaces.bind(fd, str(path))


def _drop_privileges(wall: Wall) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a copy's memory is as secret as its data
    os.setgroups([])
    os.setresgid(wall.gid, wall.gid, wall.gid)
    os.setresuid(wall.uid, wall.uid, wall.uid)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    os.umask(0o077)
    os.chdir("/")


def main(arguments: Sequence[str]) -> int:
    """Build the wall and become the program. Returns only when it cannot."""
    wall, parent, argv = given(arguments)
    try:
        enter(wall, parent=parent)
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"cannot start {argv[0]} walled off: {error}", file=sys.stderr)
    return _NOT_STARTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
