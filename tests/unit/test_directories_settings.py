"""What is configured of directories, and where a place of a filesystem is in them."""

from __future__ import annotations

import pytest

from splitmirror.errors import ConfigError
from splitmirror.mirrors.directories import Directory, Settings
from splitmirror.model import Folder

DATA = Directory(name="data", path="/srv/data")


@pytest.mark.parametrize(
    ("directories", "said"),
    [
        ((), "names"),
        ((DATA, Directory(name="data", path="/srv/other")), "names"),
        ((Directory(name="a/b", path="/srv/data"),), "names"),
        ((Directory(name="data", path="srv/data"),), "relative"),
        ((Directory(name="data", path="/srv/data", dir="legs"),), "relative"),
        ((Directory(name="data", path="/"),), "directory /"),
        ((DATA, Directory(name="again", path="/srv/data")), "same name"),
        (
            (
                Directory(name="a", path="/srv/a/pg", dir="/srv/legs"),
                Directory(name="b", path="/srv/b/pg", dir="/srv/legs"),
            ),
            "same name",
        ),
    ],
)
def test_directories_that_cannot_be_told_apart_or_found_are_refused(
    directories: tuple[Directory, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        Settings(directories=directories)
    assert refused.value.hint


def test_room_that_is_no_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="room"):
        Settings(directories=(DATA,), room="much")


@pytest.mark.parametrize(
    ("folder", "inside", "way"),
    [
        (b"srv/data", b"srv/data", b""),
        (b"srv/data", b"srv/data/base/5", b"base/5"),
        (b"srv/data", b"srv/data-too", None),
        (b"srv/data", b"srv", None),
        (b"srv/data", b"", None),
        (b"", b"", b""),
        (b"", b"srv/data", b"srv/data"),
    ],
)
def test_the_way_to_a_place_below_a_directory(
    folder: bytes, inside: bytes, way: bytes | None
) -> None:
    assert Folder(path="/mnt/x", inside=folder).way_to(inside) == way
