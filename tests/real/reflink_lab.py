"""What the tests of the reflink engine share: a host's filesystem with image files on it, a loop
device over each, and a configuration for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.real.loopfs import LoopFs, until

from splitmirror import config
from splitmirror.config import Config
from splitmirror.demo.lab import MKFS
from splitmirror.mirrors.reflink import Disk, Settings
from splitmirror.system import loop, programs

HOSTS = ("xfs", "btrfs")
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Images:
    """A host's filesystem and the images on it; everything else lies in `base`."""

    base: Path
    host: LoopFs
    disks: tuple[Disk, ...]

    @property
    def settings(self) -> Settings:
        return Settings(disks=self.disks)

    def image(self, name: str) -> Path:
        return Path(next(disk.image for disk in self.disks if disk.name == name))

    def mountpoint(self, name: str) -> Path:
        return self.base / "mnt" / name

    @property
    def config_path(self) -> Path:
        return self.base / "splitmirror.toml"

    @property
    def ledger(self) -> Path:
        return self.base / "ledger"

    def legs(self) -> list[str]:
        return sorted(path.name for path in self.host.path.rglob("*.leg"))

    def configured(self, database: Mapping[str, object], **options: object) -> Config:
        disks = [{"name": disk.name, "image": disk.image} for disk in self.disks]
        return written_config(self.base, "reflink", {"disks": disks}, database, options)


def written_config(
    base: Path,
    engine: str,
    entries: Mapping[str, Sequence[Mapping[str, object]]],
    database: Mapping[str, object],
    options: Mapping[str, object],
) -> Config:
    """A configuration in `base`, loaded. `entries`: the arrays of [mirror]."""
    path = base / "splitmirror.toml"
    path.write_text(
        f'source = "{engine}"\nstate_dir = "{base}/state"\n[database]\n{table(database)}'
        f'[mirror]\ndriver = "{engine}"\n'
        + "".join(f"[[mirror.{name}]]\n{table(each)}" for name in entries for each in entries[name])
        + f'[medium]\ndriver = "virtualtape"\npath = "{base}/SM0001.tap"\n'
        f"[backup]\n{table(options)}"
    )
    return config.load(path)


def table(values: Mapping[str, object]) -> str:
    """In TOML; a table in it as one."""
    return "".join(
        f"{key} = {{ {', '.join(table(value).splitlines())} }}\n"
        if isinstance(value, dict)
        else f"{key} = {json.dumps(value)}\n"
        for key, value in values.items()
    )


def without_loop_device(image: Path) -> None:
    """The kernel lets go of an unmounted device in the back, and of the image behind that."""
    for device in loop.find(image):
        loop.detach(device)
    assert until(lambda: not loop.find(image)), f"a loop device over {image} stays"


@contextmanager
def images_on(
    base: Path, hosts: str, sizes: Mapping[str, int], *, host_size: int = 1 << 30
) -> Iterator[Images]:
    """Images of these sizes on a new filesystem of kind `hosts`, with loop devices over them."""
    with ExitStack() as undo:
        host = LoopFs(base / "host", hosts, host_size)
        undo.callback(host.close)
        disks = []
        for name, size in sizes.items():
            image = host.path / f"{name}.img"
            with image.open("wb") as made:
                made.truncate(size)
            programs.run(["losetup", "--find", str(image)], timeout_s=30)
            undo.callback(without_loop_device, image)
            disks.append(Disk(name=name, image=str(image)))
        for part in ("mnt", "ledger", "state"):
            (base / part).mkdir(parents=True)
        yield Images(base=base, host=host, disks=tuple(disks))


@contextmanager
def with_filesystems(images: Images, fstypes: Sequence[str]) -> Iterator[Images]:
    """A filesystem on each disk, mounted."""
    with ExitStack() as undo:
        for disk, fstype in zip(images.disks, fstypes, strict=True):
            (device,) = loop.find(disk.image)
            programs.run([*MKFS[fstype], device], timeout_s=60)
            where = images.mountpoint(disk.name)
            where.mkdir()
            programs.run(["mount", device, str(where)], timeout_s=30)
            undo.callback(programs.run, ["umount", str(where)], timeout_s=30)
        yield images
