"""The monitor's protocol, spoken with a peer at the other end of a real socket."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from splitmirror.errors import Busy, MirrorError, MirrorNotReady
from splitmirror.system import blockjobs
from splitmirror.system.qmp import Monitor, Refused

GREETING = {"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}
Answer = Callable[[dict[str, Any]], list[dict[str, Any]]]


class Peer:
    """A daemon's end: answers each command with the lines that `answer` gives for it."""

    def __init__(self, answer: Answer) -> None:
        ours, self._socket = socket.socketpair(socket.AF_UNIX)
        self._answer = answer
        self.commands: list[str] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.monitor = Monitor(ours)

    def _serve(self) -> None:
        self._tell(GREETING)
        with self._socket.makefile("r") as lines:
            for line in lines:
                command = json.loads(line)
                self.commands.append(command["execute"])
                if command["execute"] == "qmp_capabilities":
                    self._tell({"return": {}, "id": command["id"]})
                    continue
                for answer in self._answer(command):
                    self._tell({"id": command["id"], **answer} if "event" not in answer else answer)
                if command["execute"] == "quit":
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _tell(self, line: dict[str, Any]) -> None:
        sent = json.dumps(line).encode() + b"\r\n"
        for at in range(0, len(sent), 7):  # a line never comes in one piece
            self._socket.sendall(sent[at : at + 7])

    def close(self) -> None:
        self.monitor.close()
        self._thread.join(10)
        self._socket.close()


@pytest.fixture
def talking() -> Iterator[Callable[[Answer], Peer]]:
    peers: list[Peer] = []

    def start(answer: Answer) -> Peer:
        peers.append(Peer(answer))
        return peers[-1]

    yield start
    for peer in peers:
        peer.close()


def job(status: str, done: int, **more: object) -> dict[str, Any]:
    return {"id": "j", "status": status, "current-progress": done, "total-progress": 9, **more}


def changed(number: int) -> dict[str, Any]:
    return {"event": "JOB_STATUS_CHANGE", "data": {"n": number}, "timestamp": {"seconds": 1}}


def test_an_answer_is_found_among_events_and_answers_that_were_given_up(
    talking: Callable[[Answer], Peer],
) -> None:
    stale = {"id": 1, "return": "stale"}
    peer = talking(lambda _: [changed(1), stale, changed(2), {"return": "fresh"}])
    assert peer.monitor.ask("query", str) == "fresh"
    events = [peer.monitor.wait_event(1), peer.monitor.wait_event(1)]
    assert [event.data["n"] for event in events if event] == [1, 2]


def test_a_refusal_carries_the_daemons_own_words(talking: Callable[[Answer], Peer]) -> None:
    peer = talking(lambda _: [{"error": {"class": "GenericError", "desc": "Cannot do that"}}])
    with pytest.raises(Refused, match="blockdev-add: Cannot do that") as caught:
        peer.monitor.execute("blockdev-add")
    assert caught.value.hint and caught.value.exit_code == MirrorError.exit_code


def test_a_daemon_that_hangs_up_is_not_ready(talking: Callable[[Answer], Peer]) -> None:
    peer = talking(lambda _: [])
    with pytest.raises(MirrorNotReady):
        peer.monitor.execute("quit")
    with pytest.raises(MirrorNotReady):
        peer.monitor.execute("again")


def test_an_answer_of_another_shape_is_an_error_of_ours(talking: Callable[[Answer], Peer]) -> None:
    peer = talking(lambda _: [{"return": [{"id": 7}]}])
    with pytest.raises(MirrorError, match="not understood"):
        blockjobs.jobs(peer.monitor)


def test_waiting_for_an_event_ends_in_time(talking: Callable[[Answer], Peer]) -> None:
    peer = talking(lambda _: [])
    began = time.monotonic()
    assert peer.monitor.wait_event(0.05) is None
    assert 0.04 < time.monotonic() - began < 5


def test_the_peer_is_named(talking: Callable[[Answer], Peer]) -> None:
    assert talking(lambda _: []).monitor.peer_pid == os.getpid()


def test_nobody_listening_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(MirrorNotReady):
        Monitor.connect([tmp_path / "monitor.sock"])


def test_monitors_that_are_all_taken_are_busy(tmp_path: Path) -> None:
    import fcntl

    path = tmp_path / "monitor.sock"
    with Path(f"{path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            Monitor.connect([path])


# --- jobs


def test_a_job_is_waited_for_through_its_states_with_progress(
    talking: Callable[[Answer], Peer],
) -> None:
    states = iter([job("created", 0), job("running", 4), job("concluded", 9)])
    peer = talking(lambda _: [changed(0), {"return": [next(states)]}])
    told: list[tuple[int, int]] = []
    (ended,) = blockjobs.wait_concluded(
        peer.monitor, ["j"], progress=lambda done, total: told.append((done, total))
    )
    assert told == [(0, 9), (4, 9), (9, 9)]
    assert ended.error is None and not blockjobs.problem([ended])


def test_a_job_that_failed_is_given_with_its_words(talking: Callable[[Answer], Peer]) -> None:
    peer = talking(lambda _: [{"return": [job("concluded", 4, error="No space left on device")]}])
    ended = blockjobs.wait_concluded(peer.monitor, ["j"])
    assert blockjobs.problem(ended) == "j: No space left on device"


def test_a_job_that_is_not_there_is_missed_by_name(talking: Callable[[Answer], Peer]) -> None:
    peer = talking(lambda _: [{"return": []}])
    with pytest.raises(MirrorError, match="no job j"):
        blockjobs.wait_concluded(peer.monitor, ["j"])


def test_only_wanted_jobs_are_removed_and_running_ones_cancelled_first(
    talking: Callable[[Answer], Peer],
) -> None:
    present = {"j": job("running", 1), "other": job("running", 1, id="other")}

    def answer(command: dict[str, Any]) -> list[dict[str, Any]]:
        match command["execute"], command.get("arguments", {}):
            case "block-job-cancel", {"device": device}:
                present[device] = job("concluded", 1, id=device, error="Operation canceled")
            case "job-dismiss", {"id": job_id}:
                del present[job_id]
            case "query-jobs", _:
                return [{"return": list(present.values())}]
        return [{"return": {}}]

    peer = talking(answer)
    blockjobs.remove(peer.monitor, lambda job_id: job_id == "j")
    assert list(present) == ["other"]
    assert peer.commands.index("block-job-cancel") < peer.commands.index("job-dismiss")
