"""Extended attributes, POSIX ACLs among them (xattr(7)). Names and values are bytes."""

from __future__ import annotations

import errno
import os

Target = int | bytes | str | os.PathLike[str]

# Made by the filesystem from other things, or not to be set by hand.
_SKIPPED = ("system.nfs4_acl", "system.ntfs_", "trusted.overlay.")


def of(target: Target) -> tuple[tuple[bytes, bytes], ...]:
    """The extended attributes of an open descriptor, or of a path without following a link, sorted
    by name. Filesystems without any give none; one that vanishes meanwhile is left out."""
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EBADF, errno.EPERM):
            return ()  # EBADF: an O_PATH descriptor, which a symbolic link's is
        raise
    if not names:
        return ()
    found = []
    for name in names:
        if name.startswith(_SKIPPED):
            continue
        try:
            found.append((os.fsencode(name), os.getxattr(target, name, follow_symlinks=follow)))
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
    return tuple(sorted(found))


def set(target: Target, attributes: tuple[tuple[bytes, bytes], ...]) -> None:
    """Give a file these extended attributes; others that it has stay. Raises OSError (EOPNOTSUPP
    where the filesystem has none, EPERM without the right)."""
    follow = isinstance(target, int)
    for name, value in attributes:
        os.setxattr(target, name, value, follow_symlinks=follow)
