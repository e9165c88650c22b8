"""A group of mirrors: its settings, its state, and what becomes of the others when one fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitmirror.errors import ConfigError, LegError, MirrorError
from splitmirror.mirrors import Feature, group, memory
from splitmirror.mirrors.group import GroupMirror, Settings
from splitmirror.mirrors.memory import MemoryMirror, MemoryVolume
from splitmirror.model import Leg
from splitmirror.progress import silent

QSD = {"driver": "qsd", "dir": "/x", "disks": [{"name": "a", "primary": "/p", "mirror": "/m"}]}


def member(directory: Path, name: str) -> MemoryMirror:
    directory.mkdir(exist_ok=True)
    settings = memory.Settings(volumes=(MemoryVolume(name=name, size="1MiB"),))
    return memory.open_mirror(settings, directory)


@pytest.fixture
def members(tmp_path: Path) -> tuple[MemoryMirror, MemoryMirror]:
    return member(tmp_path / "1", "data"), member(tmp_path / "2", "wal")


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ([QSD], "a group of 1"),
        ([QSD, {"driver": "group", "members": [QSD, QSD]}], "has a group"),
        ([QSD, {"driver": "qsd", "dri": "/y"}], "dri"),
        ([QSD, {"driver": "nothing"}], "'nothing' is not known"),
        ([QSD, {}], "None is not known"),
    ],
)
def test_settings_that_make_no_group_are_refused(tables: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        Settings(members=tuple(tables))
    assert refused.value.hint


def test_a_group_runs_what_its_members_run() -> None:
    other = {**QSD, "dir": "/y"}
    assert "nbdfuse" in Settings(members=(QSD, other)).programs


def test_two_volumes_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = GroupMirror([member(tmp_path / "1", "data"), member(tmp_path / "2", "data")])
    with pytest.raises(MirrorError, match="volume data"):
        twice.volumes()


def test_a_group_promises_only_what_every_member_keeps(
    members: tuple[MemoryMirror, MemoryMirror],
) -> None:
    class Slow(MemoryMirror):
        features = frozenset({Feature.PREPARES})

    slow = Slow(members[1]._settings, members[1]._directory)
    assert GroupMirror([members[0], slow]).features == {Feature.PREPARES}
    assert Feature.GROUP_SPLIT not in GroupMirror(members).features
    assert Feature.INSTANT_LEG in GroupMirror(members).features


def test_a_split_that_only_part_of_the_group_made_is_seen_and_taken_back(
    members: tuple[MemoryMirror, MemoryMirror],
) -> None:
    both = GroupMirror(members)
    both.synchronize(silent)
    members[1].split("cut-off")
    state = both.state()
    assert state.split_id == "cut-off"
    assert "only some of the group" in state.why
    with pytest.raises(MirrorError, match="cut-off"):
        both.prepare_split("another")
    with pytest.raises(LegError):
        both.leg("cut-off", 1)
    both.rejoin("cut-off")
    assert both.state().split_id is None


def test_a_member_that_cannot_be_rejoined_does_not_keep_the_others_split(
    members: tuple[MemoryMirror, MemoryMirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = GroupMirror(members)
    both.synchronize(silent)
    both.split("one")

    def refuses(split_id: str) -> None:
        raise MirrorError("in use", hint="Wait.")

    monkeypatch.setattr(members[0], "rejoin", refuses)
    with pytest.raises(MirrorError, match="in use"):
        both.rejoin("one")
    assert members[1].state().split_id is None


def test_the_members_share_one_deadline_for_the_leg(
    members: tuple[MemoryMirror, MemoryMirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    for each in members:

        def leg(split_id: str, deadline_s: float, each: MemoryMirror = each) -> Leg:
            given.append(deadline_s)
            return MemoryMirror.leg(each, split_id, deadline_s)

        monkeypatch.setattr(each, "leg", leg)
    both = GroupMirror(members)
    both.synchronize(silent)
    both.split("one")
    assert set(both.leg("one", 5.0).volumes) == {"data", "wal"}
    assert given[0] <= 5.0 and given[1] < given[0]


def test_a_group_is_opened_from_its_table(tmp_path: Path) -> None:
    other = {**QSD, "dir": "/y", "disks": [{"name": "b", "primary": "/p2", "mirror": "/m2"}]}
    with_two = Settings(members=(QSD, other))
    assert not group.open_mirror(with_two, tmp_path).state().attached
