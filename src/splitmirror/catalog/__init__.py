"""The catalogue: what has been backed up, where it lies; made anew from the media when lost.

docs/adr/0008-catalogue-is-an-index.md says why it is only an index.
"""

from splitmirror.catalog.rows import Located
from splitmirror.catalog.store import LATEST, Catalog

__all__ = ["LATEST", "Catalog", "Located"]
