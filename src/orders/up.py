"""`orders up`: the whole system, and one merged, coloured log by role, until Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from rich.console import Console
from rich.text import Text

from orders.stack import Log, Stack, StackOptions, running

_COLOURS = {
    "rabbitmq": "magenta",
    "api": "cyan",
    "worker": "green",
    "mailbox": "blue",
    "console": "white",
    "catalogue": "yellow",
}


async def main(folder: Path, workers: int, database_url: str, *, with_console: bool) -> int:
    """Runs until SIGINT or SIGTERM; the exit status."""
    console = Console()
    stop = stop_event()
    async with running(
        StackOptions(folder, "up", workers, database_url, console=with_console), log_to(console)
    ) as stack:
        console.print(welcome(stack), soft_wrap=True)
        await stop.wait()
        console.print("Stopping: the API first, then the workers drain. Ctrl-C again does not hurry it.")
    return 0


def stop_event() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def log_to(console: Console) -> Log:
    """A stack's Log: each line behind its role's name, in its role's colour."""

    def log(role: str, line: str) -> None:
        colour = _COLOURS.get(role.partition("-")[0], "white")
        console.print(Text.assemble((f"{role:>10} ", colour), Text.from_ansi(line)), soft_wrap=True)

    return log


def welcome(stack: Stack) -> Text:
    """What runs, and what to try."""
    line = '{"sku":"1095275","quantity":1,"unit_price":"0.50"}'
    body = f'{{"customer":{{"name":"Ann","email":"ann@example.com"}},"lines":[{line}]}}'
    return Text.assemble(
        ("\nThe road is open.\n", "bold green"),
        f"  API        {stack.api_url}   (pages: {stack.api_url}/docs)\n",
        *([f"  console    {stack.console_link}   (signs in once)\n"] if stack.options.console else []),
        f"  RabbitMQ   {stack.node.management_url}\n",
        f"  database   {stack.database_url}\n",
        f"  mails      {stack.ledger}\n",
        "\nTry:\n",
        f"  curl -i {stack.api_url}/orders -H 'Content-Type: application/json' -d '{body}'\n",
        "  .venv/bin/hopline trace ORDER_ID      one order's whole story\n",
        "  .venv/bin/hopline audit               every message accounted for\n",
        "\nCtrl-C drains and stops.\n",
    )
