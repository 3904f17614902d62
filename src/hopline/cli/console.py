"""`hopline console`: the operator's pages, as a process of its own."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Annotated, Any

import msgspec
import typer

from hopline import service
from hopline.cli.context import AppOption, load
from hopline.errors import UsageError

MAILBOX = "HOPLINE_CONSOLE_MAILBOX"


def add_to(app: typer.Typer) -> None:
    """Adds this module's command."""
    app.command()(console)


def console(
    app: AppOption = "",
    host: Annotated[str | None, typer.Option(help="The address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on.", show_default="8100")] = None,
    mailbox: Annotated[
        str,
        typer.Option(
            envvar=MAILBOX,
            help="A development mailbox, or a function that makes it, as module:attribute.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Serve the console until told to stop: see the flow, find an order's whole story, mend what failed.

    People sign in with HOPLINE_CONSOLE_OPERATOR_PASSWORD or HOPLINE_CONSOLE_VIEWER_PASSWORD; without either, its log
    shows a link that signs in once, and it listens on this machine only.
    """
    try:
        from hopline.console import ConsoleSettings, serve  # noqa: PLC0415 - the extra `console`
    except ModuleNotFoundError as error:
        raise UsageError(f"the console needs its extra: pip install 'hopline[console]' ({error})") from error
    program = load(app)
    settings = ConsoleSettings.from_environment()
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = msgspec.structs.replace(settings, **given)
    settings.check()
    mails = _mailbox(mailbox) if mailbox else None
    main = partial(serve, program, settings, mailbox=mails)
    raise typer.Exit(service.run(main, program.settings, role="console"))


def _mailbox(reference: str) -> Any:
    """The mailbox `module:attribute`; a function makes it."""
    module, _, attribute = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
        return found() if callable(found) else found
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"the mailbox {reference!r} cannot be loaded: {error}") from error
