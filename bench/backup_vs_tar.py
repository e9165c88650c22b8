"""A backup of mixed files from the leg to a virtual tape, against GNU tar on the same leg, mounted.

Each pair reads the same split leg with cold caches and writes to the same disk, durably: the
`backup` phase of a real run, then `tar | cat` to a file (tar to /dev/null would read nothing). What
counts is the ratio of each pair, for machines differ and drift; the last line of standard output is
the medians as JSON. Needs root and about 9 GiB below --directory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path

from splitmirror import config
from splitmirror.backup import backup
from splitmirror.config import Config
from splitmirror.demo.lab import Disk, Lab, configuration, lab_at
from splitmirror.model import BackupSet

LARGE = 64 << 20
SMALL_MOST = 16 << 10
FOLDERS = 200


def make_files(directory: Path, total: int, small: int) -> None:
    """`small` files of up to 16 KiB and enough of 64 MiB, `total` bytes in all; every third small
    one is deleted and written again, so that the free space is not in one piece."""
    rng = random.Random(1)
    for folder in range(FOLDERS):
        (directory / f"{folder:03d}").mkdir(parents=True)
    names = [directory / f"{number % FOLDERS:03d}" / f"file{number}" for number in range(small)]
    for name in names:
        name.write_bytes(rng.randbytes(rng.randint(100, SMALL_MOST)))
    os.sync()
    for name in names[::3]:
        name.unlink()
    left = total - small * SMALL_MOST // 2
    for number in range(max(left, 0) // LARGE):
        with (directory / f"large{number}").open("wb") as file:
            for _ in range(LARGE >> 20):
                file.write(os.urandom(1 << 20))
    for name in names[::3]:
        name.write_bytes(rng.randbytes(rng.randint(100, SMALL_MOST)))
    os.sync()


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def backed_up(loaded: Config, lab: Lab) -> BackupSet:
    """A backup to a new tape; its leg stays split."""
    for path in lab.tape.parent.iterdir():
        path.unlink()
    drop_caches()
    return backup(loaded)


def tar_seconds(lab: Lab) -> float:
    """GNU tar of the mounted leg through a pipe to a file that is synced."""
    mountpoint, copy = lab.base / "leg", lab.base / "media" / "leg.tar"
    mountpoint.mkdir(exist_ok=True)
    leg = str(lab.image("data", "mirror"))
    subprocess.run(["mount", "-o", "ro,noload,loop", leg, str(mountpoint)], check=True)
    try:
        drop_caches()
        began_s = time.monotonic()
        with copy.open("wb") as file:
            tar = subprocess.Popen(
                ["tar", "cf", "-", "-C", str(mountpoint / "set"), "."], stdout=subprocess.PIPE
            )
            subprocess.run(["cat"], stdin=tar.stdout, stdout=file, check=True)
            assert tar.wait() == 0
            os.fsync(file.fileno())
        return time.monotonic() - began_s
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--mib", type=int, default=2048, help="bytes in all, in MiB")
    parser.add_argument("--small", type=int, default=20_000, help="how many small files")
    parser.add_argument("--directory", default="/var/tmp")
    options = parser.parse_args()
    total = options.mib << 20
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="splitmirror-bench-") as place:
        disk = Disk(name="data", fstype="ext4", size=2 * total)
        with lab_at(Path(place) / "lab", (disk,)) as lab:
            source = lab.mountpoint("data") / "set"
            make_files(source, total, options.small)
            how = {"mode": "freeze", "cleanup": "leave-split"}
            text = configuration(lab, {"driver": "none", "paths": [str(source)]}, how)
            lab.config_path.write_text(text)
            ratios = [pair(config.load(lab.config_path), lab) for _ in range(options.pairs)]
            shutil.rmtree(source)
    row = {"name": "backup against tar on the mounted leg, mixed files", "pairs": options.pairs}
    row |= {"ratio": round(statistics.median(ratios), 2), "goal": 1.0}
    print(json.dumps({"rows": [row | {"met": row["ratio"] >= row["goal"]}]}))


def pair(loaded: Config, lab: Lab) -> float:
    """How many times as fast as tar the backup phase was."""
    made = backed_up(loaded, lab)
    try:
        ours_s = next(phase.seconds for phase in made.phases if phase.name == "backup")
        theirs_s = tar_seconds(lab)
    finally:
        with closing(loaded.open_mirror()) as mirror:
            mirror.rejoin(made.set_id)
    print(f"backup {ours_s:.2f} s, tar {theirs_s:.2f} s, {theirs_s / ours_s:.2f} x", flush=True)
    return theirs_s / ours_s


if __name__ == "__main__":
    main()
