"""Tape in the guest: the kernel's st, ch and sg drivers on a virtual library."""

from __future__ import annotations

from tests.vm.conftest import Inside


def test_the_virtual_library_is_one_to_the_kernel_and_to_stock_tools(inside: Inside) -> None:
    inside("test_tape_library.py")


def test_the_changer_by_the_kernels_drivers(inside: Inside) -> None:
    inside("test_tape_changer.py")
