"""Start a tape library in a guest. For tests: `library.Library`.

    python -m tests.vm.vtl /run/vtl --drives 2 --slots 8 SM0001L8 SM0002L8 CLN001L1

Cartridges whose names begin with CLN clean. Ends by `stop` (see `service`) or with the guest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from tests.vm.vtl.cartridge import Kind
from tests.vm.vtl.service import Shape, serve

from splitmirror.units import parse_size


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm.vtl",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, help="for the cartridges' contents and the socket")
    parser.add_argument("--shape", help="all that follows, as JSON")
    parser.add_argument("--drives", type=int, default=2)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--doors", type=int, default=2, help="import/export slots")
    parser.add_argument("--capacity", type=parse_size, default="64MiB", help="of each cartridge")
    parser.add_argument("--early-warning", type=parse_size, default="1MiB")
    parser.add_argument("cartridges", nargs="*", metavar="BARCODE")
    options = parser.parse_intermixed_args()
    serve(options.directory, _shape(options))


def _shape(options: argparse.Namespace) -> Shape:
    if options.shape is not None:
        return msgspec.json.decode(options.shape, type=Shape)
    kinds = tuple(
        Kind(
            name=name,
            barcode=name,
            capacity=options.capacity,
            early_warning=options.early_warning,
            cleaning=name.startswith("CLN"),
        )
        for name in options.cartridges
    )
    return Shape(drives=options.drives, slots=options.slots, doors=options.doors, cartridges=kinds)


main()
