"""Retention: any sets, any rules. What may be lost is never what must be kept, and what has expired
does not come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import assume, given
from hypothesis import strategies as st

from splitmirror.media.pools import Dated, Pool, kept
from splitmirror.media.shelf import How, Shelf, Stock, VolumeRecord, VolumeState

NOW = datetime(2024, 5, 17, 12, tzinfo=UTC)
SOURCES = ("orders", "users")
SERIALS = ("SM0001", "SM0002", "SM0003")

RULES: dict[str, st.SearchStrategy[int]] = {
    "keep_sets": st.integers(1, 4),
    "keep_days": st.sampled_from([1, 7, 40]),
    **dict.fromkeys(("daily", "weekly", "monthly", "yearly"), st.integers(1, 4)),
}
# Mostly few rules, for many of them hide what one of them does.
SOME = [*((rule,) for rule in RULES), ("keep_sets", "weekly"), ("keep_days", "daily", "monthly")]
pools = st.sampled_from([*SOME, tuple(RULES)]).flatmap(
    lambda names: st.builds(Pool, **{name: RULES[name] for name in names})
)
# Several a day, a week, a month and a year, the same days of other years among them.
moments = st.tuples(
    st.sampled_from([0, 0, 0, 1, 2, 3, 6, 7, 8, 14, 30, 31, 40, 62, 364, 365, 366, 731]),
    st.integers(0, 5 * 24 * 60),
).map(lambda back: NOW - timedelta(days=back[0], minutes=back[1]))


@st.composite
def some_sets(draw: st.DrawFn, least: int = 0) -> list[Dated]:
    count = draw(st.integers(least, 16))
    return [
        Dated(
            set_id=f"set-{number:02}",
            source=draw(st.sampled_from(["orders"] * 6 + ["users", None])),
            started=draw(moments),
            complete=draw(st.sampled_from([True] * 5 + [False])),
            volumes=frozenset(draw(st.sets(st.sampled_from(SERIALS), min_size=1, max_size=2))),
        )
        for number in range(count)
    ]


def expired(pool: Pool, sets: list[Dated], now: datetime = NOW) -> set[str]:
    return {one.set_id for one in sets} - kept(pool, sets, now)


def complete_of(source: str, sets: list[Dated]) -> list[Dated]:
    """The newest first."""
    found = [one for one in sets if one.source == source and one.complete]
    return sorted(found, key=lambda one: (one.started, one.set_id), reverse=True)


# --- what must be kept


@given(pools, some_sets(), st.integers(0, 3000))
def test_the_last_complete_set_of_a_source_never_expires(
    pool: Pool, sets: list[Dated], days: int
) -> None:
    gone = expired(pool, sets, NOW + timedelta(days=days))
    for source in SOURCES:
        for last in complete_of(source, sets)[:1]:
            assert last.set_id not in gone


@given(some_sets())
def test_without_rules_nothing_expires(sets: list[Dated]) -> None:
    assert expired(Pool(), sets, NOW + timedelta(days=30_000)) == set()


@given(pools, some_sets())
def test_the_newest_sets_are_kept_by_count(pool: Pool, sets: list[Dated]) -> None:
    assume(pool.keep_sets)
    gone = expired(pool, sets)
    for source in SOURCES:
        newest = complete_of(source, sets)[: pool.keep_sets]
        assert not gone & {one.set_id for one in newest}


@given(pools, some_sets())
def test_what_is_young_enough_is_kept(pool: Pool, sets: list[Dated]) -> None:
    assume(pool.keep_days)
    gone = expired(pool, sets)
    for one in sets:
        if NOW - one.started <= timedelta(days=pool.keep_days):
            assert one.set_id not in gone


PERIODS: dict[str, Callable[[datetime], str]] = {
    "daily": lambda moment: moment.strftime("%F"),
    "weekly": lambda moment: moment.strftime("%G-%V"),
    "monthly": lambda moment: moment.strftime("%Y-%m"),
    "yearly": lambda moment: moment.strftime("%Y"),
}


@given(pools, some_sets())
def test_of_each_of_the_latest_periods_the_last_set_is_kept(pool: Pool, sets: list[Dated]) -> None:
    gone = expired(pool, sets)
    for source in SOURCES:
        complete = complete_of(source, sets)
        for rule, period in PERIODS.items():
            latest = sorted({period(one.started) for one in complete}, reverse=True)
            for wanted in latest[: getattr(pool, rule)]:
                last = next(one for one in complete if period(one.started) == wanted)
                assert last.set_id not in gone


@given(pools, some_sets())
def test_a_set_that_was_cut_off_is_kept_until_a_whole_one_is_behind_it(
    pool: Pool, sets: list[Dated]
) -> None:
    gone = expired(pool, sets)
    for one in sets:
        if one.complete or one.set_id not in gone:
            continue
        for source in SOURCES if one.source is None else [one.source]:
            there = [other for other in sets if other.source == source]
            if there:
                assert any(other.started > one.started for other in there if other.complete)


@given(pools, some_sets(least=2), st.data())
def test_what_a_kept_set_needs_is_kept(pool: Pool, sets: list[Dated], data: st.DataObject) -> None:
    ids = [one.set_id for one in sets]
    linked = [
        replace(one, needs=frozenset(data.draw(st.sets(st.sampled_from(ids), max_size=2))))
        for one in sets
    ]
    found = kept(pool, linked, NOW)
    for one in linked:
        if one.set_id in found:
            assert one.needs <= found
    assert kept(pool, sets, NOW) <= found


# --- what may be lost


@given(pools, some_sets())
def test_only_a_rule_keeps_a_complete_set(pool: Pool, sets: list[Dated]) -> None:
    """Of the complete sets no more are kept than the rules ask for."""
    assume(pool.expires)
    gone = expired(pool, sets)
    for source in SOURCES:
        complete = complete_of(source, sets)
        old = [o for o in complete if NOW - o.started > timedelta(days=pool.keep_days)]
        most = max(1, pool.keep_sets) + pool.daily + pool.weekly + pool.monthly + pool.yearly
        assert len([one for one in old if one.set_id not in gone]) <= most


@given(pools, some_sets(), some_sets(), st.integers(0, 1500))
def test_what_has_expired_stays_so_as_time_goes_on_and_sets_are_added(
    pool: Pool, sets: list[Dated], more: list[Dated], days: int
) -> None:
    later = NOW + timedelta(days=days)
    shift = later - NOW + timedelta(days=2001)
    added = [
        replace(one, set_id=f"new-{one.set_id}", started=min(later, one.started + shift))
        for one in more
        if one.source is not None  # of one whose source is not known nobody can tell
    ]
    added = [one for one in added if one.source in {old.source for old in sets if old.complete}]
    assert expired(pool, sets) <= expired(pool, [*sets, *added], later)


@given(pools, some_sets(), st.data())
def test_forgetting_what_has_expired_changes_nothing_for_the_others(
    pool: Pool, sets: list[Dated], data: st.DataObject
) -> None:
    gone = sorted(expired(pool, sets))
    forgotten = data.draw(st.sets(st.sampled_from(gone))) if gone else set()
    left = [one for one in sets if one.set_id not in forgotten]
    assert expired(pool, left) == set(gone) - forgotten


@given(pools, some_sets(), moments)
def test_a_set_from_a_wrong_clock_s_future_makes_no_other_expire(
    pool: Pool, sets: list[Dated], now: datetime
) -> None:
    present = [one for one in sets if one.started <= now]
    assert expired(pool, sets, now) == expired(pool, present, now)


@given(pools, some_sets())
def test_sources_do_not_count_for_one_another(pool: Pool, sets: list[Dated]) -> None:
    named = [one for one in sets if one.source is not None]
    for source in SOURCES:
        alone = [one for one in named if one.source == source]
        assert expired(pool, alone) == expired(pool, named) & {one.set_id for one in alone}


# --- volumes


@st.composite
def stocks(draw: st.DrawFn) -> tuple[Stock, list[VolumeRecord], list[Dated], dict[str, Pool]]:
    volumes = [
        VolumeRecord(
            serial=serial,
            medium="virtualtape",
            pool=draw(st.sampled_from(["a", "a", "b", "gone", ""])),
            state=draw(st.sampled_from(list(VolumeState))),
            held=draw(st.sampled_from(["", "", "for the auditors"])),
            write_once=draw(st.sampled_from([False, False, True])),
            last_written=draw(st.none() | moments),
            recycling=draw(st.none() | st.none() | st.just(NOW)),
        )
        for serial in SERIALS[: draw(st.integers(0, 3))]
    ]
    configured = {"a": draw(pools), "b": draw(pools)}
    if draw(st.booleans()):
        configured["b"] = Pool(keep_sets=1, write_once=True)
    sets = draw(some_sets())
    unfinished = draw(st.sets(st.sampled_from([one.set_id for one in sets]))) if sets else set()
    stock = Stock(pools=configured, volumes=volumes, sets=sets, now=NOW, unfinished=unfinished)
    for set_id in unfinished:
        assert not stock.expired(set_id)
    return stock, volumes, sets, configured


@given(stocks())
def test_a_volume_may_be_written_anew_only_if_nothing_keeps_it(
    made: tuple[Stock, list[VolumeRecord], list[Dated], dict[str, Pool]],
) -> None:
    stock, volumes, sets, configured = made
    for volume in volumes:
        on_it = [one for one in sets if volume.serial in one.volumes]
        pool = configured.get(volume.pool)
        free = (
            not volume.held
            and not volume.write_once
            and not (pool and pool.write_once)
            and volume.state is not VolumeState.RETIRED
            and all(stock.expired(one.set_id) for one in on_it)
        )
        assert (stock.keeps(volume.serial) == []) is free


@given(stocks())
def test_a_set_expires_only_when_every_pool_that_it_lies_in_lets_it(
    made: tuple[Stock, list[VolumeRecord], list[Dated], dict[str, Pool]],
) -> None:
    stock, volumes, sets, configured = made
    pool_of = {volume.serial: volume.pool for volume in volumes}
    for one in sets:
        if not stock.expired(one.set_id):
            continue
        for serial in one.volumes:
            name = pool_of[serial]  # a volume that is not known keeps its sets
            there = [other for other in sets if any(pool_of.get(s) == name for s in other.volumes)]
            assert one.set_id in expired(configured[name], there)


@given(stocks(), st.sets(st.sampled_from(SERIALS)))
def test_the_next_volume_is_one_of_the_pool_that_may_be_written(
    made: tuple[Stock, list[VolumeRecord], list[Dated], dict[str, Pool]], passed: set[str]
) -> None:
    stock, volumes, _, _ = made
    choice = Shelf("a", stock).next(passed)
    mine = [v for v in volumes if v.pool == "a" and v.serial not in passed and not v.held]
    room = [v.serial for v in mine if v.state is VolumeState.APPENDABLE and v.recycling is None]
    again = [v.serial for v in mine if not stock.keeps(v.serial)]
    if room:
        assert choice.how is How.APPEND and choice.serial in room
    elif again:
        assert choice.how is How.RECYCLE and choice.serial in again
    else:
        assert choice.how is How.BLANK and choice.serial is None


@given(stocks())
def test_each_volume_is_chosen_once_until_only_blank_ones_are_left(
    made: tuple[Stock, list[VolumeRecord], list[Dated], dict[str, Pool]],
) -> None:
    stock, volumes, _, _ = made
    shelf, passed = Shelf("a", stock), list[str]()
    while (choice := shelf.next(passed)).serial is not None:
        assert choice.serial not in passed
        passed.append(choice.serial)
    assert len(passed) <= len(volumes)
