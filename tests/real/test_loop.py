"""Loop devices of others come and go while ours are looked for."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from splitmirror.system import loop

pytestmark = pytest.mark.real


def test_a_search_goes_on_while_another_device_is_being_detached(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    ended = threading.Event()
    failures: list[Exception] = []

    def search() -> None:
        while not ended.is_set():
            try:
                loop.find(tmp_path / "none")
            except Exception as error:
                failures.append(error)
                return

    searcher = threading.Thread(target=search)
    searcher.start()
    for _ in range(150):
        with loop.attached(image, read_only=True):
            pass
    ended.set()
    searcher.join()
    assert failures == []


def test_two_that_attach_and_detach_all_the_time_do_not_fail_each_other(tmp_path: Path) -> None:
    failures: list[Exception] = []

    def attach_and_detach(name: str) -> None:
        image = tmp_path / name
        image.write_bytes(bytes(1 << 20))
        try:
            for _ in range(100):
                device = loop.attach(image, read_only=True, autoclear=True)
                os.close(device.fd)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=attach_and_detach, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
