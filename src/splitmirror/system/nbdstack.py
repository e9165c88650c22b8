"""Disks served by a qemu-storage-daemon: its NBD export, nbdfuse, and a loop device on top.

    image ── file node ── raw node ── NBD export ── nbdfuse ── loop device (direct I/O, 4 KiB)

Never the daemon's own FUSE export: a loop device with direct I/O on it corrupts data silently.
Everything is found again by its place in one directory, so that a later process can take it
down, even when the daemon is dead and the mount stale. Sources: qemu-storage-daemon(1),
nbdfuse(1), fusermount3(1), loop(4).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from splitmirror.errors import Busy, ConfigError, MirrorError, ProgramFailed
from splitmirror.model import Session
from splitmirror.system import filesystems, loop, process, programs
from splitmirror.system.images import SECTOR_SIZE
from splitmirror.system.openers import users
from splitmirror.system.qmp import Event, Monitor

# One for the run, the others for whoever looks on (status, doctor, recover).
MONITORS = 4
_SOCKET_PATH_MAX = 107  # sun_path of unix(7), without its NUL
_START_DEADLINE_S = 20.0  # both programs are ready in a fraction of a second
_STOP_DEADLINE_S = 10.0
_LETTING_GO_S = 2.0
_POLL_S = 0.01
_RUN_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The directory of a stack, and what lies where in it."""

    directory: Path

    def __post_init__(self) -> None:
        longest = max(len(os.fsencode(path)) for path in (*self.monitors, self.nbd_socket))
        if not self.directory.is_absolute() or longest > _SOCKET_PATH_MAX:
            raise ConfigError(
                f"the directory {self.directory} cannot hold the daemon's sockets",
                hint="Name an absolute path of at most 80 bytes.",
            )

    @property
    def monitors(self) -> tuple[Path, ...]:
        return tuple(self.directory / f"monitor-{number}.sock" for number in range(MONITORS))

    @property
    def nbd_socket(self) -> Path:
        return self.directory / "nbd.sock"

    @property
    def daemon_pid(self) -> Path:
        return self.directory / "daemon.pid"

    def export(self, name: str) -> Path:
        """The file that nbdfuse turns into the disk."""
        return self.directory / f"{name}.disk"

    def fuse_pid(self, name: str) -> Path:
        return self.directory / f"{name}.pid"

    def fuse_log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def clear(self) -> None:
        """Take away every file that a stack makes here. The stack must be down."""
        for pattern in ("monitor-*", "nbd.sock", "*.pid", "*.disk", "*.log"):
            for path in self.directory.glob(pattern):
                path.unlink()


# --- the daemon


def start_daemon(place: Place) -> Session:
    """Start a daemon without disks; it outlives us, in a session of its own, and is spared by the
    OOM killer, for filesystems hang on it. Returns when it answers."""
    argv = ["qemu-storage-daemon", "--daemonize", "--pidfile", str(place.daemon_pid)]
    for number, path in enumerate(place.monitors):
        argv += ["--chardev", f"socket,path={_escaped(path)},server=on,wait=off,id=chr{number}"]
        argv += ["--monitor", f"chardev=chr{number}"]
    address = f"addr.type=unix,addr.path={_escaped(place.nbd_socket)}"
    argv += ["--nbd-server", f"{address},max-connections=0"]
    programs.run(argv, timeout_s=_START_DEADLINE_S)
    daemon = find_daemon(place)
    if daemon is None:
        raise MirrorError("qemu-storage-daemon ended as soon as it began", hint="Try it by hand.")
    _spare(daemon)
    return daemon


def find_daemon(place: Place) -> Session | None:
    """The daemon of this place, if it lives."""
    return _running(place.daemon_pid, str(place.daemon_pid), "qemu-storage-daemon")


def stop_daemon(place: Place) -> None:
    """End the daemon; its disks must be withdrawn. Raises MirrorError when it does not end; none
    there: harmless."""
    daemon = find_daemon(place)
    if daemon is None:
        return
    with contextlib.suppress(MirrorError, Busy):  # whatever it answers, its end is looked at below
        monitor = Monitor.connect(place.monitors)
        try:
            monitor.execute("quit")
        finally:
            monitor.close()
        if process.wait_gone(daemon.pid, daemon.start_ticks, _STOP_DEADLINE_S):
            return
    _end(daemon)


# --- a disk


def add_node(monitor: Monitor, name: str, image: Path, aio: str, *, unmap: bool) -> None:
    """Open an image as the block node `name`. `unmap`: discards give room back, on both layers or
    they would be ignored without a word and stale bytes read where zeros were promised."""
    discard = "unmap" if unmap else "ignore"
    file = {"driver": "file", "filename": str(image), "cache": {"direct": True}, "aio": aio}
    node = {"driver": "raw", "node-name": name, "file": file | {"discard": discard}}
    monitor.execute("blockdev-add", node | {"discard": discard})


def remove_node(monitor: Monitor, name: str) -> None:
    """Close an image."""
    monitor.execute("blockdev-del", {"node-name": name})


def expose(monitor: Monitor, place: Place, name: str) -> str:
    """Make the node `name` a block device of this host; gives its path. Undone by `withdraw`."""
    export = {"type": "nbd", "id": name, "node-name": name, "name": name, "writable": True}
    monitor.execute("block-export-add", export)
    _start_fuse(place, name)
    device = loop.attach(place.export(name), direct=True, sector_size=SECTOR_SIZE)
    os.close(device.fd)
    return device.path


