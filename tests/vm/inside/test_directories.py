"""What a copy of a directory is, by Debian's kernel: some of the host's own tests of it."""

from __future__ import annotations

import pytest
from tests.real import test_clone_tree as clones
from tests.real import test_directories as directories

from splitmirror.system import programs

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    programs.run(["modprobe", "-a", "loop", "btrfs", "xfs"], timeout_s=60)


btrfs = directories.btrfs
host, source = clones.host, clones.source

test_one_instant = directories.test_a_snapshot_is_of_one_instant
test_no_snapshot = directories.test_what_is_no_snapshot_of_the_subvolume_is_no_leg
test_attributes = clones.test_a_clone_has_all_that_its_original_has
test_places = clones.test_a_clone_shares_its_blocks_and_is_left_alone_by_the_defragmenter
