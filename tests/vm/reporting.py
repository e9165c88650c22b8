"""A pytest plugin for the guest: what happens, as lines of JSON on standard output, at once.

Everything else that is printed goes to standard error. `scenarios.py` reads the lines on the host.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

_KERNEL_LINES = 15

# Before pytest captures anything: the host's pipe is ours, and no child's.
_out = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Teller(config))


class _Teller:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            _tell("not collected", report.longreprtext)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        _tell("collected", len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        _tell("started", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            report.sections.append(("The guest's kernel said last", _kernel_log()))
        hook = self._config.hook.pytest_report_to_serializable
        _tell("report", hook(config=self._config, report=report))


def _tell(kind: str, value: Any) -> None:
    _out.write(json.dumps([kind, value]) + "\n")


def _kernel_log() -> str:
    said = subprocess.run(["dmesg"], capture_output=True, text=True, check=False, timeout=30)
    return "\n".join(said.stdout.splitlines()[-_KERNEL_LINES:])
