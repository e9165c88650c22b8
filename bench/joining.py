"""Rows of several runs in one document: each row as the run saw it that measured it last.

A whole run takes long, and a scene can be measured again without the others, or at another scale:
each row says at which. The pairs of a row are always of one run; so is the noise, which is that of
the last run that compared dd with dd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from splitmirror.errors import ConfigError

Document = Mapping[str, Any]
_SAME = ("kernel", "processor", "processors", "python", "splitmirror")  # of the machine


def joined(now: Document, before: Document, order: Sequence[str]) -> dict[str, Any]:
    """Both documents as one, its rows in that order. Raises ConfigError where their rows cannot
    stand beside one another."""
    differ = ["media"] if now["media"] != before["media"] else []
    differ += [key for key in _SAME if now["machine"][key] != before["machine"][key]]
    if differ:
        raise ConfigError(
            f"the figures that are there already were measured otherwise: {', '.join(differ)}",
            hint="Measure all rows anew, without --add.",
        )
    rows = {
        row["name"]: {"scale": document["scale"], **row}
        for document in (before, now)
        for row in document["rows"]
    }
    return {
        **before,
        **now,
        "rows": [rows[name] for name in order if name in rows],
        "peak_rss_mib": _peak(now) or _peak(before),
        "seconds": before["seconds"] + now["seconds"],
        "runs": before.get("runs", 1) + 1,
    }


def _peak(document: Document) -> float | None:
    """The peak of the run with the most files; None where it was not measured."""
    measured = any(row["name"] == "peak-memory" for row in document["rows"])
    return document["peak_rss_mib"] if measured else None
