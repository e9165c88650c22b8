"""A tape drive before and after a tape is used: what is in it, opening it, and letting go.

Sources: st(4) for what open(2) says; `system.st`, `system.scsitape`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, NoReturn, TypeVar

from splitmirror.errors import (
    Busy,
    ConfigError,
    MediumError,
    NoSuchVolume,
    PrivilegeError,
    WrongMedium,
)
from splitmirror.media import Limits
from splitmirror.media.tapeposition import Positions, positions_of
from splitmirror.system import briefly, scsitape, st
from splitmirror.system.sgio import CommandFailed, Sense
from splitmirror.system.st import Flag, Op, Option

_LARGEST: Final = (1 << 24) - 1  # WRITE's length has 24 bits
_ATTENTIONS: Final = 8  # more than a drive has to tell at once
_GONE: Final = (errno.ENOENT, errno.ENXIO, errno.ENODEV)
RIGHTS: Final = (errno.EACCES, errno.EPERM)

# The block that failed is the one that is told of: nothing is kept back. No filemark but ours.
_ON: Final = (
    Option.FAST_END_OF_DATA | Option.BACKWARD_RECORDS | Option.LOGICAL_BLOCKS | Option.LOCK_DOOR
)
_OFF: Final = (
    Option.BUFFER_WRITES
    | Option.ASYNC_WRITES
    | Option.READ_AHEAD
    | Option.TWO_FILEMARKS
    | Option.SYSTEM_V
    | Option.NO_WAIT
    | Option.NO_WAIT_AT_FILEMARKS
)

_Told = TypeVar("_Told")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """An open drive with a tape that stands at its beginning. `density` is SSC's code."""

    fd: int
    limits: Limits
    positions: Positions
    write_once: bool
    density: int


def open_drive(device: str, *, writable: bool, compression: bool | None) -> Drive:
    """Make the tape ready. `compression`: by the drive; None leaves it as it is.

    Raises NoSuchVolume (no cartridge), WrongMedium (write-protected, a cleaning cartridge), Busy
    (in use here, or reserved by another host), PrivilegeError, ConfigError, MediumError.
    """
    _look(device, writable)
    fd = _open(device, os.O_RDWR if writable else os.O_RDONLY)
    try:
        with _translated(device):
            return _set_up(device, fd, compression)
    except BaseException:
        os.close(fd)
        raise


def eject(device: str) -> None:
    """Let the cartridge out of a drive that is not open. None in it: harmless."""
    with _asking(device) as fd, _translated(device):
        if Flag.DOOR_OPEN not in st.status(fd).flags:
            st.operate(fd, Op.EJECT)


def alerts(device: str) -> list[int]:
    """TapeAlert's flags that are set in a drive that is not open."""
    with _asking(device) as fd, _translated(device):
        return _attended(scsitape.alerts, fd)


def what_became(fd: int, error: OSError | CommandFailed | None) -> str:
    """What became of a drive that failed, to be put behind what did; as far as it can be told."""
    failed: Exception | None = error
    if isinstance(error, OSError):
        try:
            scsitape.ready(fd)
        except (OSError, CommandFailed) as told:
            failed = told
    return f": {_in_words(failed)}" if failed else ""


def _in_words(error: Exception) -> str:
    if scsitape.is_attention(error):
        return f"it was reset, or its cartridge was changed ({error})"
    if isinstance(error, CommandFailed) and scsitape.is_empty(error.sense):
        return "its cartridge was taken out"
    return str(error.strerror) if isinstance(error, OSError) else str(error)


def _look(device: str, writable: bool) -> None:
    """Refuse what opening it would wait long for, or not tell the reason of."""
    with _asking(device) as fd, _translated(device):
        if scsitape.is_empty(_not_ready(device, fd)):  # it may lie in the drive's mouth
            with suppress(OSError):
                st.operate(fd, Op.LOAD)
            if scsitape.is_empty(_not_ready(device, fd)):
                raise _empty(device)
        if writable and Flag.WRITE_PROTECTED in st.status(fd).flags:
            raise _write_protected(device)


def _not_ready(device: str, fd: int) -> Sense | None:
    """Why the drive is not ready; None: it is. Raises what is not worth waiting for."""
    try:
        _attended(scsitape.ready, fd)
        return None
    except CommandFailed as error:
        if error.reserved:
            raise Busy(
                f"another host has reserved the tape drive {device}",
                hint="End what uses it there; `sg_persist --in -r` on the drive tells who it is.",
                device=device,
            ) from error
        if scsitape.is_cleaning(error.sense):
            raise WrongMedium(
                f"a cleaning cartridge is in the tape drive {device}",
                hint="Take it out when the drive has done, and load a volume.",
                device=device,
            ) from error
        return error.sense


