"""Loop devices of others come and go while ours are looked for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from splitmirror.system import loop

pytestmark = pytest.mark.real


def test_a_search_goes_on_while_another_device_is_being_detached(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    ended = threading.Event()
    failures: list[OSError] = []

    def search() -> None:
        while not ended.is_set():
            try:
                loop.find(tmp_path / "none")
            except OSError as error:
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
