"""A pytest plugin: what the guest tier says of itself, first what it will run, last what it took.

Where tests run in several processes (pytest-xdist), each hands its part over at its end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from tests.vm import image
from tests.vm.scenarios import Ran

from splitmirror.units import show_seconds


@dataclass(slots=True, kw_only=True)
class Tier:
    """The course of one session."""

    planned: bool = False
    image_s: float = 0.0
    boots_s: list[float] = field(default_factory=list)
    ran: list[Ran] = field(default_factory=list)

    def add(self, told: dict[str, Any]) -> None:
        """The fields of another process's."""
        self.image_s = max(self.image_s, told["image_s"])  # one builds it, the others wait
        self.boots_s += told["boots_s"]
        self.ran += [Ran(**{**ran, "files": tuple(ran["files"])}) for ran in told["ran"]]


TIER = pytest.StashKey[Tier]()
_HANDED_OVER = "guest tier"
_HERE = Path(__file__).parent.name
_SKIP_VARIABLE = "SKIP_VM"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TIER] = Tier()


def pytest_report_collectionfinish(items: list[pytest.Item]) -> str:
    return _plan(item.nodeid for item in items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    """Each of several processes has collected the same; the first to say so is told."""
    tier = node.config.stash[TIER]
    terminal = node.config.pluginmanager.get_plugin("terminalreporter")
    if not tier.planned and (line := _plan(ids)):
        tier.planned = True
        terminal.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output[_HANDED_OVER] = asdict(session.config.stash[TIER])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """One of the processes has ended; one that died handed nothing over."""
    if told := getattr(node, "workeroutput", {}).get(_HANDED_OVER):
        node.config.stash[TIER].add(told)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    tier = config.stash[TIER]
    if tier.boots_s:
        terminalreporter.section("guest tier")
        for line in _account(tier):
            terminalreporter.line(line)


def why_not() -> str:
    """Why no guest can run here; empty when one can."""
    if os.environ.get(_SKIP_VARIABLE, "0") not in ("", "0"):
        return f"{_SKIP_VARIABLE} is set"
    lacks = image.missing()
    return f"the guest tier needs {', '.join(lacks)}" if lacks else ""


def _plan(nodeids: Iterable[str]) -> str:
    """One line for the guest tests among these; empty when there are none."""
    paths = (PurePosixPath(nodeid.partition("::")[0]) for nodeid in nodeids)
    files = dict.fromkeys(path.name for path in paths if path.parent.name == _HERE)
    if not files:
        return ""
    if reason := why_not():
        return f"guest tier: skipped, {reason}"
    found = image.cached()
    where = f"image cached in {found.directory}" if found else "image not cached: built first"
    return f"guest tier: {where}; a guest each for {', '.join(files)}"


def _account(tier: Tier) -> Iterator[str]:
    """How long the image, the boots, each call of scenarios and the slowest of them took, and the
    figures told."""
    if tier.image_s:
        yield f"image: {show_seconds(tier.image_s)}"
    boots = ", ".join(f"{boot:.1f}" for boot in tier.boots_s)
    yield f"boots: {len(tier.boots_s)} in {show_seconds(sum(tier.boots_s))} ({boots} s)"
    for ran in tier.ran:
        yield str(ran)
        for test, figures in ran.figures.items():
            yield f"  {_short(test)}: {figures}"
        for test, took_s in ran.slowest.items():
            yield f"  {_short(test)} took {took_s:.1f} s"


def _short(test: str) -> str:
    return test.rpartition("/")[2]
