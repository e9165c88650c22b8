"""A directory tree of clones: the same blocks under other names, with the originals' attributes.

The originals may change meanwhile: what vanishes is left out, what is new may be missing, and each
file is as it was when its turn came, so the tree is of no one instant. Sources: ioctl_ficlone(2),
openat(2), link(2), mknod(2), utimensat(2).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from splitmirror.system import reflink, xattrs
from splitmirror.system.opening import FILE_FLAGS, FOLDER_FLAGS, VANISHED

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def clone_tree(source: int, into: int) -> None:
    """Fill the empty directory open as `into` with clones of all that is in the one open as
    `source`, and give it that one's attributes.

    Of a directory on which something is mounted only the directory itself is made; sockets are left
    out. Raises OSError, with the path below `source` as its `filename`; what was made by then
    stays.
    """
    _Cloning(source, into).run()


class _Folder(NamedTuple):
    """A directory that is being cloned: both sides, open; its path; what is left in it."""

    source: int
    into: int
    path: bytes
    bases: Iterator[bytes]

    def close(self) -> None:
        os.close(self.source)
        os.close(self.into)


class _Cloning:
    """One walk. A stack of our own: paths may be deeper than Python may recurse."""

    def __init__(self, source: int, into: int) -> None:
        self._device = os.fstat(source).st_dev
        self._into = into
        self._folders = [_Folder(os.dup(source), os.dup(into), b"", _bases(source))]
        # Of files with several names. Times and size: an inode's number may be another's by now.
        self._first_names: dict[tuple[int, int, int], bytes] = {}

    def run(self) -> None:
        try:
            while self._folders:
                folder = self._folders[-1]
                base = next(folder.bases, None)
                if base is None:
                    _dress(folder.into, folder.source)
                    self._folders.pop().close()
                else:
                    self._clone(folder, base)
        finally:
            while self._folders:
                self._folders.pop().close()

    def _clone(self, folder: _Folder, base: bytes) -> None:
        path = os.path.join(folder.path, base)
        try:
            status = _seen(folder, base)
            if status is None or stat.S_ISSOCK(status.st_mode):
                return
            if stat.S_ISDIR(status.st_mode):
                self._folder(folder, base, path)
            elif stat.S_ISREG(status.st_mode):
                self._file(folder, base, path)
            else:
                _special(folder, base, status)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fsdecode(path)) from error

    def _folder(self, above: _Folder, base: bytes, path: bytes) -> None:
        source = _opened(above, base, FOLDER_FLAGS)
        if source is None:
            return
        try:
            ours = os.fstat(source).st_dev == self._device
            bases = _bases(source) if ours else iter(())
            os.mkdir(base, 0o700, dir_fd=above.into)
            into = os.open(base, FOLDER_FLAGS, dir_fd=above.into)
        except BaseException:
            os.close(source)
            raise
        self._folders.append(_Folder(source, into, path, bases))

    def _file(self, folder: _Folder, base: bytes, path: bytes) -> None:
        source = _opened(folder, base, FILE_FLAGS)
        if source is None:
            return
        try:
            status = os.fstat(source)
            if not stat.S_ISREG(status.st_mode) or status.st_dev != self._device:
                return
            if status.st_nlink > 1:
                key = (status.st_ino, status.st_mtime_ns, status.st_size)
                first = self._first_names.setdefault(key, path)
                if first != path:
                    os.link(first, base, src_dir_fd=self._into, dst_dir_fd=folder.into)
                    return
            into = os.open(base, _NEW, 0o600, dir_fd=folder.into)
            try:
                reflink.clone_live(source, into)
                _dress(into, source)
            finally:
                os.close(into)
        finally:
            os.close(source)


def _bases(fd: int) -> Iterator[bytes]:
    with os.scandir(b"/proc/self/fd/%d" % fd) as found:  # for names as bytes
        return iter([entry.name for entry in found])


def _seen(folder: _Folder, base: bytes) -> os.stat_result | None:
    """What a name is now; None: nothing any more."""
    try:
        return os.stat(base, dir_fd=folder.source, follow_symlinks=False)
    except OSError as error:
        if error.errno in VANISHED:
            return None
        raise


def _opened(folder: _Folder, base: bytes, flags: int) -> int | None:
    """A descriptor of the original; None where it has vanished meanwhile."""
    try:
        return os.open(base, flags, dir_fd=folder.source)
    except OSError as error:
        if error.errno in VANISHED:
            return None
        raise


def _special(folder: _Folder, base: bytes, status: os.stat_result) -> None:
    """A symbolic link, a FIFO or a device."""
    # Through the descriptors, for there is no getxattrat(2) before Linux 6.13.
    source, into = (b"/proc/self/fd/%d/%b" % (fd, base) for fd in (folder.source, folder.into))
    try:
        link = os.readlink(source) if stat.S_ISLNK(status.st_mode) else None
        found = xattrs.of(source)
    except OSError as error:
        if error.errno in (*VANISHED, errno.EINVAL):  # EINVAL: it is no link any more
            return
        raise
    if link is not None:
        os.symlink(link, into)
    else:
        os.mknod(into, status.st_mode, status.st_rdev)
        os.chmod(into, stat.S_IMODE(status.st_mode))
    os.chown(into, status.st_uid, status.st_gid, follow_symlinks=False)
    xattrs.set(into, found)
    os.utime(into, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _dress(into: int, source: int) -> None:
    """Give a file or directory what its original has by now beside its data."""
    status = os.fstat(source)
    os.fchown(into, status.st_uid, status.st_gid)
    os.fchmod(into, stat.S_IMODE(status.st_mode))  # behind the owner, who takes set-uid away
    xattrs.set(into, xattrs.of(source))
    os.utime(into, ns=(status.st_atime_ns, status.st_mtime_ns))
