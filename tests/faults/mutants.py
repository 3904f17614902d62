"""Two programs with the mistakes that everything here is about, to see that the oracle sees them.

python -m tests.faults.mutants acks-before-commit hopline worker
python -m tests.faults.mutants skips-confirms orders api --port 8000
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from hopline import cli as hopline_cli
from hopline.broker import Delivery, Publish, Published
from hopline.database import Transaction
from hopline.handlers import Endpoint
from hopline.rabbitmq import RabbitPublisher, Receipt
from hopline.worker.calling import Handled, Member
from hopline.worker.desk import Desk
from orders import cli as orders_cli


def acks_before_commit() -> None:
    """A worker that acknowledges when its handlers have run, before the transaction is committed."""
    conclude, settle = Desk.conclude, Desk.settle
    early: set[int] = set()

    async def conclude_early(
        self: Desk, tx: Transaction, endpoint: Endpoint, results: Sequence[tuple[Member, Handled]]
    ) -> None:
        deliveries = [member.delivery for member, _ in results]
        settle(self, deliveries)
        early.update(map(id, deliveries))
        await _until_acknowledged(deliveries)
        await conclude(self, tx, endpoint, results)

    def settle_the_rest(self: Desk, deliveries: Sequence[Delivery]) -> None:
        settle(self, [delivery for delivery in deliveries if id(delivery) not in early])
        early.difference_update(map(id, deliveries))

    setattr(Desk, "conclude", conclude_early)  # noqa: B010 - mypy takes a method for a constant
    setattr(Desk, "settle", settle_the_rest)  # noqa: B010


async def _until_acknowledged(deliveries: Sequence[Delivery]) -> None:
    """A question on the channel of the acknowledgements: its answer comes after RabbitMQ has taken those."""
    for delivery in deliveries[-1:]:
        assert isinstance(delivery.receipt, Receipt)
        await delivery.receipt.settlement.channel.declare_queue(delivery.queue, passive=True)


def skips_confirms() -> None:
    """A relay that takes for confirmed what it has written."""
    publish = RabbitPublisher.publish
    writing: set[asyncio.Task[Any]] = set()

    async def publish_only(
        self: RabbitPublisher, batch: Sequence[Publish], *, timeout_seconds: float
    ) -> list[Published]:
        if not self.ready:
            return [Published.UNKNOWN] * len(batch)
        task = asyncio.create_task(publish(self, batch, timeout_seconds=timeout_seconds))
        writing.add(task)
        task.add_done_callback(writing.discard)
        return [Published.CONFIRMED] * len(batch)

    setattr(RabbitPublisher, "publish", publish_only)  # noqa: B010


MUTATIONS = {"acks-before-commit": acks_before_commit, "skips-confirms": skips_confirms}
PROGRAMS = {"hopline": hopline_cli.main, "orders": orders_cli.main}


def command(mutation: str, program: str, *words: object) -> list[str]:
    """The command line of a mutant."""
    return [sys.executable, "-m", __name__, mutation, program, *map(str, words)]


if __name__ == "__main__":
    _, chosen_mutation, chosen_program, *rest = sys.argv
    MUTATIONS[chosen_mutation]()
    sys.argv = [chosen_program, *rest]
    PROGRAMS[chosen_program]()
