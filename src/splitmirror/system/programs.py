"""Running programs of the system: argument lists, never a shell, a timeout on each."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from splitmirror.errors import ConfigError, MissingProgram, ProgramFailed

# Where a program is when PATH has no sbin (a user's, cron's), or Debian puts it aside.
_MORE_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
_STDERR_TAIL = 2000  # characters of a failed program's last words

# The Debian package of each program that splitmirror may run.
_PACKAGE = {
    "bsdtar": "libarchive-tools",
    "dmsetup": "dmsetup",
    "e2fsck": "e2fsprogs",
    "e4defrag": "e2fsprogs",
    "fsfreeze": "util-linux",
    "fusermount3": "fuse3",
    "initdb": "postgresql",
    "losetup": "mount",
    "lvconvert": "lvm2",
    "lvs": "lvm2",
    "mdadm": "mdadm",
    "mke2fs": "e2fsprogs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mount": "mount",
    "mt": "mt-st",
    "nbdfuse": "libnbd-bin",
    "pg_amcheck": "postgresql",
    "pg_ctl": "postgresql",
    "postgres": "postgresql",
    "qemu-img": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "setpriv": "util-linux",
    "tar": "tar",
    "umount": "mount",
    "unshare": "util-linux",
    "xfs_fsr": "xfsdump",
    "xfs_io": "xfsprogs",
    "zstd": "zstd",
}


def find(program: str) -> str | None:
    """The path of a program on PATH or in the system's directories; None when it is missing."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_MORE_PATH}")


def need(program: str) -> str:
    """The path of a program. Raises MissingProgram with the package that has it."""
    path = find(program)
    if path is None:
        package = _PACKAGE.get(Path(program).name)
        hint = f"apt install {package}" if package else "Install it, or put it on PATH."
        raise MissingProgram(f"{program} is not installed", hint=hint, program=program)
    return path


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    input: bytes | None = None,
    user: str | int | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end and give its standard output.

    In the C locale, from "/"; `env` adds to ours. As another `user` with that user's groups only.
    A program that is not done in `timeout_s` is killed. Raises MissingProgram, ConfigError for
    an unknown user, and ProgramFailed with `status` (None: out of time) and what
    it said last.
    """
    who = _identity(user)
    try:
        done = subprocess.run(
            [need(argv[0]), *argv[1:]],
            input=b"" if input is None else input,
            capture_output=True,
            timeout=timeout_s,
            cwd="/",
            env=_environment(env),
            check=False,
            user=who.uid,
            group=who.gid,
            extra_groups=who.groups,
        )
    except subprocess.TimeoutExpired as error:
        raise _failed(argv, None, error.stderr or b"", f"no answer in {timeout_s:g} s") from None
    if done.returncode:
        raise _failed(argv, done.returncode, done.stderr or done.stdout, _status(done.returncode))
    return os.fsdecode(done.stdout)


def start(
    argv: Sequence[str],
    *,
    log: Path | None = None,
    user: str | int | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a program that goes on by itself: a session of its own, no terminal, every descriptor
    closed but `pass_fds`, its words appended to `log`. Raises MissingProgram, ProgramFailed."""
    path = need(argv[0])
    who = _identity(user)
    with contextlib.ExitStack() as stack:
        words = subprocess.DEVNULL if log is None else stack.enter_context(log.open("ab")).fileno()
        try:
            return subprocess.Popen(
                [path, *argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                cwd="/",
                env=_environment(env),
                start_new_session=True,
                pass_fds=pass_fds,
                user=who.uid,
                group=who.gid,
                extra_groups=who.groups,
            )
        except OSError as error:
            raise _failed(argv, None, b"", f"cannot be started: {error.strerror}") from None


class _Identity(NamedTuple):
    uid: int | None = None
    gid: int | None = None
    groups: list[int] | None = None


def _identity(user: str | int | None) -> _Identity:
    if user is None:
        return _Identity()

    try:
        entry = pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"no such user: {user}", hint="Name a user of this host.") from None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return _Identity(entry.pw_uid, entry.pw_gid, groups)


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", **(more or {})}


def _status(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit status {code}"


def _failed(argv: Sequence[str], status: int | None, stderr: bytes, how: str) -> ProgramFailed:
    said = os.fsdecode(stderr).strip()[-_STDERR_TAIL:]
    return ProgramFailed(
        f"{Path(argv[0]).name}: {how}" + (f": {said}" if said else ""),
        hint=f"It was run as: {' '.join(argv)}",
        program=argv[0],
        status=status,
        stderr=said,
    )