def _start_fuse(place: Place, name: str) -> None:
    place.export(name).touch(mode=0o600)
    uri = f"nbd+unix:///{name}?socket={place.nbd_socket}"
    nbdfuse = programs.need("nbdfuse")
    # setsid forks, so that it is no child of ours that somebody would have to wait for.
    argv = ["setsid", "--fork", nbdfuse, "-P", str(place.fuse_pid(name))]
    programs.start([*argv, str(place.export(name)), uri], log=place.fuse_log(name)).wait()
    if not _wait_for(lambda: find_fuse(place, name) is not None, _START_DEADLINE_S):
        words = place.fuse_log(name).read_text(errors="replace").strip()
        raise ProgramFailed(f"nbdfuse does not serve {name}: {words}", hint="Is /dev/fuse there?")
    fuse = find_fuse(place, name)
    if fuse is not None:
        _spare(fuse)


def find_fuse(place: Place, name: str) -> Session | None:
    """The nbdfuse of a disk, if it lives and serves (it writes its pid file when it does)."""
    return _running(place.fuse_pid(name), str(place.export(name)), "nbdfuse")


def is_exposed(place: Place, name: str, device: str) -> bool:
    """Whether `device` still is the disk `name`, all the way down to nbdfuse."""
    return find_fuse(place, name) is not None and loop.backing(device) == str(place.export(name))


def withdraw(place: Place, name: str) -> None:
    """Take the block device of a disk away, dead or alive. Not there: harmless.

    Raises Busy when it is in use; nothing is changed then.
    """
    devices = loop.find(place.export(name))
    for device in devices:
        check_unused(device)
    for device in devices:
        _detach_loop(device)
    fuse = find_fuse(place, name)
    _unmount(place.export(name))
    if fuse is not None and not process.wait_gone(fuse.pid, fuse.start_ticks, _STOP_DEADLINE_S):
        _end(fuse)


def remove_export(monitor: Monitor, name: str) -> None:
    """Take the NBD export of a withdrawn disk away, so that its node can be closed."""
    monitor.forget_events()
    monitor.execute("block-export-del", {"id": name, "mode": "hard"})
    limit = time.monotonic() + _STOP_DEADLINE_S
    event: Event | None = None
    while (left_s := limit - time.monotonic()) > 0:
        event = monitor.wait_event(left_s)
        if event and event.event == "BLOCK_EXPORT_DELETED" and event.data.get("id") == name:
            return
    raise MirrorError(f"the daemon keeps the export {name}", hint="Look at who is connected.")


def _detach_loop(device: str) -> None:
    loop.detach(device)
    if not _wait_for(lambda: loop.backing(device) is None, _STOP_DEADLINE_S):
        raise Busy(
            f"{device} is held open by {', '.join(users(device)) or 'someone'}",
            hint="End that process; the device goes with its last user.",
        )


def _unmount(export: Path) -> None:
    for option in ("-u", "-uz"):  # lazily when its server is dead or it does not let go
        if not any(mount.mountpoint == str(export) for mount in filesystems.mounts()):
            return
        with contextlib.suppress(ProgramFailed):
            programs.run(["fusermount3", option, str(export)], timeout_s=_RUN_DEADLINE_S)
    if any(mount.mountpoint == str(export) for mount in filesystems.mounts()):
        raise Busy(f"{export} cannot be unmounted", hint=f"Try `fusermount3 -uz {export}`.")


# --- who uses a device


def check_unused(device: str) -> None:
    """Raise Busy when a block device is mounted, claimed by the kernel, or open in a process, and
    stays so: udev looks into a device for an instant whenever a writer has closed it."""
    number = os.stat(device).st_rdev
    places = [mount.mountpoint for mount in filesystems.mounts() if mount.devno == number]
    if places:
        raise Busy(
            f"{device} is mounted at {', '.join(places)}",
            hint=f"Stop the database, then `umount {places[0]}`.",
            mountpoints=tuple(places),
        )
    if not _wait_for(lambda: _is_free(device), _LETTING_GO_S):
        raise Busy(
            f"{device} is open in {', '.join(users(device)) or 'the kernel'}",
            hint=f"End that process; see `lsblk {device}` and mounts in other namespaces.",
        )


def _is_free(device: str) -> bool:
    """Nobody has it open, nor is it mounted in another namespace or below another device."""
    if users(device):
        return False
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError:
        return False
    return True


# --- processes


def last_words(place: Place, names: list[str]) -> datetime | None:
    """When a disk's nbdfuse complained last: about when its daemon died, if it is dead."""
    logs = [place.fuse_log(name) for name in names]
    times = [log.stat().st_mtime for log in logs if log.exists() and log.stat().st_size]
    return datetime.fromtimestamp(max(times), UTC) if times else None


def _running(pid_file: Path, argument: str, what: str) -> Session | None:
    """The process of a pid file, if it lives and was started with this argument."""
    try:
        pid = int(pid_file.read_text())
        argv = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):  # none, none yet, or none any more
        return None
    ticks = process.start_ticks(pid)
    if ticks is None or os.fsencode(argument) not in argv:
        return None
    return Session(what=what, pid=pid, start_ticks=ticks, signal=signal.SIGTERM)


def _end(session: Session) -> None:
    if not process.end_and_wait(session, _STOP_DEADLINE_S):
        raise MirrorError(
            f"{session.what} (process {session.pid}) does not end",
            hint="It waits in the kernel: look at the disk with the images, and the kernel log.",
        )


def _spare(session: Session) -> None:
    with contextlib.suppress(OSError):  # without the right to it, it is no worse off than others
        Path(f"/proc/{session.pid}/oom_score_adj").write_text("-1000")


def _wait_for(condition: Callable[[], bool], limit_s: float) -> bool:
    """Whether the condition came true in time; for what the kernel gives no event."""
    limit = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(_POLL_S)
    return True


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")  # QEMU's option syntax
