"""What is in the guest's image: Debian packages, the project's Python packages, a few files.

Everything that decides what an image holds stands here and in `init.sh`, and nothing else does:
the cache's key is made of these two files. Sources: mmdebstrap(1), mke2fs(8), lvm.conf(5).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitmirror.system import programs

SUITE = "bookworm"
POSTGRESQL = "15"  # the suite's
PYTHON = "3.11"  # the suite's
KERNEL = "linux-image-cloud-amd64"  # small, with virtio, device-mapper, md, SCSI targets and tape

PACKAGES = (
    *("busybox-static", "mount", "udev", "kmod", "procps", "util-linux", "iproute2"),
    *("lvm2", "dmsetup", "mdadm", "thin-provisioning-tools"),
    *("e2fsprogs", "xfsprogs", "xfsdump", "btrfs-progs", "fuse3"),
    *("tgt", "open-iscsi", "mt-st", "mtx", "sg3-utils", "lsscsi"),
    *("acl", "attr", "tar", "libarchive-tools", "zstd"),
    *("python3", f"postgresql-{POSTGRESQL}"),  # contrib is part of the server's package
)

# Of no use in the guest: documents, and a compiler that PostgreSQL's just-in-time code would need.
NOT_UNPACKED = (
    *("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/i18n/*"),
    *("/usr/lib/x86_64-linux-gnu/libLLVM*", "/usr/lib/x86_64-linux-gnu/libz3*"),
    *("/usr/lib/postgresql/*/lib/bitcode/*", "/usr/lib/udev/hwdb.d/*"),
)
MODULES_LEFT_OUT = ("kernel/drivers/net", "kernel/drivers/infiniband", "kernel/net")
MODULES_TO_REACH_THE_ROOT = ("virtio_pci", "virtio_blk")

CLUSTER = "/var/lib/postgresql/baked"  # initdb takes 13 s under emulation: it is done here, once
# A third of its files is a database that nobody reads.
NO_TEMPLATE0 = (
    "UPDATE pg_database SET datistemplate = false WHERE datname = $$template0$$\\n"
    "DROP DATABASE template0\\n"
)
# Small, and without what a machine of two emulated processors has no use for.
CLUSTER_SETTINGS = """
listen_addresses = ''
unix_socket_directories = '/run/postgresql'
shared_buffers = 32MB
min_wal_size = 8MB
max_wal_size = 128MB
jit = off
"""

# Debian's own file says nothing but defaults. Without dmeventd there is nobody to monitor.
LVM_CONF = "activation {\n    monitoring = 0\n}\n"

# Debian's rule looks for volume groups to activate at each change of a loop device; a group on loop
# devices is activated by who makes it.
UDEV_RULES = """\
KERNEL=="loop[0-9]*", ENV{ID_FS_TYPE}=="LVM2_member", ENV{LVM_LOOP_PV_ACTIVATED}="1"
"""

# As an editable installation has it; the project is unpacked to /project at each boot.
PROJECT = "/project"
COMMAND = """#!/usr/bin/python3
from splitmirror.cli import main

main()
"""

_PACKAGES_DEADLINE_S = 1800  # a slow network; 40 s where the mirror is near
_STEP_DEADLINE_S = 600
_ROOM = 2 << 30  # bytes that the guest may write to its root
_INIT = Path(__file__).with_name("init.sh")

# Wheels for the suite's Python, whatever runs here; the newest glibc that the suite has is 2.36.
_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (36, 34, 31, 28, 27, 24, 17)),
    *("manylinux2014_x86_64", "any"),
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a build needs beside this file: pip requirements with their pins, and the pip to use."""

    requirements: tuple[str, ...]
    pins: tuple[str, ...]
    python: str


def build(into: Path, inputs: Inputs, say: Say) -> None:
    """Make `vmlinuz`, `initrd.cpio` and `root.img` in an empty directory. Needs root and a network.

    Takes about 80 s on two processors. Raises ProgramFailed, MissingProgram.
    """
    root = into / "root"
    say(f"Debian packages of {SUITE}")
    _bootstrap(root)
    say("the kernel")
    _kernel(into, root)
    say("Python packages")
    _python_packages(into, root, inputs)
    say("files")
    _files(root)
    say("the first root")
    _initrd(into, root)
    say("the root disk")
    _root_disk(into / "root.img", root)
    remove(root)


def remove(directory: Path) -> None:
    """Remove a tree, and nothing that may be mounted in it."""
    programs.run(["rm", "-rf", "--one-file-system", str(directory)], timeout_s=_STEP_DEADLINE_S)


