"""Legs that are files or directories, each named by its original and its split.

Nothing else is recorded: a leg has a name only when it is whole, and deleting it is to rejoin.
Sources: ioctl_ficlone(2), O_TMPFILE in open(2), fsync(2).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from splitmirror.errors import ConfigError, MirrorError, MirrorNotReady, NoRoom
from splitmirror.model import Finding
from splitmirror.system import images, reflink
from splitmirror.units import show_size

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SPLIT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LONGEST_NAME = 255  # bytes, on xfs and btrfs (NAME_MAX)
# Of what is there this part at least must be free, to be overwritten while a leg is there.
_LEAST_ROOM = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class LegPlace:
    """Where the legs of an image, or of a directory, lie, and what they are called."""

    image: Path
    directory: Path
    suffix: str = ".leg"

    def leg(self, split_id: str) -> Path:
        return self.directory / f"{self.image.name}@{split_id}{self.suffix}"

    def splits(self) -> set[str]:
        """The ids of the legs that are there. Raises MirrorNotReady."""
        try:
            names = set(os.listdir(self.directory))
        except OSError as error:
            raise MirrorNotReady(
                f"{self.directory} cannot be read: {error.strerror}",
                hint="Mount the filesystem that the legs are on, or correct [mirror].",
            ) from error
        legs = (name.removesuffix(self.suffix).rpartition("@") for name in names if "@" in name)
        found = {split_id for image, _, split_id in legs if image == self.image.name}
        return {i for i in found if SPLIT_ID.fullmatch(i) and self.leg(i).name in names}

    def remove(self, split_id: str) -> None:
        """Delete a leg, durably. Not there: harmless. Raises OSError."""
        self.leg(split_id).unlink(missing_ok=True)
        fsync(self.directory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone:
    """An image and the nameless file that will be its leg, open. `known`: what was cloned early;
    None: nothing."""

    place: LegPlace
    source: int
    leg: int
    directory: int
    known: frozenset[bytes] | None

    def make(self) -> None:
        """Make the leg what the image is now. Raises OSError."""
        if self.known is None:
            reflink.clone(self.source, self.leg)
        else:
            reflink.renew(self.source, self.leg, self.known)

    def publish(self, split_id: str) -> None:
        """Raises OSError."""
        reflink.publish(self.leg, self.directory, self.place.leg(split_id).name)


def prepare_clone(place: LegPlace, split_id: str, undo: ExitStack, *, early: bool) -> Clone:
    """A clone that has to be made and to be named; what the image's loop device left in its page
    cache is written back. `early`: it is made already while the image is written to, and has only
    to be renewed. Closed with `undo`, and gone if it was not published. Raises MirrorError."""
    name = place.leg(split_id).name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise MirrorError(f"the name {name} is too long", hint="Give the image a shorter one.")
    with telling(f"a leg of {place.image} cannot be prepared in {place.directory}"):
        source = opened(place.image, os.O_RDONLY, undo)
        os.fsync(source)
        directory = opened(place.directory, os.O_RDONLY | os.O_DIRECTORY, undo)
        leg = reflink.nameless(directory, source)
        undo.callback(os.close, leg)
        known = reflink.clone_early(source, leg) if early else None
    return Clone(place=place, source=source, leg=leg, directory=directory, known=known)


def check_named(what: str, names: Sequence[str], paths: Sequence[str]) -> None:
    """That each of what `[mirror]` names has a name of its own, and that all paths are absolute, or
    "" for none. Raises ConfigError."""
    if not names or len(set(names)) < len(names) or not all(map(_NAME.fullmatch, names)):
        raise ConfigError(
            f"[mirror] {what} have the names {list(names)}",
            hint="Name one or more, each by a name of its own of letters, digits, dots, dashes and "
            "underscores.",
        )
    if not all(Path(path).is_absolute() for path in paths if path):
        raise ConfigError("[mirror] has a relative path", hint="Begin each with a slash.")


def check_apart(places: Sequence[LegPlace]) -> None:
    """That no two legs of one split have the same name. Raises ConfigError."""
    if len({place.leg("x") for place in places}) < len(places):
        raise ConfigError(
            "[mirror] has two entries whose legs would have the same name",
            hint="Name everything once; where two are called alike, give them different dirs.",
        )


def check_split_id(split_id: str) -> None:
    """Raises MirrorError for what cannot be part of a file's name."""
    if not SPLIT_ID.fullmatch(split_id):
        raise MirrorError(
            f"{split_id!r} cannot name a split",
            hint="Take at most 100 letters, digits, dots, dashes and underscores.",
        )


def require_room(directory: Path, what: str, everything: int, held: int, least: int) -> Finding:
    """Whether the filesystem of a directory can take what is overwritten while a leg is there.

    `what` is there has `everything` bytes, of which `held` are allocated. `least`: below this a
    split is refused; 0: below a tenth of `held`.
    """
    least = least or held // _LEAST_ROOM
    free = images.free_room(directory)
    if free >= everything:
        return Finding(what=f"room in {directory}")
    problem = NoRoom(
        f"{show_size(free)} are free in {directory}, {what} has {show_size(everything)}:"
        " while a leg is there, all that the database overwrites takes new room, and when there is "
        "none left its writes fail",
        hint=f"Make room there. With less than {show_size(least)} a split is refused (`room` in "
        "[mirror]).",
        free=free,
        least=least,
    )
    return Finding(what=f"room in {directory}", problem=problem, warning=free >= least)


def opened(path: Path, flags: int, undo: ExitStack) -> int:
    """A close-on-exec descriptor, closed with `undo`. Raises OSError."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    undo.callback(os.close, fd)
    return fd


def fsync(path: Path) -> None:
    """fsync(2) of a file or a directory. Raises OSError."""
    with ExitStack() as undo:
        os.fsync(opened(path, os.O_RDONLY, undo))


@contextmanager
def telling(what: str, kind: type[MirrorError] = MirrorError) -> Iterator[None]:
    """An OSError in here becomes `kind`, or NoRoom, with what to do about it."""
    try:
        yield
    except OSError as error:
        said = f"{what}: {error.filename}" if error.filename else what
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoom(
                f"{said}: {error.strerror}",
                hint="Make room on the filesystem that the legs are on: the database needs it as "
                "well.",
            ) from error
        raise kind(f"{said}: {error.strerror}", hint=_hint(error)) from error


def _hint(error: OSError) -> str:
    match error.errno:
        case errno.EOPNOTSUPP | errno.ENOTTY | errno.EINVAL | errno.EISDIR:
            return "Keep it on btrfs, or on an xfs made with reflink (xfs_info: reflink=1)."
        case errno.EXDEV:
            return "`dir` in [mirror] must be on the same filesystem, and on the same mount of it."
        case errno.EACCES | errno.EPERM:
            return "Run as root; nothing of it may be immutable (lsattr)."
        case errno.EINTR:
            return "It was interrupted: run the backup again."
        case _:
            return "The kernel's log may tell more."
