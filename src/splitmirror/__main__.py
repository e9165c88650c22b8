"""`python -m splitmirror` is the command `splitmirror`."""

from splitmirror.cli import main

main()
