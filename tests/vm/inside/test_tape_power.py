"""The machine's power is cut while a part is written to tape: before, and after the next boot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.unit import made_sets
from tests.vm.vtl.library import Library, cartridges
from tests.vm.vtl.service import Shape

from splitmirror.media.tape import Settings, Tape
from splitmirror.media.volume import VolumeReader, open_for_append

# On the disk that keeps what was written to it.
DIRECTORY = Path("/root/vtl-power")
KEPT = DIRECTORY / "kept.json"
NAME = "SM0001L8"

WRITER = """
import sys, time
from splitmirror.media.labels import TapeFileKind
from splitmirror.media.tape import Settings, Tape
from splitmirror.media.volume import open_for_append
device = sys.argv[1]
volume = open_for_append(Tape(device, Settings(drives=[device])))
volume.begin_file(TapeFileKind.PART, "second", 1, 4096)
volume.write([bytes(4096)] * 3)
print("written", flush=True)
time.sleep(1000)
"""


def made() -> Library:
    return Library(Shape(drives=1, changer=False, cartridges=cartridges(NAME)), DIRECTORY)


def a_set(tape: Tape, set_id: str) -> None:
    made_sets.write_set(tape, [[made_sets.file(b"data/file", set_id.encode())]], set_id=set_id)


def test_before() -> None:
    library = made().__enter__()  # it ends with the machine
    library.insert(0, NAME)
    device = library.drives[0]
    a_set(Tape(device, Settings(drives=[device])), "first")
    KEPT.write_text(json.dumps(library.digests(NAME)))
    writer = subprocess.Popen([sys.executable, "-c", WRITER, device], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"written\n"
    library.settle(NAME)  # the drive has written all that it was given
    os.sync()


def test_after() -> None:
    kept = json.loads(KEPT.read_text())
    with made() as library:
        assert library.lengths(NAME)[len(kept) - 1 :] == [80, 80, 80, -1, 4096, 4096, 4096]
        library.insert(0, NAME)
        device = library.drives[0]
        tape = Tape(device, Settings(drives=[device]))
        with open_for_append(tape) as volume:
            assert [file.set_id for file in volume.files] == ["first", "first"]
            assert volume.end.unfinished is not None
            assert volume.end.unfinished.set_id == "second"
        a_set(tape, "third")
        assert library.digests(NAME)[: len(kept) - 1] == kept[:-1]
        tape.load(writable=False)
        sets = VolumeReader(tape).sets()
        assert [(found.set_id, found.complete) for found in sets] == [
            ("first", True),
            ("third", True),
        ]
        tape.unload()
