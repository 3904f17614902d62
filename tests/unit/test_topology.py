from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline.errors import UsageError
from hopline.topology import Binding, build, check_queue_name

pairs = st.lists(st.tuples(st.sampled_from(["orders", "users", "emails"]), st.sampled_from(["a.b", "c.d"])))


@given(pairs, st.randoms())
def test_the_order_and_repetition_of_subscriptions_do_not_matter(subscriptions: list[tuple[str, str]], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = subscriptions * 2
    random.shuffle(shuffled)

    assert build(shuffled) == build(subscriptions)


def test_each_queue_dead_letters_at_least_once_into_its_own_dead_queue() -> None:
    topology = build([("orders", "order.placed")])

    live, dead = topology.queues
    assert live.name == "orders"
    assert live.arguments["x-delivery-limit"] == 20
    assert live.arguments["x-dead-letter-strategy"] == "at-least-once"
    assert live.arguments["x-overflow"] == "reject-publish"
    assert dead.name == "orders.dead"
    assert Binding("hopline.dead", "orders.dead", str(live.arguments["x-dead-letter-routing-key"])) in topology.bindings
    assert Binding("hopline", "orders", "order.placed") in topology.bindings
    assert Binding("hopline.to", "orders", "orders") in topology.bindings


@pytest.mark.parametrize("name", ["", "amq.gen", "orders.dead", "two words", "ü" * 126])
def test_names_that_rabbitmq_or_the_convention_cannot_take_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_queue_name(name)
