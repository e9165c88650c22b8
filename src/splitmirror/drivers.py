"""Finding a driver by its name: a module in its seam's folder, with `Settings` of its own.

Nothing lists the drivers; a new one is a new file. A driver may be made of others of its seam: it
finds them here too, and imports none.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from typing import Any, Literal, get_args

import msgspec

from splitmirror.errors import ConfigError

Seam = Literal["mirrors", "databases", "media"]


def drivers(seam: Seam, *, for_tests: bool = False) -> list[str]:
    """The names of the drivers of a seam that a configuration may name; with `for_tests` also those
    that tests alone open, whose modules say `FOR_TESTS = True`."""
    return [name for name in _modules(seam) if _is_driver(seam, name, for_tests)]


def _modules(seam: Seam) -> list[str]:
    """The names of what may be drivers of a seam."""
    package = importlib.import_module(f"splitmirror.{seam}")
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return [name for name in names if not name.startswith("_")]


def _is_driver(seam: Seam, name: str, for_tests: bool = False) -> bool:
    module = importlib.import_module(f"splitmirror.{seam}.{name}")
    return hasattr(module, "Settings") and (for_tests or not getattr(module, "FOR_TESTS", False))


def driver(seam: Seam, table: str, values: dict[str, Any]) -> tuple[Any, Any]:
    """The module of the driver that a table names, and its settings, checked. Raises ConfigError;
    `table` is what the table is called there."""
    name = values.get("driver")
    if not isinstance(name, str) or name not in _modules(seam) or not _is_driver(seam, name):
        raise ConfigError(
            f"[{table}] driver = {name!r} is not known",
            hint=f"Take one of: {', '.join(drivers(seam))}.",
        )
    module = importlib.import_module(f"splitmirror.{seam}.{name}")
    rest = {key: value for key, value in values.items() if key != "driver"}
    return module, convert(rest, module.Settings, f"[{table}]")


def convert(values: dict[str, Any], struct: type[Any], where: str) -> Any:
    """A table as the struct that it belongs to. Raises ConfigError, naming the nearest known key
    for one that is not known."""
    try:
        return msgspec.convert(values, struct)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}", hint=_near(str(error), struct)) from None


def _near(message: str, struct: type[Any]) -> str:
    """For an unknown key: the nearest known one."""
    unknown = re.search(r"unknown field `([^`]+)`", message)
    if unknown is None:
        return "Correct the value; `splitmirror init` shows a whole configuration."
    known = list(_field_names(struct))
    nearest = difflib.get_close_matches(unknown[1], known, n=1)
    return f"Did you mean {nearest[0]!r}?" if nearest else f"Known keys: {', '.join(known)}."


def _field_names(struct: type[Any]) -> set[str]:
    """The keys of a table and of the tables in it."""
    names: set[str] = set()
    for known in msgspec.structs.fields(struct):
        names.add(known.encode_name)
        for inner in (known.type, *get_args(known.type)):
            if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
                names |= _field_names(inner)
    return names
