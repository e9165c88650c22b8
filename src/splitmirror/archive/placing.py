"""Put members back as files, with everything that they were: owner, mode, times, xattrs, ACLs,
holes and links.

Where files are replaced, and wherever a file comes in more than one go, it comes into being under a
name of its own beside its place and is renamed onto it once it is whole (rename(2)): its own name
never shows half a file, and an old file is either as it was or replaced. Into a new place a file
that is in memory whole is made under its own name at once (open(2), O_EXCL); that a restore there
was cut off is told by a mark (see `incomplete`). Directories get their attributes last, the deepest
first, for everything put into one changes its times. Nothing is ever opened by a name that the
medium gave but through Ground.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

from splitmirror.archive.dressing import Dresser, Given, Skipped
from splitmirror.archive.ground import Anchor, Ground, components, refused
from splitmirror.archive.large import Gathering, LargeWriter
from splitmirror.archive.pax import FileValues
from splitmirror.errors import MediumDamaged, OutsideTarget, SplitmirrorError, TargetNotEmpty
from splitmirror.model import Attributes, Kind
from splitmirror.system import filesystems

TEMPORARY = b".splitmirror-"  # a restore that was cut off may leave files of this name
DAMAGED = b".damaged"
_PRIVATE = 0o600
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NODES = {Kind.FIFO: 0o010000, Kind.CHARDEV: 0o020000, Kind.BLOCKDEV: 0o060000}


class NewFile:
    """A regular file that is not at its place yet. End it with `place` or `abandon`."""

    def __init__(self, placer: Placer, name: bytes) -> None:
        parent, self._base = placer.place_of(name)
        self.name, self._placer = name, placer
        self._temporary = placer.temporary()
        self._parent = os.dup(parent)
        try:
            self._fd = os.open(self._temporary, _NEW, _PRIVATE, dir_fd=self._parent)
        except OSError as error:
            os.close(self._parent)
            raise refused(placer.where(name), error) from error
        self._writer = LargeWriter(self._fd, placer.gathering)
        placer.unfinished.add(self)

    def expect(self, offset: int, length: int) -> None:
        """So many bytes come next, all of them data. Raises NoRoom when there is none."""
        try:
            self._writer.expect(offset, length)
        except OSError as error:
            raise refused(self._placer.where(self.name), error) from error

    def write(self, offset: int, chunk: memoryview) -> None:
        """Raises NoRoom naming the file, or SplitmirrorError for what the disk said. The chunk may
        be used again when it returns."""
        try:
            self._writer.write(offset, chunk)
        except OSError as error:
            raise refused(self._placer.where(self.name), error) from error

    def place(self, attributes: Attributes) -> None:
        """Give it its size and attributes, and its name."""
        try:
            self._writer.finish(attributes.size)
            self._placer.dresser.attribute(self.name, self._fd, attributes)
            if self._placer.flush_each:
                os.fsync(self._fd)
            self._placer.exchange(self.name, self._temporary, self._parent, self._base)
        except OSError as error:
            raise refused(self._placer.where(self.name), error) from error
        self._placer.files += 1
        self._close()

    def abandon(self, *, keep: bool = False) -> None:
        """Nothing stands under its name because of it. With `keep` its bytes stay, as
        NAME.damaged. Ended already: harmless."""
        if self._fd < 0:
            return
        try:
            if keep:
                self._writer.finish(None)
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
        self._placer.unfinished.discard(self)
        self._writer.close()
        os.close(self._fd)
        os.close(self._parent)
        self._fd = -1


class Placer:
    """Puts members at their anchors. Not thread-safe; several can work at the same anchors. Leaving
    it takes away what is half made.

    `replace`: what stands at a member's place is replaced, else a name met twice is an error.
    `flush_each`: a file is on the disk before it takes the old one's name; without it only
    `finish` makes all of them durable.
    """

    def __init__(
        self, anchors: Sequence[Anchor], *, replace: bool = False, flush_each: bool = False
    ) -> None:
        self.files = 0  # that were placed; directories are not counted
        self.flush_each = flush_each
        self.dresser = Dresser()
        self.gathering = Gathering()
        self.unfinished: set[NewFile] = set()
        self._replace = replace
        self._anchors = sorted(anchors, key=lambda anchor: len(anchor.prefix), reverse=True)
        self._tops = {anchor.prefix for anchor in anchors}
        self._grounds: dict[Anchor, Ground] = {}
        self._directories: list[tuple[bytes, Attributes]] = []
        unique = os.urandom(6).hex().encode()
        self._temporaries = (b"%b%b-%d" % (TEMPORARY, unique, n) for n in itertools.count())
        # The directory that was last put into, open; and what the first small file in it got
        self._directory: bytes | None = None
        self._parent = -1
        self._given: Given | None = None
        self._learnt = False

    def __enter__(self) -> Placer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for new in list(self.unfinished):
                new.abandon()
        except SplitmirrorError as another:
            if error is None:
                raise
            error.add_note(str(another))
        finally:
            for ground in self._grounds.values():
                ground.close()

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return tuple(self.dresser.skipped.values())

    def where(self, name: bytes) -> str:
        """The member's place, in words."""
        anchor, ground = self._ground(name)
        return ground.where(anchor.path(name))

    def directory(self, name: bytes, attributes: Attributes) -> None:
        """Make it, or take the one that is there; it gets its attributes in `finish`."""
        self.make_directory(name)
        self.dress_later(name, attributes)

    def make_directory(self, name: bytes) -> None:
        """`directory`, when somebody else will give it its attributes."""
        self._enter(name)

    def dress_later(self, name: bytes, attributes: Attributes) -> None:
        """The other half."""
        self._directories.append((name, attributes))

    def small(self, values: FileValues, data: Sequence[memoryview]) -> None:
        """A whole regular file at once, its bytes known to be the right ones."""
        name = values[0]
        parent, base = self.place_of(name)
        entry = self.temporary() if self._replace else base
        try:
            fd = os.open(entry, _NEW, self.dresser.first_mode(values), dir_fd=parent)
        except FileExistsError:
            raise _twice(name) from None
        except OSError as error:
            raise refused(self.where(name), error) from error
        try:
            self._fill(fd, values, data)
            if self._replace:
                self.exchange(name, entry, parent, base)
        except BaseException as error:
            with suppress(OSError):
                os.unlink(entry, dir_fd=parent)
            if isinstance(error, OSError):
                raise refused(self.where(name), error) from error
            raise
        self.files += 1

    def file(self, name: bytes) -> NewFile:
        """Begin a regular file."""
        return NewFile(self, name)

    def hardlink(self, name: bytes, target: bytes) -> None:
        """Another name for the member `target`, which must have been placed. Raises OutsideTarget
        for a target that is no member's name, MediumDamaged with it as a fact when it is not there.
        """
        source, linked = self.place_of(target)
        source = os.dup(source)
        try:
            parent, base = self.place_of(name)

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
                        "which is not there",
                        target=target,
                    ) from error

            self._make(name, make, (parent, base))
        finally:
            os.close(source)

    def symlink(self, name: bytes, attributes: Attributes) -> None:
        """A symbolic link, wherever it points; it is never followed."""
        parent, base = self.place_of(name)

        def make(temporary: bytes) -> None:
            os.symlink(attributes.link, temporary, dir_fd=parent)
            self.dresser.attribute(name, _through(parent, temporary), attributes)

        self._make(name, make, (parent, base))

    def special(self, name: bytes, attributes: Attributes) -> bool:
        """A device or a fifo. Devices need root; without it they are left out, and False."""
        parent, base = self.place_of(name)
        if attributes.kind is not Kind.FIFO and not self.dresser.root:
            self.dresser.skip(name, "device", "only root can make one")
            return False

        def make(temporary: bytes) -> None:
            mode = _NODES[attributes.kind] | _PRIVATE
            os.mknod(temporary, mode, attributes.rdev, dir_fd=parent)
            self.dresser.attribute(name, _through(parent, temporary), attributes)

        self._make(name, make, (parent, base))
        return True

    def prepare(self, name: bytes) -> None:
        """The member will be placed, perhaps by another placer at the same anchors: `finish` makes
        it durable."""
        self._ground(name)

    def finish(self) -> None:
        """Directories' attributes, the deepest first; then everything is made durable."""
        for name, attributes in sorted(
            self._directories, key=lambda entry: entry[0].count(b"/"), reverse=True
        ):
            try:
                self.dresser.attribute(name, self._enter(name, make=False), attributes)
            except OSError as error:
                raise refused(self.where(name), error) from error
        self._directories.clear()
        grounds = [ground.fd for ground in self._grounds.values()]
        for fd in {os.fstat(fd).st_dev: fd for fd in grounds}.values():
            filesystems.syncfs(fd)

    # --- used by the files too

    def temporary(self) -> bytes:
        """A name that nobody has."""
        return next(self._temporaries)

    def exchange(self, name: bytes, temporary: bytes, parent: int, base: bytes) -> None:
        """Let what was made take its name, in one step."""
        if not self._replace and _there(parent, base):
            raise _twice(name)
        try:
            os.rename(temporary, base, src_dir_fd=parent, dst_dir_fd=parent)
        except IsADirectoryError as error:
            raise TargetNotEmpty(
                f"{self.where(name)} is a directory, and the set has a file there",
                hint="Move it away, or restore to an empty directory.",
            ) from error

    def place_of(self, name: bytes) -> tuple[int, bytes]:
        """A descriptor of the directory in which a member stands, made when it is missing, and its
        name there. The descriptor is borrowed until the next call."""
        directory, _, base = name.rpartition(b"/")
        if directory == self._directory and name not in self._tops:
            if base in (b"", b".", b"..") or b"\0" in base:
                components(name)
            return self._parent, base
        anchor, ground = self._ground(name)
        *above, base = anchor.path(name)
        self._directory = None  # its descriptor may be closed now
        self._parent = ground.enter(above, make=True)
        self._directory, self._learnt = None if name in self._tops else directory, False
        return self._parent, base

    # --- inside

    def _ground(self, name: bytes) -> tuple[Anchor, Ground]:
        anchor = next((anchor for anchor in self._anchors if anchor.holds(name)), None)
        if anchor is None:
            raise OutsideTarget(f"{os.fsdecode(name)!r} belongs to none of the set's trees")
        ground = self._grounds.get(anchor)
        if ground is None:
            ground = Ground(anchor.directory, make=True, public=anchor.public)
            self._grounds[anchor] = ground
        return anchor, ground

    def _enter(self, name: bytes, *, make: bool = True) -> int:
        """The directory that a member is."""
        anchor, ground = self._ground(name)
        self._directory = None
        return ground.enter(anchor.path(name), make=make)

    def _fill(self, fd: int, values: FileValues, data: Sequence[memoryview]) -> None:
        """Bytes and attributes of a file that was just made; it is closed."""
        try:
            for chunk in data:
                done = os.write(fd, chunk)
                while done < len(chunk):
                    done += os.write(fd, chunk[done:])
            if not self._learnt:
                self._given, self._learnt = self.dresser.given(fd), True
            self.dresser.dress(fd, values, self._given)
            if self.flush_each:
                os.fsync(fd)
        finally:
            os.close(fd)

    def _make(self, name: bytes, make: Callable[[bytes], None], at: tuple[int, bytes]) -> None:
        parent, base = at
        temporary = self.temporary()
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
        self.files += 1


def _twice(name: bytes) -> MediumDamaged:
    return MediumDamaged(
        f"the medium names {os.fsdecode(name)} twice; the first stays",
        hint="Run 'splitmirror verify' on the set.",
    )


def _there(parent: int, base: bytes) -> bool:
    try:
        os.stat(base, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _through(parent: int, base: bytes) -> bytes:
    """A path for calls that take no directory descriptor; only its last component is ours."""
    return b"/proc/self/fd/%d/%s" % (parent, base)
