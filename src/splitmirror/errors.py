"""Every error a user can meet, with its exit code and what to do next.

One base, a family per seam. The exit codes are permanent: scripts and monitoring rely on them,
so a code is never given to another error (docs/errors.md lists them). Facts travel as attributes;
`hint` is one imperative sentence or two for the person on call.
"""

from __future__ import annotations

from typing import ClassVar


class SplitmirrorError(Exception):
    """What went wrong (`str(error)`), what to do about it (`error.hint`), how to exit."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", **facts: object) -> None:
        super().__init__(message)
        self.hint = hint
        self.facts = facts


# --- this host and its configuration: 10-19


class ConfigError(SplitmirrorError):
    """A configuration file that cannot be used: an unknown key, a wrong value, a missing part."""

    exit_code = 10


class PrivilegeError(SplitmirrorError):
    """The operation needs a right that this process does not have (mostly: root)."""

    exit_code = 11


class MissingProgram(SplitmirrorError):
    """A program of the system that is needed is not installed."""

    exit_code = 12


class UnsupportedStack(SplitmirrorError):
    """Between a filesystem and the mirror lies something that is not a known linear mapping."""

    exit_code = 13


class NotOnMirror(SplitmirrorError):
    """A file of the set is not on a mirrored filesystem."""

    exit_code = 14


class WouldFreeze(SplitmirrorError):
    """Something the backup itself must write lies on a filesystem that it would freeze."""

    exit_code = 15


class NoRoom(SplitmirrorError):
    """Too little room for what the run will write."""

    exit_code = 16


class ProgramFailed(SplitmirrorError):
    """A program of the system failed or did not answer in time."""

    exit_code = 17


class DeviceFailed(SplitmirrorError):
    """The kernel refused an operation on a block device or a filesystem."""

    exit_code = 18


# --- runs: 20-29


class Busy(SplitmirrorError):
    """Another run holds this source, mirror or volume."""

    exit_code = 20


class DeadlineExceeded(SplitmirrorError):
    """A phase took longer than it may."""

    exit_code = 21


class HoldBroken(SplitmirrorError):
    """The quiesce or the freeze did not last until it was confirmed: the split is worthless."""

    exit_code = 22


class GuardLost(SplitmirrorError):
    """The guard could not be started or died; without it nothing is quiesced."""

    exit_code = 23


class NeedsRecovery(SplitmirrorError):
    """An earlier run was cut off; `splitmirror recover` comes first."""

    exit_code = 24


class JournalDamaged(SplitmirrorError):
    """A journal cannot be read beyond a damaged record that is not its torn tail."""

    exit_code = 25


class FreezeFailed(SplitmirrorError):
    """A filesystem could not be frozen or thawed."""

    exit_code = 26


# --- mirrors: 30-39


class MirrorError(SplitmirrorError):
    """The mirror engine refused or failed."""

    exit_code = 30


class MirrorNotReady(MirrorError):
    """The mirror is not attached, not level, or its daemon died."""

    exit_code = 31


class LegError(MirrorError):
    """The split leg is incomplete, vanished, or cannot be read."""

    exit_code = 32


class UnsafeMirror(MirrorError):
    """Going on could corrupt data: a failed self-probe, an unsafe mount option, a holed leg."""

    exit_code = 33


# --- databases: 40-49


class DatabaseError(SplitmirrorError):
    """The database refused or failed."""

    exit_code = 40


class DatabaseUnreachable(DatabaseError):
    """No connection: a bad DSN, a server that is down, a file that is not there."""

    exit_code = 41


class DatabaseTooOld(DatabaseError):
    """The server's version is below what is supported."""

    exit_code = 42


class DatabaseRefused(DatabaseError):
    """The role lacks the right to back up."""

    exit_code = 43


class DatabaseUnsuitable(DatabaseError):
    """A setting, a pooler or a standby makes this mode impossible."""

    exit_code = 44


class CopyFailed(DatabaseError):
    """A restored copy does not start, or its checks failed."""

    exit_code = 45


# --- media: 50-59


class MediumError(SplitmirrorError):
    """The medium or its drive failed."""

    exit_code = 50


class EndOfMedium(MediumError):
    """No more room on this volume: the block was not written."""

    exit_code = 51


class WrongMedium(MediumError):
    """The volume is not ours, or not the one that is needed."""

    exit_code = 52


class NoSuchVolume(MediumError):
    """The volume is not there; one that is written to may be made."""

    exit_code = 54


class VolumeKept(MediumError):
    """The volume may not be written to: a set on it has not expired, or it is held, retired, or
    write-once."""

    exit_code = 56


class MediumDamaged(MediumError):
    """What was read back is not what the format allows."""

    exit_code = 53


class DriveLost(MediumError):
    """It is not known any more where the drive stands: nothing more is written. `splitmirror
    recover` goes on with the run."""

    exit_code = 58


class ChangerError(SplitmirrorError):
    """The changer of a tape library refused a move or failed."""

    exit_code = 55


class ChangerNotReady(ChangerError):
    """The changer cannot be used right now: its door is open, or it is out of service."""

    exit_code = 57


# --- catalogue and restore: 60-69


class CatalogError(SplitmirrorError):
    """The catalogue cannot be opened or is damaged; it can be rebuilt from the media."""

    exit_code = 60


class NoSuchSet(SplitmirrorError):
    """No backup set of that name."""

    exit_code = 61


class NoSuchFile(SplitmirrorError):
    """The set holds no file that matches."""

    exit_code = 62


class TargetNotEmpty(SplitmirrorError):
    """The restore target already holds something."""

    exit_code = 63


class OutsideTarget(SplitmirrorError):
    """The medium names a path outside the restore target."""

    exit_code = 64


class VerifyFailed(SplitmirrorError):
    """What was read from the medium or restored does not have the recorded hash."""

    exit_code = 65
