"""Which `[mirror]` table fits what lies below a database: every engine is asked.

Where engines know all places, their entries are the table, a group's if they are several. Where one
place is not known to any, nothing is proposed here, only what could be typed to have it mirrored.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from splitmirror.drivers import drivers
from splitmirror.mirrors import Place, Recognized


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """`table`: the `[mirror]` table as TOML, "" where there is none. `advice`: for each place what
    could be done, in lines."""

    table: str
    advice: Mapping[str, str]


def propose_mirror(places: Sequence[Place]) -> Proposal:
    """Changes nothing; reads sysfs, and asks LVM where a place lies on its volumes."""
    engines = {name: importlib.import_module(f"splitmirror.mirrors.{name}") for name in _names()}
    found = {place.name: _recognized(place, engines) for place in places}
    advice = {place.name: _advice(place, engines) for place in places if not found[place.name]}
    if not places or advice:
        return Proposal(table="", advice=advice)
    by_engine: dict[str, list[Recognized]] = {}
    for known in found.values():
        if known is not None:
            name, entry = known
            by_engine.setdefault(name, []).append(entry)
    return Proposal(table="".join(_table(by_engine)), advice={})


def _names() -> list[str]:
    return drivers("mirrors")


def _recognized(place: Place, engines: Mapping[str, ModuleType]) -> tuple[str, Recognized] | None:
    for name, module in engines.items():
        recognize = getattr(module, "recognize", None)
        if recognize is not None and (known := recognize(place)) is not None:
            return name, known
    return None


def _advice(place: Place, engines: Mapping[str, ModuleType]) -> str:
    said = (getattr(module, "advise", lambda place: "")(place) for module in engines.values())
    return "\n".join(filter(None, said))


def _table(by_engine: Mapping[str, list[Recognized]]) -> Iterator[str]:
    if len(by_engine) == 1:
        ((name, entries),) = by_engine.items()
        yield f'[mirror]\ndriver = "{name}"\n'
        yield from _entries("mirror", entries)
        return
    yield '[mirror]\ndriver = "group"  # several kinds, split one after another under one freeze\n'
    for name, entries in by_engine.items():
        yield f'\n[[mirror.members]]\ndriver = "{name}"\n'
        yield from _entries("mirror.members", entries)


def _entries(table: str, found: Sequence[Recognized]) -> Iterator[str]:
    """Each entry once: two places may lie on one volume."""
    told: list[Mapping[str, str]] = []
    for known in found:
        if known.entry in told:
            continue
        told.append(known.entry)
        values = "".join(f"{key} = {json.dumps(value)}\n" for key, value in known.entry.items())
        yield f"\n[[{table}.{known.table}]]  # {known.note}\n{values}"
