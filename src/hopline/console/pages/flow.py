"""The Flow page: the road from the API to done, retry and dead as one picture, and whether anything is wrong.

It shows the sampler's latest sample, so that a hundred open pages cost one measurement. `flow_of` is pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from hopline.console.formatting import counted, duration, number
from hopline.console.live import Sample
from hopline.console.request import Http
from hopline.console.web import desk_of, page
from hopline.console.windows import window_of
from hopline.handlers import Endpoint
from hopline.history import WINDOWS, Rate, Window
from hopline.status import Check, QueueStatus, Status, WorkerStatus, checks, troubles

Tone = Literal["ok", "busy", "warn", "bad", "idle"]

OLD_SECONDS = 60.0
"""What has waited for longer deserves a look."""
CONSUMING_ROLES = ("worker",)


class Place(msgspec.Struct, frozen=True):
    """One stop of the picture: a figure, what it counts, and how it is."""

    key: str
    label: str
    figure: str
    text: str
    tone: Tone
    href: str
    """A path within the console."""


class QueuePlace(msgspec.Struct, frozen=True):
    """One queue of the picture, with what stands at it."""

    name: str
    href: str
    tone: Tone
    word: str
    """Its state in a word: empty, moving, waiting, paused, missing, unknown."""
    depth: int | None
    ready: int | None
    in_flight: int | None
    oldest_seconds: float | None
    oldest_is_least: bool
    consumers: int | None
    expected: int
    """Living workers that say they take of it."""
    types: tuple[str, ...]
    """Message types that it takes."""
    rate: float | None = None
    """Done a second, over the last minutes."""
    p99_seconds: float | None = None


class Sign(msgspec.Struct, frozen=True):
    """One answer to "is anything wrong?"."""

    key: str
    label: str
    value: str
    tone: Tone
    word: str
    text: str
    href: str


class Flow(msgspec.Struct, frozen=True):
    """The page."""

    at: datetime | None
    trouble: str
    """Why there is no picture; empty if there is one."""
    sources: Place | None = None
    outbox: Place | None = None
    exchange: Place | None = None
    queues: tuple[QueuePlace, ...] = ()
    workers: Place | None = None
    done: Place | None = None
    retry: Place | None = None
    dead: Place | None = None
    signs: tuple[Sign, ...] = ()
    troubles: tuple[str, ...] = ()
    tone: Tone = "idle"
    """The worst of it all."""
    window: Window = "15m"
    """Of the charts."""
    windows: tuple[str, ...] = tuple(WINDOWS)


async def view(request: Http) -> Flow:
    """The latest picture."""
    desk = desk_of(request)
    found = flow_of(await desk.live.sample(), list(desk.app.handlers))
    return msgspec.structs.replace(found, window=window_of(request))


WORDS: dict[str, str] = {"ok": "fine", "warn": "look", "bad": "wrong", "idle": "not known"}
PLACES = {
    "broker": "/queues",
    "unsent": "/scheduled",
    "age": "/queues",
    "consumers": "/queues",
    "links": "/workers",
    "workers": "/workers",
    "paused": "/queues",
    "held": "/queues",
    "dead-today": "/dead/letters?state=any",
    "parked": "/dead",
    "missing": "/audit",
}
"""Where more is told of each check."""


def flow_of(sample: Sample, endpoints: Sequence[Endpoint]) -> Flow:
    """The picture of a sample."""
    status = sample.status
    if status is None:
        return Flow(None, sample.trouble, tone="bad")
    queues = tuple(_queue(queue, status, endpoints, sample.rates) for queue in status.queues)
    wrong = tuple(troubles(status))
    return Flow(
        at=status.at,
        trouble="",
        sources=_sources(status),
        outbox=_outbox(status),
        exchange=_exchange(status),
        queues=queues,
        workers=_workers(status),
        done=_done(sample.rates),
        retry=_retry(status),
        dead=_dead(status),
        signs=tuple(_sign(check) for check in checks(status)),
        troubles=wrong,
        tone="bad" if wrong else "ok",
    )


ROUTES = page("/", "pages/flow.html", "flow", view)


def _sources(status: Status) -> Place:
    living = [one for one in status.workers if one.alive and one.role not in (*CONSUMING_ROLES, "relay")]
    text = ", ".join(sorted({one.role for one in living})) or "no producer is known"
    return Place("sources", "Producers", number(len(living)), text, "ok" if living else "idle", "/workers")


def _outbox(status: Status) -> Place:
    unsent, oldest = status.outbox.unsent, status.outbox.oldest_seconds
    old = oldest is not None and oldest > OLD_SECONDS
    tone: Tone = "bad" if old else "busy" if unsent else "ok"
    text = f"oldest {duration(oldest)}" if oldest is not None else "all is sent"
    more = "+" if status.outbox.is_least else ""
    return Place("outbox", "Outbox", f"{number(unsent)}{more}", text, tone, "/scheduled")


def _exchange(status: Status) -> Place:
    if status.broker_trouble:
        return Place("exchange", "RabbitMQ", "?", "does not answer", "bad", "/queues")
    flight = status.in_flight
    return Place("exchange", "RabbitMQ", number(flight), "in flight", "ok", "/queues")


def _sign(check: Check) -> Sign:
    word = "by a person" if check.key == "held" and check.tone == "idle" else WORDS[check.tone]
    return Sign(check.key, check.label, check.value, check.tone, word, check.text, PLACES.get(check.key, ""))


def _done(rates: Mapping[str, Rate]) -> Place:
    done = sum(rate.done for rate in rates.values())
    rate = sum(rate.per_second for rate in rates.values())
    text = f"{number(done)} in 5 min"
    return Place("done", "Done", f"{number(rate, 1 if rate < 10 else 0)}/s", text, "ok", "/queues")


def _queue(queue: QueueStatus, status: Status, endpoints: Sequence[Endpoint], rates: Mapping[str, Rate]) -> QueuePlace:
    mine = [rates[one.name] for one in endpoints if one.queue == queue.name and one.name in rates]
    slowest = [rate.handler_p99 for rate in mine if rate.handler_p99 is not None]
    paused = queue.name in {one.queue for one in status.paused} | {one.queue for one in status.held}
    expected = sum(queue.name in one.queues for one in status.workers if one.alive)
    tone, word = _queue_tone(queue, is_paused=paused)
    return QueuePlace(
        name=queue.name,
        href=f"/queues/{queue.name}",
        tone=tone,
        word=word,
        depth=queue.depth,
        ready=queue.ready,
        in_flight=queue.unacked,
        oldest_seconds=queue.oldest_seconds,
        oldest_is_least=queue.oldest_is_least,
        consumers=queue.consumers,
        expected=expected,
        types=tuple(sorted({e.type.name for e in endpoints if e.queue == queue.name})),
        rate=sum(rate.per_second for rate in mine) if mine else None,
        p99_seconds=max(slowest, default=None),
    )


def _queue_tone(queue: QueueStatus, *, is_paused: bool) -> tuple[Tone, str]:
    if queue.exists is False:
        return "bad", "missing"
    if queue.depth is None:
        return "idle", "unknown"
    if is_paused:
        return "warn", "paused"
    if not queue.depth:
        return "ok", "empty"
    if queue.consumers == 0:
        return "bad", "no consumer"
    old = queue.oldest_seconds is not None and queue.oldest_seconds > OLD_SECONDS
    return ("warn", "waiting") if old else ("busy", "moving")


def _workers(status: Status) -> Place:
    workers = [one for one in status.workers if one.role in CONSUMING_ROLES]
    living = [one for one in workers if one.alive]
    busy = sum(one.busy for one in living)
    text = ", ".join(_worker_words(workers, busy))
    return Place("workers", "Workers", number(len(living)), text, "ok" if living else "bad", "/workers")


def _worker_words(workers: Sequence[WorkerStatus], busy: int) -> Iterator[str]:
    yield f"{number(busy)} in hand"
    if dead := sum(not one.alive for one in workers):
        yield f"{number(dead)} died"


def _retry(status: Status) -> Place:
    waiting = status.outbox.retrying
    more = "+" if status.outbox.is_least else ""
    text = f"and {number(status.outbox.delayed)}{more} delayed"
    return Place("retry", "Retry", f"{number(waiting)}{more}", text, "busy" if waiting else "ok", "/scheduled")


def _dead(status: Status) -> Place:
    causes = counted(len(status.parked_groups), "cause") if status.parked else "nothing is parked"
    return Place("dead", "Dead", number(status.parked), causes, "bad" if status.parked else "ok", "/dead")
