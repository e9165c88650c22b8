"""What the embedded mirror's table of the configuration may hold, and how its stack is named."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from splitmirror.errors import ConfigError, MirrorError, UnsafeMirror
from splitmirror.mirrors.qsd import Settings
from splitmirror.system import images
from splitmirror.system.nbdstack import Place
from splitmirror.system.stackrecord import RecordFile

DISK = {"name": "d0", "primary": "/x/d0.img", "mirror": "/x/d0.mir"}


def settings(**changes: object) -> Settings:
    return msgspec.convert({"dir": "/x/qsd", "disks": [DISK], **changes}, Settings)


def test_the_defaults_spare_the_database() -> None:
    pace = settings().pace
    assert (pace.speed, pace.level_below, pace.max_passes) == (100 << 20, 4 << 20, 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"disks": []},
        {"disks": [DISK, DISK]},
        {"disks": [{**DISK, "name": "probe"}]},
        {"disks": [{**DISK, "name": "a.b"}]},
        {"disks": [{**DISK, "name": "x" * 25}]},
        {"disks": [{**DISK, "primary": "d0.img"}]},
        {"dir": "qsd"},
        {"granularity": "60KiB"},
        {"granularity": 512},
    ],
)
def test_what_cannot_work_is_refused_with_what_to_write(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(**changes)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"establish_speed": "lots"}, "establish_speed = 'lots'"),
        ({"establish_speed": 0}, "establish_speed = 0"),
        ({"level_below": "few"}, "level_below = 'few'"),
        ({"level_below": -1}, "level_below = -1"),
        ({"level_below": 1 << 70}, "level_below = 1180591620717411303424"),
        ({"granularity": "fine"}, "granularity = 'fine'"),
        ({"max_passes": 0}, "max_passes = 0"),
        ({"disks": [{**DISK, "size": "large"}]}, "size of the disk 'd0' = 'large'"),
        ({"disks": [{**DISK, "size": 1000}]}, "size of the disk 'd0' = 1000"),
    ],
)
def test_a_wrong_size_or_number_is_refused_by_the_name_of_its_key(
    changes: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)) as caught:
        settings(**changes)
    assert caught.value.hint


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="speed"):
        settings(speed="1GiB")


def test_a_directory_too_deep_for_sockets_is_refused(tmp_path: Path) -> None:
    Place(directory=Path("/" + "x" * 80))
    with pytest.raises(ConfigError, match="sockets"):
        Place(directory=Path("/" + "x" * 100))


def test_a_damaged_record_is_an_error_with_what_to_do(tmp_path: Path) -> None:
    file = RecordFile(tmp_path)
    assert file.read() is None
    (tmp_path / "state.json").write_bytes(b'{"instance": 1')
    with pytest.raises(MirrorError, match=r"state\.json") as caught:
        file.read()
    assert "delete" in caught.value.hint


def test_a_reserved_image_has_every_block_and_keeps_what_it_held(tmp_path: Path) -> None:
    image = tmp_path / "leg"
    image.write_bytes(b"kept")
    with pytest.raises(UnsafeMirror):
        images.check_reserved(image, 1 << 20)
    images.reserve(image, 1 << 20)
    images.check_reserved(image, 1 << 20)
    assert image.read_bytes() == b"kept".ljust(1 << 20, b"\0")


def test_an_image_of_broken_sectors_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "primary"
    image.write_bytes(bytes(4097))
    with pytest.raises(MirrorError, match="4096"):
        images.size_of(image)
