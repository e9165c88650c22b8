"""A tape drive of Linux's st driver, and the cartridge in it.

What keeps the sets safe that are on a tape already:

- Records and filemarks are counted here. Before each batch of records, each filemark and each move
  the drive is asked where it stands, if it can tell; elsewhere than counted, nothing is written.
- After an error whose outcome is not known the volume is lost to this process until it is loaded
  anew, which rewinds (`tapestanding`). Whoever appends then proves the end from the labels.
- st writes a filemark of its own where a tape is moved back or the drive closed after a write, and
  also when the drive was reset in between and the tape stands at its beginning. So a sync, after
  which it does not, follows the last write, and follows a failed write at once.
- The door is locked while the volume is used.

docs/tape.md tells what each error means to an operator.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from splitmirror.errors import ConfigError, EndOfMedium, MediumDamaged, MediumError
from splitmirror.media import END_OF_DATA, FILEMARK, Block, Capacity, Limits, Mark, Pace, tapedrive
from splitmirror.media.changer import Changer
from splitmirror.media.scsichanger import ScsiChanger
from splitmirror.media.tapealerts import in_words
from splitmirror.media.tapepace import PaceSettings
from splitmirror.media.tapeposition import at_end_of_data, something_is_kept
from splitmirror.media.tapestanding import Standing
from splitmirror.system import scsitape, sgio, st
from splitmirror.system.st import Flag, Op

# With these st refuses before it asks the drive: more than it, or the host adapter, takes at once.
_TOO_MUCH = (errno.EBUSY, errno.EINVAL, errno.EOVERFLOW)
# No set has a longer record, and st finds memory for all that is asked for.
_LARGEST_READ = 1 << 20


class Settings(PaceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`drives`: device files that do not rewind. `compression`: by the drive; left out, it is as
    the drive has it."""

    drives: list[str]
    changer: str | None = None
    compression: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.drives:
            raise ConfigError(
                "[medium] drives is empty", hint='Name the drive: drives = ["/dev/nst0"].'
            )
        for device in [*self.drives, self.changer or "/dev/"]:
            if not device.startswith("/dev/"):
                raise ConfigError(
                    f"[medium] names {device!r}, which is no device file",
                    hint="Name a file below /dev, such as /dev/nst0.",
                )
        for device in self.drives:
            if better := st.not_rewinding(device):
                raise ConfigError(
                    f"[medium] drives names {device}, which rewinds the tape when it is closed",
                    hint=f"Name {better} instead.",
                )


def open_medium(settings: Settings) -> Tape:
    """The first drive; it is not touched before `load`."""
    return Tape(settings.drives[0], settings)


def open_drives(settings: Settings) -> list[Tape]:
    """All drives, in the order of the settings."""
    return [Tape(device, settings) for device in settings.drives]


def open_changer(settings: Settings) -> Changer | None:
    """The changer of the library, open. Raises ChangerError, PrivilegeError."""
    return ScsiChanger(settings.changer) if settings.changer else None


