"""Pools by example: what a calendar of backups comes to, and in which order volumes are taken."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from splitmirror.errors import ConfigError
from splitmirror.media.pools import Dated, Pool, kept
from splitmirror.media.shelf import Choice, How, Shelf, Stock, VolumeRecord, VolumeState

NOW = datetime(2024, 5, 17, 12, tzinfo=UTC)  # a Friday
LAST_NIGHT = NOW.replace(hour=1)


def nightly(nights: int, *, last: datetime = LAST_NIGHT) -> list[Dated]:
    """A set each night, named by its day."""
    moments = (last - timedelta(days=back) for back in range(nights))
    return [
        Dated(set_id=f"{moment:%Y-%m-%d}", source="orders", started=moment, complete=True)
        for moment in moments
    ]


def cut_off(moment: datetime, source: str | None = "orders") -> Dated:
    return Dated(set_id="cut-off", source=source, started=moment, complete=False)


def names(pool: Pool, sets: list[Dated]) -> list[str]:
    return sorted(kept(pool, sets, NOW), reverse=True)


# --- retention


def test_grandfather_father_and_son_of_three_years_of_nights() -> None:
    pool = Pool(daily=3, weekly=3, monthly=3, yearly=3)
    assert names(pool, nightly(1000)) == [
        *("2024-05-17", "2024-05-16", "2024-05-15"),  # three days
        *("2024-05-12", "2024-05-05"),  # with the 17th three weeks' last: their Sundays
        *("2024-04-30", "2024-03-31"),  # with the 17th three months' last
        *("2023-12-31", "2022-12-31"),  # with the 17th three years' last
    ]


def test_the_newest_by_count() -> None:
    assert names(Pool(keep_sets=2), nightly(5)) == ["2024-05-17", "2024-05-16"]


def test_the_young_to_the_second() -> None:
    exactly, older = NOW - timedelta(days=7), NOW - timedelta(days=7, seconds=1)
    sets = [
        *nightly(1),
        Dated(set_id="exactly", source="orders", started=exactly, complete=True),
        Dated(set_id="older", source="orders", started=older, complete=True),
    ]
    assert "exactly" in kept(Pool(keep_days=7), sets, NOW)
    assert "older" not in kept(Pool(keep_days=7), sets, NOW)


def test_the_same_month_of_another_year_is_another_month() -> None:
    a_year_ago = nightly(1, last=NOW - timedelta(days=365))
    assert names(Pool(monthly=2), [*nightly(1), *a_year_ago]) == ["2024-05-17", "2023-05-18"]


def test_a_week_at_the_turn_of_the_year_is_one() -> None:
    turn = nightly(4, last=datetime(2020, 1, 2, tzinfo=UTC))  # Monday to Thursday
    assert kept(Pool(weekly=2), turn, NOW) == {"2020-01-02"}


def test_days_are_days_in_utc() -> None:
    late = datetime(2024, 5, 16, 23, 30, tzinfo=timezone(timedelta(hours=-5)))  # the 17th in UTC
    sets = [*nightly(2), Dated(set_id="late", source="orders", started=late, complete=True)]
    assert kept(Pool(daily=2), sets, NOW) == {"late", "2024-05-16"}


def test_when_backups_stop_nothing_more_expires() -> None:
    pool, sets = Pool(daily=7), nightly(7)
    assert kept(pool, sets, NOW + timedelta(days=4000)) == {one.set_id for one in sets}


def test_a_set_that_was_cut_off_goes_with_the_next_whole_one() -> None:
    before, after = cut_off(NOW - timedelta(hours=36)), cut_off(NOW - timedelta(hours=1))
    assert "cut-off" not in kept(Pool(keep_sets=1), [*nightly(1), before], NOW)
    assert "cut-off" in kept(Pool(keep_sets=1), [*nightly(1), after], NOW)
    assert "cut-off" in kept(Pool(keep_days=2), [*nightly(1), before], NOW)


def test_a_set_that_was_cut_off_and_does_not_say_of_what_waits_for_every_source() -> None:
    unknown = cut_off(NOW - timedelta(days=2), source=None)
    other = replace(nightly(1)[0], set_id="other", source="users")
    old = replace(other, started=NOW - timedelta(days=3))
    assert "cut-off" in kept(Pool(keep_sets=1), [unknown], NOW)
    assert "cut-off" in kept(Pool(keep_sets=1), [unknown, *nightly(1), old], NOW)
    assert "cut-off" not in kept(Pool(keep_sets=1), [unknown, *nightly(1), other], NOW)
    never_whole = replace(cut_off(NOW, source="users"), set_id="users-1")
    assert "cut-off" in kept(Pool(keep_sets=1), [unknown, *nightly(1), never_whole], NOW)


@pytest.mark.parametrize("rule", ["keep_sets", "keep_days", "daily", "weekly", "monthly", "yearly"])
@pytest.mark.parametrize("value", [-1, 36_501])
def test_a_rule_out_of_range_is_named(rule: str, value: int) -> None:
    rules: dict[str, Any] = {rule: value}
    with pytest.raises(ConfigError, match=f"{rule} is {value}"):
        Pool(**rules)


# --- volumes


def volume(serial: str, **changed: object) -> VolumeRecord:
    return replace(VolumeRecord(serial=serial, medium="virtualtape", pool="p"), **changed)  # type: ignore[arg-type]


def shelf(*volumes: VolumeRecord, sets: tuple[Dated, ...] = (), pool: Pool | None = None) -> Shelf:
    pools = {"p": pool or Pool(keep_sets=1)}
    return Shelf("p", Stock(pools=pools, volumes=volumes, sets=sets, now=NOW))


FULL = VolumeState.FULL
AGO = [NOW - timedelta(days=days) for days in range(10)]


def test_volumes_fill_up_one_after_the_other() -> None:
    taken = shelf(
        volume("SM0001", last_written=AGO[5], state=FULL),
        volume("SM0002"),
        volume("SM0003", last_written=AGO[3]),
        volume("SM0004", last_written=AGO[1]),
        volume("SM0005"),
    )
    order = ["SM0004", "SM0003", "SM0002", "SM0005"]
    for number, serial in enumerate(order):
        assert taken.next(order[:number]) == Choice(serial=serial, how=How.APPEND)
    assert taken.next(order) == Choice(serial="SM0001", how=How.RECYCLE)
    assert taken.next([*order, "SM0001"]) == Choice(serial=None, how=How.BLANK)


def test_of_those_that_may_be_written_anew_the_one_left_longest_comes_first() -> None:
    taken = shelf(
        volume("SM0001", last_written=AGO[3], state=FULL),
        volume("SM0002", last_written=AGO[9], state=FULL),
        volume("SM0003", last_written=AGO[1], recycling=NOW),  # begun, and not ended
    )
    order = ["SM0003", "SM0002", "SM0001"]
    for number, serial in enumerate(order):
        assert taken.next(order[:number]) == Choice(serial=serial, how=How.RECYCLE)


def test_what_keeps_a_volume_is_said() -> None:
    sets = tuple(replace(one, volumes=frozenset({"SM0001"})) for one in nightly(3))
    records = [
        volume("SM0001", held="for the auditors", state=VolumeState.RETIRED, write_once=True),
        volume("SM0002", pool="w"),
    ]
    pools = {"p": Pool(keep_sets=2), "w": Pool(write_once=True)}
    stock = Stock(pools=pools, volumes=records, sets=sets, now=NOW)
    assert stock.keeps("SM0001") == [
        "it is held: for the auditors",
        "it is retired",
        "it is write-once",
        "the set 2024-05-17 and 1 more on it has not expired",
    ]
    assert stock.keeps("SM0002") == ["it is write-once"]
    assert stock.keeps("SM0003") == ["the catalogue does not know it"]
    assert [one.set_id for one in stock.on("SM0001")] == ["2024-05-15", "2024-05-16", "2024-05-17"]


def test_a_set_that_is_not_known_has_not_expired() -> None:
    assert not Stock(pools={}, volumes=[], sets=[], now=NOW).expired("what-is-it")


def test_a_volume_in_a_pool_that_is_not_configured_keeps_its_sets() -> None:
    sets = [replace(one, volumes=frozenset({"SM0001"})) for one in nightly(3)]
    for name in ("", "was-there-once"):
        there = [volume("SM0001", pool=name)]
        stock = Stock(pools={"p": Pool(keep_sets=1)}, volumes=there, sets=sets, now=NOW)
        assert not any(stock.expired(one.set_id) for one in sets)
