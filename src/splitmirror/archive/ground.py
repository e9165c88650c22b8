"""Where members are put, and the only way into it: never outside, whatever the medium says.

A member's name is checked first (no absolute path, no `..`, no empty component, no NUL). Then its
path is walked component by component from an open directory, each opened with O_NOFOLLOW
(openat(2), path_resolution(7)): a symbolic link that an earlier member planted is an error and is
never followed. Nothing here takes a path as a whole, so no race can lead it astray either.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from splitmirror.errors import (
    MediumDamaged,
    NoRoom,
    OutsideTarget,
    SplitmirrorError,
    TargetNotEmpty,
)

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PRIVATE = 0o700  # of a directory until its own mode is set, and of one that no member describes
_PUBLIC = 0o755  # of one that no member describes where everybody's directories are
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def components(name: bytes) -> tuple[bytes, ...]:
    """A member name cut at its slashes. Raises OutsideTarget for one that no set can hold."""
    parts = tuple(name.split(b"/"))
    if b"\0" in name or any(part in (b"", b".", b"..") for part in parts):
        raise OutsideTarget(
            f"the medium names {os.fsdecode(name)!r}, which is no path inside the target",
            hint="Nothing was written there. Do not trust this volume: run 'splitmirror verify' "
            "on the set, and look at who could write to the medium.",
            name=name,
        )
    return parts


def refused(where: str, error: OSError) -> SplitmirrorError:
    """What an error of the target's filesystem means: which file it hit and what to do."""
    if error.errno in _NO_ROOM:
        return NoRoom(
            f"no room to write {where}: {error.strerror}",
            hint="Make room in the target, or restore to a larger filesystem, and start again.",
        )
    if error.errno == errno.ENAMETOOLONG:
        return MediumDamaged(f"the name of {where} is too long for the target's filesystem")
    return SplitmirrorError(
        f"cannot write {where}: {error.strerror}",
        hint="Look at the kernel's log for errors of the target's disk, and at whether the target "
        "is writable; then start again.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """Members named `prefix`, or below it, go to `base` (or below it) in `directory`.

    `prefix` b"": all members, under their own names. `public`: directories that no member describes
    are like those of /etc, open to all and root's; else private to whose directory they lie in.
    """

    directory: Path
    prefix: bytes = b""
    base: bytes = b""
    public: bool = False

    def __post_init__(self) -> None:
        if self.base:
            components(self.base)

    @classmethod
    def at(cls, tree: bytes, path: bytes) -> Anchor:
        """The tree `tree` at its original `path`, which must be absolute."""
        place = Path(os.fsdecode(path))
        if not place.is_absolute() or ".." in place.parts:
            raise OutsideTarget(f"the set names {os.fsdecode(path)!r} as the place of a tree")
        return cls(directory=place.parent, prefix=tree, base=os.fsencode(place.name))

    def holds(self, name: bytes) -> bool:
        return not self.prefix or name == self.prefix or name.startswith(self.prefix + b"/")

    def path(self, name: bytes) -> tuple[bytes, ...]:
        """The components below `directory` at which the member stands."""
        inside = components(name)[len(self.prefix.split(b"/")) if self.prefix else 0 :]
        return ((self.base, *inside) if self.base else inside) or (b".",)


class Ground:
    """An open directory and the way to what lies below it. Not thread-safe; others may make
    directories there meanwhile.

    `make`: the directory itself is made (with its parents) when it is not there. `public`: see
    Anchor. Keeps the directories down to the last place open, for members come in order.
    """

    def __init__(self, directory: Path, *, make: bool, public: bool = False) -> None:
        self.directory = directory
        self._public = public
        if make:
            directory.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._chain: list[tuple[bytes, int]] = []

    def __enter__(self) -> Ground:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of every directory. A second call is harmless."""
        self._leave(0)
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    @property
    def fd(self) -> int:
        """The directory itself, borrowed."""
        return self._root

    def where(self, path: Sequence[bytes]) -> str:
        """The path in words for messages."""
        return str(self.directory.joinpath(*(os.fsdecode(part) for part in path)))

    def enter(self, path: Sequence[bytes], *, make: bool = False) -> int:
        """A descriptor of the directory at `path`, borrowed until the next call.

        `make`: missing ones are made, private to the owner of the directory they lie in, or public.
        Raises OutsideTarget when a component is a symbolic link, TargetNotEmpty when one is no
        directory, FileNotFoundError.
        """
        known = 0
        for (name, _), part in zip(self._chain, path, strict=False):
            if name != part:
                break
            known += 1
        self._leave(known)
        for depth in range(known, len(path)):
            self._chain.append((path[depth], self._step(path[: depth + 1], make)))
        return self._chain[-1][1] if self._chain else self._root

    def _leave(self, depth: int) -> None:
        for _, fd in self._chain[depth:]:
            os.close(fd)
        del self._chain[depth:]

    def _step(self, path: Sequence[bytes], make: bool) -> int:
        above = self._chain[-1][1] if self._chain else self._root
        try:
            return os.open(path[-1], _OPEN, dir_fd=above)
        except FileNotFoundError:
            if not make:
                raise
            return self._made(path, above)
        except OSError as error:
            raise self._blocked(path, above, error) from error

    def _made(self, path: Sequence[bytes], above: int) -> int:
        try:
            os.mkdir(path[-1], _PRIVATE, dir_fd=above)
            fd = os.open(path[-1], _OPEN, dir_fd=above)
        except FileExistsError:
            return self._step(path, False)  # somebody else was quicker
        except OSError as error:
            raise refused(self.where(path), error) from error
        if self._public:
            os.fchmod(fd, _PUBLIC)
        elif os.geteuid() == 0:
            owner = os.fstat(above)
            os.fchown(fd, owner.st_uid, owner.st_gid)
        return fd

    def _blocked(self, path: Sequence[bytes], above: int, error: OSError) -> SplitmirrorError:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            return refused(self.where(path), error)
        found = os.stat(path[-1], dir_fd=above, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            return OutsideTarget(
                f"{self.where(path)} is a symbolic link, and the set has a directory there",
                hint="It was not followed. Restore to an empty directory; if this is one, do not "
                "trust the volume.",
            )
        return TargetNotEmpty(
            f"{self.where(path)} is no directory, and the set has one there",
            hint="Move it away, or restore to an empty directory.",
        )
