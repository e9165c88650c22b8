"""Running the pytest files of `inside/` in a guest, and telling the host's pytest what happened.

Each test of the guest is a subtest here, by its own name: counted, shown under -v, and listed when
it fails with the guest's own traceback.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.vm.guest import Guest, GuestDied

FOLDER = "tests/vm/inside"

_SETTINGS = f"/project/{FOLDER}/pytest.ini"
_NOTHING_SELECTED = 5  # pytest's exit status
_LONGEST_S = 2000.0  # minutes on an idle machine; below the calling test's own limit
_SLOWEST, _SLOW_S = 3, 10.0  # how many are told of how long they took, if longer than that
_TAIL = 3000  # characters of what the guest's pytest said beside its reports


@dataclass(slots=True, kw_only=True)
class Ran:
    """How the scenarios of one call went."""

    files: tuple[str, ...]
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: int = 0
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)  # by test: record_property
    slowest: dict[str, float] = field(default_factory=dict)  # seconds by test, of the slowest few
    took_s: float = 0.0

    def __str__(self) -> str:
        count = f"{self.passed} passed, {len(self.failed)} failed, {self.skipped} skipped"
        return f"{' '.join(self.files)}: {count} in {self.took_s:.1f} s"


class Scenarios:
    """Runs scenario files in a guest for one test of the host; `course` gets how each call went."""

    def __init__(
        self,
        guest: Guest,
        config: pytest.Config,
        subtests: pytest.Subtests,
        select: str | None,
        course: list[Ran],
    ) -> None:
        self._guest = guest
        self._config = config
        self._subtests = subtests
        self._course = course
        self._select = select

    def run(self, *files: str, timeout_s: float = _LONGEST_S) -> Ran:
        """Run files of `inside/` (or single tests: `test_x.py::test_y`) in the guest.

        Fails the calling test, after all have run, when one failed, none was found, or the guest
        died; the message says which was running.
        """
        reader = _Reader(self._config, self._subtests, Ran(files=files))
        self._course.append(reader.ran)
        started = time.monotonic()
        words = bytearray()

        def hear(kind: str, data: bytes) -> None:
            if kind == "out":
                reader.feed(data)
            else:
                words.extend(data)

        try:
            result = self._guest.run(
                self._argv(files), cwd="/project", timeout_s=timeout_s, check=False, hear=hear
            )
        except GuestDied as error:
            pytest.fail(f"{reader.running} was running when the guest died: {error}", pytrace=False)
        reader.ran.took_s = time.monotonic() - started
        said = words.decode(errors="replace")[-_TAIL:]
        self._judge(reader, result.status, said)
        return reader.ran

    def _argv(self, files: tuple[str, ...]) -> list[str]:
        argv = ["python3", "-m", "pytest", "-p", "tests.vm.reporting", "-c", _SETTINGS]
        argv += ["--rootdir=/project", "--color=no"]
        argv += ["-k", self._select] if self._select else []
        return argv + [f"{FOLDER}/{file}" for file in files]

    def _judge(self, reader: _Reader, status: int, said: str) -> None:
        ran = reader.ran
        if reader.not_collected:
            pytest.fail("\n".join(reader.not_collected), pytrace=False)
        if ran.failed:
            names = "\n  ".join(ran.failed)
            pytest.fail(f"{len(ran.failed)} failed in the guest:\n  {names}", pytrace=False)
        if status == _NOTHING_SELECTED and self._select:
            pytest.skip(f"no scenario of {' '.join(ran.files)} is named like {self._select}")
        if status:
            running = f" while {reader.running} ran" if reader.running else ""
            pytest.fail(f"the guest's pytest ended with {status}{running}:\n{said}", pytrace=False)


class _Reader:
    """Turns the guest's lines into subtests."""

    def __init__(self, config: pytest.Config, subtests: pytest.Subtests, ran: Ran) -> None:
        self.ran = ran
        self.running = ""
        self.not_collected: list[str] = []
        self._config = config
        self._subtests = subtests
        self._of_test: list[pytest.TestReport] = []  # its set-up, call and teardown
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(*json.loads(line))

    def _take(self, kind: str, value: Any) -> None:
        if kind == "not collected":
            self.not_collected.append(value)
        elif kind == "started":
            self.running = value
        elif kind == "report":
            hook = self._config.hook.pytest_report_from_serializable
            self._of_test.append(hook(config=self._config, data=value))
            if self._of_test[-1].when == "teardown":
                self._end(self._of_test)
                self._of_test = []
                self.running = ""

    def _end(self, reports: list[pytest.TestReport]) -> None:
        name = reports[-1].nodeid
        failed = [report for report in reports if report.failed]
        skipped = [report for report in reports if report.skipped]
        with self._subtests.test(name):
            if failed:
                self.ran.failed.append(f"{name} ({failed[0].when})")
                pytest.fail("\n".join(map(_told, failed)), pytrace=False)
            elif skipped:
                self.ran.skipped += 1
                pytest.skip(_why(skipped[0]))
            else:
                self.ran.passed += 1
        if reports[-1].user_properties:
            self.ran.figures[name] = dict(reports[-1].user_properties)
        took_s = {**self.ran.slowest, name: sum(report.duration for report in reports)}
        slowest = sorted(took_s, key=took_s.__getitem__, reverse=True)[:_SLOWEST]
        self.ran.slowest = {name: took_s[name] for name in slowest if took_s[name] > _SLOW_S}


def _told(report: pytest.TestReport) -> str:
    """The guest's traceback, and what else was kept: its output, the kernel's log."""
    sections = (f"--- {title} ---\n{text}" for title, text in report.sections)
    return "\n".join([f"in its {report.when}:", report.longreprtext, *sections])


def _why(report: pytest.TestReport) -> str:
    """Where and why it was skipped: `longrepr` is the path, the line and the reason."""
    assert isinstance(report.longrepr, list | tuple)
    path, line, reason = report.longrepr
    return f"{path}:{line}: {reason.removeprefix('Skipped: ')}"
