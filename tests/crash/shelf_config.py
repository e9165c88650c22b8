"""A configuration whose volumes are small tapes on a shelf, beside the tape that its file names."""

from __future__ import annotations

from pathlib import Path

import msgspec

from splitmirror import backup, config, supplying
from splitmirror.catalog import Catalog
from splitmirror.config import Config
from splitmirror.media.supply import Supply
from splitmirror.testing.supplies import TapeShelf

SERIALS = tuple(f"SM{number:04d}" for number in range(1, 20))
CAPACITY = 1536 << 10
EARLY_WARNING = 64 << 10


class ShelfConfig(Config, frozen=True, kw_only=True):
    """As many drives as streams."""

    def open_supply(self) -> TapeShelf:
        return TapeShelf(
            Path(self.medium["path"]).parent,
            SERIALS,
            capacity=CAPACITY,
            early_warning=EARLY_WARNING,
            drives=self.backup.streams,
        )


def _supply_of(config: Config, catalog: Catalog) -> Supply:
    if isinstance(config, ShelfConfig):
        return config.open_supply()
    return supplying.supply_of(config, catalog)


backup.supply_of = _supply_of  # type: ignore[attr-defined]


def load(path: Path) -> ShelfConfig:
    return ShelfConfig(**msgspec.structs.asdict(config.load(path)))
