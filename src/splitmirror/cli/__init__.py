"""The command line. Every command is a thin face over a recipe; errors end here."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from splitmirror.cli.output import print_error, print_error_document
from splitmirror.errors import SplitmirrorError

DEFECT = 1
WRONG_USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main() -> None:
    """Run the command of sys.argv and exit: 0, or the code of the error (docs/errors.md).

    SIGTERM and SIGHUP end a run as Ctrl-C does: everything is released and cleaned up first.
    """
    as_json = "--json" in sys.argv
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        from splitmirror.cli.app import app

        app(standalone_mode=True)
    except SplitmirrorError as error:
        print_error(error, as_json=as_json)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        _say_interrupted(error, as_json)
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _say_interrupted(end, as_json)
        elif end.code == WRONG_USAGE and as_json:
            print_error_document("WrongUsage", "wrong usage, as standard error tells", WRONG_USAGE)
        raise
    except Exception as error:
        _say_defect(error, as_json)
        sys.exit(DEFECT)


def _say_interrupted(error: BaseException, as_json: bool) -> None:
    """That it was, and whatever could not be put right on the way out (the interrupt's notes; the
    library for the commands wraps it)."""
    message = "interrupted; what it held is released"
    print(f"\nsplitmirror: {message}", file=sys.stderr)
    cause: BaseException | None = error
    while cause is not None:
        for note in getattr(cause, "__notes__", ()):
            print(f"  but: {note}", file=sys.stderr)
        cause = cause.__cause__ or cause.__context__
    if as_json:
        print_error_document("Interrupted", message, INTERRUPTED)


def _say_defect(error: Exception, as_json: bool) -> None:
    """An error that nobody translated is one of the program: all of it is shown."""
    import traceback  # not for a command that goes well

    traceback.print_exception(error)
    message = f"an error of the program itself: {type(error).__name__}: {error}"
    hint = "Please report it with the lines above. `splitmirror doctor` tells whether all is well."
    print(f"splitmirror: {message}\n  what to do: {hint}", file=sys.stderr)
    if as_json:
        print_error_document("Defect", message, DEFECT, hint)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
