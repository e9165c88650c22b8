"""The command line. Every command is a thin face over a recipe; errors end here."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from splitmirror.cli.output import print_error
from splitmirror.errors import SplitmirrorError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main() -> None:
    """Run the command of sys.argv and exit: 0, or the code of the error (docs/errors.md).

    SIGTERM and SIGHUP end a run as Ctrl-C does: everything is released and cleaned up first.
    """
    from splitmirror.cli.app import app

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        app(standalone_mode=True)
    except SplitmirrorError as error:
        print_error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("splitmirror: interrupted; everything was released", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
