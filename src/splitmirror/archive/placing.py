"""Put members back as files, with everything that they were: owner, mode, times, xattrs, ACLs,
holes and links.

A file comes into being under a name of its own beside its place and is renamed onto it once it is
whole (rename(2)), so its own name never shows half a file, and an old file is either as it was or
replaced. Directories get their attributes last, the deepest first, for everything put into one
changes its times. Nothing is ever opened by a name that the medium gave but through Ground.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from splitmirror.archive.ground import Anchor, Ground, refused
from splitmirror.errors import MediumDamaged, OutsideTarget, TargetNotEmpty
from splitmirror.model import Attributes, Kind
from splitmirror.system import filesystems

TEMPORARY = b".splitmirror-"  # a restore that was cut off may leave files of this name
DAMAGED = b".damaged"
_PRIVATE = 0o600
_OURS = (b"user.", b"trusted.", b"system.posix_acl_")  # xattrs that a set decides about
_NOT_HERE = frozenset({errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL})


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Something that this process or this filesystem could not give back, and the first such
    member; the data are there all the same."""

    what: str
    why: str
    first: bytes
    count: int


class NewFile:
    """A regular file that is not at its place yet. End it with `place` or `abandon`."""

    def __init__(self, placer: Placer, name: bytes, parent: int, base: bytes) -> None:
        self.name = name
        self._placer, self._base = placer, base
        self._temporary = TEMPORARY + secrets.token_hex(6).encode()
        self._parent = os.dup(parent)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._temporary, flags, _PRIVATE, dir_fd=self._parent)
        except OSError as error:
            os.close(self._parent)
            raise refused(placer.where(name), error) from error

    def write(self, offset: int, chunk: memoryview) -> None:
        """Raises NoRoom naming the file, or SplitmirrorError for what the disk said."""
        try:
            while chunk:
                done = os.pwrite(self._fd, chunk, offset)
                chunk, offset = chunk[done:], offset + done
        except OSError as error:
            raise refused(self._placer.where(self.name), error) from error

    def place(self, attributes: Attributes) -> None:
        """Give it its size and attributes, and its name."""
        try:
            os.ftruncate(self._fd, attributes.size)
            self._placer.attribute(self.name, self._fd, attributes)
            if self._placer.flush_each:
                os.fsync(self._fd)
            self._placer.exchange(self.name, self._temporary, self._parent, self._base)
        except OSError as error:
            raise refused(self._placer.where(self.name), error) from error
        self._close()

    def abandon(self, *, keep: bool = False) -> None:
        """Nothing stands under its name because of it. With `keep` its bytes stay, as
        NAME.damaged. Ended already: harmless."""
        if self._fd < 0:
            return
        try:
            if keep:
                os.rename(
                    self._temporary,
                    self._base + DAMAGED,
                    src_dir_fd=self._parent,
                    dst_dir_fd=self._parent,
                )
            else:
                os.unlink(self._temporary, dir_fd=self._parent)
        except OSError as error:
            raise refused(self._placer.where(self.name), error) from error
        finally:
            self._close()

    def _close(self) -> None:
        os.close(self._fd)
        os.close(self._parent)
        self._fd = -1


