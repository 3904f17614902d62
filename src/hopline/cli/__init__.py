"""The `hopline` command: run roles, make tables, compare the topology, see what happened, and repair.

Every command works on a program named by `--app module:attribute` (or HOPLINE_APP) and on the database and
broker of HOPLINE_DATABASE_URL and HOPLINE_BROKER_URL. Inside a checkout where `orders up` or `orders demo` has
run, all of these default to that stack (`.hopline/env.json`). Exit status: 0 fine, 1 the command's answer is
bad news (something is missing, was refused, or needs a person), 2 the call, the configuration or what was given is
wrong, or a yes is missing, 3 the outside world failed, 4 the broker is not as declared. docs/reference/cli.md.
"""

from __future__ import annotations

import sys

import typer

from hopline.cli import console, dead, finding, inspect, queues, roles, scheduled, status, topology, workers
from hopline.errors import HoplineError, OutsideError

app = typer.Typer(
    name="hopline",
    help="Business events through RabbitMQ to workers: nothing lost, nothing done twice.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
workers.add_to(app)
roles.add_to(app)
console.add_to(app)
status.add_to(app)
finding.add_to(app)
inspect.add_to(app)
queues.add_to(app)
dead.add_to(app)
scheduled.add_to(app)
topology.add_to(app)


def main() -> None:
    """The console script: expected errors are one line on stderr, never a traceback."""
    try:
        app()
    except HoplineError as error:
        typer.echo(f"hopline: {error}", err=True)
        sys.exit(3 if isinstance(error, OutsideError) else 2)
