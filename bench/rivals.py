"""What people use instead, run as they would: dd, GNU tar, pg_basebackup, pgBackRest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import cost
from bench.cost import Cost, drop_caches
from splitmirror.model import ExtentFlag
from splitmirror.system import filesystems, programs
from splitmirror.system.fiemap import fiemap
from splitmirror.testing.clusters import Cluster

_BLOCK = 4 << 20  # dd's
_MOUNT_S = 60.0
_SETUP_S = 120.0
POSTGRES = "postgres"


# --- dd


def written_stretch(image: Path, size: int) -> tuple[int, float]:
    """Where in an image the `size` bytes begin of which most were ever written, and their share.

    The rest is unwritten extents, which a disk gives back without being read.
    """
    with image.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        written = [
            (extent.logical, extent.logical + extent.length)
            for extent in fiemap(file.fileno(), end)
            if not extent.flags & ExtentFlag.UNWRITTEN
        ]
    best = max(range(0, max(end - size, 0) + 1, _BLOCK), key=lambda at: _covered(written, at, size))
    return best, _covered(written, best, size) / size


def _covered(written: list[tuple[int, int]], begin: int, size: int) -> int:
    return sum(max(0, min(last, begin + size) - max(first, begin)) for first, last in written)


def dd(image: Path, begin: int, size: int) -> Cost:
    """Read so many bytes with direct I/O in blocks of 4 MiB."""
    drop_caches()
    return cost.run(
        [
            *("dd", f"if={image}", "of=/dev/null", "bs=4M", "status=none"),
            *("iflag=direct,skip_bytes,count_bytes", f"skip={begin}", f"count={size}"),
        ],
        moved=size,
    )


# --- tar


@contextmanager
def mounted(image: Path, mountpoint: Path) -> Iterator[Path]:
    """A leg, mounted read-only through a loop device."""
    mountpoint.mkdir(exist_ok=True)
    options = ["-o", "ro,noload,loop"]
    programs.run(["mount", *options, str(image), str(mountpoint)], timeout_s=_MOUNT_S)
    try:
        yield mountpoint
    finally:
        programs.run(["umount", str(mountpoint)], timeout_s=_MOUNT_S)


def tar(directory: Path, moved: int, into: Path | None = None) -> Cost:
    """A tar of a directory through a pipe to cat (for to /dev/null it reads nothing), to /dev/null
    or to a file that is synced."""
    if into is not None:
        into.unlink(missing_ok=True)
    drop_caches()
    return cost.run(_tar_of(directory), ["cat"], moved=moved, into=into)


def _tar_of(directory: Path) -> list[str]:
    return ["tar", "--create", "--file=-", f"--directory={directory.parent}", directory.name]


def untar(archive: Path, target: Path, moved: int) -> Cost:
    """Extract a whole tar into a new directory, synced."""
    target.mkdir()
    drop_caches()
    command = ["tar", "--extract", f"--file={archive}", f"--directory={target}"]
    return cost.run(command, moved=moved, then=lambda: sync(target))


def untar_one(archive: Path, name: str, target: Path, moved: int) -> Cost:
    """Extract one file from a tar that comes through a pipe."""
    target.mkdir()
    drop_caches()
    extract = ["tar", "--extract", "--file=-", f"--directory={target}", name]
    return cost.run(["cat", str(archive)], extract, moved=moved, then=lambda: sync(target))


def sync(directory: Path) -> None:
    """Everything on the filesystem of a directory is on the disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        filesystems.syncfs(fd)
    finally:
        os.close(fd)


# --- PostgreSQL


def basebackup(server: Cluster, target: Path) -> list[str]:
    """pg_basebackup as tar files, with the WAL that they need. Checksums of pages are not looked
    at, for we do not look at them either; its manifest has a CRC of each file."""
    return [
        str(server.bin_dir / "pg_basebackup"),
        *("-h", str(server.home), "-U", POSTGRES, "-D", str(target)),
        *("--format=tar", "--checkpoint=fast", "--wal-method=fetch", "--no-verify-checksums"),
    ]


class PgBackRest:
    """A stanza of pgBackRest for a cluster, its repository and configuration below `place`.

    No compression, fast checkpoint, no look at pages' checksums (it hashes every file), nothing
    expires. `processes`: process-max.
    """

    STANZA = "bench"

    def __init__(self, server: Cluster, place: Path, processes: int) -> None:
        self._server, self._place = server, place
        self._config = place / f"pgbackrest-{processes}.conf"
        self._config.write_text(self._settings(processes))
        self._config.chmod(0o644)

    def _settings(self, processes: int) -> str:
        repo = self._place / "repo"
        return f"""[global]
repo1-path={repo}
lock-path={self._place}/lock
log-path={self._place}/log
log-level-console=warn
log-level-file=off
spool-path={self._place}/spool
compress-type=none
start-fast=y
checksum-page=n
expire-auto=n
process-max={processes}

[{self.STANZA}]
pg1-path={self._server.data}
pg1-socket-path={self._server.home}
pg1-user={POSTGRES}
"""

    def command(self, *words: str) -> list[str]:
        return ["pgbackrest", f"--config={self._config}", f"--stanza={self.STANZA}", *words]

    @property
    def archive_command(self) -> str:
        return " ".join(self.command("archive-push", "%p"))

    def make_ready(self) -> None:
        """A new, empty repository."""
        self.forget()
        for name in ("repo", "lock", "log", "spool"):
            (self._place / name).mkdir()
            shutil.chown(self._place / name, POSTGRES, POSTGRES)
        programs.run(self.command("stanza-create"), timeout_s=_SETUP_S, user=POSTGRES)

    def forget(self) -> None:
        """Take everything away but the configuration. A second call is harmless."""
        for name in ("repo", "lock", "log", "spool"):
            shutil.rmtree(self._place / name, ignore_errors=True)
