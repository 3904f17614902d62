"""The `hopline` command: run roles, make tables, compare the topology, and see what happened.

Every command works on a program named by `--app module:attribute` (or HOPLINE_APP) and on the database and
broker of HOPLINE_DATABASE_URL and HOPLINE_BROKER_URL. Inside a checkout where `orders up` or `orders demo` has
run, all of these default to that stack (`.hopline/env.json`). Exit status: 0 fine, 1 the command's answer is
bad news (something is missing), 2 the call or the configuration is wrong, 3 the outside world failed, 4 the broker
is not as declared.
"""

from __future__ import annotations

import sys

import typer

from hopline.cli import inspect, roles, topology
from hopline.errors import HoplineError, UsageError

app = typer.Typer(
    name="hopline",
    help="Business events through RabbitMQ to workers: nothing lost, nothing done twice.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
roles.add_to(app)
inspect.add_to(app)
topology.add_to(app)


def main() -> None:
    """The console script: expected errors are one line on stderr, never a traceback."""
    try:
        app()
    except HoplineError as error:
        typer.echo(f"hopline: {error}", err=True)
        sys.exit(2 if isinstance(error, UsageError) else 3)
