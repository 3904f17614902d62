"""The bookkeeping of confirms against a plain model, and the matching of returns."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline.amqp import Outgoing, Properties, ProtocolError, Published
from hopline.amqp.confirms import Call, Confirms


class Waiter:
    def __init__(self) -> None:
        self.results = 0

    def done(self) -> Any:
        return self.results > 0

    def set_result(self, result: Any) -> None:
        self.results += 1


def outgoing(key: Any = "key", message_id: Any = None, body: Any = b"", mandatory: Any = True) -> Any:
    return Outgoing("exchange", key, Properties(message_id=message_id), body, mandatory)


def published(confirms: Confirms, *messages: Any) -> Any:
    call = Call(messages)
    confirms.wrote(call, len(messages))
    call.waiter = Waiter()
    return call


def test_one_multiple_confirm_settles_every_call_before_it() -> None:
    confirms = Confirms()
    calls = [published(confirms, *[outgoing()] * 10) for _ in range(3)]

    confirms.settle(25, multiple=True, refused=False)

    assert [call.waiter.done() for call in calls] == [True, True, False]
    assert confirms.unconfirmed == 5
    assert calls[2].outcomes() == [Published.CONFIRMED] * 5 + [Published.UNKNOWN] * 5


def test_confirms_out_of_order_settle_only_theirs() -> None:
    confirms = Confirms()
    first, second = published(confirms, outgoing(), outgoing()), published(confirms, outgoing())

    confirms.settle(3, multiple=False, refused=False)
    confirms.settle(2, multiple=False, refused=True)

    assert second.waiter.done()
    assert not first.waiter.done()
    assert first.outcomes() == [Published.UNKNOWN, Published.REFUSED]


def test_tag_zero_with_multiple_means_all() -> None:
    confirms = Confirms()
    call = published(confirms, outgoing(), outgoing())

    confirms.settle(0, multiple=True, refused=False)

    assert call.outcomes() == [Published.CONFIRMED] * 2


@pytest.mark.parametrize(("tag", "multiple"), [(3, False), (3, True), (0, False)])
def test_a_confirm_of_what_was_never_published_is_a_protocol_error(tag: Any, multiple: Any) -> None:
    confirms = Confirms()
    published(confirms, outgoing(), outgoing())

    with pytest.raises(ProtocolError):
        confirms.settle(tag, multiple=multiple, refused=False)


def test_a_second_confirm_of_the_same_publish_changes_nothing() -> None:
    confirms = Confirms()
    call = published(confirms, outgoing(), outgoing())

    confirms.settle(1, multiple=False, refused=False)
    confirms.settle(1, multiple=False, refused=True)
    confirms.settle(1, multiple=True, refused=True)

    assert confirms.unconfirmed == 1
    assert call.outcomes() == [Published.CONFIRMED, Published.UNKNOWN]


def test_a_return_before_its_confirm_makes_it_returned() -> None:
    confirms = Confirms()
    call = published(confirms, outgoing("a"), outgoing("b"), outgoing("a"))

    found = confirms.returned("exchange", "b", None, b"")
    confirms.settle(3, multiple=True, refused=False)

    assert found is call.messages[1]
    assert call.outcomes() == [Published.CONFIRMED, Published.RETURNED, Published.CONFIRMED]


def test_a_return_is_told_apart_by_id_and_body_when_the_route_changed_between() -> None:
    confirms = Confirms()
    call = published(confirms, outgoing(message_id="1"), outgoing(message_id="2"), outgoing(message_id="2", body=b"x"))

    confirms.returned("exchange", "key", "2", b"x")
    confirms.settle(3, multiple=True, refused=False)

    assert call.outcomes() == [Published.CONFIRMED, Published.CONFIRMED, Published.RETURNED]


def test_equal_messages_are_returned_in_the_order_of_their_publishes() -> None:
    confirms = Confirms()
    first, second = published(confirms, outgoing(), outgoing()), published(confirms, outgoing())

    assert confirms.returned("exchange", "key", None, b"") is first.messages[0]
    assert confirms.returned("exchange", "key", None, b"") is first.messages[1]
    confirms.settle(2, multiple=True, refused=False)

    assert first.outcomes() == [Published.RETURNED] * 2
    assert second.outcomes() == [Published.UNKNOWN]


def test_settled_and_optional_messages_are_never_taken_for_returned_ones() -> None:
    confirms = Confirms()
    call = published(confirms, outgoing(), outgoing(mandatory=False), outgoing())
    confirms.settle(1, multiple=False, refused=False)

    confirms.returned("exchange", "key", None, b"")
    confirms.settle(3, multiple=True, refused=False)

    assert call.outcomes() == [Published.CONFIRMED, Published.CONFIRMED, Published.RETURNED]


def test_a_return_whose_headers_the_server_changed_goes_to_the_nearest_message() -> None:
    confirms = Confirms()
    call = published(confirms, outgoing("other"), outgoing(message_id="1"))

    assert confirms.returned("exchange", "key", "changed", b"") is call.messages[1]
    assert confirms.returned("exchange", "unheard-of", None, b"") is None


def test_what_is_lost_is_unknown_but_a_return_stays_one() -> None:
    confirms = Confirms()
    call = published(confirms, outgoing(), outgoing("b"), outgoing())
    confirms.settle(1, multiple=False, refused=False)
    confirms.returned("exchange", "b", None, b"")

    confirms.lose()

    assert call.waiter.results == 1
    assert call.outcomes() == [Published.CONFIRMED, Published.RETURNED, Published.UNKNOWN]
    assert confirms.unconfirmed == 0


def test_what_was_never_written_is_unknown() -> None:
    confirms = Confirms()
    call = Call([outgoing()] * 3)
    confirms.wrote(call, 1)
    confirms.settle(1, multiple=False, refused=False)

    assert call.outcomes() == [Published.CONFIRMED, Published.UNKNOWN, Published.UNKNOWN]


settlements = st.tuples(st.floats(0, 1), st.booleans(), st.booleans())


@given(st.lists(st.one_of(st.integers(1, 8), settlements), max_size=60), st.booleans())
def test_any_order_of_publishes_and_confirms_agrees_with_a_plain_model(steps: Any, lose_at_the_end: Any) -> None:
    confirms = Confirms()
    calls = []
    model: dict[int, Published] = {}
    owner: dict[int, tuple[int, int]] = {}
    for step in steps:
        if isinstance(step, int):
            calls.append(published(confirms, *[outgoing()] * step))
            for index in range(step):
                owner[len(owner) + 1] = (len(calls) - 1, index)
        elif owner:
            place, multiple, refused = step
            tag = 1 + int(place * (len(owner) - 1))
            confirms.settle(tag, multiple=multiple, refused=refused)
            for each in range(1, tag + 1) if multiple else (tag,):
                model.setdefault(each, Published.REFUSED if refused else Published.CONFIRMED)
            assert confirms.unconfirmed == len(owner) - len(model)
    if lose_at_the_end:
        confirms.lose()

    expected = [[Published.UNKNOWN] * len(call.messages) for call in calls]
    for tag, outcome in model.items():
        number, index = owner[tag]
        expected[number][index] = outcome
    assert [call.outcomes() for call in calls] == expected
    for number, call in enumerate(calls):
        settled = all(tag in model for tag, (owner_number, _) in owner.items() if owner_number == number)
        assert call.waiter.results == (1 if settled or lose_at_the_end else 0)


def test_long_histories_leave_nothing_behind() -> None:
    confirms = Confirms()
    for _ in range(2000):
        published(confirms, outgoing())
    for tag in range(2, 2001):
        confirms.settle(tag, multiple=False, refused=False)
    confirms.settle(1, multiple=False, refused=False)

    assert confirms.unconfirmed == 0
    assert confirms._spans == []
