"""`python -I -B -m splitmirror.guard FD`: the guard's process, over an inherited socket."""

from __future__ import annotations

import sys

from splitmirror.guard.watch import main

main(int(sys.argv[1]))
