"""The ledger of acknowledged transactions, and what a restored database is held against.

A writer commits transactions numbered from 1 without a gap; each writes two rows, one into each of
two tables. It notes a number in its ledger file once the server has acknowledged the commit, with
the monotonic time (CLOCK_MONOTONIC is one clock for all processes of the host).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

Numbers = Collection[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How the restored database stands against the ledger, in transactions.

    `lost`: acknowledged before the split, but not there. `torn`: there in part, or missing though
    a later one of the same writer is there.
    """

    acknowledged_before_split: int
    restored: int
    lost: int
    torn: int


def acknowledged(ledger: Path, before_s: float) -> dict[str, set[int]]:
    """The numbers that each writer noted before a monotonic time. A torn last line is not one."""
    noted: dict[str, set[int]] = {}
    for path in sorted(ledger.glob("*.acknowledged")):
        numbers = noted.setdefault(path.stem, set())
        for line in path.read_text().splitlines(keepends=True):
            number, _, at_s = line.partition(" ")
            if line.endswith("\n") and float(at_s) < before_s:
                numbers.add(int(number))
    return noted


def judge(
    noted: Mapping[str, Numbers], first: Mapping[str, Numbers], second: Mapping[str, Numbers]
) -> Verdict:
    """Hold what the two tables have of each writer against what was noted before the split."""
    lost = torn = restored = 0
    for writer in noted.keys() | first.keys() | second.keys():
        whole = set(first.get(writer, ())) & set(second.get(writer, ()))
        half = set(first.get(writer, ())) ^ set(second.get(writer, ()))
        gaps = set(range(1, max(whole | half, default=0))) - whole - half
        lost += len(set(noted.get(writer, ())) - whole)
        torn += len(half) + len(gaps)
        restored += len(whole)
    return Verdict(
        acknowledged_before_split=sum(len(set(numbers)) for numbers in noted.values()),
        restored=restored,
        lost=lost,
        torn=torn,
    )
