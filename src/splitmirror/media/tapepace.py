"""How fast tape drives want to be fed.

A drive that gets less than its minimum rate stops, goes back and starts again: it takes seconds,
wears the tape, and makes a slow source slower still. Rates are of what reaches the tape: where the
drive compresses, what it is fed with may be more.

The rates of the LTO generations are those of full-height drives, from their makers' data sheets;
SSC-4's density codes tell the generation.
"""

from __future__ import annotations

from typing import Final

from splitmirror.errors import ConfigError
from splitmirror.media import Pace
from splitmirror.media.asking import AskSettings
from splitmirror.units import parse_size, size_setting

_MB: Final = 1_000_000

_LTO: Final = {
    0x58: (140 * _MB, 47 * _MB),  # LTO-5
    0x5A: (160 * _MB, 54 * _MB),  # LTO-6
    0x5C: (300 * _MB, 100 * _MB),  # LTO-7
    0x5D: (300 * _MB, 100 * _MB),  # LTO-7's cartridge as an LTO-8 drive writes it
    0x5E: (360 * _MB, 112 * _MB),  # LTO-8
    0x60: (400 * _MB, 177 * _MB),  # LTO-9
}
_UNKNOWN: Final = (160 * _MB, 0)


class PaceSettings(AskSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates in bytes a second; left out, those of the cartridge's generation. See `media.Pace` for
    the buffer."""

    native_rate: str | int | None = None
    minimum_rate: str | int | None = None
    buffer_s: float = 1.0
    buffer_mark: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        rates = {
            key: size_setting(f"[medium] {key}", value)
            for key in ("minimum_rate", "native_rate")
            if (value := getattr(self, key)) is not None
        }
        in_order = list(rates.values()) == sorted(rates.values())
        if not in_order or rates.get("native_rate") == 0 or not self._can_buffer:
            raise ConfigError(
                "[medium] describes a pace that no drive can keep",
                hint="Let 0 < minimum_rate <= native_rate, 0 < buffer_s, 0 < buffer_mark <= 1.",
            )

    @property
    def _can_buffer(self) -> bool:
        return self.buffer_s > 0 and 0 < self.buffer_mark <= 1

    def pace(self, density: int | None) -> Pace:
        """For a cartridge of this density (SSC's code; None: not known)."""
        native, least = _LTO.get(density or 0, _UNKNOWN)
        if self.native_rate is not None:
            native = parse_size(self.native_rate)
        if self.minimum_rate is not None:
            least = parse_size(self.minimum_rate)
        return Pace(
            native=native,
            least=min(least, native),
            buffer_s=self.buffer_s,
            mark=self.buffer_mark,
        )
