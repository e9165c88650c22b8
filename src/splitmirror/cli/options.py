"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitmirror.config import DEFAULT_PATH

DEFAULT = DEFAULT_PATH
ConfigPath = Annotated[
    Path,
    typer.Option("--config", "-c", envvar="SPLITMIRROR_CONFIG", help="The configuration file."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of words.")]
