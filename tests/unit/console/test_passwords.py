from __future__ import annotations

import pytest

from hopline.console.passwords import (
    ALL_FAILURES,
    CLIENT_FAILURES,
    CLIENTS,
    WINDOW_SECONDS,
    Failures,
    OneTimeLink,
    Passwords,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def failures(clock: Clock) -> Failures:
    return Failures(clock)


def test_each_password_gives_its_role_and_no_other_gives_any() -> None:
    both = Passwords(operator="operators only", viewer="viewers only")

    assert both.role_of("operators only") == "operator"
    assert both.role_of("viewers only") == "viewer"
    for wrong in ("", "operators onl", "operators only ", "OPERATORS ONLY", "\ud800"):
        assert both.role_of(wrong) is None, wrong


def test_a_password_that_is_not_set_signs_nobody_in() -> None:
    assert Passwords(operator="", viewer="").role_of("") is None
    assert Passwords(operator="operators only", viewer="").role_of("") is None


def test_a_link_signs_in_once_and_then_there_is_another() -> None:
    link = OneTimeLink("first")

    assert not link.use("")
    assert not link.use("other")
    assert link.token == "first"
    assert link.use("first")
    assert not link.use("first")
    assert len(link.token) >= 32
    assert OneTimeLink().token != OneTimeLink().token


def test_a_client_that_fails_too_often_waits_until_its_first_failure_is_old(failures: Failures, clock: Clock) -> None:
    for second in range(CLIENT_FAILURES):
        assert failures.wait_seconds("192.0.2.1") == 0
        clock.now = float(second)
        failures.add("192.0.2.1")

    assert failures.wait_seconds("192.0.2.1") == pytest.approx(WINDOW_SECONDS - CLIENT_FAILURES + 1, abs=1)
    assert failures.wait_seconds("192.0.2.2") == 0
    clock.now = WINDOW_SECONDS - 0.1
    assert failures.wait_seconds("192.0.2.1") == 1
    clock.now = WINDOW_SECONDS
    assert failures.wait_seconds("192.0.2.1") == 0


def test_an_ipv6_client_is_its_network(failures: Failures) -> None:
    for number in range(CLIENT_FAILURES):
        failures.add(f"2001:db8::{number}")

    assert failures.wait_seconds("2001:db8::ffff") > 0
    assert failures.wait_seconds("2001:db8:0:1::1") == 0


def test_all_clients_together_are_limited_too(failures: Failures) -> None:
    for number in range(ALL_FAILURES):
        failures.add(f"client-{number}")

    assert failures.wait_seconds("somebody else") > 0


def test_only_so_many_clients_are_remembered(failures: Failures) -> None:
    for number in range(CLIENTS + 10):
        failures.add(f"client-{number}")

    assert len(failures._by_client) == CLIENTS
    assert f"client-{CLIENTS + 9}" in failures._by_client
