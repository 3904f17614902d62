"""One mail cannot pause the queue for ever, and a server that refuses everything cannot park it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orders.evidence import IN_A_ROW, REMEMBERED, Evidence


def test_a_session_that_ends_once_is_not_the_mails_fault() -> None:
    evidence = Evidence()
    evidence.taken("bob")

    assert not evidence.blames_mail("ann")


def test_a_server_that_is_down_is_no_mails_fault_however_often_it_is_tried() -> None:
    evidence = Evidence()
    evidence.taken("bob")

    assert not any(evidence.blames_mail(name) for name in ["ann", "bob", "eve"] * 100)


def test_a_mail_that_ends_the_session_while_others_go_through_is_to_blame() -> None:
    evidence = Evidence()

    blamed = []
    for _ in range(4):
        blamed.append(evidence.blames_mail("ann"))
        evidence.taken("bob")

    assert blamed == [False, True, True, True]


def test_a_mail_that_goes_through_is_not_to_blame_later() -> None:
    evidence = Evidence()
    evidence.blames_mail("ann")
    evidence.taken("ann")

    assert not evidence.blames_mail("ann")


def test_a_server_that_refuses_everything_is_to_blame_after_a_few_until_it_takes_one() -> None:
    evidence = Evidence()

    assert [evidence.blames_server(f"{number}") for number in range(IN_A_ROW + 2)] == [False] * IN_A_ROW + [True] * 2
    evidence.taken("ann")
    assert not evidence.blames_server(f"{IN_A_ROW}")


@given(st.lists(st.tuples(st.sampled_from(["taken", "blames_mail", "blames_server"]), st.integers(0, 3)), max_size=50))
def test_no_mail_pauses_twice_in_a_row_while_others_are_taken(acts: list[tuple[str, int]]) -> None:
    evidence = Evidence()
    for act, number in acts:
        getattr(evidence, act)(f"{number}")

    evidence.blames_mail("ann")
    evidence.taken("bob")

    assert evidence.blames_mail("ann")


def test_what_is_remembered_is_bounded() -> None:
    evidence = Evidence()
    for number in range(3 * REMEMBERED):
        evidence.blames_mail(f"{number}")
        evidence.blames_server(f"{number}")

    assert len(evidence._ended) == REMEMBERED
    assert len(evidence._refused) == IN_A_ROW
