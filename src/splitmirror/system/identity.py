"""Acting as another user for a moment, on the calling thread alone.

PostgreSQL's `peer` authentication asks the kernel who connects (SO_PEERCRED, unix(7)): the user at
the time of connect(2). The backup runs as root, which no server knows.
"""

from __future__ import annotations

import os
import platform
import pwd
from collections.abc import Iterator
from contextlib import contextmanager

from splitmirror.errors import ConfigError, PrivilegeError
from splitmirror.system import libc

# The bare system call changes one thread; the C library's function would change all (nptl(7)).
_SETRESUID = {"x86_64": 117, "aarch64": 147, "riscv64": 147}


@contextmanager
def acting_as(user: str) -> Iterator[None]:
    """Run the block with the effective uid of `user`; an empty name changes nothing.

    Other threads stay who they are. Raises ConfigError when there is no such user, PrivilegeError
    when this process may not become it.
    """
    if not user:
        yield
        return
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ConfigError(f"no such user: {user}", hint="Name a user of this host.") from None
    own = os.geteuid()
    _set_effective(uid, user)
    try:
        yield
    finally:
        _set_effective(own, "ourselves")


def _set_effective(uid: int, who: str) -> None:
    try:
        libc.syscall(_SETRESUID[platform.machine()], -1, uid, -1)
    except (OSError, KeyError) as error:
        raise PrivilegeError(
            f"cannot act as {who}: {error}", hint="Run as root, or log in with a password."
        ) from error
