"""The `[mirror]` table that `init` proposes loads, and names what is there."""

from __future__ import annotations

import tomllib
from types import ModuleType
from typing import Any

import pytest

from splitmirror import mirror_proposal
from splitmirror.mirror_proposal import propose_mirror
from splitmirror.mirrors import Place, Recognized, group, lvm, md
from splitmirror.system.blockdev import Layer


def place(name: str, kind: str, path: str) -> Place:
    return Place(name=name, layers=(Layer(devno=1, path=path, kind=kind),))


@pytest.fixture(autouse=True)
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """LVM and md know a place by its device alone: this host has neither."""

    def known(module: ModuleType, kind: str, table: str, key: str) -> None:
        def recognize(place: Place) -> Recognized | None:
            (layer,) = place.layers
            if layer.kind != kind:
                return None
            return Recognized(table=table, entry={key: layer.path}, note="two legs")

        monkeypatch.setattr(module, "recognize", recognize)

    known(lvm, "dm raid", "volumes", "lv")
    known(md, "md raid1", "arrays", "device")
    monkeypatch.setattr(lvm, "advise", lambda place: "lvconvert it")


def table(*places: Place) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(propose_mirror(places).table)["mirror"]
    return found


def test_places_of_one_kind_make_one_table() -> None:
    found = table(place("data", "dm raid", "vg/data"), place("wal", "dm raid", "vg/wal"))
    assert found == {"driver": "lvm", "volumes": [{"lv": "vg/data"}, {"lv": "vg/wal"}]}


def test_two_places_on_one_array_name_it_once() -> None:
    found = table(place("data", "md raid1", "/dev/md0"), place("wal", "md raid1", "/dev/md0"))
    assert found == {"driver": "md", "arrays": [{"device": "/dev/md0"}]}


def test_places_of_two_kinds_make_a_group_that_loads() -> None:
    found = table(place("data", "dm raid", "vg/data"), place("wal", "md raid1", "/dev/md0"))
    assert found.pop("driver") == "group"
    settings = group.Settings(members=tuple(found["members"]))
    assert [member["driver"] for member in settings.members] == ["lvm", "md"]


def test_a_place_that_nobody_mirrors_gets_advice_and_no_table() -> None:
    found = propose_mirror([place("data", "dm raid", "vg/d"), place("wal", "linear", "vg/w")])
    assert found.table == ""
    assert found.advice == {"wal": "lvconvert it"}


def test_every_engine_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for name in mirror_proposal._names():
        module = __import__(f"splitmirror.mirrors.{name}", fromlist=["x"])
        monkeypatch.setattr(
            module, "recognize", lambda place, name=name: asked.append(name), raising=False
        )
    propose_mirror([place("data", "disk", "/dev/sda")])
    assert {"lvm", "md", "reflink", "qsd", "group"} <= set(asked)
