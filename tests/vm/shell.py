"""Look into a guest by hand. `python -m tests.vm.shell COMMAND`, from the project's directory:

    once --disk a=300M --disk b=300M 'lsblk'     boot, run a script, gone
    up --disk a=300M --disk b=300M               boot one that stays
    run 'pvcreate /dev/disk/by-id/virtio-a'      run a script in it, with the project as it is now
    run < script.sh                              the same
    prompt                                       line after line, the directory is kept
    test test_platform.py -k baked               scenarios of tests/vm/inside, by the guest's pytest
    put FILE PATH, get PATH FILE                 files in and out
    reset                                        cut its power and boot it again, disks kept
    down                                         power it off (it goes by itself after 30 minutes)

A script is bash and ends at the first command that fails; its status is this command's.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.vm import image, serving
from tests.vm.frames import Frame, Wire
from tests.vm.guest import CommandFailed, Disk, Guest, GuestDied, Shape
from tests.vm.image import PROJECT

from splitmirror.errors import SplitmirrorError
from splitmirror.units import parse_size

_BASH = ("bash", "-eu", "-c")
_INSIDE = "tests/vm/inside"
_PYTEST = ("python3", "-m", "pytest", "-c", f"{_INSIDE}/pytest.ini", "--rootdir=/project")
_KEEP_DIRECTORY = 'cd "$(cat /run/prompt 2>/dev/null || echo /root)"; trap "pwd >/run/prompt" EXIT'


def _socket_path(name: str) -> Path:
    checkout = hashlib.sha256(str(PROJECT).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir(), f"splitmirror-vm-{os.getuid()}-{checkout}-{name}")


def _once(options: argparse.Namespace) -> int:
    with Guest(image.need(_note), options.disk, Shape(memory=options.memory)) as guest:
        argv = [*_BASH, _script(options)]
        return guest.run(argv, timeout_s=options.timeout, check=False, hear=pass_on).status


def _up(options: argparse.Namespace) -> int:
    """Boot in a process of its own and wait until it is ready; its words come through a pipe."""
    found = image.need(_note)
    at = _socket_path(options.name)
    if _is_up(at):
        print(f"a guest is up already, at {at}: `down` ends it", file=sys.stderr)
        return 1
    disks = [f"--disk={disk.name}={disk.size}" for disk in options.disk]
    argv = [sys.executable, "-m", "tests.vm.shell", "--name", options.name, "hold", *disks]
    holder = subprocess.Popen(
        [*argv, f"--memory={options.memory}", f"--image={found.directory}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=PROJECT,
        start_new_session=True,
    )
    assert holder.stdout is not None
    said = holder.stdout.read().decode()
    print(said, end="")
    return 0 if at.exists() else 1


def _is_up(at: Path) -> bool:
    """Whether somebody answers there; the name that a killed one left is removed."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(at))
        except ConnectionRefusedError:
            at.unlink()
        except FileNotFoundError:
            pass
        else:
            return True
    return False


def _hold(options: argparse.Namespace) -> int:
    found = image.Image(directory=options.image)
    with Guest(found, options.disk, Shape(memory=options.memory)) as guest:
        serving.serve(guest, _socket_path(options.name), lambda: _ready(guest))
    return 0


def _ready(guest: Guest) -> None:
    print(f"up after {guest.boots_s[0]:.1f} s", flush=True)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)  # whoever waits for us reads to the end
    os.dup2(nothing, 2)


def _run(options: argparse.Namespace) -> int:
    script = _script(options)
    _ask(options, Frame(kind="hand_in"))
    return _command(options, (*_BASH, script))


def _test(options: argparse.Namespace) -> int:
    _ask(options, Frame(kind="hand_in"))
    files = [f"{_INSIDE}/{word}" if word.startswith("test_") else word for word in options.words]
    return _command(options, (*_PYTEST, *files), cwd="/project")


def _prompt(options: argparse.Namespace) -> int:
    import readline  # noqa: F401 (gives `input` its line editing)

    _ask(options, Frame(kind="hand_in"))
    while True:
        try:
            line = input("guest# ")
        except EOFError:
            return 0
        _command(options, ("bash", "-c", f"{_KEEP_DIRECTORY}\n{line}"))


def _command(options: argparse.Namespace, argv: Sequence[str], cwd: str = "/root") -> int:
    facts = {"argv": list(argv), "cwd": cwd, "timeout_s": options.timeout}
    return int(_ask(options, Frame(kind="run", facts=facts)).facts["status"])


def _put(options: argparse.Namespace) -> int:
    source = Path(options.source)
    facts = {"path": options.target, "mode": source.stat().st_mode & 0o7777}
    _ask(options, Frame(kind="put", facts=facts, payload=source.read_bytes()))
    return 0


def _get(options: argparse.Namespace) -> int:
    answer = _ask(options, Frame(kind="get", facts={"path": options.source}))
    Path(options.target).write_bytes(answer.payload)
    return 0


def _reset(options: argparse.Namespace) -> int:
    _ask(options, Frame(kind="reset"))
    return 0


def _down(options: argparse.Namespace) -> int:
    _ask(options, Frame(kind="off"))
    return 0


def _ask(options: argparse.Namespace, frame: Frame) -> Frame:
    """Ask the guest that stays. Raises CommandFailed when there is none, or it refuses."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(_socket_path(options.name)))
        except OSError:
            raise CommandFailed("no guest is up: `python -m tests.vm.shell up`") from None
        wire = Wire(connection.recv, connection.sendall)
        wire.send(frame)
        while (answer := wire.receive()).kind in ("out", "err"):
            pass_on(answer.kind, answer.payload)
    if answer.kind == "refused":
        raise CommandFailed(answer.facts["why"])
    return answer


def _script(options: argparse.Namespace) -> str:
    return options.script if options.script is not None else sys.stdin.read()


def pass_on(kind: str, data: bytes) -> None:
    stream = sys.stdout if kind == "out" else sys.stderr
    stream.buffer.write(data)
    stream.flush()


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _disk(text: str) -> Disk:
    name, _, size = text.partition("=")
    return Disk(name=name, size=parse_size(size))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm.shell",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", default="guest", help="which guest, where several are up")
    parser.add_argument("--timeout", type=float, default=600, help="of a script, in seconds")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, act: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        made = commands.add_parser(name)
        made.set_defaults(act=act)
        return made

    for name, act in (("once", _once), ("up", _up), ("hold", _hold)):
        boots = command(name, act)
        boots.add_argument("--disk", type=_disk, action="append", default=[], metavar="NAME=SIZE")
        boots.add_argument("--memory", type=parse_size, default="2GiB")
        if name == "hold":
            boots.add_argument("--image", type=Path)
        if name == "once":
            boots.add_argument("script", nargs="?")
    command("run", _run).add_argument("script", nargs="?")
    command("test", _test).add_argument("words", nargs=argparse.REMAINDER)
    for name, act in (("put", _put), ("get", _get)):
        moves = command(name, act)
        moves.add_argument("source")
        moves.add_argument("target")
    for name, act in (("prompt", _prompt), ("reset", _reset), ("down", _down)):
        command(name, act)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if lacks := image.missing():
        print(f"no guest: this machine lacks {', '.join(lacks)}", file=sys.stderr)
        return 1
    try:
        return int(options.act(options))
    except SplitmirrorError as error:
        print(f"{error}\n{error.hint}", file=sys.stderr)
    except (CommandFailed, GuestDied) as error:
        print(error, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
