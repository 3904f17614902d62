"""How long a link waits, and which host it tries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline import amqp
from hopline.rabbitmq import BACKOFF_CAP_SECONDS, backoff_seconds
from hopline.rabbitmq.waiting import REFUSED_CAP_SECONDS, REFUSED_FIRST_SECONDS, Hosts, pause_seconds

chances = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 10_000), chances)
def test_backoff_is_bounded(failures: int, chance: float) -> None:
    assert 0 <= backoff_seconds(failures, chance) <= BACKOFF_CAP_SECONDS


@pytest.mark.parametrize("kind", [amqp.AuthenticationFailed, amqp.NotAllowed, amqp.TLSFailed, amqp.AccessRefused])
@given(failures=st.integers(0, 10_000), chance=chances)
def test_a_refusal_is_tried_again_seldom_and_for_ever(kind: type[amqp.AMQPError], failures: int, chance: float) -> None:
    pause = pause_seconds(failures, kind("refused"), chance)

    assert min(REFUSED_FIRST_SECONDS * 2.0 ** min(failures, 6), REFUSED_CAP_SECONDS) / 2 <= pause <= REFUSED_CAP_SECONDS


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=5, unique=True), st.integers(0, 20))
def test_every_host_is_tried_once_in_each_round(names: list[str], failures: int) -> None:
    hosts = Hosts([(name, 5672) for name in names])

    tried = []
    for _ in range(len(names)):
        tried.append(hosts.current[0])
        hosts.failed()

    assert sorted(tried) == sorted(names)
    assert hosts.current[0] == tried[0]
    assert hosts.rounds(failures) == failures // len(names)


def test_the_order_is_shuffled_once() -> None:
    hosts = Hosts([("a", 1), ("b", 2)], shuffle=lambda them: them.reverse())

    assert hosts.current == ("b", 2)