def _set_up(device: str, fd: int, compression: bool | None) -> Drive:
    st.set_options(fd, _ON, _OFF)
    with suppress(OSError):  # st tries no second time after it failed to unlock it once
        st.operate(fd, Op.UNLOCK)
    st.operate(fd, Op.REWIND)
    limits = _limits(device, fd)
    if compression is not None:
        _compress(device, fd, compression)
    return Drive(
        fd=fd,
        limits=limits,
        positions=positions_of(fd),
        write_once=scsitape.write_once(fd),
        density=st.status(fd).density,
    )


def _limits(device: str, fd: int) -> Limits:
    """Variable blocks where the drive has them. What the host adapter takes counts, too."""
    smallest, largest = scsitape.block_limits(fd) or (1, _LARGEST)
    if smallest != largest:
        with suppress(OSError):
            st.operate(fd, Op.SET_BLOCK_SIZE, 0)
            most = min(largest or _LARGEST, st.transfer_limit(device) or _LARGEST)
            return Limits(smallest=max(smallest, 1), largest=most)
        largest = st.status(fd).block_size
    st.operate(fd, Op.SET_BLOCK_SIZE, largest)
    return Limits(smallest=largest, largest=largest, fixed=largest)


def _compress(device: str, fd: int, on: bool) -> None:
    try:
        st.operate(fd, Op.SET_COMPRESSION, int(on))
    except OSError as error:
        raise ConfigError(
            f"the tape drive {device} does not let its compression be switched: {error.strerror}",
            hint="Leave `compression` out of [medium].",
        ) from error


# --- opening


@contextmanager
def _asking(device: str) -> Iterator[int]:
    """The drive, whether there is a cartridge in it or not."""
    fd = _open(device, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def _open(device: str, flags: int) -> int:
    try:
        busy = frozenset({errno.EBUSY})
        fd = briefly.tried(lambda: os.open(device, flags | os.O_CLOEXEC), busy)
    except OSError as error:
        _not_opened(device, error)
    if st.is_tape(fd) and not st.rewinds(fd):
        return fd
    os.close(fd)
    raise ConfigError(
        f"{device} is not a tape drive that leaves the tape where it is",
        hint="Name the device file that does not rewind: /dev/nst0, or one of "
        "/dev/tape/by-id/ that ends with -nst.",
    )


def _attended(ask: Callable[[int], _Told], fd: int) -> _Told:
    """Ask before anything is known of the tape: what the drive tells of before does not matter."""
    for _ in range(_ATTENTIONS):
        try:
            return ask(fd)
        except CommandFailed as error:
            if not scsitape.is_attention(error):
                raise
    return ask(fd)


@contextmanager
def _translated(device: str) -> Iterator[None]:
    try:
        yield
    except (OSError, CommandFailed) as error:
        if isinstance(error, OSError) and error.errno in RIGHTS:
            raise no_right(device) from error
        raise _failed(device, _in_words(error)) from error


def _not_opened(device: str, error: OSError) -> NoReturn:
    """What open(2) says in its numbers."""
    if error.errno == errno.EBUSY:
        raise Busy(
            f"the tape drive {device} is in use",
            hint="Wait for the run that writes or reads it, or end it (`fuser -v` tells who).",
            device=device,
        ) from error
    if error.errno == errno.EROFS:
        raise _write_protected(device) from error
    if error.errno == errno.ENOMEDIUM:
        raise _empty(device) from error
    if error.errno in RIGHTS:
        raise no_right(device) from error
    if error.errno in _GONE:
        raise MediumError(
            f"there is no tape drive {device}: {error.strerror}",
            hint="Look for it with `lsscsi -g`; check its power and its cable, and that the module "
            "st is loaded.",
            device=device,
        ) from error
    if error.errno == errno.EIO:
        with suppress(OSError):
            _look_past_st(device)
    raise _failed(device, str(error.strerror)) from error


def _look_past_st(device: str) -> None:
    """st opens no drive that does not answer well, and does not say why."""
    fd = os.open(st.generic_device(device), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _not_ready(device, fd)
    finally:
        os.close(fd)


def _empty(device: str) -> NoSuchVolume:
    return NoSuchVolume(
        f"no cartridge is loaded in the tape drive {device}", hint="Load one.", device=device
    )


def _write_protected(device: str) -> WrongMedium:
    return WrongMedium(
        f"the cartridge in the tape drive {device} is write-protected",
        hint="Slide the tab on the cartridge if it is to be written, or load another one.",
        device=device,
    )


def no_right(device: str) -> PrivilegeError:
    return PrivilegeError(
        f"the tape drive {device} may not be used by this user",
        hint="Run this as root: what a drive says of itself is told to root alone.",
    )


def _failed(device: str, why: str) -> MediumError:
    return MediumError(
        f"the tape drive {device} does not get ready: {why}",
        hint="Look into the kernel's log (dmesg) and at the drive's display; eject the cartridge, "
        "load it again, or try another one.",
        device=device,
    )
