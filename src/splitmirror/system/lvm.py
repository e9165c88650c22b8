"""LVM's own view of raid1 volumes, and its commands that part, join and repair them.

Sources: lvs(8) with JSON reports, lvconvert(8), lvchange(8), lvmraid(7) of lvm2 2.03.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitmirror.errors import MirrorError, MirrorNotReady, ProgramFailed, UnsafeMirror
from splitmirror.system import programs

PROGRAMS = ("lvs", "lvconvert", "lvchange")
# LVM takes a tenth of a second for a command, and waits for its lock behind others of the host.
_LOOK_S = 30.0
# A command that is killed may leave volumes suspended: this is for one that hangs for good.
_CHANGE_S = 300.0
# Places of LVM that a command reads or writes; the copies of its metadata are not written by ours.
PLACES = ("/etc/lvm", "/run/lvm", "/run/lock/lvm")
_NO_COPIES = "backup { backup = 0 archive = 0 } log { syslog = 0 }"
_COLUMNS = (
    "vg_name,lv_name,lv_attr,segtype,lv_role,lv_size,lv_dm_path,lv_kernel_major,lv_kernel_minor,"
    "lv_parent,devices,metadata_devices,raid_write_behind,raidintegritymode,vg_missing_pv_count"
)
_MISSING = "[unknown]"
_HYPHEN = re.compile(r"(?<!-)-(?!-)")  # a single one


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One leg: `tracked`, it is split off with --trackchanges. `pvs`: what it lies on; `missing`:
    one of them is gone. Device numbers are 0 where there is no device."""

    name: str  # VG/LV
    path: str
    position: int
    devno: int
    meta_devno: int
    kind: str
    tracked: bool
    pvs: tuple[str, ...]
    missing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RaidVolume:
    """A raid1 volume with its images, in the order of the array."""

    name: str  # VG/LV
    path: str
    devno: int
    size: int
    images: tuple[Image, ...]

    def image(self, name: str) -> Image | None:
        """The image of that name (VG/LV)."""
        return next((image for image in self.images if image.name == name), None)


def name_of(devno: int) -> str | None:
    """VG/LV of a logical volume's device; None for any other. From sysfs: in the names that LVM
    gives its devices a hyphen parts VG from LV, and is doubled within them (lvm(8))."""
    dm = Path(f"/sys/dev/block/{os.major(devno)}:{os.minor(devno)}/dm")
    try:
        if not (dm / "uuid").read_text().startswith("LVM-"):
            return None
        parts = _HYPHEN.split((dm / "name").read_text().strip())
    except OSError:
        return None
    return "/".join(part.replace("--", "-") for part in parts[:2]) if len(parts) > 1 else None


Row = Mapping[str, str]


def find(names: Sequence[str]) -> tuple[RaidVolume, ...]:
    """The volumes of these names (VG/LV). Raises MirrorNotReady for one that LVM does not know or
    that is not active, UnsafeMirror for one that is no plain raid1, each with what to type."""
    rows = report(sorted({name.partition("/")[0] for name in names}))
    return tuple(_raid_volume(name, rows) for name in names)


def report(groups: Iterable[str]) -> dict[str, list[Row]]:
    """What lvs says of every volume of these groups, hidden ones too, by VG/LV: a row for each
    segment. Raises MirrorNotReady for a group that is not there, ProgramFailed."""
    command = ["lvs", "-a", "--reportformat", "json", "--units", "b", "--nosuffix"]
    try:
        said = programs.run([*command, "-o", _COLUMNS, *groups], timeout_s=_LOOK_S)
    except ProgramFailed as error:
        if error.facts.get("status") is None:
            raise
        raise MirrorNotReady(
            f"LVM cannot tell of {', '.join(groups)}: {error.facts.get('stderr')}",
            hint="Correct `lv` in [[mirror.volumes]], or look with `vgs` and `pvs` for a disk that "
            "is missing.",
        ) from error
    rows: dict[str, list[Row]] = {}
    for row in json.loads(said)["report"][0]["lv"]:
        rows.setdefault(f"{row['vg_name']}/{row['lv_name'].strip('[]')}", []).append(row)
    return rows


