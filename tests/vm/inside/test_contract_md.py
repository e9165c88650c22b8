"""The md engine passes the contract suite on two arrays of Debian's kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.vm.inside.md_lab import A, B, C, D, array, mirror_of

from splitmirror.testing import mirrors as contract
from splitmirror.testing.mirrors import CHECKS, Check, MirrorHarness


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MirrorHarness]:
    state = tmp_path_factory.mktemp("md")
    with array("/dev/md0", (A, B)) as one, array("/dev/md1", (C, D)) as two:
        yield MirrorHarness(open=lambda: mirror_of(state, one, two))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_md(check: Check, harness: MirrorHarness) -> None:
    contract.run(check, harness)
