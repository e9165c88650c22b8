"""The contract suite on real raid1 volumes of two groups, split in both ways."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vm.inside.lvm_lab import EMULATED_QUICK_S, Lv, mirror, run, volumes

from splitmirror.testing import mirrors as contract
from splitmirror.testing.mirrors import CHECKS, Check, MirrorHarness

DATA = Lv(group="va", name="data", mib=16, disks=("a", "b"))
WAL = Lv(group="vb", name="wal", mib=8, disks=("c", "d"))


@pytest.fixture(scope="module")
def made() -> Iterator[None]:
    run("modprobe", "-a", "dm-mod", "dm-raid", "raid1")
    with volumes(DATA, WAL):
        yield


@pytest.fixture(params=["device-mapper", "lvconvert"])
def harness(request: pytest.FixtureRequest, made: None, tmp_path: Path) -> MirrorHarness:
    return MirrorHarness(
        open=lambda: mirror(tmp_path, DATA, WAL, split=request.param), quick_s=EMULATED_QUICK_S
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_lvm(check: Check, harness: MirrorHarness) -> None:
    contract.run(check, harness)
