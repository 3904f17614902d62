"""The roles: a worker, `hopline relay`, and `hopline migrate`, which brings the tables up to date."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import structlog
import typer

from hopline import service
from hopline.app import Hopline
from hopline.cli.context import AppOption, JsonOption, load
from hopline.cli.output import print_json
from hopline.health import serving
from hopline.migrations import Migration
from hopline.watch import watching

OWN_THREADS = 8
"""Threads for the engine's own calls, beside one for each blocking handler (`def`) that may run at once."""

log = structlog.get_logger("hopline")


def add_to(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command()(relay)
    app.command()(migrate)


def worker(app: str, queue: list[str] | None) -> None:
    """Handles messages until told to stop; workers.py has it as a command."""
    program = load(app)
    raise typer.Exit(
        service.run(lambda stop: _work(program, tuple(queue or ()), stop), program.settings, role="worker")
    )


def relay(app: AppOption = "") -> None:
    """Send what waits in the outbox until told to stop. Workers and APIs do it too; this adds a process for it."""
    program = load(app)
    raise typer.Exit(service.run(lambda stop: _relay(program, stop), program.settings, role="relay"))


def migrate(app: AppOption = "", as_json: JsonOption = False) -> None:
    """Bring the engine's tables to today's version, rows included, and make the program's that are missing.

    Safe to repeat. Stop the roles and back the database up before you go to a new version: there is no way back.
    """
    program = load(app)
    done = asyncio.run(program.migrate())
    if as_json:
        print_json(done)
    else:
        typer.echo(f"{_told(done)}\nThe database is {program.settings.places()['database']}.")


def _told(done: Migration) -> str:
    if done.before is None:
        text = f"The engine's tables were made, at version {done.after}."
    elif done.before != done.after:
        text = f"The engine's tables were brought from version {done.before} to {done.after}."
    else:
        text = f"The engine's tables are up to date, at version {done.after}."
    return f"{text}\nThe program's tables were made: {', '.join(done.tables)}." if done.tables else text


async def _work(program: Hopline, queues: tuple[str, ...], stop: asyncio.Event) -> None:
    longest = max((endpoint.deadline_seconds for endpoint in program.handlers), default=0.0)
    blocking = sum(endpoint.blocking for endpoint in program.handlers)
    threads = blocking * program.settings.effect_concurrency + OWN_THREADS
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(threads, thread_name_prefix="handler"))
    async with (
        watching(longest, program.settings.overrun_seconds, program.settings.drain_seconds) as watch,
        serving(program.settings) as health,
        program.working(queues=queues) as working,
    ):
        health.watch(working.producer)
        log.info("worker started", instance=working.producer.instance, queues=list(working.queues))
        await service.until_stopped(
            stop,
            working.producer.told_to_drain,
            working.worker.crashed,
            working.consumer.failed,
            *working.producer.failures,
            watch.left_behind,
        )
        health.draining()
        log.info("worker draining", unsettled=working.worker.busy)
    log.info("worker stopped")


async def _relay(program: Hopline, stop: asyncio.Event) -> None:
    async with serving(program.settings) as health, program.producing(role="relay") as producer:
        health.watch(producer)
        log.info("relay started", instance=producer.instance)
        await service.until_stopped(stop, producer.told_to_drain, *producer.failures)
        health.draining()
    log.info("relay stopped")
