"""Sizes and times as people write them. Sizes are binary: 1 KiB = 1024 bytes."""

from __future__ import annotations

import re

from splitmirror.errors import ConfigError

_LARGEST = (1 << 63) - 1  # off_t: no file and no device is larger
_FACTOR = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_EXAMPLES = "Write for example 256M, 1GiB or 1048576."
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", re.IGNORECASE)


def parse_size(text: str | int) -> int:
    """`"256M"`, `"1 GiB"`, `"1.5G"` or a number of bytes, as bytes.

    Raises ConfigError for anything else, also for less than nothing and for more than 8 EiB.
    """
    size: float = -1
    if isinstance(text, int):
        size = text
    elif match := _SIZE.fullmatch(text):
        size = float(match[1]) * _FACTOR[match[2].upper()]
    if not 0 <= size <= _LARGEST:
        raise ConfigError(f"not a size: {text!r}", hint=_EXAMPLES)
    return int(size)


def size_setting(key: str, value: str | int, *, least: int = 0) -> int:
    """The size that a setting gives, in bytes. Raises ConfigError, with the key's name, for what is
    no size, or one below `least`."""
    try:
        size = parse_size(value)
    except ConfigError as error:
        raise ConfigError(f"{key} = {value!r} is no size", hint=error.hint) from None
    if size < least:
        raise ConfigError(f"{key} = {value!r} is below {show_size(least)}", hint=_EXAMPLES)
    return size


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
