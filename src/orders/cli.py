"""The `orders` command: the roles of the system, its load, and the two ways to see it whole (`up` and `demo`)."""

from __future__ import annotations

import asyncio
import enum
import json
import sys
from collections.abc import Iterable
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from hopline import HoplineError, Settings, UsageError, run
from orders import catalogue, dataset, demo, mailbox, serving, up, wiring
from orders import replay as load
from orders.console import LedgerMailbox

app = typer.Typer(
    name="orders",
    help="Takes orders over HTTP and carries them through RabbitMQ to a confirmed row and a delivered email.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Workers = Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")]
DatabaseOption = Annotated[
    str, typer.Option("--database", help="postgresql+asyncpg://user:password@host/name. Default: a SQLite file.")
]
Folder = Annotated[Path, typer.Option(help="Where the local stack keeps everything.")]


@app.command(name="up")
def up_command(
    workers: Workers = 1,
    database: DatabaseOption = "",
    console: Annotated[bool, typer.Option(help="Serve the operator's pages too.")] = True,
    folder: Folder = Path(".hopline"),
) -> None:
    """Start a private RabbitMQ, the mailbox, the API, the workers and the console, and stay.

    Ctrl-C drains and stops.
    """
    raise typer.Exit(asyncio.run(up.main(folder.resolve(), workers, database, with_console=console)))


@app.command(name="demo")
def demo_command(
    orders: Annotated[int, typer.Option(min=1, help="How many baskets to send; from 3,001 on they repeat.")] = 3_000,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Orders a second. Default: as fast as it goes.")] = None,
    workers: Workers = 1,
    database: DatabaseOption = "",
    report: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Stay up afterwards, until Ctrl-C.")] = False,
    folder: Folder = Path(".hopline"),
) -> None:
    """Start everything, send real baskets through the HTTP API, and account for every one of them.

    Exit status 0 only if every accepted order is in a terminal state with its email, and nothing happened twice.
    """
    options = demo.DemoOptions(folder.resolve(), orders, rate, workers, database, report, keep)
    raise typer.Exit(asyncio.run(demo.main(options)))


class Source(enum.StrEnum):
    """Data sets that are known by name."""

    SHIPPED = "shipped"
    JOURNEY = "journey"


@app.command(name="replay")
def replay_command(
    url: Annotated[str, typer.Option(help="The API. Default: the local stack that runs here.")] = "",
    dataset_name: Annotated[
        str, typer.Option("--dataset", help="An NDJSON file of baskets, 'shipped', or 'journey' (all 155,848 baskets).")
    ] = Source.SHIPPED,
    orders: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Orders a second. Default: as fast as it goes.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1_000, help="Requests at a time.")] = load.CONCURRENCY,
    record: Annotated[Path | None, typer.Option(help="Append every answer to this NDJSON file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    folder: Folder = Path(".hopline"),
) -> None:
    """Send real baskets to a running API, each with an idempotency key, and count the answers.

    Exit status 1 if any basket got no answer that counts (neither accepted nor refused).
    """
    address = url or local_api(folder)
    source = dataset.journey() if dataset_name == Source.JOURNEY else dataset.read(_path(dataset_name, dataset.SHIPPED))
    counts = asyncio.run(send(address, islice(source, orders), rate, concurrency, record, quiet=as_json))
    if as_json:
        typer.echo(json.dumps(counts))
    else:
        typer.echo("  ".join(f"{name.replace('_', ' ')}: {count:,}" for name, count in counts.items()))
    raise typer.Exit(1 if counts["failed"] else 0)


def _path(name: str, shipped: Path) -> Path:
    return shipped if name == Source.SHIPPED else Path(name)


def local_api(folder: Path) -> str:
    """The API of the stack that runs in the folder; UsageError if none does."""
    return str(_running(folder, "--url")["urls"]["api"])


def _running(folder: Path, option: str) -> dict[str, Any]:
    """What the stack that runs in the folder says of itself; UsageError, which names the option, if none does."""
    try:
        found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        raise UsageError(f"no stack runs in {folder}; start one (orders up) or give {option}") from None
    return found


async def send(
    url: str,
    baskets: Iterable[dataset.Basket],
    rate: float | None,
    concurrency: int,
    record: Path | None,
    *,
    quiet: bool,
) -> dict[str, int]:
    """Sends baskets with a counter that is seen moving; how many were accepted, refused and neither."""
    counts = {"sent": 0, "accepted": 0, "refused_at_the_edge": 0, "failed": 0}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet or not sys.stderr.isatty()) as progress:
        task = progress.add_task("baskets sent", total=None)

        def count(sent: load.Sent) -> None:
            counts["sent"] += 1
            counts["accepted" if sent.accepted else "refused_at_the_edge" if sent.refused else "failed"] += 1
            progress.advance(task)

        async with AsyncExitStack() as stack:
            kept = await stack.enter_async_context(load.Record(record)) if record else None
            await load.replay(url, baskets, rate=rate, concurrency=concurrency, on_progress=count, record=kept)
    return counts


