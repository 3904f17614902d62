from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from hopline.rabbitmq import Settlement


@dataclass
class BrokerSide:
    """The unacknowledged deliveries of a channel, with RabbitMQ's rule: an unknown tag closes the channel."""

    unacked: set[int]
    closed: bool = False
    calls: list[tuple[int, bool]] = field(default_factory=list)

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        assert tag in self.unacked, f"406 PRECONDITION_FAILED: unknown delivery tag {tag}"
        self.calls.append((tag, multiple))
        self.unacked -= {one for one in self.unacked if one <= tag} if multiple else {tag}


@given(st.data())
def test_every_settled_delivery_is_acknowledged_once_and_no_other(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 40))
    order = data.draw(st.permutations(range(1, count + 1)))
    broker = BrokerSide(set(range(1, count + 1)))
    settlement = Settlement(cast(Any, broker))

    settled: set[int] = set()
    while order:
        size = data.draw(st.integers(1, len(order)))
        batch, order = order[:size], order[size:]
        settlement.settle(batch)
        settled.update(batch)
        assert broker.unacked == set(range(1, count + 1)) - settled


def test_what_is_settled_in_order_costs_one_acknowledgement() -> None:
    broker = BrokerSide(set(range(1, 101)))
    settlement = Settlement(cast(Any, broker))

    settlement.settle(range(1, 101))

    assert broker.calls == [(100, True)]


def test_deliveries_of_a_closed_channel_are_forgotten() -> None:
    broker = BrokerSide({1}, closed=True)

    Settlement(cast(Any, broker)).settle([1])

    assert broker.calls == []
