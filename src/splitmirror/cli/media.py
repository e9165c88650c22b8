"""`splitmirror media`: volumes, drives and the changer."""

from __future__ import annotations

import typer

media_app = typer.Typer(no_args_is_help=True, help="Volumes, drives and the changer.")
