"""The queues and their handlers: what they do, how they fail, who paused them; and the topology, on demand.

A pause holds for all workers and outlives them. The live topology is read from RabbitMQ only when somebody asks.
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Response, get
from litestar.exceptions import NotFoundException

from hopline import history, pausing
from hopline.console.formatting import path_part
from hopline.console.request import API, Http, query, who
from hopline.console.web import Done, Form, access, action, desk_of, json_answer, page
from hopline.console.windows import window_of
from hopline.errors import HoplineError
from hopline.history import WINDOWS
from hopline.status import QueueReport, queue_reports
from hopline.topology import Change

WINDOW_NAMES: tuple[str, ...] = tuple(WINDOWS)


class Queues(msgspec.Struct, frozen=True):
    """All queues of the program."""

    trouble: str
    """Why nothing is known; empty if something is."""
    reports: tuple[QueueReport, ...] = ()
    broker_trouble: str = ""


class QueuePage(msgspec.Struct, frozen=True):
    """One queue."""

    report: QueueReport
    window: str
    windows: tuple[str, ...] = WINDOW_NAMES


class Topology(msgspec.Struct, frozen=True):
    """The live broker against what the program declares."""

    trouble: str
    changes: tuple[Change, ...] = ()


async def view(request: Http) -> Queues:
    """The queues with their rates of the last five minutes."""
    desk = desk_of(request)
    sample = await desk.live.sample()
    if sample.status is None:
        return Queues(sample.trouble)
    rates = await history.rates(desk.database)
    reports = queue_reports(sample.status, desk.app.handlers, rates)
    return Queues("", reports, sample.status.broker_trouble)


async def view_queue(request: Http) -> QueuePage:
    """One queue with its handlers."""
    name = str(request.path_params["queue"])
    found = await view(request)
    report = next((one for one in found.reports if one.name == name), None)
    if report is None:
        raise NotFoundException(found.trouble or f"this program has no handler for a queue {name[:100]!r}")
    return QueuePage(report, window_of(request))


@get(f"{API}/history", opt=access("viewer"))
async def show_history(request: Http) -> Response[Any]:
    """The figures of a chart: of one endpoint, or of the whole system."""
    endpoint = query(request, "endpoint") or None
    return json_answer(await history.read(desk_of(request).database, window_of(request), endpoint))


async def view_topology(request: Http) -> Topology:
    """The plan, read from RabbitMQ now."""
    try:
        plan = await desk_of(request).app.plan()
    except HoplineError as error:
        return Topology(str(error))
    return Topology("", plan.changes)


async def pause(request: Http, form: Form) -> Done:
    """Has all workers stop to take from a queue."""
    desk, queue = desk_of(request), _queue(request)
    done = await pausing.pause(desk.database, queue, who=who(request), reason=form.text("reason"))
    text = f"{queue} is paused: workers stop taking from it within seconds" if done else f"{queue} was paused already"
    return Done(text, _place(queue), "ok" if done else "warn")


async def resume(request: Http, form: Form) -> Done:
    """Lets the workers take again."""
    desk, queue = desk_of(request), _queue(request)
    done = await pausing.resume(desk.database, queue, who=who(request), reason=form.text("reason"))
    text = f"{queue} is resumed: workers take from it within seconds" if done else f"{queue} was not paused"
    return Done(text, _place(queue), "ok" if done else "warn")


def _queue(request: Http) -> str:
    name = str(request.path_params["queue"])
    desk_of(request).app.check_queue(name)
    return name


def _place(queue: str) -> str:
    return f"/queues/{path_part(queue)}"


ROUTES = [
    *page("/queues", "pages/queues.html", "queues", view),
    *page("/queues/{queue:str}", "pages/queue.html", "queues", view_queue),
    *page("/topology", "pages/topology.html", "queues", view_topology),
    show_history,
    *action("/queues/{queue:str}/pause", pause),
    *action("/queues/{queue:str}/resume", resume),
]