class Placer:
    """Puts members at their anchors. Not thread-safe.

    `replace`: what stands at a member's place is replaced, else a name met twice is an error.
    `flush_each`: a file is on the disk before it takes the old one's name; without it only
    `finish` makes all of them durable.
    """

    def __init__(
        self, anchors: Sequence[Anchor], *, replace: bool = False, flush_each: bool = False
    ) -> None:
        self.flush_each = flush_each
        self._replace = replace
        self._anchors = sorted(anchors, key=lambda anchor: len(anchor.prefix), reverse=True)
        self._grounds: dict[Anchor, Ground] = {}
        self._directories: list[tuple[bytes, Attributes]] = []
        self._skipped: dict[tuple[str, str], Skipped] = {}
        self._root = os.geteuid() == 0

    def __enter__(self) -> Placer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for ground in self._grounds.values():
            ground.close()

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return tuple(self._skipped.values())

    def where(self, name: bytes) -> str:
        """The member's place, in words."""
        anchor, ground = self._ground(name)
        return ground.where(anchor.path(name))

    def directory(self, name: bytes, attributes: Attributes) -> None:
        """Make it, or take the one that is there; it gets its attributes in `finish`."""
        anchor, ground = self._ground(name)
        ground.enter(anchor.path(name), make=True)
        self._directories.append((name, attributes))

    def file(self, name: bytes) -> NewFile:
        """Begin a regular file."""
        return NewFile(self, name, *self._parent(name))

    def hardlink(self, name: bytes, target: bytes) -> None:
        """Another name for the member `target`, which must have been placed. Raises OutsideTarget
        for a target that is no member's name, MediumDamaged when it is not there."""
        source, linked = self._parent(target)
        source = os.dup(source)
        try:
            parent, base = self._parent(name)

            def make(temporary: bytes) -> None:
                try:
                    os.link(
                        linked,
                        temporary,
                        src_dir_fd=source,
                        dst_dir_fd=parent,
                        follow_symlinks=False,
                    )
                except FileNotFoundError as error:
                    raise MediumDamaged(
                        f"{self.where(name)} is a hard link to {os.fsdecode(target)}, "
                        "which is not there"
                    ) from error

            self._make(name, make, (parent, base))
        finally:
            os.close(source)

    def symlink(self, name: bytes, attributes: Attributes) -> None:
        """A symbolic link, wherever it points; it is never followed."""
        parent, base = self._parent(name)

        def make(temporary: bytes) -> None:
            os.symlink(attributes.link, temporary, dir_fd=parent)
            self.attribute(name, _through(parent, temporary), attributes)

        self._make(name, make, (parent, base))

    def special(self, name: bytes, attributes: Attributes) -> bool:
        """A device or a fifo. Devices need root; without it they are left out, and False."""
        parent, base = self._parent(name)
        if attributes.kind is not Kind.FIFO and not self._root:
            self._skip(name, "device", "only root can make one")
            return False
        kind = {Kind.FIFO: 0o010000, Kind.CHARDEV: 0o020000, Kind.BLOCKDEV: 0o060000}

        def make(temporary: bytes) -> None:
            mode = kind[attributes.kind] | _PRIVATE
            os.mknod(temporary, mode, attributes.rdev, dir_fd=parent)
            self.attribute(name, _through(parent, temporary), attributes)

        self._make(name, make, (parent, base))
        return True

    def finish(self) -> None:
        """Directories' attributes, the deepest first; then everything is made durable."""
        for name, attributes in sorted(
            self._directories, key=lambda entry: entry[0].count(b"/"), reverse=True
        ):
            anchor, ground = self._ground(name)
            try:
                self.attribute(name, ground.enter(anchor.path(name)), attributes)
            except OSError as error:
                raise refused(self.where(name), error) from error
        self._directories.clear()
        for ground in self._grounds.values():
            filesystems.syncfs(ground.fd)

    # --- used by the files too

    def attribute(self, name: bytes, where: int | bytes, attributes: Attributes) -> None:
        """Owner, xattrs, mode and time, in the order in which none undoes another: chown clears
        the set-id bits and security.capability, an ACL changes the mode's group bits."""
        follow = isinstance(where, int)  # a path is one that must not be followed
        mode = attributes.mode
        if self._root:
            os.chown(where, attributes.uid, attributes.gid, follow_symlinks=follow)
        elif (attributes.uid, attributes.gid) != (os.geteuid(), os.getegid()):
            self._skip(name, "owner", "only root can give files away")
            mode &= 0o1777
        self._xattrs(name, where, dict(attributes.xattrs), follow)
        if attributes.kind is not Kind.SYMLINK:
            os.chmod(where, mode)
        os.utime(where, ns=(attributes.mtime_ns, attributes.mtime_ns), follow_symlinks=follow)

    def exchange(self, name: bytes, temporary: bytes, parent: int, base: bytes) -> None:
        """Let what was made take its name, in one step."""
        if not self._replace and _there(parent, base):
            raise MediumDamaged(
                f"the medium names {os.fsdecode(name)} twice; the first stays",
                hint="Run 'splitmirror verify' on the set.",
            )
        try:
            os.rename(temporary, base, src_dir_fd=parent, dst_dir_fd=parent)
        except IsADirectoryError as error:
            raise TargetNotEmpty(
                f"{self.where(name)} is a directory, and the set has a file there",
                hint="Move it away, or restore to an empty directory.",
            ) from error

    # --- inside

    def _ground(self, name: bytes) -> tuple[Anchor, Ground]:
        anchor = next((anchor for anchor in self._anchors if anchor.holds(name)), None)
        if anchor is None:
            raise OutsideTarget(f"{os.fsdecode(name)!r} belongs to none of the set's trees")
        ground = self._grounds.get(anchor)
        if ground is None:
            ground = self._grounds[anchor] = Ground(anchor.directory, make=True)
        return anchor, ground

    def _parent(self, name: bytes) -> tuple[int, bytes]:
        anchor, ground = self._ground(name)
        *above, base = anchor.path(name)
        return ground.enter(above, make=True), base

    def _make(self, name: bytes, make: Callable[[bytes], None], at: tuple[int, bytes]) -> None:
        parent, base = at
        temporary = TEMPORARY + secrets.token_hex(6).encode()
        try:
            try:
                make(temporary)
                self.exchange(name, temporary, parent, base)
            finally:
                # also after a rename of one name of a file onto another, which does nothing
                if _there(parent, temporary):
                    os.unlink(temporary, dir_fd=parent)
        except OSError as error:
            raise refused(self.where(name), error) from error

    def _xattrs(
        self, name: bytes, where: int | bytes, wanted: dict[bytes, bytes], follow: bool
    ) -> None:
        try:
            there = {os.fsencode(key) for key in os.listxattr(where, follow_symlinks=follow)}
        except OSError:
            there = set()  # a filesystem without xattrs; setting one below says so
        for key in there - wanted.keys():
            if key.startswith(_OURS):  # inherited from the directory it was made in
                os.removexattr(where, key, follow_symlinks=follow)
        for key, value in wanted.items():
            try:
                os.setxattr(where, key, value, follow_symlinks=follow)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                self._skip(name, f"xattr {os.fsdecode(key)}", error.strerror or "refused")

    def _skip(self, name: bytes, what: str, why: str) -> None:
        before = self._skipped.get((what, why))
        first, count = (before.first, before.count) if before else (name, 0)
        self._skipped[what, why] = Skipped(what=what, why=why, first=first, count=count + 1)


def _there(parent: int, base: bytes) -> bool:
    try:
        os.stat(base, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _through(parent: int, base: bytes) -> bytes:
    """A path for calls that take no directory descriptor; only its last component is ours."""
    return b"/proc/self/fd/%d/%s" % (parent, base)
