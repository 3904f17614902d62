"""The processes: who lives, of which version, what each does now and for how long; and draining one."""

from __future__ import annotations

from datetime import datetime

import msgspec

from hopline.console.formatting import path_part
from hopline.console.masking import Mask
from hopline.console.request import Http, who
from hopline.console.web import Done, Form, action, desk_of, page
from hopline.draining import drain
from hopline.status import WorkerStatus

DRAINABLE = ("worker", "relay")
RECENTLY_DEAD = 20
"""So many of the dead are shown, those that died last."""


class RunningRow(msgspec.Struct, frozen=True):
    """A message that is being handled."""

    endpoint: str
    message_id: str
    key: str
    since: datetime | None


class ProcessRow(msgspec.Struct, frozen=True):
    """One process."""

    instance: str
    role: str
    version: str
    tone: str
    word: str
    age_seconds: float
    """Of its last heartbeat."""
    started_at: datetime | None
    queues: tuple[str, ...]
    busy: int
    troubles: tuple[str, ...]
    running: tuple[RunningRow, ...]
    drainable: bool


class Processes(msgspec.Struct, frozen=True):
    """The page."""

    trouble: str
    """Why nothing is known; empty if something is."""
    rows: tuple[ProcessRow, ...] = ()
    dead: tuple[ProcessRow, ...] = ()
    dead_left_out: int = 0


async def view(request: Http) -> Processes:
    """The processes as they last said of themselves."""
    desk = desk_of(request)
    sample = await desk.live.sample()
    if sample.status is None:
        return Processes(sample.trouble)
    mask = desk.mask_for(request)
    rows = [row_of(one, mask) for one in sample.status.workers]
    alive = [row for row, one in zip(rows, sample.status.workers, strict=True) if one.alive]
    dead = [row for row, one in zip(rows, sample.status.workers, strict=True) if not one.alive]
    dead.sort(key=lambda row: row.age_seconds)
    return Processes("", tuple(alive), tuple(dead[:RECENTLY_DEAD]), max(0, len(dead) - RECENTLY_DEAD))


def row_of(one: WorkerStatus, mask: Mask | None) -> ProcessRow:
    """A process for people."""
    tone, word = _state(one)
    running = tuple(
        RunningRow(
            each.endpoint,
            each.message_id,
            each.key if mask is None else mask.text(each.key),
            each.since,
        )
        for each in one.running
    )
    return ProcessRow(
        instance=one.instance,
        role=one.role,
        version=one.version,
        tone=tone,
        word=word,
        age_seconds=one.age_seconds,
        started_at=one.started_at,
        queues=one.queues,
        busy=one.busy,
        troubles=(*one.troubles, *(f"{link}: blocked by an alarm of RabbitMQ" for link in one.blocked)),
        running=running,
        drainable=one.alive and one.role in DRAINABLE and not one.draining,
    )


def _state(one: WorkerStatus) -> tuple[str, str]:
    if not one.alive:
        return "bad", "dead"
    if one.draining:
        return "warn", "draining"
    if one.troubles or one.blocked:
        return "bad", "in trouble"
    return ("busy", "busy") if one.busy else ("ok", "idle")


async def act(request: Http, form: Form) -> Done:
    """Asks one process to drain: it takes no more, finishes what it has, and ends."""
    desk, instance = desk_of(request), str(request.path_params["instance"])
    asked = await drain(desk.database, instance, who=who(request), reason=form.text("reason"))
    place = "/workers"
    match asked:
        case "asked":
            return Done(f"{instance} was asked to drain; it ends when what it has is finished", place, "busy")
        case "asked-before":
            return Done(f"{instance} drains already", place, "warn")
        case "wrong-role":
            return Done(f"{instance} is no worker and no relay; stop it where it was started", place, "warn")
    return Done(f"no living process is called {path_part(instance)}", place, "warn")


ROUTES = [
    *page("/workers", "pages/workers.html", "workers", view),
    *action("/workers/{instance:str}/drain", act),
]