def _raid_volume(name: str, rows: Mapping[str, list[Row]]) -> RaidVolume:
    if name not in rows:
        raise MirrorNotReady(
            f"there is no volume {name}", hint="`lvs` lists them; correct `lv` in [mirror]."
        )
    row = rows[name][0]
    _refuse(name, row)
    group = name.partition("/")[0]
    images = [f"{group}/{each}" for each in _names(row["devices"])]
    metas = [f"{group}/{each}" for each in _names(row["metadata_devices"])]
    devno = _devno(row)
    if not devno:
        raise MirrorNotReady(f"{name} is not active", hint=f"lvchange -ay {name}")
    return RaidVolume(
        name=name,
        path=row["lv_dm_path"],
        devno=devno,
        size=int(row["lv_size"]),
        images=tuple(
            _image(position, image, rows[image], rows[meta][0])
            for position, (image, meta) in enumerate(zip(images, metas, strict=True))
        ),
    )


def _refuse(name: str, row: Row) -> None:
    """Only a raid1 whose images are the volume's bytes and nothing else can be read as a leg."""
    kind = row["segtype"]
    if kind != "raid1":
        mirror_it = f"lvconvert --type raid1 -m1 {name} PV, with a PV on another disk"
        raise UnsafeMirror(
            f"{name} is {kind}; only raid1 can be split",
            hint=mirror_it
            if kind == "linear"
            else "Move the database to a raid1 volume: "
            f"lvcreate --type raid1 -m1 -L SIZE -n NAME {name.partition('/')[0]}",
        )
    if row["raidintegritymode"]:
        raise UnsafeMirror(
            f"{name} has dm-integrity below its legs, which a leg cannot be read through",
            hint=f"Take it away: lvconvert --raidintegrity n {name}",
        )
    if row["raid_write_behind"]:
        raise UnsafeMirror(
            f"{name} lets a leg fall behind (write-behind)",
            hint=f"Have every leg written at once: lvchange --writebehind 0 {name}",
        )
    if "origin" in row["lv_role"]:
        raise UnsafeMirror(
            f"{name} has snapshots on it, which lie between it and its filesystem",
            hint=f"Remove them: lvs -S origin={name.partition('/')[2]}, then lvremove.",
        )


def _image(position: int, name: str, rows: Sequence[Row], meta: Row) -> Image:
    pvs = dict.fromkeys(pv for row in rows for pv in _names(row["devices"]))
    kinds = {row["segtype"] for row in rows}
    return Image(
        name=name,
        path=rows[0]["lv_dm_path"],
        position=position,
        devno=_devno(rows[0]),
        meta_devno=_devno(meta),
        kind=" and ".join(sorted(kinds)),
        tracked=not rows[0]["lv_parent"],
        pvs=tuple(pv for pv in pvs if pv != _MISSING),
        missing=_MISSING in pvs or "error" in kinds,
    )


def _names(devices: str) -> list[str]:
    """The names in lvs's list of devices with extents, such as "lv_rimage_0(0),lv_rimage_1(0)"."""
    return [each.rpartition("(")[0] for each in devices.split(",") if each]


def _devno(row: Row) -> int:
    major, minor = int(row["lv_kernel_major"]), int(row["lv_kernel_minor"])
    return os.makedev(major, minor) if major >= 0 else 0


# --- changes


def part(volume: str, pvs: Sequence[str]) -> None:
    """Split the image on these PVs off, its changes tracked. May be called while the filesystem on
    the volume is frozen: nothing is written but the metadata on the PVs."""
    _change("lvconvert", "-y", "--splitmirrors", "1", "--trackchanges", volume, *pvs)


def merge(image: str) -> None:
    """Join an image that was split off with its changes tracked; it is resynchronized after."""
    _change("lvconvert", "-y", "--merge", image)


def refresh(volume: str, *, partial: bool = False) -> None:
    """Load the tables anew as LVM's metadata has them: images that were parted past LVM, or failed
    and came back, join again and are resynchronized after. `partial`: although one is missing."""
    although = ("--activationmode", "partial") if partial else ()
    _change("lvchange", "-y", *although, "--refresh", volume)


def rebuild(volume: str, pvs: Sequence[str]) -> None:
    """Copy the image on these PVs anew, all of it."""
    rebuilds = [word for pv in pvs for word in ("--rebuild", pv)]
    _change("lvchange", "-y", *rebuilds, volume)


def begin_check(volume: str) -> None:
    """Have the kernel read all images and count what differs; goes on by itself."""
    _change("lvchange", "-y", "--syncaction", "check", volume)


def _change(program: str, *arguments: str) -> None:
    command = [program, "--config", _NO_COPIES, *arguments]
    try:
        programs.run(command, timeout_s=_CHANGE_S)
    except ProgramFailed as error:
        said = str(error.facts.get("stderr") or error)
        raise MirrorError(
            f"{program} failed: {said}", hint=f"It was run as: {' '.join(command)}"
        ) from error