class Tape:
    """A Medium in a tape drive."""

    def __init__(self, device: str, settings: Settings) -> None:
        self._device = device
        self._settings = settings
        self._standing: Standing | None = None
        self._writable = False
        self._density: int | None = None

    @property
    def name(self) -> str:
        return self._device

    @property
    def device(self) -> str:
        """Its serial number; "" when it is not known."""
        return sgio.serial_number(self._device)

    @property
    def in_use(self) -> bool:
        """Whether a volume is loaded, by us."""
        return self._standing is not None

    # --- loading

    def load(self, *, writable: bool) -> None:
        standing = self._standing
        if standing is not None and self._writable == writable and not standing.lost:
            standing.rewind()
            return
        self.unload()
        drive = tapedrive.open_drive(
            self._device, writable=writable, compression=self._settings.compression
        )
        self._standing = Standing(self._device, drive)
        self._writable, self._density = writable, drive.density

    def unload(self) -> None:
        """The cartridge stays in the drive: see `eject`."""
        standing, self._standing = self._standing, None
        if standing is not None:
            standing.close()

    def eject(self) -> None:
        """Unload, and let the cartridge out. None in the drive: harmless."""
        self.unload()
        tapedrive.eject(self._device)

    # --- writing

    def write(self, blocks: Sequence[Block]) -> bool:
        standing = self._ready_to_write()
        for block in blocks:
            self._check_size(memoryview(block).nbytes, standing.drive.limits)
        self._may_write(standing)
        standing.end = None
        with standing.knowing(f"a record was not written behind object {standing.position - 1}"):
            for block in blocks:
                self._put(standing, block)
            standing.early |= Flag.END_OF_MEDIUM in st.status(standing.drive.fd).flags
        standing.end = standing.position
        return standing.early

    def _put(self, standing: Standing, block: Block) -> None:
        """Write a record. ENOSPC comes from st itself, once behind each early warning, or from the
        drive, with the record on the tape or not: the drive is asked."""
        standing.pending = True
        for _ in range(2):
            try:
                os.write(standing.drive.fd, block)
                standing.position += 1
                return
            except OSError as error:
                if error.errno in _TOO_MUCH:
                    raise self._too_much(memoryview(block).nbytes, error) from error
                if error.errno != errno.ENOSPC:
                    raise
            standing.early = True
            at = standing.drive.positions.after_refused_write(standing.position)
            if at == standing.position + 1:
                standing.position = at
                return
            if at != standing.position:
                raise standing.elsewhere(at)
        standing.end = standing.position
        raise EndOfMedium(
            f"the volume in {self._device} is full",
            hint="Go on with another volume.",
            device=self._device,
        )

    def write_filemarks(self, count: int, *, sync: bool) -> bool:
        standing = self._ready_to_write()
        if count:
            self._may_write(standing)
            standing.end = None
            with standing.knowing("a filemark was not written"):
                op = Op.WRITE_FILEMARKS if sync else Op.WRITE_FILEMARKS_AT_ONCE
                st.operate(standing.drive.fd, op, count)
            standing.pending = False
            standing.position += count
            standing.end = standing.position
        elif sync:
            standing.sync()
        if sync:
            standing.confirm()
        return standing.early

    def _may_write(self, standing: Standing) -> None:
        """The drive stands where we believe, and what it writes over may be written over."""
        standing.confirm()
        if not standing.drive.write_once or standing.position == standing.end:
            return
        with standing.knowing("what follows on the write-once cartridge is not known"):
            kept = something_is_kept(standing.drive.fd)
            standing.go_back()
        if kept:
            raise MediumError(
                f"object {standing.position} in {self._device} is on a write-once cartridge, and "
                "stays",
                hint="Append at the end of the volume, or take a cartridge that can be written "
                "over.",
                device=self._device,
            )

    # --- reading and standing

    def read(self, buffer: memoryview) -> int | Mark:
        standing = self._ready()
        if standing.position == standing.end:
            return END_OF_DATA
        if fixed := standing.drive.limits.fixed:
            if len(buffer) < fixed:
                raise self._too_long(standing.position, len(buffer))
            buffer = buffer[:fixed]
        buffer = buffer[: min(standing.drive.limits.largest, _LARGEST_READ)]
        try:
            length = os.readv(standing.drive.fd, [buffer])
        except OSError as error:
            return self._not_read(standing, error, len(buffer))
        if not length:
            return self._met_mark(standing)
        standing.position += 1
        return length

    def _met_mark(self, standing: Standing) -> Mark:
        with standing.knowing("the drive does not tell what it met"):
            if Flag.END_OF_DATA in st.status(standing.drive.fd).flags:
                standing.end = standing.position
                return END_OF_DATA
        standing.position += 1
        standing.confirm()
        return FILEMARK

    def _not_read(self, standing: Standing, error: OSError, room: int) -> Mark:
        """st says EIO for the end of data and for damage alike, and has gone behind a record that
        is too long for the buffer."""
        position = standing.position
        if error.errno in _TOO_MUCH:
            raise self._too_much(room, error) from error
        with standing.knowing(f"object {position} was not read"):
            if error.errno not in (errno.EIO, errno.ENOMEM):
                raise error
            at = standing.drive.positions.tell()
            if at not in (None, position, position + 1):
                raise standing.elsewhere(at)
            end = error.errno == errno.EIO and at_end_of_data(standing.drive.fd)
            if error.errno == errno.EIO and not end and (at is None or position == 0):
                raise error  # a reset looks the same
            standing.go_back()
        if end:
            standing.end = position
            return END_OF_DATA
        if error.errno == errno.ENOMEM:
            raise self._too_long(position, room) from error
        raise MediumDamaged(
            f"object {position} of the volume in {self._device} cannot be read",
            hint="What lies behind it can be. Clean the drive, or try another one; if it is the "
            "tape, copy what is on it and retire it.",
            object=position,
            device=self._device,
        ) from error

    def locate(self, position: int) -> None:
        standing = self._ready()
        standing.settle()
        if position == standing.position:
            standing.confirm()
            return
        if position < 0:
            raise ValueError(f"object {position}")
        with standing.knowing(f"object {position} is not found"):
            stop = standing.drive.positions.locate(position, standing.position)
        if stop.position != position and not stop.short:
            raise standing.elsewhere(stop.position, position)
        standing.stopped(stop)
        if stop.short:
            raise MediumError(
                f"the volume in {self._device} has {stop.position} objects; there is no object "
                f"{position}",
                hint="The catalogue may be of another volume, or the volume was cut short.",
                position=position,
                device=self._device,
            )

    def space_filemarks(self, count: int) -> None:
        standing = self._ready()
        standing.settle()
        standing.confirm()
        if not count:
            return
        with standing.knowing("the tape was not spaced over filemarks"):
            stop = standing.drive.positions.space_filemarks(count, standing.position)
        standing.stopped(stop, forward=count > 0)
        if stop.short:
            raise MediumError(
                f"fewer than {abs(count)} filemarks in this direction on the volume in "
                f"{self._device}",
                hint="The volume ends here.",
                device=self._device,
            )

    def tell(self) -> int:
        standing = self._ready()
        standing.confirm()
        return standing.position

    # --- what the drive and the volume are

    @property
    def limits(self) -> Limits:
        return self._ready().drive.limits

    @property
    def capacity(self) -> Capacity:
        """To the MiB, as the drive tells it."""
        standing = self._ready()
        with standing.knowing("the drive does not tell its capacity"):
            total, left = scsitape.capacity(standing.drive.fd)
        return Capacity(total=total, left=left)

    @property
    def write_once(self) -> bool:
        """False where no volume is loaded."""
        return self._standing is not None and self._standing.drive.write_once

    @property
    def pace(self) -> Pace:
        return self._settings.pace(self._density)

    def alerts(self) -> list[str]:
        """What the drive says of itself and its cartridge, in words. Drives say each once."""
        if self._standing is None:
            return in_words(tapedrive.alerts(self._device))
        with self._standing.knowing("the drive does not tell how it is"):
            return in_words(scsitape.alerts(self._standing.drive.fd))

    # --- errors

    def _ready(self) -> Standing:
        if self._standing is None:
            raise MediumError(f"no volume is loaded in {self._device}", hint="Load it first.")
        self._standing.check()
        return self._standing

    def _ready_to_write(self) -> Standing:
        standing = self._ready()
        if not self._writable:
            raise MediumError(
                f"the volume in {self._device} is loaded read-only", hint="Load it writable."
            )
        return standing

    def _check_size(self, size: int, limits: Limits) -> None:
        if limits.smallest <= size <= limits.largest:
            return
        only = f"{limits.fixed} bytes only" if limits.fixed else f"up to {limits.largest} bytes"
        raise MediumError(
            f"a record of {size} bytes cannot be written: {self._device} takes {only}",
            hint="Set [backup] block_size to what the drive takes.",
            device=self._device,
        )

    def _too_much(self, size: int, error: OSError) -> MediumError:
        return MediumError(
            f"{size} bytes at once do not go through the host adapter of {self._device}: "
            f"{error.strerror}",
            hint="Set [backup] block_size to less; 256 KiB goes through most.",
            device=self._device,
        )

    def _too_long(self, position: int, room: int) -> MediumError:
        return MediumError(
            f"object {position} of the volume in {self._device} is longer than the buffer of "
            f"{room} bytes",
            hint="Read with the block size that the volume was written with.",
            device=self._device,
        )
