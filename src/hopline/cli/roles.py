"""The roles: `hopline worker`, `hopline relay`, and `hopline migrate`, which makes the tables."""

from __future__ import annotations

import asyncio
from typing import Annotated

import structlog
import typer

from hopline import service
from hopline.app import Hopline
from hopline.cli.context import AppOption, load

log = structlog.get_logger("hopline")


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command()(worker)
    app.command()(relay)
    app.command()(migrate)


def worker(
    app: AppOption = "",
    queue: Annotated[list[str] | None, typer.Option(help="Only this queue; repeat for more. Default: all.")] = None,
) -> None:
    """Handle messages until told to stop. SIGTERM drains: stop taking, finish, acknowledge, close."""
    program = load(app)
    raise typer.Exit(service.run(lambda stop: _work(program, tuple(queue or ()), stop), program.settings))


def relay(app: AppOption = "") -> None:
    """Send what waits in the outbox until told to stop. Workers and APIs do it too; this adds a process for it."""
    program = load(app)
    raise typer.Exit(service.run(lambda stop: _relay(program, stop), program.settings))


def migrate(app: AppOption = "") -> None:
    """Make the tables that are missing: the engine's and the program's. Safe to repeat."""
    program = load(app)
    asyncio.run(program.migrate())
    typer.echo("The tables are in place.")


async def _work(program: Hopline, queues: tuple[str, ...], stop: asyncio.Event) -> None:
    async with program.working(queues=queues) as working:
        log.info("worker started", instance=working.producer.instance, queues=list(working.queues))
        await service.until_stopped(stop, working.worker.crashed, working.consumer.failed, *working.producer.failures)
        log.info("worker draining", unsettled=working.worker.busy)
    log.info("worker stopped")


async def _relay(program: Hopline, stop: asyncio.Event) -> None:
    async with program.producing(role="relay") as producer:
        log.info("relay started", instance=producer.instance)
        await service.until_stopped(stop, *producer.failures)
    log.info("relay stopped")
