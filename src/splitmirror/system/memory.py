"""How much memory there is to be had. Source: proc_meminfo(5)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")
_UNKNOWN: Final = 256 << 20  # bytes that are taken to be free where the kernel does not say


def available() -> int:
    """Bytes that can be taken without anything being swapped out."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _MEMINFO.read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else _UNKNOWN
