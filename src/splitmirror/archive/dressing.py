"""What a file has beside its bytes, given to it: owner, extended attributes, mode and times.

A small file's attributes cost more than its bytes, so what a file has already by being made is not
set again; whether a directory hands anything down to its files is found out with the first of them.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from splitmirror.archive.pax import FileValues, attributes_of
from splitmirror.model import Attributes, Kind

_OURS = (b"user.", b"trusted.", b"system.posix_acl_")  # xattrs that a set decides about
_NOT_HERE = frozenset({errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL})
_UMASK = re.compile(r"^Umask:\s*([0-7]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Something that this process or this filesystem could not give back, and one of the first
    members that lack it; the data are there all the same."""

    what: str
    why: str
    first: bytes
    count: int

    def and_more(self, count: int) -> Skipped:
        return replace(self, count=self.count + count)


class Given(NamedTuple):
    """What a file has by being made in some directory: its owner, and the mode that was asked for
    less the umask. Where a directory hands down more than that (an ACL), nothing is known."""

    uid: int
    gid: int


class Dresser:
    """Gives files their attributes, and notes what it could not give. Not thread-safe."""

    def __init__(self) -> None:
        self.root = os.geteuid() == 0
        self.skipped: dict[tuple[str, str], Skipped] = {}
        self._own = (os.geteuid(), os.getegid())
        self._umask = _umask()

    def first_mode(self, values: FileValues) -> int:
        """The mode to make a file with: no more than its own, and nobody else's business while it
        is not yet its owner's."""
        _, mode, uid, gid, *_ = values
        return mode & (0o777 if (uid, gid) == self._own else 0o700)

    def given(self, fd: int) -> Given | None:
        """What the file that was just made got, and the next one in its directory will get; None
        when that differs from file to file."""
        if any(os.fsencode(key).startswith(_OURS) for key in _listed(fd, True)):
            return None
        found = os.fstat(fd)
        return Given(found.st_uid, found.st_gid)

    def dress(self, fd: int, values: FileValues, given: Given | None) -> None:
        """`attribute` for a regular file that was just made with `first_mode`."""
        name, mode, uid, gid, mtime_ns, xattrs, _ = values
        if given is None or xattrs:
            self.attribute(name, fd, attributes_of(values))
            return
        made = self.first_mode(values) & ~self._umask
        if self.root:
            if given != (uid, gid):
                os.fchown(fd, uid, gid)
        elif (uid, gid) != self._own:
            self._skip_owner(name)
            mode &= 0o1777
        if mode != made:
            os.fchmod(fd, mode)
        os.utime(fd, ns=(mtime_ns, mtime_ns))

    def attribute(self, name: bytes, where: int | bytes, attributes: Attributes) -> None:
        """Owner, xattrs, mode and time, in the order in which none undoes another: chown clears
        the set-id bits and security.capability, an ACL changes the mode's group bits."""
        follow = isinstance(where, int)  # a path is one that must not be followed
        mode = attributes.mode
        if self.root:
            os.chown(where, attributes.uid, attributes.gid, follow_symlinks=follow)
        elif (attributes.uid, attributes.gid) != self._own:
            self._skip_owner(name)
            mode &= 0o1777
        self._xattrs(name, where, dict(attributes.xattrs), follow)
        if attributes.kind is not Kind.SYMLINK:
            os.chmod(where, mode)
        os.utime(where, ns=(attributes.mtime_ns, attributes.mtime_ns), follow_symlinks=follow)

    def skip(self, name: bytes, what: str, why: str) -> None:
        """Note that a member lacks something."""
        none = Skipped(what=what, why=why, first=name, count=0)
        self.skipped[what, why] = self.skipped.get((what, why), none).and_more(1)

    def _skip_owner(self, name: bytes) -> None:
        self.skip(name, "owner", "only root can give files away")

    def _xattrs(
        self, name: bytes, where: int | bytes, wanted: dict[bytes, bytes], follow: bool
    ) -> None:
        there = {os.fsencode(key) for key in _listed(where, follow)}
        for key in there - wanted.keys():
            if key.startswith(_OURS):  # inherited from the directory it was made in
                os.removexattr(where, key, follow_symlinks=follow)
        for key, value in wanted.items():
            try:
                os.setxattr(where, key, value, follow_symlinks=follow)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                self.skip(name, f"xattr {os.fsdecode(key)}", error.strerror or "refused")


def _listed(where: int | bytes, follow: bool) -> list[str]:
    try:
        return os.listxattr(where, follow_symlinks=follow)
    except OSError:
        return []  # a filesystem without xattrs; setting one says so


def _umask() -> int:
    """This process's umask, without changing it (proc(5)); where it is not told, the safest guess:
    that nothing was given."""
    found = _UMASK.search(Path("/proc/self/status").read_text())
    return int(found[1], 8) if found else 0o777
