"""A cartridge: its records and filemarks, in two files that outlast the library's process.

What was not synced is not in them, as with a real drive whose power is cut.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

MIB = 1 << 20
FILEMARK = -1  # in place of a record's length


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a cartridge is by birth. Sizes count bytes of records. An empty barcode: the label does
    not stick any more; `name` is what the test calls it."""

    name: str
    barcode: str
    capacity: int = 64 * MIB
    early_warning: int = MIB
    write_protected: bool = False
    write_once: bool = False
    cleaning: bool = False


class Cartridge:
    """Objects are counted from 0. One drive at a time has it."""

    def __init__(self, directory: Path, kind: Kind) -> None:
        self.kind = kind
        self._data = directory / f"{kind.name}.data"
        self._table = directory / f"{kind.name}.json"
        self._objects: list[tuple[int, int]] = []  # where, and length or FILEMARK
        if self._table.exists():
            kept = json.loads(self._table.read_text())
            self._objects = [(begin, length) for begin, length in kept["objects"]]
            self.kind = Kind(**kept["kind"])
        self._file = self._data.open("r+b" if self._data.exists() else "w+b")
        self._synced = self._table.exists()
        self.sync()

    @property
    def name(self) -> str:
        return self.kind.name

    @property
    def objects(self) -> int:
        return len(self._objects)

    @property
    def lengths(self) -> list[int]:
        """Of every object; FILEMARK for a filemark."""
        return [length for _, length in self._objects]

    def digests(self) -> list[str]:
        """Of every object, in few characters; of a filemark none."""
        return [
            "" if length == FILEMARK else hashlib.blake2b(self.read(n), digest_size=6).hexdigest()
            for n, (_, length) in enumerate(self._objects)
        ]

    def filemarks_before(self, position: int) -> int:
        return sum(length == FILEMARK for _, length in self._objects[:position])

    def used(self, position: int) -> int:
        """Bytes of the records before `position`."""
        if position == 0:
            return 0
        begin, length = self._objects[position - 1]
        return begin + max(length, 0)

    def is_filemark(self, position: int) -> bool:
        return self._objects[position][1] == FILEMARK

    def read(self, position: int) -> bytes:
        begin, length = self._objects[position]
        self._file.seek(begin)
        return self._file.read(length)

    def write(self, position: int, record: bytes | None) -> None:
        """A record, or None for a filemark. What lay behind it is gone."""
        begin = self.used(position)
        self.cut(position)
        if record is not None:
            self._file.seek(begin)
            self._file.write(record)
        self._objects.append((begin, FILEMARK if record is None else len(record)))
        self._synced = False

    def cut(self, position: int) -> None:
        """Let the tape end before an object."""
        if position < self.objects:
            del self._objects[position:]
            self._file.truncate(self.used(position))
            self._save()  # or a lost buffer would bring back what is written over next

    def set(self, **values: bool | int | str) -> None:
        """Change what it is, as when a hand slides the tab."""
        self.kind = replace(self.kind, **values)  # type: ignore[arg-type]
        self._synced = False
        self.sync()

    def sync(self) -> None:
        if self._synced:
            return
        self._file.flush()
        self._save()
        self._synced = True

    def _save(self) -> None:
        new = self._table.with_suffix(".new")
        new.write_text(json.dumps({"kind": asdict(self.kind), "objects": self._objects}))
        new.replace(self._table)

    def forget_unsynced(self) -> None:
        """The drive's buffer lost its power."""
        if self._synced:
            return
        self._file.flush()
        kept = json.loads(self._table.read_text())
        self._objects = [(begin, length) for begin, length in kept["objects"]]
        self._synced = True

    def close(self) -> None:
        self.sync()
        self._file.close()
