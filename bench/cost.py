"""What something costs: seconds, CPU seconds, bytes. Commands are run here, and processes watched.

CPU time of a command is what wait4(2) tells: its own and that of the children it waited for, user
and system. Of other processes it is fields 14 to 17 of /proc/PID/stat (proc(5)), in clock ticks.
The kernel's own threads (a loop device's, write-back) are in neither.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from splitmirror.errors import ProgramFailed

GIB = 1 << 30
_TICKS = os.sysconf("SC_CLK_TCK")
_LEAVE_S = 60.0  # an interrupted backup rejoins its mirror before it ends
_SAID = 2000  # characters of a failed command's last words
_HERE = str(Path(__file__).parent.parent)  # where children find the bench itself
_ENVIRONMENT = {
    **os.environ,
    "LC_ALL": "C.UTF-8",
    "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), _HERE])),
}
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def gib(size: float) -> float:
    return size / GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """`bytes`: of the files that were moved, without headers, holes and padding. `facts`: whatever
    else was measured with it."""

    seconds: float
    cpu_s: float
    bytes: int = 0
    facts: Mapping[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.bytes / self.seconds

    @property
    def cpu_s_per_gib(self) -> float:
        return self.cpu_s / gib(self.bytes)


def drop_caches() -> None:
    """Write back what is dirty and forget what is clean: pages, directory entries, inodes."""
    os.sync()
    _DROP_CACHES.write_text("3")


def run(
    *commands: Sequence[str],
    moved: int = 0,
    into: Path | None = None,
    user: str | None = None,
    then: Callable[[], None] | None = None,
    output: IO[str] | None = None,
    started: Callable[[int], None] | None = None,
) -> Cost:
    """Run commands, each piped into the next, to the end of the last one. `moved`: bytes that they
    move; `into`: a file for what comes out, synced before the clock stops; `then`: something else
    that counts; `output`: where standard output goes instead; `started`: told the last one's pid.

    Raises ProgramFailed with what was said last. On any error every command is ended, by SIGINT
    first, and waited for.
    """
    with tempfile.TemporaryFile("w+") as said, contextlib.ExitStack() as stack:
        last = stack.enter_context(into.open("wb")) if into else output or subprocess.DEVNULL
        began_s = time.monotonic()
        cpu_s = _run_all(commands, last, said, user, started)
        if into:
            os.fsync(last.fileno())  # type: ignore[union-attr]
        if then is not None:
            then()
        return Cost(seconds=time.monotonic() - began_s, cpu_s=cpu_s, bytes=moved)


def _run_all(
    commands: Sequence[Sequence[str]],
    last: int | IO[bytes] | IO[str],
    said: IO[str],
    user: str | None,
    started: Callable[[int], None] | None,
) -> float:
    """CPU seconds of all. Sessions of their own: Ctrl-C is ours to pass on."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        source: IO[bytes] | None = None
        for number, command in enumerate(commands, 1):
            running.append(
                subprocess.Popen(
                    command,
                    stdin=source or subprocess.DEVNULL,
                    stdout=last if number == len(commands) else subprocess.PIPE,
                    stderr=said,
                    cwd="/",
                    env=_ENVIRONMENT,
                    user=user,
                    group=user,
                    extra_groups=[] if user else None,
                    start_new_session=True,
                )
            )
            if source is not None:
                source.close()  # only the next command holds it: it ends when that one does
            source = running[-1].stdout
        if started is not None:
            started(running[-1].pid)
        pairs = zip(running, commands, strict=True)
        return sum([_reaped(process, command, said) for process, command in pairs])
    finally:
        _end(running)


def _reaped(process: subprocess.Popen[bytes], command: Sequence[str], said: IO[str]) -> float:
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said.seek(0)
        words = said.read().strip()[-_SAID:]
        raise ProgramFailed(
            f"{Path(command[0]).name}: exit status {process.returncode}: {words}",
            hint=f"It was run as: {' '.join(command)}",
        )
    return usage.ru_utime + usage.ru_stime


def _end(running: Iterable[subprocess.Popen[bytes]]) -> None:
    """End what still runs: with SIGINT, on which a backup puts everything right; then for good."""
    left = [process for process in running if process.returncode is None]
    for process in left:
        process.send_signal(signal.SIGINT)
    for process in left:
        try:
            process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# --- other processes


def cpu_of(pids: Iterable[int]) -> float:
    """CPU seconds of processes up to now; one that is gone counts nothing."""
    return sum(own for pid in pids for own, _ in _times(pid))


def reaped_cpu_of(pid: int) -> float:
    """CPU seconds of the children that a process has waited for, and theirs."""
    return sum(reaped for _, reaped in _times(pid))


def _times(pid: int) -> Iterator[tuple[float, float]]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        fields = stat[stat.rindex(b")") + 2 :].split()  # the name before may hold anything
        user, system, reaped_user, reaped_system = (int(field) for field in fields[11:15])
        yield (user + system) / _TICKS, (reaped_user + reaped_system) / _TICKS


def processes_of(place: Path) -> list[int]:
    """Processes whose command line names something below a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if (
                os.fsencode(f"{place}/") in path.read_bytes()
                and int(path.parent.name) != os.getpid()
            ):
                found.append(int(path.parent.name))
    return found
