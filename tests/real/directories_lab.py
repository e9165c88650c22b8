"""What the tests of the engine for directories share: a filesystem with a database's directories on
it, and a configuration for them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.real.loopfs import LoopFs
from tests.real.reflink_lab import written_config

from splitmirror.config import Config
from splitmirror.mirrors.directories import Directory, Settings

HOSTS = ("xfs", "btrfs")
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Directories:
    """A filesystem and the directories on it, on btrfs a subvolume each; everything else lies in
    `base`."""

    base: Path
    host: LoopFs
    directories: tuple[Directory, ...]

    @property
    def settings(self) -> Settings:
        return Settings(directories=self.directories)

    def path(self, name: str) -> Path:
        return Path(next(each.path for each in self.directories if each.name == name))

    @property
    def config_path(self) -> Path:
        return self.base / "splitmirror.toml"

    @property
    def ledger(self) -> Path:
        return self.base / "ledger"

    def legs(self) -> list[str]:
        """The legs that are there, whole or not."""
        found = [*self.host.path.glob("*@*.leg"), *self.host.path.glob("*@*.part")]
        return sorted(path.name for path in found)

    def configured(self, database: Mapping[str, object], **options: object) -> Config:
        entries = [{"name": each.name, "path": each.path} for each in self.directories]
        return written_config(self.base, "directories", {"directories": entries}, database, options)


def make_directory(path: Path, fstype: str) -> None:
    """A directory; on btrfs a subvolume."""
    if fstype == "btrfs":
        subprocess.run(["btrfs", "-q", "subvolume", "create", path], check=True)
    else:
        path.mkdir()


@contextmanager
def directories_on(
    base: Path, fstype: str, names: Sequence[str], *, size: int = 512 * MIB
) -> Iterator[Directories]:
    """Directories of these names on a new filesystem, which are at `mnt` of `base` too."""
    host = LoopFs(base / "host", fstype, size)
    try:
        for part in ("ledger", "state"):
            (base / part).mkdir(parents=True)
        (base / "mnt").symlink_to(host.path)  # where a lab has its disks
        made = []
        for name in names:
            make_directory(host.path / name, fstype)
            made.append(Directory(name=name, path=str(host.path / name)))
        yield Directories(base=base, host=host, directories=tuple(made))
    finally:
        host.close()
