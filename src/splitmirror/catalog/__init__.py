"""The catalogue: what has been backed up, where it lies; made anew from the media when lost.

docs/adr/0008-catalogue-is-an-index.md says why it is only an index. Who only looks into it takes
`Lookup`, and does not wait for the libraries that recording needs.
"""

from typing import TYPE_CHECKING, Any

from splitmirror.catalog.looking import LATEST, Lookup
from splitmirror.catalog.rows import Located

if TYPE_CHECKING:
    from splitmirror.catalog.store import Catalog

__all__ = ["LATEST", "Catalog", "Located", "Lookup"]


def __getattr__(name: str) -> Any:
    if name == "Catalog":
        from splitmirror.catalog.store import Catalog

        return Catalog
    raise AttributeError(name)
