"""The md engine passes the contract suite on two arrays of Debian's kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.vm.inside.md_lab import A, B, C, D, array, mirror_of

from splitmirror.testing import mirrors as contract
from splitmirror.testing.mirror_case import MirrorHarness
from splitmirror.testing.mirrors import CHECKS, Check


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MirrorHarness]:
    state = tmp_path_factory.mktemp("md")
    one, two = array("/dev/md0", (A, B), size="12M"), array("/dev/md1", (C, D), size="8M")
    with one as first, two as second:
        yield MirrorHarness(open=lambda: mirror_of(state, first, second))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_md(check: Check, harness: MirrorHarness) -> None:
    contract.run(check, harness)