def _bootstrap(root: Path) -> None:
    server = f"/usr/lib/postgresql/{POSTGRESQL}/bin"
    initdb = f"{server}/initdb --no-sync --data-checksums --wal-segsize=1 --auth=trust"
    as_postgres = "setpriv --reuid=postgres --regid=postgres --clear-groups env LC_ALL=C.UTF-8"
    alone = f'chroot "$1" {as_postgres} {server}/postgres --single -D {CLUSTER} template1'
    no_cluster = 'mkdir -p "$1/etc/postgresql-common" && echo "create_main_cluster = false" >'
    # As mmdebstrap's own option it would be a Python program's work for each of a hundred archives.
    excluded = "".join(f"path-exclude={pattern}\\n" for pattern in NOT_UNPACKED)
    hooks = (
        f"""--extract-hook=printf '{excluded}' > "$1/etc/dpkg/dpkg.cfg.d/guest\"""",
        f'--essential-hook={no_cluster} "$1/etc/postgresql-common/createcluster.conf"',
        f'--customize-hook=chroot "$1" {as_postgres} {initdb} -D {CLUSTER}',
        f"--customize-hook=printf '{NO_TEMPLATE0}' | {alone}",
        # Downloaded, not installed: nothing in the image makes an initramfs.
        f'--customize-hook=chroot "$1" apt-get install -qq -y --download-only {KERNEL}',
    )
    programs.run(
        [
            # It ends with us, and what it mounts in the root is its own and ends with it.
            *("setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "mmdebstrap", "--quiet"),
            *("--mode=root", "--variant=apt", "--format=directory"),
            *("--skip=cleanup/apt", "--skip=cleanup/reproducible"),
            *('--aptopt=APT::Install-Recommends "0"', '--aptopt=Acquire::Languages "none"'),
            "--dpkgopt=force-unsafe-io",
            *hooks,
            f"--include={','.join(PACKAGES)}",
            *(SUITE, str(root)),
        ],
        timeout_s=_PACKAGES_DEADLINE_S,
    )


def _kernel(into: Path, root: Path) -> None:
    archives = root / "var/cache/apt/archives"
    (package,) = archives.glob("linux-image-6*.deb")
    unpacked = into / "kernel"
    _run("dpkg-deb", "-x", str(package), str(unpacked))
    (modules,) = (unpacked / "lib/modules").iterdir()
    for left_out in MODULES_LEFT_OUT:
        remove(modules / left_out)
    shutil.move(unpacked / "boot" / f"vmlinuz-{modules.name}", into / "vmlinuz")
    (root / "usr/lib/modules").mkdir(exist_ok=True)
    shutil.move(modules, root / "usr/lib/modules")
    _inside(root, "depmod", modules.name)
    for directory in (unpacked, archives, root / "var/lib/apt/lists", *_unwanted(root)):
        remove(directory)


def _unwanted(root: Path) -> Iterator[Path]:
    """What the packages that came first brought before their contents were chosen."""
    for pattern in NOT_UNPACKED:
        yield from root.glob(pattern.lstrip("/"))


def _python_packages(into: Path, root: Path, inputs: Inputs) -> None:
    where = f"usr/local/lib/python{PYTHON}/dist-packages"
    pins = into / "pins.txt"
    pins.write_text("\n".join(inputs.pins))
    _run(
        *(inputs.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-compile", "--only-binary=:all:", "--implementation=cp"),
        *(f"--python-version={PYTHON}", *(f"--platform={name}" for name in _PLATFORMS)),
        *(f"--constraint={pins}", f"--target={root / where}", *inputs.requirements),
    )
    (root / where / "project.pth").write_text(f"{PROJECT}/src\n")
    _inside(root, f"python{PYTHON}", "-m", "compileall", "-q", f"/{where}")
    pins.unlink()


def _files(root: Path) -> None:
    (root / PROJECT.lstrip("/")).mkdir()
    _write(root / "sbin/guest-init", _INIT.read_text(), executable=True)
    _write(root / "usr/local/bin/splitmirror", COMMAND, executable=True)
    _write(root / "etc/lvm/lvm.conf", LVM_CONF)
    _write(root / "etc/udev/rules.d/68-loop.rules", UDEV_RULES)
    _write(root / "etc/hosts", "127.0.0.1 localhost guest\n")
    with (root / CLUSTER.lstrip("/") / "postgresql.conf").open("a") as settings:
        settings.write(CLUSTER_SETTINGS)


def _initrd(into: Path, root: Path) -> None:
    """A busybox that loads the modules which reach the root disk, and goes there."""
    first = into / "first"
    for name in ("bin", "dev", "new", "modules"):
        (first / name).mkdir(parents=True)
    shutil.copy(root / "usr/bin/busybox", first / "bin/busybox")
    names = []
    for module in _needed_modules(root):
        shutil.copy(root / str(module).lstrip("/"), first / "modules")
        names.append(module.name)
    script = f"""#!/bin/busybox sh
for module in {" ".join(names)}; do /bin/busybox insmod /modules/$module; done
/bin/busybox mount -t devtmpfs dev /dev
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 500 ]; do
    /bin/busybox usleep 20000
    tries=$((tries+1))
done
/bin/busybox mount -t ext4 -o rw,noatime,noinit_itable /dev/vda /new
exec /bin/busybox switch_root /new /sbin/guest-init
"""
    _write(first / "init", script, executable=True)
    _run("bsdtar", "-c", "--format=newc", "-f", str(into / "initrd.cpio"), "-C", str(first), ".")
    remove(first)


def _needed_modules(root: Path) -> Sequence[Path]:
    (modules,) = (root / "usr/lib/modules").iterdir()
    words = ("modprobe", "-S", modules.name, "--show-depends", "-a", *MODULES_TO_REACH_THE_ROOT)
    lines = [line.split() for line in _inside(root, *words).splitlines()]
    # Each module once, in the order in which they are to be loaded.
    return list(dict.fromkeys(Path(line[1]) for line in lines if line and line[0] == "insmod"))


def _root_disk(image: Path, root: Path) -> None:
    used = int(_run("du", "-s", "--block-size=1", str(root)).split()[0])
    with image.open("wb") as made:
        made.truncate(used * 11 // 10 + _ROOM)
    lazy = "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", lazy, "-d", str(root), str(image))


def _write(path: Path, text: str, *, executable: bool = False) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o755 if executable else 0o644)


def _inside(root: Path, *argv: str) -> str:
    return _run("chroot", str(root), *argv)


def _run(*argv: str) -> str:
    return programs.run(argv, timeout_s=_STEP_DEADLINE_S)