@app.command()
def api(host: str = "127.0.0.1", port: Annotated[int, typer.Option(help="The port to listen on.")] = 8000) -> None:
    """Serve the HTTP API. SIGTERM lets requests finish, then drains."""
    settings = Settings.from_environment()
    server = serving.Server(serving.config(wiring.create_api, host, port, drain_seconds=settings.drain_seconds))

    async def serve(stop: asyncio.Event) -> None:
        await wiring.app.check()  # before uvicorn starts, whose account of a failed start is a long trace
        running = asyncio.create_task(server.serve())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        stopping.cancel()
        await running
        if not server.started:
            raise UsageError(f"the API could not start on {host}:{port}; the log above says why")

    raise typer.Exit(run(serve, settings, role="api"))


@app.command(name="mailbox")
def mailbox_command(
    ledger: Annotated[Path, typer.Option(help="The file that each mail is appended to.")],
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 1025,
) -> None:
    """Run the development mailbox: an SMTP server that keeps every mail in one file."""
    raise typer.Exit(run(lambda stop: mailbox.serve(host, port, ledger, stop), Settings.from_environment()))


@app.command()
def mails(
    mail: Annotated[str, typer.Argument(help="A mail's number, as the list has it. Default: the latest ones.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="As many of the latest.")] = 20,
    before: Annotated[str, typer.Option(help="Older ones than this mail.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    ledger: Annotated[Path | None, typer.Option(help="The mailbox's file. Default: of the stack that runs.")] = None,
    folder: Folder = Path(".hopline"),
) -> None:
    """List the mails that the development mailbox has, the newest first, or show one.

    Exit status 1 if there is no such mail.
    """
    box = LedgerMailbox(ledger or Path(_running(folder, "--ledger")["mail_ledger"]))
    if not mail:
        found = asyncio.run(box.page(limit=limit, before=before))
        lines = (f"{one.id:>10}  {one.at:%Y-%m-%d %H:%M:%S}  {', '.join(one.to)}  {one.subject}" for one in found)
        typer.echo(_as_json({"mails": found}) if as_json else _printable("\n".join(lines)) or "The mailbox is empty.")
        return
    whole = asyncio.run(box.find(mail))
    if whole is None:
        typer.echo(f"There is no mail {mail}.", err=True)
        raise typer.Exit(1)
    head = "\n".join(f"{name}: {value}" for name, value in whole.headers)
    typer.echo(_as_json(whole) if as_json else _printable(f"{head}\n\n{whole.text}"))


def _printable(text: str) -> str:
    """Without what a terminal would obey: what a customer typed is in every mail."""
    return "".join(c if c.isprintable() or c == "\n" else "" if c == "\r" else "\ufffd" for c in text)


def _as_json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode()


@app.command(name="load-catalogue")
def load_catalogue(
    file: Annotated[
        str, typer.Option(help="NDJSON, may be gzipped; 'shipped', or 'journey' (the products of all 155,848 baskets).")
    ] = Source.SHIPPED,
    on_hand: Annotated[
        int, typer.Option(min=0, help="Units of a product whose line does not say.")
    ] = catalogue.ON_HAND,
    restock: Annotated[bool, typer.Option("--restock", help="Set the stock of known products too.")] = False,
) -> None:
    """Make the tables and load products and stock into the database."""
    if file == Source.JOURNEY:
        entries = dataset.journey_products(on_hand=on_hand)
    else:
        entries = catalogue.read(_path(file, catalogue.SHIPPED), on_hand=on_hand)
    loaded = asyncio.run(_load(entries, restock))
    typer.echo(f"{loaded:,} products are in the catalogue.")


async def _load(entries: Iterable[catalogue.Entry], restock: bool) -> int:
    await wiring.app.migrate()
    async with wiring.app.database() as database:
        return await catalogue.load(database, entries, restock=restock)


def main() -> None:
    """The console script: expected errors are one line on stderr, never a traceback."""
    try:
        app()
    except HoplineError as error:
        typer.echo(f"orders: {error}", err=True)
        sys.exit(2 if isinstance(error, UsageError) else 3)


if __name__ == "__main__":
    main()
