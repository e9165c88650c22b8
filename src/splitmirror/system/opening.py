"""How a file or directory is opened that somebody else may change at any time. Source: open(2)."""

from __future__ import annotations

import errno
import os
from typing import Final

# O_NONBLOCK: a FIFO that took a file's place would else be waited for.
FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
FOLDER_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC

# What is said of a name that was taken away, or became something else, since it was listed.
VANISHED: Final = frozenset((errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ESTALE))
