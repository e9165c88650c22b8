"""Pools of volumes, and how long what lies on them is kept.

A pool's rules are taken together: a set is kept as long as one of them keeps it. Calendars are in
UTC, so that nothing expires because a host's zone was changed. Rules that count count what is there
and not what should be: when backups stop, they let nothing more expire.

What has expired stays expired as time goes on and sets are added, and also when others that have
expired are forgotten (tests/property/test_pools.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final

import msgspec

from splitmirror.errors import ConfigError

_MOST: Final = 36_500  # of anything: a hundred years of days


class Pool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[pools.NAME]`: what of each source is kept on the volumes of the pool; without any rule all
    of it. `write_once`: its volumes are never written anew, even where the medium could be.

    `keep_sets`: the newest complete sets. `keep_days`: whatever began in the last days. `daily`,
    `weekly`, `monthly`, `yearly`: of so many of the latest days, ISO weeks, months, years that have
    a complete set, the last one (grandfather, father, son).
    """

    keep_sets: int = 0
    keep_days: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    write_once: bool = False

    def __post_init__(self) -> None:
        for key in RULES:
            if not 0 <= getattr(self, key) <= _MOST:
                raise ConfigError(
                    f"[pools] {key} is {getattr(self, key)}",
                    hint=f"Give it a number from 0 (no such rule) to {_MOST}.",
                )

    @property
    def expires(self) -> bool:
        """Whether anything on it ever expires."""
        return any(getattr(self, key) for key in RULES)


RULES: Final = ("keep_sets", "keep_days", "daily", "weekly", "monthly", "yearly")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dated:
    """A set as retention sees it. `source` is None where only parts of it are known, which do not
    name it; `needs`: the sets without which this one is worth nothing."""

    set_id: str
    source: str | None
    started: datetime
    complete: bool
    volumes: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()


def kept(pool: Pool, sets: Iterable[Dated], now: datetime) -> frozenset[str]:
    """The ids of those sets that the pool's rules keep; `sets` are all that lie in the pool.

    The last complete set of a source is always kept. One that was cut off is kept until a complete
    one of its source began later (of every source, where its own is not known) and `keep_days` are
    over. A set that began after `now` is kept, and does not count for others: a clock was wrong.
    """
    known = list(sets)
    future = {one.set_id for one in known if one.started > now}
    past = [one for one in known if one.set_id not in future]
    if not pool.expires:
        return frozenset(one.set_id for one in known)
    young = now - timedelta(days=pool.keep_days)
    found = future | {one.set_id for one in past if pool.keep_days and one.started >= young}
    last = dict[str, datetime]()
    for source, complete in _by_source(past).items():
        if complete:
            found |= _by_count(pool, complete)
            last[source] = complete[0].started
        else:
            last[source] = datetime.min.replace(tzinfo=UTC)
    for one in past:
        behind = last.values() if one.source is None else [last[one.source]]
        if not one.complete and not (behind and all(one.started < then for then in behind)):
            found.add(one.set_id)
    return with_needs(found, known)


def with_needs(ids: Iterable[str], sets: Iterable[Dated]) -> frozenset[str]:
    """These sets, and all that any of them needs."""
    needs = {one.set_id: one.needs for one in sets}
    found = set[str]()
    waiting = list(ids)
    while waiting:
        if (one := waiting.pop()) not in found:
            found.add(one)
            waiting += needs.get(one, ())
    return frozenset(found)


def _by_source(sets: Iterable[Dated]) -> dict[str, list[Dated]]:
    """Of each source that is known by name the complete sets, the newest first."""
    found: dict[str, list[Dated]] = {}
    for one in sorted(sets, key=lambda one: (one.started, one.set_id), reverse=True):
        if one.source is not None:
            complete = found.setdefault(one.source, [])
            complete += [one] if one.complete else []
    return found


def _by_count(pool: Pool, newest_first: Sequence[Dated]) -> set[str]:
    """What the rules that count keep of one source's complete sets, the last one in any case."""
    found = {one.set_id for one in newest_first[: max(1, pool.keep_sets)]}
    for count, period in _periods(pool):
        lasts: dict[object, str] = {}
        for one in newest_first:
            lasts.setdefault(period(one.started.astimezone(UTC)), one.set_id)
        found |= set(islice(lasts.values(), count))
    return found


def _periods(pool: Pool) -> list[tuple[int, Callable[[datetime], object]]]:
    return [
        (pool.daily, lambda moment: moment.date()),
        (pool.weekly, lambda moment: moment.isocalendar()[:2]),
        (pool.monthly, lambda moment: (moment.year, moment.month)),
        (pool.yearly, lambda moment: moment.year),
    ]
