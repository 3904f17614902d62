"""Which program, database and broker a command works on: options, then environment, then the local stack."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hopline.app import Hopline
from hopline.errors import UsageError
from hopline.settings import PREFIX, Settings

STACK_FOLDER = ".hopline"
ENVIRONMENT_FILE = "env.json"

AppOption = Annotated[
    str,
    typer.Option("--app", envvar="HOPLINE_APP", help="The program, as module:attribute.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def adopt_local_stack(folder: Path | None = None) -> None:
    """Takes HOPLINE_* values that are not set from the local stack's file, if there is one here or above."""
    start = folder or Path.cwd()
    for candidate in (start, *start.parents):
        path = candidate / STACK_FOLDER / ENVIRONMENT_FILE
        if path.is_file():
            try:
                values = json.loads(path.read_text())
            except ValueError as error:
                raise UsageError(f"{path} is no JSON: {error}; remove it") from error
            for name, value in values.items():
                if name.startswith(PREFIX):
                    os.environ.setdefault(name, str(value))
            return


def load(reference: str) -> Hopline:
    """The program `module:attribute`; UsageError says what is wrong with the reference."""
    adopt_local_stack()
    reference = reference or os.environ.get("HOPLINE_APP", "")
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise UsageError("which program? Give --app module:attribute or set HOPLINE_APP, for example orders.wiring:app")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise UsageError(f"{reference!r} cannot be loaded: {error}") from error
    if not isinstance(found, Hopline):
        raise UsageError(f"{reference!r} is a {type(found).__name__}, not a Hopline")
    return found


def settings() -> Settings:
    """The settings, with the local stack's values where none are set."""
    adopt_local_stack()
    return Settings.from_environment()
