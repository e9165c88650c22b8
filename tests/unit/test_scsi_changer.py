"""What SCSI changers send, byte for byte; a real one's commands are in the guest tier."""

from __future__ import annotations

import struct

import pytest

from splitmirror.media.bays import bays_of
from splitmirror.media.changer import Slot, SlotKind, serial_of
from splitmirror.media.memory import Cartridge, Memory
from splitmirror.media.scsichanger import _slot
from splitmirror.system.scsichanger import Element, ElementKind, parse
from splitmirror.system.sgio import CommandFailed, Sense, parse_sense


def page(kind: int, tags: int, *descriptors: bytes) -> bytes:
    size = len(descriptors[0])
    body = b"".join(descriptors)
    return struct.pack(">BBHI", kind, tags, size, len(body)) + body


def status(*pages: bytes) -> bytes:
    body = b"".join(pages)
    return struct.pack(">HHI", 0, 9, len(body)) + body


def descriptor(
    address: int,
    flags: int,
    *more: bytes,
    asc: int = 0,
    ascq: int = 0,
    medium: int = 0,
    source: int | None = None,
) -> bytes:
    from_where = struct.pack(">BH", medium | (0x80 if source is not None else 0), source or 0)
    return struct.pack(">HBxBB3x", address, flags, asc, ascq) + from_where + b"".join(more)


def tag(text: bytes) -> bytes:
    return text.ljust(32, b" ") + bytes(4)


def test_pages_of_every_kind_are_read() -> None:
    drive = b"\x02\x01\x00\x22" + b"IBM     ULT3580-TD8     1097000123"
    sent = status(
        page(4, 0x80, descriptor(256, 0x09, tag(b"SM0001L8"), drive, source=1024)),
        page(2, 0x80, descriptor(1024, 0x08, bytes(36)), descriptor(1025, 0x09, tag(b"CLN001L1"))),
        page(3, 0xC0, descriptor(16, 0x0B, tag(b"SM0002L8"), tag(b"other side"), bytes(4))),
    )
    common = {"full": True, "accessible": True}
    assert list(parse(sent)) == [
        Element(
            address=256,
            kind=ElementKind.DRIVE,
            label="SM0001L8",
            source=1024,
            device="IBM     ULT3580-TD8     1097000123",
            **common,  # type: ignore[arg-type]
        ),
        Element(address=1024, kind=ElementKind.STORAGE, full=False, accessible=True),
        Element(address=1025, kind=ElementKind.STORAGE, label="CLN001L1", **common),  # type: ignore[arg-type]
        Element(address=16, kind=ElementKind.DOOR, label="SM0002L8", **common),  # type: ignore[arg-type]
    ]


def test_a_page_without_barcodes_has_the_drives_identification_in_their_place() -> None:
    naa = b"\x01\x03\x00\x08" + bytes.fromhex("500110a0008b4d00")
    (element,) = parse(status(page(4, 0, descriptor(256, 0x08, naa))))
    assert (element.label, element.device) == ("", "500110a0008b4d00")


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"SM0001L8\0\0\0", "SM0001L8"),
        (b" SM0001 ", "SM0001"),
        (bytes(32), ""),
        (b"\xff" * 32, ""),
        (b"SM\x07001", ""),
    ],
)
def test_what_is_no_text_is_no_barcode(sent: bytes, told: str) -> None:
    label = sent.ljust(32, b"\0") + bytes(4)
    (element,) = parse(status(page(2, 0x80, descriptor(1024, 0x09, label))))
    assert element.label == told


@pytest.mark.parametrize("cut", [8, 20, 27])
def test_a_status_that_is_cut_short_is_told(cut: int) -> None:
    whole = status(page(2, 0, descriptor(1024, 0x09), descriptor(1025, 0x09)))
    with pytest.raises(CommandFailed, match="makes no sense"):
        list(parse(whole[:cut]))


def test_a_kind_of_element_that_is_not_known_is_told() -> None:
    with pytest.raises(CommandFailed, match="makes no sense"):
        list(parse(status(page(9, 0, descriptor(1, 0)))))


def element(**values: object) -> Slot:
    known: dict[str, object] = {"address": 1, "kind": ElementKind.STORAGE, "accessible": True}
    return _slot(Element(**(known | {"full": True} | values)))  # type: ignore[arg-type]


def test_a_cleaning_cartridge_is_known_by_its_barcode_or_its_kind() -> None:
    assert element(label="CLN001L1").cleaning
    assert element(medium_type=2).cleaning
    assert not element(medium_type=1, label="SM0001L8").cleaning
    assert not element(full=False, medium_type=2).cleaning


def test_what_is_wrong_with_a_slot_is_in_words() -> None:
    assert element(exception=(0x83, 0x00)).trouble == "the barcode cannot be read"
    assert element(exception=(0x99, 0x01)).trouble == "code 99/01"
    assert element(full=False, label="SM0001L8").barcode == ""  # what was there before


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ("70 00 05 00000000 0a 00000000 3b 0d", Sense(key=5, asc=0x3B, ascq=0x0D)),
        ("f1 00 06 00000000 0a 00000000 28 01", Sense(key=6, asc=0x28, ascq=0x01)),
        ("72 02 04 01 00000000", Sense(key=2, asc=4, ascq=1)),
        ("73 04 15 01 00000000", Sense(key=4, asc=0x15, ascq=1)),
        ("70 00 05", None),
        ("00", None),
        ("", None),
    ],
)
def test_sense_data_of_both_formats_are_read(data: str, wanted: Sense | None) -> None:
    assert parse_sense(bytes.fromhex(data)) == wanted


# --- which drive is which


class Lto(Memory):
    def __init__(self, number: int, serial: str) -> None:
        super().__init__(Cartridge())
        self.name, self.device = f"/dev/nst{number}", serial


def drive_slot(address: int, device: str) -> Slot:
    return Slot(address=address, kind=SlotKind.DRIVE, full=False, device=device)


@pytest.mark.parametrize(
    "told",
    [
        "{}",
        "IBM     ULT3580-TD8     {}",
        "QUANTUM ULTRIUM 8 FULL.H{}",
        "HP      Ultrium 8-SCSI  {} ",
    ],
)
def test_drives_are_matched_by_what_the_changer_tells(told: str) -> None:
    slots = [drive_slot(256, told.format("1097000123")), drive_slot(257, told.format("97000123"))]
    drives = [Lto(0, "97000123"), Lto(1, "1097000123")]
    assert [bay.address for bay in bays_of(drives, slots)] == [257, 256]


def test_drives_are_in_order_where_the_changer_tells_nothing() -> None:
    slots = [drive_slot(256, ""), drive_slot(257, "")]
    bays = bays_of([Lto(1, "A"), Lto(0, "B")], slots)
    assert [(bay.name, bay.address) for bay in bays] == [("/dev/nst1", 256), ("/dev/nst0", 257)]


@pytest.mark.parametrize(
    ("barcode", "serial"),
    [("SM0001L8", "SM0001"), ("SM0001", "SM0001"), ("SM001", ""), ("sm0001L8", ""), ("", "")],
)
def test_the_serial_is_the_barcodes_first_six(barcode: str, serial: str) -> None:
    assert serial_of(barcode) == serial
