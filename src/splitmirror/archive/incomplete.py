"""A restore into a directory that was cut off is told by a file in it.

The file is there, durably, before anything else is, and goes when everything is durable. So where
it lies, by a crash or an error, nothing in that directory can be trusted to be whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitmirror.archive.ground import refused
from splitmirror.system import filesystems

INCOMPLETE = ".splitmirror-incomplete"
_PRIVATE = 0o700
_TEXT = """A restore of {what} into this directory was begun and has not ended.
If it does not go on any more, it was cut off: files may be missing, empty or half written.
Remove the directory and restore again.
"""


@contextmanager
def marked_incomplete(target: Path, what: str) -> Iterator[None]:
    """While in here, `target`, which is made, is marked; leaving it without an error makes what is
    in it durable and takes the mark away. After an error it stays, unless nothing else is there."""
    mark = target / INCOMPLETE
    try:
        target.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        directory = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise refused(str(target), error) from error
    try:
        try:
            mark.write_text(_TEXT.format(what=what))
            os.fsync(directory)
        except OSError as error:
            raise refused(str(mark), error) from error
        try:
            yield
        except BaseException:
            if os.listdir(directory) == [INCOMPLETE]:
                mark.unlink()
            raise
        try:
            filesystems.syncfs(directory)
            mark.unlink()
            os.fsync(directory)
        except OSError as error:
            raise refused(str(mark), error) from error
    finally:
        os.close(directory)
