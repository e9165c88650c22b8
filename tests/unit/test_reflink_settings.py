from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitmirror.errors import ConfigError
from splitmirror.mirrors.reflink import Disk, Settings
from splitmirror.system.legfiles import LegPlace

DATA = Disk(name="data", image="/srv/data.img")


@pytest.mark.parametrize(
    ("disks", "said"),
    [
        ((), "names"),
        ((DATA, Disk(name="data", image="/srv/other.img")), "names"),
        ((Disk(name="a/b", image="/srv/data.img"),), "names"),
        ((Disk(name="data", image="srv/data.img"),), "relative"),
        ((Disk(name="data", image="/srv/data.img", dir="legs"),), "relative"),
        ((DATA, Disk(name="wal", image="/srv/data.img")), "same name"),
        (
            (
                Disk(name="a", image="/srv/a/x.img", dir="/srv/legs"),
                Disk(name="b", image="/srv/b/x.img", dir="/srv/legs"),
            ),
            "same name",
        ),
    ],
)
def test_disks_that_cannot_be_told_apart_or_found_are_refused(
    disks: tuple[Disk, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        Settings(disks=disks)
    assert refused.value.hint


@pytest.mark.parametrize("changes", [{"room": "much"}, {"longest_split_s": 0.0}])
def test_limits_that_are_none_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        Settings(disks=(DATA,), **changes)


@pytest.mark.parametrize("split_id", ["a", "20261128T031009-02a4e81d", "x.leg", "a.b-c_d"])
def test_a_leg_is_found_by_the_name_that_it_was_given(tmp_path: Path, split_id: str) -> None:
    """Also where one image's name is the beginning of another's."""
    images = ("db", "db.img", "db@old", "db@old.leg")
    places = [LegPlace(image=Path("/srv") / name, directory=tmp_path) for name in images]
    for place in places:
        place.leg(split_id).touch()
        assert place.splits() == {split_id}
        assert [other.splits() for other in places if other != place] == [set()] * 3
        place.remove(split_id)
        place.remove(split_id)
        assert place.splits() == set()
