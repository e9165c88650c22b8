from __future__ import annotations

import os
from pathlib import Path

import pytest

from splitmirror.errors import DeviceFailed, FreezeFailed
from splitmirror.system import filesystems


def test_the_root_is_mounted_and_parsed() -> None:
    root = filesystems.mount_of("/")
    assert root.mountpoint == "/"
    assert root.root.startswith("/")  # not "/" itself where the root is a bind mount
    assert {"rw", "ro"} & root.options
    assert root in filesystems.mounts()


def test_escaped_characters_of_a_mount_point_are_decoded() -> None:
    line = (
        rb"36 35 98:0 /sub\040dir /mnt/a\040b\011c\134d\012e rw,noatime master:1 - "
        rb"ext3 /dev/my\040root rw,errors=continue"
    )
    mount = filesystems._parse(line)
    assert mount.mountpoint == "/mnt/a b\tc\\d\ne"
    assert mount.root == "/sub dir"
    assert mount.source == "/dev/my root"
    assert (mount.fstype, mount.devno, mount.mount_id) == ("ext3", os.makedev(98, 0), 36)
    assert mount.options == {"rw", "noatime", "errors=continue"}


def test_several_optional_fields_or_none_are_passed_over() -> None:
    for optional in (b"", b"shared:5 ", b"shared:5 master:7 propagate_from:2 "):
        mount = filesystems._parse(
            b"1 2 0:31 / /x rw " + optional + b"- btrfs /dev/vdb rw,subvol=/a"
        )
        assert (mount.fstype, mount.source) == ("btrfs", "/dev/vdb")
        assert "subvol=/a" in mount.options


def test_a_symbolic_link_is_followed_to_the_mount_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc")
    assert filesystems.mount_of(tmp_path / "link").fstype == "proc"
    assert filesystems.mount_of(tmp_path).fstype != "proc"


def test_only_a_mount_point_is_opened_as_one(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DeviceFailed, match="not a mount point") as caught:
        filesystems.open_mountpoint(str(tmp_path))
    assert caught.value.facts["mountpoint"] == filesystems.mount_of(tmp_path).mountpoint
    with pytest.raises(DeviceFailed, match="No such file"):
        filesystems.open_mountpoint(str(tmp_path / "missing"))
    assert len(os.listdir("/proc/self/fd")) == descriptors
    fd = filesystems.open_mountpoint("/proc")
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_what_cannot_be_frozen_says_so() -> None:
    fd = filesystems.open_mountpoint("/proc")
    with pytest.raises(FreezeFailed) as caught:
        filesystems.freeze(fd)
    assert caught.value.hint
    os.close(fd)


def test_flushing_a_filesystem_returns(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    filesystems.syncfs(fd)
    os.close(fd)
    with pytest.raises(DeviceFailed, match="syncfs"):
        filesystems.syncfs(fd)
