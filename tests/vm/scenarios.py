"""Running the pytest files of `inside/` in a guest, and telling the host's pytest what happened.

Each test of the guest is reported here by its own name, as if it had run here: it is counted,
shown under -v, listed when it fails with the guest's own traceback, and timed.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from _pytest.capture import CaptureManager
from tests.vm.guest import Guest, GuestDied

FOLDER = "tests/vm/inside"

_SETTINGS = f"/project/{FOLDER}/pytest.ini"
_NOTHING_SELECTED = 5  # pytest's exit status
_TAIL = 3000  # characters of what the guest's pytest said beside its reports


@dataclass(slots=True, kw_only=True)
class Ran:
    """How the scenarios of one call went."""

    files: tuple[str, ...]
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: int = 0
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)  # by test: record_property
    took_s: float = 0.0

    def __str__(self) -> str:
        count = f"{self.passed} passed, {len(self.failed)} failed, {self.skipped} skipped"
        return f"{' '.join(self.files)}: {count} in {self.took_s:.1f} s"


class Scenarios:
    """Runs scenario files in a guest for one test of the host; `course` gets how each call went."""

    def __init__(
        self, guest: Guest, item: pytest.Item, select: str | None, course: list[Ran]
    ) -> None:
        self._guest = guest
        self._item = item
        self._course = course
        self._select = select

    def run(self, *files: str, timeout_s: float = 480) -> Ran:
        """Run files of `inside/` (or single tests: `test_x.py::test_y`) in the guest.

        Fails the calling test, after all have run, when one failed, none was found, or the guest
        died; the message says which was running.
        """
        reader = _Reader(self._item, Ran(files=files))
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
    """Turns the guest's lines into reports of this pytest."""

    def __init__(self, item: pytest.Item, ran: Ran) -> None:
        self.ran = ran
        self.running = ""
        self.not_collected: list[str] = []
        self._item = item
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(*json.loads(line))

    def _take(self, kind: str, value: Any) -> None:
        if kind == "not collected":
            self.not_collected.append(value)
        elif kind == "collected":
            self._item.session.testscollected += value  # the line's percentage counts them
        elif kind == "started":
            self.running = value
        elif kind == "report":
            self._report(value)

    def _report(self, data: dict[str, Any]) -> None:
        hook = self._item.config.hook.pytest_report_from_serializable
        report = hook(config=self._item.config, data=data)
        if report.skipped and isinstance(report.longrepr, list):
            report.longrepr = tuple(report.longrepr)  # JSON knows no tuples, and pytest wants one
        self._count(report)
        # The calling test's own output is captured while it runs; this is not its output.
        capture = self._item.config.pluginmanager.get_plugin("capturemanager")
        assert isinstance(capture, CaptureManager)
        with capture.global_and_fixture_disabled():
            self._item.ihook.pytest_runtest_logreport(report=report)

    def _count(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.ran.failed.append(f"{report.nodeid} ({report.when})")
        elif report.skipped:
            self.ran.skipped += 1
        elif report.when == "call":
            self.ran.passed += 1
        if report.when == "teardown":
            self.running = ""
            if report.user_properties:
                self.ran.figures[report.nodeid] = dict(report.user_properties)
