"""`make demo`: here if this host can, else in the guest, on LVM, with the same output.

A plain container often has root but no loop devices, FUSE or right to mount. `--in-guest` asks for
the guest anyhow; everything else is an option of `splitmirror demo`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from tests.vm import image as images
from tests.vm.guest import Guest
from tests.vm.image import PROJECT
from tests.vm.machine import GIB, Disk
from tests.vm.shell import pass_on

IN_GUEST = "--in-guest"
_DISK = Disk(name="work", size=6 * GIB)
_READY = (
    f"modprobe loop; mkfs.ext4 -q {_DISK.path}; mkdir -p /work; mount {_DISK.path} /work; "
    "chmod 755 /work"
)
_SMALL = "24M"  # emulation is some ten times slower
_DEMO_S = 1200.0
_TRY_MOUNT = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]


def lacks() -> list[str]:
    """What the demo needs of this host and does not get."""
    found = [
        what
        for what, path in (("loop devices", "/dev/loop-control"), ("FUSE", "/dev/fuse"))
        if not os.access(path, os.R_OK | os.W_OK)
    ]
    if subprocess.run(_TRY_MOUNT, capture_output=True, check=False).returncode:
        found.append("the right to mount")
    return found


def in_guest(words: Sequence[str], why: str) -> int:
    """The demo in the guest; its exit status."""
    print(f"demo: {why}: it runs in a guest, Debian's kernel emulated", file=sys.stderr)
    subprocess.run([PROJECT / "scripts" / "setup", "vm"], check=True)
    if missing := images.missing():
        print(f"demo: the guest needs {', '.join(missing)}", file=sys.stderr)
        return 1
    image = images.cached() or images.need(lambda line: print(line, file=sys.stderr))
    argv = ["splitmirror", "demo", "--mirror", "lvm", "--directory", "/work"]
    if not any(word.startswith("--size") for word in words):
        argv += ["--size", _SMALL]
    with Guest(image, [_DISK]) as guest:
        guest.shell(_READY)
        told = guest.run([*argv, *words], timeout_s=_DEMO_S, check=False, hear=pass_on)
    return told.status


def main(words: Sequence[str]) -> int:
    asked = IN_GUEST in words
    words = [word for word in words if word != IN_GUEST]
    missing = [] if asked or os.geteuid() else lacks()
    if asked:
        return in_guest(words, "as asked")
    if missing:
        return in_guest(words, f"this host lacks {', '.join(missing)}")
    here = [str(PROJECT / ".venv" / "bin" / "splitmirror"), "demo", *words]
    return subprocess.run(here, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # the demo has told, and cleaned up
        sys.exit(130)
