"""What a child process is to do (`bench.child`), and what it reports. Both travel as JSON."""

from __future__ import annotations

import msgspec


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """`cold`: drop the caches when this phase begins. `stop`: end the run when this phase begins.
    `change`: a directory of tiny files, how many there are and how many of them to change while the
    database is being quiesced, after the map. `profile`: a phase. `names`: restore these instead of
    backing up, twice, to two new directories below `target`."""

    config: str
    null: bool = False
    cold: str = ""
    stop: str = ""
    change: tuple[str, int, int] | None = None
    profile: str = ""
    names: list[str] = []
    target: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and CPU seconds of each phase; bytes of peak resident memory. As /proc/self/io counts
    them: `calls`, the system calls that read or wrote; `read`, the bytes that were read by calls;
    `fetched`, those that came from a disk."""

    seconds: dict[str, float]
    cpu_s: dict[str, float]
    calls: dict[str, int]
    read: dict[str, int]
    fetched: dict[str, int]
    peak_rss: int
    files: int = 0
    stored_bytes: int = 0
    pause_s: float = 0.0
    pause_parts: dict[str, float] = {}
    profile: list[str] = []
