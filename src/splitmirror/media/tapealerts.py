"""What a tape drive says of itself: TapeAlert's flags in words. Source: SSC-3, 4.2.17 and annex."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_WORDS: Final = {
    1: "the drive has trouble reading",
    2: "the drive has trouble writing",
    3: "an unrecoverable error while reading, writing or positioning",
    4: "the cartridge is worn or damaged: copy what is on it, and retire it",
    5: "the tape cannot be read: it is damaged, or the drive is faulty",
    6: "the tape cannot be written: it is damaged, or the drive is faulty",
    7: "the cartridge has reached the end of its life: copy what is on it, and retire it",
    8: "the cartridge is not of data grade",
    9: "the cartridge is write-protected",
    10: "the cartridge cannot be ejected: the drive is in use",
    11: "a cleaning cartridge is in the drive",
    12: "the drive does not know this format",
    13: "the tape snapped or jammed; the cartridge can be taken out",
    14: "the tape snapped or jammed; the cartridge cannot be taken out",
    15: "the memory chip of the cartridge failed",
    16: "the cartridge was ejected by hand while the drive was working",
    17: "the drive can only read a cartridge of this kind",
    18: "the tape's directory is damaged: finding a file takes long",
    19: "the cartridge is near the end of its life",
    20: "the drive must be cleaned now",
    21: "the drive is due to be cleaned",
    22: "the cleaning cartridge is used up",
    23: "the cleaning cartridge is not one for this drive",
    24: "the tape is to be rewound and wound anew (retension)",
    25: "one of the drive's ports failed",
    26: "a fan in the drive failed",
    27: "a power supply in the drive failed",
    28: "the drive draws too much power",
    29: "the drive is due for maintenance",
    30: "a hardware fault in the drive: it needs a reset",
    31: "a hardware fault in the drive: it needs power off and on, or repair",
    32: "the connection between host and drive has a fault",
    33: "the cartridge must be ejected and loaded again",
    34: "new microcode could not be loaded into the drive",
    35: "it is too humid in the drive",
    36: "it is too hot or too cold in the drive",
    37: "the drive's supply voltage is out of range",
    38: "the drive is about to fail",
    39: "the drive wants diagnostics to be run",
    50: "the drive lost its statistics",
    51: "the tape's directory was damaged when the cartridge was ejected",
    52: "the tape's system area could not be written when the cartridge was ejected",
    53: "the tape's system area cannot be read",
    54: "the beginning of the data is not found",
    55: "the cartridge could not be loaded and threaded",
    56: "the cartridge cannot be unloaded",
    57: "the connection between the library and the drive has a fault",
    58: "the drive's microcode failed",
    59: "the cartridge is write-once, and its integrity is in doubt",
    60: "it was tried to write over a write-once cartridge",
}


def in_words(numbers: Iterable[int]) -> list[str]:
    """Each flag's meaning, with its number."""
    return [f"{_WORDS.get(number, 'unknown')} (TapeAlert {number})" for number in numbers]
