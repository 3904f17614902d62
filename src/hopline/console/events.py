"""The event stream of live pages: each event is a whole snapshot, so that one that was missed is no loss.

`GET /events` sends the figures; `?html=flow` also the Flow page's fragments, which only that page needs. All streams
share one measurement; each makes its own text of it, as whoever reads it may see it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from litestar import get
from litestar.response import ServerSentEvent
from litestar.response.sse import ServerSentEventMessage

from hopline.console.desk import Desk
from hopline.console.formatting import number
from hopline.console.live import Sample
from hopline.console.pages.flow import Flow, flow_of
from hopline.console.request import Http, query
from hopline.console.web import access, desk_of

RETRY_MILLISECONDS = 2_000


class Value(msgspec.Struct, frozen=True):
    """One figure of a live page."""

    text: str
    tone: str


class Snapshot(msgspec.Struct, frozen=True):
    """One event."""

    at: Any
    values: dict[str, Value]
    html: dict[str, str]


@get("/events", opt=access("viewer"))
async def events(request: Http) -> ServerSentEvent:
    """The stream; 503 if too many are open."""
    desk = desk_of(request)
    with_html = query(request, "html") == "flow"
    desk.live.check_room()

    async def messages() -> AsyncIterator[ServerSentEventMessage]:
        with desk.live.listening() as samples:
            yield ServerSentEventMessage(data=None, retry=RETRY_MILLISECONDS, comment="hopline")
            async for sample in samples:
                yield _heartbeat() if sample is None else _event(request, desk, sample, with_html=with_html)

    return ServerSentEvent(messages())


def _heartbeat() -> ServerSentEventMessage:
    return ServerSentEventMessage(data=None, comment="still here")


def _event(request: Http, desk: Desk, sample: Sample, *, with_html: bool) -> ServerSentEventMessage:
    flow = flow_of(sample, list(desk.app.handlers))
    html = _fragments(request, desk, flow) if with_html else {}
    snapshot = Snapshot(flow.at, values_of(flow), html)
    return ServerSentEventMessage(data=msgspec.json.encode(snapshot), event="snapshot")


def _fragments(request: Http, desk: Desk, flow: Flow) -> dict[str, str]:
    return {"flow": desk.rendering.fragment(request, "fragments/flow.html", flow)}


def values_of(flow: Flow) -> dict[str, Value]:
    """The figures of the navigation, and of the header."""
    places = [place for place in (flow.outbox, flow.retry, flow.dead, flow.workers) if place is not None]
    known = {place.key: Value(place.figure, place.tone) for place in places}
    known |= {f"nav.{place.key}": known[place.key] for place in (flow.dead,) if place is not None}
    known["troubles"] = Value(number(len(flow.troubles)), flow.tone)
    return known


ROUTES = (events,)
