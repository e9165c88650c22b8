"""The mirror seam: what a mirror engine must do. One engine, one file in this folder.

An engine module has `Settings` (a msgspec.Struct, its own table of the configuration) and
`open_mirror(settings, state_dir) -> Mirror`. It is found by its name in the configuration. Like a
module of the other seams it may have `PROGRAMS`: what it runs of the system's, for `doctor`; and
`FOR_TESTS = True`: then no configuration file may name it. For `init` it may have
`recognize(place) -> Recognized | None`: how it would be told to split what lies there already; and
`advise(place) -> str`: what to type so that it could, or "".
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from splitmirror.errors import LegError, MirrorError, SplitmirrorError
from splitmirror.model import Filesystem, Finding, Leg, Volume
from splitmirror.progress import Progress
from splitmirror.system.blockdev import Layer


class Feature(enum.Enum):
    """What an engine can do beyond the seam."""

    GROUP_SPLIT = "splits all its volumes at one instant by itself"
    INSTANT_LEG = "the leg is complete as soon as the split returns"
    ATTACHES = "is started and stopped by us, see Attachable"
    PREPARES = "does before the freeze what a split need not do in it, see Preparing"
    SUSPENDS = "suspends devices for an instant to split, see Suspending"
    PROVES = "can compare the primary with its mirror, see Proving"
    UNFROZEN = "splits by writing to the database's own filesystem, which is not frozen therefore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Something that is to be backed up, for `init`: its name, the stack of devices below its
    filesystem, from the top, and its path ("" where that is not known)."""

    name: str
    layers: tuple[Layer, ...]
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognized:
    """What an engine would be told to split a place: an entry of the array `table` of [mirror].
    `note`: what a person should know of it."""

    table: str
    entry: Mapping[str, str]
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorState:
    """What the mirror is doing now.

    `level`: every block is known equal but the `dirty_bytes`. `split_id`: the split whose leg is
    parted now. `why`: in words, when it is not level.
    """

    attached: bool
    level: bool
    dirty_bytes: int
    split_id: str | None = None
    why: str = ""


class Mirror(Protocol):
    """A primary and its mirror disk, one or several volumes. Not thread-safe.

    Every method raises MirrorError (or one of its kind) with what to do.
    """

    features: frozenset[Feature]

    def volumes(self) -> tuple[Volume, ...]:
        """The mirrored block devices as the primary sees them. Raises MirrorNotReady when not
        attached."""
        ...

    def state(self) -> MirrorState:
        """Ask the world, not our memory. Never raises for a mirror that is merely unwell."""
        ...

    def preflight(self, filesystems: Sequence[Filesystem]) -> list[Finding]:
        """What would make a split of these filesystems unsafe. Changes nothing; made before every
        split too, so it must be quick (well below a second)."""
        ...

    def synchronize(self, progress: Progress) -> None:
        """Bring the mirror level, so far that a split is quick. A second call is harmless. Raises
        MirrorError while a leg is split and not rejoined."""
        ...

    def split(self, split_id: str) -> None:
        """Part the mirror, all volumes at one instant if GROUP_SPLIT is a feature.

        Returns at that instant. Called while filesystems are frozen: writes no file on them, logs
        nothing, takes milliseconds. Where UNFROZEN is a feature nothing is frozen, and without
        GROUP_SPLIT the leg is of no one instant: each file of it is of one during the call.
        The same id again is harmless; another one raises.
        """
        ...

    def leg(self, split_id: str, deadline_s: float) -> Leg:
        """The leg, once it is complete; its cache is flushed. Raises LegError when the copy failed,
        DeadlineExceeded when it is not complete in time. A second call gives the same leg."""
        ...

    def rejoin(self, split_id: str) -> None:
        """Give the leg back and let the mirror follow again; every descriptor, loop and mount on it
        must be closed. A split that was never made, or is rejoined, is harmless."""
        ...

    def close(self) -> None:
        """Let go of connections. The mirror itself goes on."""
        ...


@runtime_checkable
class Preparing(Protocol):
    """An engine of which a split is shorter when it was prepared (Feature.PREPARES)."""

    def prepare_split(self, split_id: str) -> None:
        """Connect, open and look, so that the `split` of this id only has to part. The split's
        instant is that of `split`. Without a `split` behind it, or a second time, it is harmless;
        so is a `split` without it. Raises what `split` does."""
        ...


@runtime_checkable
class Attachable(Protocol):
    """An engine that puts its own device below the filesystem (Feature.ATTACHES)."""

    def attach(self) -> tuple[Volume, ...]:
        """Start it and prove it sound (a self-probe). Already attached: gives the volumes."""
        ...

    def detach(self) -> None:
        """Stop it. Raises Busy while a volume is mounted or open. Not attached: harmless."""
        ...


@runtime_checkable
class Suspending(Protocol):
    """An engine that suspends device-mapper devices to split them (Feature.SUSPENDS)."""

    def suspends(self) -> tuple[int, ...]:
        """The device numbers of what the next `split` may suspend; none where it will not. Asked
        before the freeze. A suspended device outlives this process and makes every writer wait, so
        the guard is told of them. After `split`, whatever it raised, none is suspended."""
        ...


@runtime_checkable
class Proving(Protocol):
    """An engine that can read primary and mirror and compare them (Feature.PROVES)."""

    def prove(self, progress: Progress) -> int:
        """Compare every block of the primary with its mirror, once the mirror is level, and give
        the bytes found to differ (counted in the engine's own units, so rather too many). Repairs
        nothing; writers go on, and a write in progress is no difference. A second call is harmless.
        Raises MirrorError while a leg is split."""
        ...


# --- what every engine says alike


def looked(what: str, check: Callable[[], object]) -> Finding:
    """What a check came to: well, or the error that it raised."""
    try:
        check()
    except SplitmirrorError as error:
        return Finding(what=what, problem=error)
    return Finding(what=what)


def is_split(split_id: str) -> MirrorError:
    """The refusal of what cannot be done while that split is parted."""
    return MirrorError(
        f"the mirror is split as {split_id}",
        hint="Let its backup end, or give the leg back with `splitmirror resync`.",
        split_id=split_id,
    )


def no_such_split(split_id: str) -> LegError:
    """For the leg of a split that is not, or not any more."""
    return LegError(
        f"the mirror has no split {split_id}",
        hint="The leg was given back, or its mirror started anew meanwhile: back up again.",
        split_id=split_id,
    )
