"""A process's own view of the mounts, the network and the System V objects.

Sources: unshare(2), mount(2), mount_namespaces(7), network_namespaces(7), ipc_namespaces(7).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

CLONE_NEWNS = 0x00020000  # linux/sched.h
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1  # linux/mount.h
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000

_SIOCSIFFLAGS = 0x8914  # linux/sockios.h
_IFF_UP = 0x1
_IFREQ = struct.Struct("16sh14x")

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Give the calling process namespaces of its own. Raises OSError, without CAP_SYS_ADMIN too."""
    if _libc.unshare(ctypes.c_int(flags)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "unshare")


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """mount(2). Raises OSError that names the target."""
    words = [os.fsencode(word) for word in (source, target, fstype)]
    if _libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(data)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def make_mounts_slaves() -> None:
    """Let no mount made here be seen outside. What is unmounted outside goes here too, for else a
    copy here would keep its disk busy (mount_namespaces(7), MS_SLAVE)."""
    mount("none", "/", "none", MS_REC | MS_SLAVE)


def bind(fd: int, target: str) -> None:
    """Show what the O_PATH descriptor `fd` names, and what is mounted below it, at `target`."""
    mount(f"/proc/self/fd/{fd}", target, "none", MS_BIND | MS_REC)


def cover(directory: str) -> None:
    """Put an empty directory over `directory`; writable until `seal`."""
    mount("tmpfs", directory, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755,size=64k")


def seal(directory: str) -> None:
    """Make what `cover` put there read-only. What is mounted below it stays as it is."""
    flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
    mount("none", directory, "none", flags)


def loopback_up() -> None:
    """Bring up `lo` of a new network namespace: some servers talk to themselves through it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", _IFF_UP))
