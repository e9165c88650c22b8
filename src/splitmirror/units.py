"""Sizes and times as people write them. Sizes are binary: 1 KiB = 1024 bytes."""

from __future__ import annotations

import re

from splitmirror.errors import ConfigError

_FACTOR = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", re.IGNORECASE)


def parse_size(text: str | int) -> int:
    """`"256M"`, `"1 GiB"`, `"1.5G"` or a number of bytes, as bytes.

    Raises ConfigError for anything else.
    """
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"not a size: {text!r}", hint="Write for example 256M, 1GiB or 1048576.")
    return int(float(match[1]) * _FACTOR[match[2].upper()])


def show_size(size: float) -> str:
    """`1610612736` as `1.5 GiB`; below 1 KiB as `812 B`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def show_seconds(seconds: float) -> str:
    """`0.0123` as `12.3 ms`, `75` as `1 min 15 s`."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
