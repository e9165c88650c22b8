"""A database over several mirrors of different kinds: LVM here, md there, one after another split.

Each member is an engine with its own settings. A group has no instant of its own: the legs are of
one instant because all filesystems are held frozen around the split, and the stop is the sum of the
members' splits. What its members can do, it can do, where that makes sense for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from splitmirror.drivers import driver
from splitmirror.errors import ConfigError, MirrorError, SplitmirrorError
from splitmirror.mirrors import (
    Attachable,
    Feature,
    Mirror,
    MirrorState,
    Preparing,
    Proving,
    Suspending,
    is_split,
)
from splitmirror.model import Filesystem, Finding, Leg, Run, Volume
from splitmirror.progress import Progress

_TABLE = "mirror.members"
_ANY = frozenset((Feature.ATTACHES, Feature.PREPARES, Feature.SUSPENDS))
_ALL = frozenset((Feature.INSTANT_LEG, Feature.PROVES))


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[mirror]` with driver = "group". Each of `members` is what `[mirror]` would be for it."""

    members: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ConfigError(
                f"[[{_TABLE}]]: a group of {len(self.members)}",
                hint="Name two or more; a single mirror stands in [mirror] itself.",
            )
        if any(member.get("driver") == "group" for member in self.members):
            raise ConfigError(f"[[{_TABLE}]] has a group", hint="Name its members here.")
        for member in self.members:
            driver("mirrors", _TABLE, member)

    @property
    def programs(self) -> tuple[str, ...]:
        """What the members run of the system's."""
        modules = [driver("mirrors", _TABLE, member)[0] for member in self.members]
        return tuple({name: None for m in modules for name in getattr(m, "PROGRAMS", ())})


def open_mirror(settings: Settings, state_dir: Path) -> GroupMirror:
    """The members, each connected to nothing yet."""
    opened = []
    for member in settings.members:
        module, own = driver("mirrors", _TABLE, member)
        opened.append(module.open_mirror(own, state_dir))
    return GroupMirror(opened)


class GroupMirror:
    """See `Mirror`, and what the features name."""

    def __init__(self, members: Sequence[Mirror]) -> None:
        if any(Feature.UNFROZEN in member.features for member in members):
            raise ConfigError(
                f"[[{_TABLE}]]: directories cannot be split under a freeze, as a group is",
                hint="Take that engine alone, with all directories of the database.",
            )
        self._members = tuple(members)
        features = [member.features for member in self._members]
        self.features = _ANY & frozenset.union(*features) | _ALL & frozenset.intersection(*features)

    def volumes(self) -> tuple[Volume, ...]:
        found = tuple(volume for member in self._members for volume in member.volumes())
        names = [volume.name for volume in found]
        if twice := {name for name in names if names.count(name) > 1}:
            raise MirrorError(
                f"two mirrors of the group have a volume {', '.join(sorted(twice))}",
                hint="Give one of them another name; a disk belongs to one member only.",
            )
        return found

    def state(self) -> MirrorState:
        """`split_id`: of those that are parted, also when others of the group are not."""
        states = [member.state() for member in self._members]
        parted = [state.split_id for state in states if state.split_id is not None]
        why = [state.why for state in states if state.why]
        if parted and (len(parted) < len(states) or len(set(parted)) > 1):
            why.append("only some of the group are split")
        return MirrorState(
            attached=all(state.attached for state in states),
            level=all(state.level for state in states),
            dirty_bytes=sum(state.dirty_bytes for state in states),
            split_id=parted[0] if parted else None,
            why="; ".join(dict.fromkeys(why)),
        )

    def preflight(self, filesystems: Sequence[Filesystem]) -> list[Finding]:
        findings: list[Finding] = []
        for member in self._members:
            try:
                names = {volume.name for volume in member.volumes()}
            except MirrorError as problem:
                findings.append(Finding(what="a mirror of the group", problem=problem))
                continue
            findings += member.preflight([each for each in filesystems if each.volume in names])
        return findings

    def synchronize(self, progress: Progress) -> None:
        if (parted := self.state().split_id) is not None:
            raise is_split(parted)
        onward = _Onward(progress)
        for member in self._members:
            member.synchronize(onward)
            onward.next()

    def split(self, split_id: str) -> None:
        for member in self._members:
            member.split(split_id)

    def leg(self, split_id: str, deadline_s: float) -> Leg:
        until = time.monotonic() + deadline_s
        volumes: dict[str, tuple[Run, ...]] = {}
        for member in self._members:
            left_s = max(0.0, until - time.monotonic())
            volumes.update(member.leg(split_id, left_s).volumes)
        return Leg(split_id=split_id, volumes=volumes)

    def rejoin(self, split_id: str) -> None:
        self._each(lambda member: member.rejoin(split_id))

    def close(self) -> None:
        self._each(lambda member: member.close())

    # --- what only some engines do

    def prepare_split(self, split_id: str) -> None:
        """See Preparing."""
        if (parted := self.state().split_id) not in (None, split_id):
            raise is_split(str(parted))
        for member in self._able(Feature.PREPARES):
            cast(Preparing, member).prepare_split(split_id)

    def suspends(self) -> tuple[int, ...]:
        """See Suspending."""
        able = self._able(Feature.SUSPENDS)
        return tuple(devno for member in able for devno in cast(Suspending, member).suspends())

    def prove(self, progress: Progress) -> int:
        """See Proving; one after another."""
        differing, onward = 0, _Onward(progress)
        for member in self._able(Feature.PROVES):
            differing += cast(Proving, member).prove(onward)
            onward.next()
        return differing

    def attach(self) -> tuple[Volume, ...]:
        """See Attachable."""
        for member in self._able(Feature.ATTACHES):
            cast(Attachable, member).attach()
        return self.volumes()

    def detach(self) -> None:
        """See Attachable."""
        for member in self._able(Feature.ATTACHES):
            cast(Attachable, member).detach()

    def _able(self, feature: Feature) -> list[Mirror]:
        return [member for member in self._members if feature in member.features]

    def _each(self, act: Callable[[Mirror], None]) -> None:
        """Do it to every member, also behind one that fails; the first error is raised."""
        first: SplitmirrorError | None = None
        for member in self._members:
            try:
                act(member)
            except SplitmirrorError as error:
                if first is None:
                    first = error
                else:
                    first.add_note(str(error))
        if first is not None:
            raise first


class _Onward:
    """The progress of one member after another: what the earlier ones did stays done."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._before = self._last = (0, 0)

    def __call__(self, done: int, total: int) -> None:
        self._last = (self._before[0] + done, self._before[1] + total)
        self._progress(*self._last)

    def next(self) -> None:
        """The next member begins; the one before has done all that it told of."""
        self._before = (self._last[1], self._last[1])
