"""`python -m splitmirror` is the command `splitmirror`."""

from splitmirror.cli import main

try:
    main()
finally:
    # An interrupt that came through exec() of source text, as dataclasses are made, has `python -m`
    # end by SIGINT whatever the exit code, until the next exec() (run_eval_code_obj in CPython's
    # pythonrun.c).
    exec("")
