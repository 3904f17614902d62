"""One flow's whole story: from the request to the delivered mail, every attempt with its worker, time and error.

`story_of` is pure: it turns the steps of `hopline.timeline` into one sentence, the bars of a waterfall, and rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Literal

import msgspec
from litestar.exceptions import NotFoundException

from hopline.clock import utcnow
from hopline.console.formatting import counted, duration, path_part
from hopline.console.masking import Mask
from hopline.console.request import Http
from hopline.console.web import desk_of, page
from hopline.timeline import Step, timeline

BARS = 100
"""As many parts of a flow are drawn; the steps below the picture are all there."""
STEPS = 1_000
LABEL = {"outbox": "to RabbitMQ", "attempt": "attempt", "done": "handled"}

_PLAIN = re.compile(r"[\w@+=:,.][\w@+=:,./-]*", re.ASCII)
"""What a shell takes as it is: nobody should paste a customer's words into one."""

State = Literal["done", "waits", "runs", "dead", "unknown"]
SENTENCES: dict[State, tuple[str, str]] = {
    "done": ("ok", "Done"),
    "waits": ("busy", "Waiting"),
    "runs": ("busy", "Under way"),
    "dead": ("bad", "Dead"),
    "unknown": ("idle", "Not known"),
}


class Bar(msgspec.Struct, frozen=True):
    """One part of the flow in time; milliseconds from the flow's start."""

    label: str
    href: str
    start_ms: float
    length_ms: float
    tone: str
    text: str


class MessageRow(msgspec.Struct, frozen=True):
    """One message of the flow."""

    id: str
    type: str
    key: str
    at: datetime
    tone: str
    word: str


class Story(msgspec.Struct, frozen=True):
    """The page."""

    flow: str
    key: str
    command: str
    """What tells the same on the command line."""
    tone: str
    word: str
    """The flow's state in a word or two."""
    text: str
    """What that means here, in a sentence."""
    began_at: datetime
    took_seconds: float
    """From the first step to the last one."""
    bars: tuple[Bar, ...]
    messages: tuple[MessageRow, ...]
    steps: tuple[Step, ...]
    left_out: int
    """Steps that are not shown: a flow of very many."""


async def view(request: Http) -> Story:
    """The story of a business key, a correlation id or a message id."""
    desk, flow = desk_of(request), str(request.path_params["flow"])
    steps = await timeline(desk.database, flow)
    if not steps:
        raise NotFoundException(
            f"nothing is known of {flow[:100]!r}: it never was here, or it was purged after "
            f"{desk.app.settings.inbox_retention_days:g} days"
        )
    return story_of(flow, steps, utcnow(), desk.mask_for(request))


def story_of(flow: str, steps: Sequence[Step], at: datetime, mask: Mask | None) -> Story:
    """The page for the steps of a flow, oldest first."""
    shown = [step if mask is None else _masked(step, mask) for step in steps[:STEPS]]
    messages = tuple(_messages(shown))
    state, text = _state(shown, messages)
    tone, word = SENTENCES[state]
    key = next((step.key for step in shown if step.key), "")
    return Story(
        flow=flow,
        key=key,
        command=f"hopline trace {key if _PLAIN.fullmatch(key) else steps[0].message_id}",
        tone=tone,
        word=word,
        text=text,
        began_at=steps[0].at,
        took_seconds=(steps[-1].at - steps[0].at).total_seconds(),
        bars=tuple(sorted(_bars(shown, at), key=lambda bar: bar.start_ms))[:BARS],
        messages=messages,
        steps=tuple(shown),
        left_out=len(steps) - len(shown),
    )


def _masked(step: Step, mask: Mask) -> Step:
    return replace(step, text=mask.text(step.text), error=mask.text(step.error), key=mask.text(step.key))


def _bars(steps: Sequence[Step], at: datetime) -> Iterator[Bar]:
    first = min((step.start or step.at for step in steps), default=at)
    for step in steps:
        if step.start is None:
            continue
        length = ((step.end or at) - step.start).total_seconds()
        kind = LABEL.get(step.what, step.what)
        label = f"{step.type} {kind}" if step.what == "outbox" else f"{step.type} {kind} at {step.endpoint}"
        text = duration(length) if step.end else f"for {duration(length)}"
        start_ms = max(0.0, (step.start - first).total_seconds() * 1e3)
        href = f"/messages/{path_part(step.message_id)}"
        yield Bar(label, href, start_ms, max(0.0, length * 1e3), step.tone, text)


def _messages(steps: Sequence[Step]) -> Iterator[MessageRow]:
    for step in steps:
        if step.what == "message":
            mine = [one for one in steps if one.message_id == step.message_id]
            state = _message_state(mine)
            tone, word = SENTENCES[state]
            yield MessageRow(step.message_id, step.type, step.key, step.at, tone, word)


def _message_state(steps: Sequence[Step]) -> State:
    """Of one message: the last of what ends it, unless a send of it is still under way."""
    if any(step.what == "outbox" and step.start is not None and step.end is None for step in steps):
        return "waits"
    ends = [step for step in steps if step.what in ("done", "dead-letter", "repair")]
    if not ends:
        return "runs"
    return "done" if any(step.what == "done" for step in ends) else "dead"


def _state(steps: Sequence[Step], messages: Sequence[MessageRow]) -> tuple[State, str]:
    words = {row.word: sum(one.word == row.word for one in messages) for row in messages}
    order: tuple[State, ...] = ("dead", "waits", "runs", "done")
    of_worst: State = next((state for state in order if SENTENCES[state][1] in words), "unknown")
    last = steps[-1]
    if of_worst == "dead":
        letter = next((one for one in reversed(steps) if one.what == "dead-letter"), last)
        return of_worst, letter.text
    if of_worst in ("waits", "runs"):
        waiting = next((one for one in reversed(steps) if one.what in ("outbox", "attempt")), last)
        return of_worst, waiting.text
    done = next((one for one in reversed(steps) if one.what == "done"), last)
    return of_worst, f"{counted(len(messages), 'message')}; the last: {done.text}"


ROUTES = page("/flows/{flow:str}", "pages/story.html", "search", view)
