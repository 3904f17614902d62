from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline.errors import UsageError
from hopline.topology import (
    Binding,
    Change,
    Difference,
    Live,
    LiveExchange,
    LiveQueue,
    Topology,
    build,
    check_queue_name,
    compare,
    exchange_traits,
    join,
    queue_traits,
)

DECLARED = build([("orders", "order.placed"), ("emails", "order.confirmed")])

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


def live(topology: Topology, **more: object) -> Live:
    """A broker on which a topology has been declared, with differences."""
    exchanges = {each.name: LiveExchange(exchange_traits(each.kind)) for each in topology.exchanges}
    queues = {each.name: LiveQueue(queue_traits(each.arguments), 0) for each in topology.queues}
    exchanges.update(more.get("exchanges", {}))  # type: ignore[call-overload]
    queues.update(more.get("queues", {}))  # type: ignore[call-overload]
    return Live(exchanges, queues, frozenset(topology.bindings) | more.get("bindings", frozenset()))  # type: ignore[operator]


def named(changes: tuple[Change, ...]) -> set[tuple[str, str, str]]:
    return {(change.state, change.kind, change.name) for change in changes}


@given(pairs, pairs)
def test_what_is_missing_is_added_and_nothing_else_is(
    some: list[tuple[str, str]], others: list[tuple[str, str]]
) -> None:
    there, wanted = build(some), join([build(some), build(others)])

    plan = compare(wanted, live(there))

    assert all(change.state == "missing" for change in plan.changes)
    after = Live(
        {**live(there).exchanges, **live(plan.additions).exchanges},
        {**live(there).queues, **live(plan.additions).queues},
        frozenset({*there.bindings, *plan.additions.bindings}),
    )
    assert compare(wanted, after).in_sync
    assert plan.in_sync == (there == wanted)


def test_an_empty_broker_lacks_everything() -> None:
    plan = compare(DECLARED, Live({}, {}, frozenset()))

    assert plan.additions == DECLARED
    assert len(plan.changes) == 3 + 4 + 6


def test_other_arguments_and_kinds_are_told_with_both_values_and_never_added() -> None:
    arguments = {**DECLARED.queues[0].arguments, "x-delivery-limit": 5, "x-max-length": 9}
    del arguments["x-overflow"]
    other = live(
        DECLARED,
        queues={"emails": LiveQueue({**queue_traits(arguments), "durable": False}, 7)},
        exchanges={"hopline": LiveExchange(exchange_traits("fanout"))},
    )

    plan = compare(DECLARED, other)

    exchange, queue = plan.changes
    assert (exchange.state, exchange.name) == ("different", "hopline")
    assert exchange.differences == (Difference("type", "fanout", "topic"),)
    assert (queue.state, queue.name, queue.messages) == ("different", "emails", 7)
    assert queue.differences == (
        Difference("durable", False, True),
        Difference("x-delivery-limit", 5, 20),
        Difference("x-max-length", 9, None),
        Difference("x-overflow", None, "reject-publish"),
    )
    assert plan.additions == Topology((), (), ())


def test_what_is_refused_is_not_bound_either() -> None:
    # Given a queue with other arguments and an exchange of another kind, and no binding at all
    there = Live(
        {"hopline": LiveExchange(exchange_traits("fanout"))}, {"emails": LiveQueue(queue_traits({}), 0)}, frozenset()
    )

    plan = compare(DECLARED, there)

    # Then only what touches neither is added
    assert {binding.queue for binding in plan.additions.bindings} == {"orders", "orders.dead", "emails.dead"}
    assert {binding.exchange for binding in plan.additions.bindings} == {"hopline.to", "hopline.dead"}
    held = {change.name: change.steps for change in plan.changes if change.kind == "binding" and change.steps}
    assert set(held) == {
        "hopline --order.placed--> orders",
        "hopline --order.confirmed--> emails",
        "hopline.to --emails--> emails",
    }
    assert "'hopline' is not as declared" in held["hopline --order.placed--> orders"][0]
    assert "'emails' is not as declared" in held["hopline.to --emails--> emails"][0]


def test_extra_is_said_of_our_own_only() -> None:
    foreign = LiveQueue(queue_traits({}), 3)
    plan = compare(
        DECLARED,
        live(
            DECLARED,
            exchanges={name: LiveExchange(exchange_traits("topic")) for name in ("hopline.old", "amq.topic", "theirs")},
            queues={"old": foreign, "theirs": foreign},
            bindings={
                Binding("hopline", "old", "order.placed"),
                Binding("hopline", "orders", "order.old"),
                Binding("theirs", "theirs", "order.placed"),
            },
        ),
    )

    assert named(plan.changes) == {
        ("extra", "exchange", "hopline.old"),
        ("extra", "queue", "old"),
        ("extra", "binding", "hopline --order.old--> orders"),
    }


@pytest.mark.parametrize("messages", [3, None])
def test_a_queue_that_may_hold_messages_is_to_be_emptied_before_it_is_deleted(messages: int | None) -> None:
    queue = LiveQueue(queue_traits({}), messages)
    plan = compare(
        DECLARED, live(DECLARED, queues={"emails": queue, "old": queue}, bindings={Binding("hopline", "old", "a.b")})
    )

    for change in plan.changes:
        steps = list(change.steps)
        delete = next(at for at, step in enumerate(steps) if "delete_queue" in step)
        assert any("a queue that holds messages is never deleted" in step for step in steps[:delete])
