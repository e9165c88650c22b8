"""The contract suite on real raid1 volumes of two groups, split in both ways."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vm.inside.lvm_lab import EMULATED_QUICK_S, Lv, mirror, run, volumes

from splitmirror.testing import mirrors as contract
from splitmirror.testing.mirror_case import MirrorHarness
from splitmirror.testing.mirrors import CHECKS, Check

DATA = Lv(group="va", name="data", mib=16, disks=("a", "b"))
WAL = Lv(group="vb", name="wal", mib=8, disks=("c", "d"))


@pytest.fixture(scope="module")
def made() -> Iterator[None]:
    run("modprobe", "-a", "dm-mod", "dm-raid", "raid1")
    with volumes(DATA, WAL):
        yield


def harness(way: str, state: Path) -> MirrorHarness:
    return MirrorHarness(open=lambda: mirror(state, DATA, WAL, split=way), quick_s=EMULATED_QUICK_S)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_lvm(check: Check, made: None, tmp_path: Path) -> None:
    contract.run(check, harness("device-mapper", tmp_path))


# A check of this way takes the guest some 10 s, so these three; all of them have been seen to pass.
BY_LVCONVERT = (
    contract.the_leg_is_the_primary_at_the_split,
    contract.the_next_leg_has_what_changed_while_split,
    contract.another_process_finds_the_split,
)


@pytest.mark.parametrize("check", BY_LVCONVERT, ids=lambda check: check.__name__)
def test_lvm_by_lvconvert(check: Check, made: None, tmp_path: Path) -> None:
    contract.run(check, harness("lvconvert", tmp_path))
