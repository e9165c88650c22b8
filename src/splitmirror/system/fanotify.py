"""What changes on a filesystem, as the kernel tells it: the directory and the name of each change.

A thread takes the kernel's notes and keeps every changed name once, by its directory's handle; it
lets notes gather a while, for the kernel puts equal ones together. The list may be used to look at
less, never to prove that something stayed as it was: writes through mmap, late writeback and
defragmenting give no note. Sources: fanotify(7), fanotify_init(2), fanotify_mark(2),
open_by_handle_at(2), linux/fanotify.h.
"""

from __future__ import annotations

import errno
import os
import select
import struct
import threading
from collections.abc import Iterator
from typing import Final, NamedTuple

from splitmirror.system import libc

# fanotify_init: told and not asked (FAN_CLASS_NOTIF), by directory and name, and by the file itself
# where it has no name that is known; as many as come, for a backup has the right to that.
_CLOEXEC: Final = 0x1
_NONBLOCK: Final = 0x2
_UNLIMITED_QUEUE: Final = 0x10
_UNLIMITED_MARKS: Final = 0x20
_REPORT_FID: Final = 0x200
_REPORT_DFID_NAME: Final = 0x400 | 0x800
_INIT: Final = _CLOEXEC | _NONBLOCK | _UNLIMITED_MARKS | _REPORT_FID | _REPORT_DFID_NAME

_MARK_ADD: Final = 0x1
_MARK_FLUSH: Final = 0x80
_MARK_FILESYSTEM: Final = 0x100
_NOWHERE: Final = -100  # AT_FDCWD, where no file is named
_MODIFY: Final = 0x2
_MOVED: Final = 0x40 | 0x80  # from and to
_CREATE: Final = 0x100
_DELETE: Final = 0x200
_OVERFLOW: Final = 0x4000
_COMES_OR_GOES: Final = _MOVED | _CREATE | _DELETE
_ONDIR: Final = 0x40000000  # directories' own comings and goings too
_MASK: Final = _MODIFY | _COMES_OR_GOES | _ONDIR

_EVENT: Final = struct.Struct("<IBxHQii")  # length, version, metadata's length, mask, fd, pid
_VERSION: Final = 3
_INFO: Final = struct.Struct("<BxH8sI")  # type, length, fsid, the handle's bytes; then its type
_HANDLE_HEAD: Final = 8  # struct file_handle before its bytes
_DFID_NAME: Final = 2  # the type of the information that names a directory and a name in it

_READ: Final = 256 << 10
_GATHER_S: Final = 0.1  # how long notes may gather: a busy file's then come as one
# Above this a list of names shortens nothing worth the memory.
MOST_NAMES: Final = 100_000


class Place(NamedTuple):
    """A directory: on the filesystem with this f_fsid (statvfs(3)), with this struct
    file_handle."""

    fsid: int
    handle: bytes


class Note(NamedTuple):
    """A change of a name in a directory; `moved`: the name itself came or went."""

    place: Place
    name: bytes
    moved: bool


class Told(NamedTuple):
    """The names that changed, by directory, and the directories in which names came or went."""

    names: dict[Place, set[bytes]]
    moved: set[Place]


class NotUnderstood(Exception):
    """The kernel told of a change in words that say nothing about where it was."""


class Watch:
    """Gathers the names that change on some filesystems, from `arm` until `stop`.

    `lost`: why the list is not whole; empty while it is. Used by one thread beside its own.
    """

    def __init__(self, *, unlimited: bool = True) -> None:
        """`unlimited`: the kernel keeps notes until they are taken. Raises OSError where it has no
        such notes (ENOSYS, EINVAL) or does not give them to us (EPERM)."""
        flags = _INIT | (_UNLIMITED_QUEUE if unlimited else 0)
        self._fd = libc.fanotify_init(flags, os.O_RDONLY | os.O_LARGEFILE)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._told = Told({}, set())
        self._count = 0
        self.lost = ""

    def arm(self, fd: int) -> None:
        """Watch the whole filesystem of an open file: what changes from here on is in the list.
        Raises OSError: EXDEV on a subvolume, ENODEV and EOPNOTSUPP where files have no handles."""
        libc.fanotify_mark(self._fd, _MARK_ADD | _MARK_FILESYSTEM, _MASK, fd)

    def start(self) -> None:
        """Begin to take notes, on a thread of its own."""
        self._thread = threading.Thread(target=self._gather, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> Told:
        """Every name that changed until now. Nothing is watched any more."""
        self._end_thread()
        if self._fd >= 0:
            self._take()
            self._disarm()
        return self._told

    def _disarm(self) -> None:
        """Have the kernel make no more notes: nobody would take them."""
        libc.fanotify_mark(self._fd, _MARK_FLUSH | _MARK_FILESYSTEM, 0, _NOWHERE)

    def close(self) -> None:
        """A second call is harmless."""
        if self._fd >= 0:
            self._end_thread()
            os.close(self._fd)
            os.close(self._wake)
            self._fd = -1

    def _end_thread(self) -> None:
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            self._thread = None

    def _gather(self) -> None:
        either, ending = select.poll(), select.poll()
        for poll, fd in ((either, self._fd), (either, self._wake), (ending, self._wake)):
            poll.register(fd, select.POLLIN)
        while not self.lost:
            either.poll()
            if ending.poll(_GATHER_S * 1000):
                return
            self._take()

    def _take(self) -> None:
        """Take all notes that there are. A list that is not whole is not kept."""
        try:
            while not self.lost and (notes := self._read()):
                for place, name, moved in parse(notes):
                    names = self._told.names.setdefault(place, set())
                    self._count += name not in names
                    names.add(name)
                    if moved:
                        self._told.moved.add(place)
                if self._count > MOST_NAMES:
                    self.lost = f"more than {MOST_NAMES} names changed"
        except NotUnderstood as error:
            self.lost = str(error)
        except OSError as error:
            self.lost = f"the kernel's notes cannot be read: {error.strerror}"
        if self.lost:
            self._told = Told({}, set())
            self._disarm()

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, _READ)
        except BlockingIOError:
            return b""


def parse(notes: bytes) -> Iterator[Note]:
    """What the kernel's notes say. Raises NotUnderstood, also for the note that others were
    lost."""
    at = 0
    while at < len(notes):
        length, version, told, mask, _, _ = _EVENT.unpack_from(notes, at)
        if version != _VERSION:
            raise NotUnderstood(f"this kernel's notes are of version {version}")
        if mask & _OVERFLOW:
            raise NotUnderstood("the kernel's queue of notes overflowed")
        if told == length or notes[at + told] != _DFID_NAME:
            raise NotUnderstood("a file changed of which the kernel knows no name")
        _, size, fsid, handle_size = _INFO.unpack_from(notes, at + told)
        begin = at + told + _INFO.size - 4
        end = begin + _HANDLE_HEAD + handle_size
        name = notes[end : at + told + size]
        place = Place(int.from_bytes(fsid, "little"), notes[begin:end])
        yield Note(place, name[: name.index(0)], mask & _COMES_OR_GOES != 0)
        at += length


def path_of(place: Place, mount_fd: int) -> bytes | None:
    """Where a directory is now, as seen through the mount of an open file; None when it is gone.
    Raises OSError: EPERM without the right to open by handle."""
    try:
        fd = libc.open_by_handle_at(mount_fd, place.handle, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ESTALE, errno.ENOENT):
            return None
        raise
    try:
        # One that was taken away can still be opened while somebody has it open.
        return os.readlink(b"/proc/self/fd/%d" % fd) if os.fstat(fd).st_nlink else None
    finally:
        os.close(fd)
