"""The virtual tape library itself: the kernel's drivers and stock tools take it for a real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vm.vtl.cartridge import MIB
from tests.vm.vtl.library import Library, cartridges
from tests.vm.vtl.service import Shape

from splitmirror.system import programs


def run(*argv: str) -> str:
    return programs.run(argv, timeout_s=120)


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    names = cartridges("SM0001L8", "SM0002L8", capacity=4 * MIB, early_warning=MIB)
    cleaning = cartridges("CLN001L1", cleaning=True)
    with Library(Shape(cartridges=(*names, *cleaning)), tmp_path / "vtl") as library:
        yield library


def test_mtx_sees_what_is_in_it(library: Library) -> None:
    status = run("mtx", "-f", library.changer_generic, "status")
    assert "2 Drives, 10 Slots ( 2 Import/Export )" in status
    assert "Storage Element 2:Full :VolumeTag=SM0002L8" in status


def test_mtx_moves_a_cartridge_that_mt_and_dd_write_and_read(
    library: Library, tmp_path: Path
) -> None:
    changer, drive = library.changer_generic, library.drives[1]
    run("mtx", "-f", changer, "load", "2", "1")
    assert library.where()["drives"] == [None, "SM0002L8"]
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(bytes(range(256)) * 4096)
    run("mt", "-f", drive, "setblk", "0")
    run("dd", f"if={source}", f"of={drive}", "bs=256k")
    assert library.lengths("SM0002L8") == [256 << 10] * 4 + [-1]
    assert run("mt", "-f", drive, "tell") == "At block 5.\n"
    run("mt", "-f", drive, "rewind")
    run("dd", f"if={drive}", f"of={copy}", "bs=256k")
    assert copy.read_bytes() == source.read_bytes()
    run("mtx", "-f", changer, "unload", "2", "1")
    assert library.where()["slots"][:2] == ["SM0001L8", "SM0002L8"]


def test_a_cleaning_cartridge_makes_no_drive_ready(library: Library) -> None:
    library.move(library.slots[2], library.bays[0])
    assert "ONLINE" not in run("mt", "-f", library.drives[0], "status")
    library.move(library.bays[0], library.slots[2])
    library.move(library.slots[0], library.bays[0])
    assert "ONLINE" in run("mt", "-f", library.drives[0], "status")


def test_a_library_begins_anew_with_what_was_on_its_cartridges(tmp_path: Path) -> None:
    shape = Shape(drives=1, changer=False, cartridges=cartridges("SM0003L8"))
    for known in ([], [4096, -1]):
        with Library(shape, tmp_path) as library:
            assert library.lengths("SM0003L8") == known
            library.insert(0, "SM0003L8")
            drive = library.drives[0]
            run("mt", "-f", drive, "setblk", "0")
            run("dd", "if=/dev/zero", f"of={drive}", "bs=4k", "count=1")
            assert library.remove(0) == "SM0003L8"
