from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from hopline.clock import utcnow
from hopline.console.masking import MASK, Mask
from hopline.console.pages.story import BARS, STEPS, Story, story_of
from hopline.timeline import Step

AT = utcnow()


def step(seconds: float, what: str, *, message: str = "m-1", text: str = "", **more: Any) -> Step:
    at = AT + timedelta(seconds=seconds)
    given: dict[str, Any] = {"worker": "", "seconds": None, "tone": "ok", "key": "o-1", **more}
    return Step(at, what, message, "order.placed", text, **given)


def bar(seconds: float, length: float | None) -> dict[str, Any]:
    start = AT + timedelta(seconds=seconds)
    return {"start": start, "end": None if length is None else start + timedelta(seconds=length)}


def story(*steps: Step, mask: Mask | None = None) -> Story:
    return story_of("o-1", steps, AT + timedelta(seconds=10), mask)


SENT = step(0, "outbox", text="stored", **bar(0, 0.5))
DONE = step(2, "done", text="250 queued", endpoint="emails/x", **bar(1, 1.0))


def test_a_flow_that_is_done() -> None:
    found = story(step(0, "message"), SENT, DONE)

    assert (found.tone, found.word) == ("ok", "Done")
    assert found.text == "1 message; the last: 250 queued"
    assert found.took_seconds == 2.0
    assert [(one.start_ms, one.length_ms, one.text) for one in found.bars] == [
        (0.0, 500.0, "500\u202fms"),
        (1_000.0, 1_000.0, "1.0\u202fs"),
    ]


def test_a_send_that_waits_is_a_bar_until_now() -> None:
    found = story(step(0, "message"), step(0, "outbox", text="waits for RabbitMQ", **bar(0, None)))

    assert (found.tone, found.word, found.text) == ("busy", "Waiting", "waits for RabbitMQ")
    assert found.bars[0].length_ms == 10_000.0
    assert found.bars[0].text.startswith("for ")


def test_a_flow_is_as_its_worst_message() -> None:
    dead = step(3, "dead-letter", message="m-2", text="exhausted: none left", tone="bad")
    found = story(step(0, "message"), SENT, DONE, step(1, "message", message="m-2"), dead)

    assert (found.tone, found.word, found.text) == ("bad", "Dead", "exhausted: none left")
    assert [(row.id, row.word) for row in found.messages] == [("m-1", "Done"), ("m-2", "Dead")]


def test_a_letter_that_was_replayed_and_done_is_done() -> None:
    dead = step(1, "dead-letter", text="exhausted")

    assert story(step(0, "message"), SENT, dead, step(2, "repair"), DONE).word == "Done"


def test_what_is_with_a_handler_is_under_way() -> None:
    assert story(step(0, "message"), SENT).word == "Under way"


def test_a_viewer_reads_no_address() -> None:
    steps = [step(0, "message"), step(2, "done", text="250 to ann@example.com", error="ann@example.com", **bar(1, 1.0))]

    found = story(*steps, mask=Mask(frozenset()))

    assert "ann@example.com" not in str(found)
    assert MASK in found.text


def test_a_flow_of_very_many_steps_is_cut_and_says_so() -> None:
    found = story(*(step(number, "outbox", **bar(number, 1)) for number in range(STEPS + 7)))

    assert (len(found.steps), found.left_out, len(found.bars)) == (STEPS, 7, BARS)


@pytest.mark.parametrize("key", ["$(reboot)", "a b", "-rf", "a\x1b[31m", "•••", ""])
def test_the_command_has_no_words_of_a_customer_that_a_shell_would_read(key: str) -> None:
    assert story(replace(step(0, "message"), key="order-1.a@b")).command == "hopline trace order-1.a@b"
    assert story(replace(step(0, "message"), key=key)).command == "hopline trace m-1"
