"""What in a status is not as it should be, and what is: the answer to "is anything wrong?". Pure.

A trouble is something that a person should look at. A check is one thing that was looked at, with its figure, also
when it is fine; its tone is that of its worst trouble.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from hopline.clock import age_text
from hopline.status.snapshot import QueueStatus, Status

RECENT_DEATH_SECONDS = 600.0
"""A process that died within this time is a trouble."""
OLD_SEND_SECONDS = 60.0
"""What has been due for longer does not leave."""
OLD_MESSAGE_SECONDS = 600.0
"""A queue whose oldest message is older does not keep up."""

Tone = Literal["ok", "warn", "bad", "idle"]
"""idle: by somebody's will, or not known."""
_WORST: Sequence[Tone] = ("bad", "warn", "idle", "ok")


class Trouble(msgspec.Struct, frozen=True):
    """Something to look at. `hint` says what to do, if that is known."""

    key: str
    tone: Tone
    text: str
    hint: str = ""


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    key: str
    label: str
    tone: Tone
    value: str
    """Its figure, for people."""
    text: str = ""
    """What is wrong; empty if nothing is."""
    hint: str = ""


def troubles(status: Status) -> list[str]:
    """What in a status needs a person, one line each, with the command to type; empty if all is well."""
    return [_with_command(one) for one in trouble_list(status) if one.tone != "idle"]


def _with_command(one: Trouble) -> str:
    is_new = one.hint.startswith("hopline ") and one.hint not in one.text
    return f"{one.text} (`{one.hint}`)" if is_new else one.text


def trouble_list(status: Status) -> list[Trouble]:
    """Everything to look at, also what an operator has paused."""
    return [
        *_broker(status),
        *_outbox(status),
        *_links(status),
        *_workers(status),
        *_queues(status),
        *_pauses(status),
        *_parked(status),
        *_account(status),
    ]


def checks(status: Status) -> tuple[Check, ...]:
    """Each thing that is looked at, fine or not."""
    found = trouble_list(status)
    return tuple(_check(key, label, value, found) for key, label, value in _figures(status))


def _check(key: str, label: str, value: str, found: Sequence[Trouble]) -> Check:
    mine = sorted((one for one in found if one.key == key), key=lambda one: _WORST.index(one.tone))
    if mine:
        return Check(key, label, mine[0].tone, value, "; ".join(one.text for one in mine[:3]), mine[0].hint)
    if key == "dead-today" and value != "0":  # no trouble of its own: what is still parked is one
        return Check(key, label, "warn", value, "", "hopline dead groups --since 24h --state any")
    return Check(key, label, "idle" if value == UNKNOWN else "ok", value)


UNKNOWN = "unknown"


def _figures(status: Status) -> Iterator[tuple[str, str, str]]:
    outbox = status.outbox
    oldest = f", oldest {age_text(outbox.oldest_seconds)}" if outbox.oldest_seconds is not None else ""
    yield "broker", "RabbitMQ", "answers" if not status.broker_trouble else "does not answer"
    yield "unsent", "Unsent", f"{outbox.unsent:,}{_more(outbox.is_least)}{oldest}"
    yield "unconfirmed", "Unconfirmed", f"{outbox.unconfirmed:,}{_more(outbox.is_least)}"
    yield "age", "Oldest in a queue", _age_figure(status.queues)
    yield "consumers", "Consumers", _consumer_figure(status.queues)
    links = [link for worker in status.workers if worker.alive for link in (*worker.troubles, *worker.blocked)]
    yield "links", "Connections", f"{len(links)} in trouble" if links else "all are up"
    alive = sum(worker.alive for worker in status.workers)
    yield "workers", "Processes", f"{alive} alive"
    yield "paused", "Paused by handlers", f"{len(status.paused):,}"
    yield "held", "Paused by a person", f"{len(status.held):,}"
    yield "dead-today", "Dead today", f"{status.dead_today:,}{_more(status.dead_today_is_least)}"
    yield "parked", "Parked", f"{status.parked:,}{_more(status.parked_is_least)}"
    yield "missing", "Missing", _missing_figure(status)


def _missing_figure(status: Status) -> str:
    audit = status.audit
    if audit is None or (audit.unproven > audit.recent and not audit.missing):
        return UNKNOWN
    return f"{audit.missing:,}{_more(audit.missing_is_least)}"


def _more(is_least: bool) -> str:
    return "+" if is_least else ""


def _age_figure(queues: Sequence[QueueStatus]) -> str:
    known = [queue for queue in queues if queue.oldest_seconds is not None]
    if not known:
        return "none waits" if any(queue.depth is not None for queue in queues) else UNKNOWN
    worst = max(known, key=lambda queue: queue.oldest_seconds or 0.0)
    assert worst.oldest_seconds is not None
    return f"{'over' if worst.oldest_is_least else 'about'} {age_text(worst.oldest_seconds)} in {worst.name}"


def _consumer_figure(queues: Sequence[QueueStatus]) -> str:
    known = [queue for queue in queues if queue.expected_consumers is not None and queue.consumers is not None]
    if not known:
        return UNKNOWN
    return f"{sum(q.consumers or 0 for q in known):,} of {sum(q.expected_consumers or 0 for q in known):,}"


def _broker(status: Status) -> Iterator[Trouble]:
    if status.broker_trouble:
        yield Trouble("broker", "bad", f"RabbitMQ: {status.broker_trouble}", "Orders are still taken; start RabbitMQ.")
    off = {one.queue for one in status.paused} | {one.queue for one in status.held}
    for queue in status.queues:
        if queue.exists is False:
            text = f"the queue {queue.name} does not exist; a worker or `hopline topology apply` makes it"
            yield Trouble("broker", "bad", text, "hopline topology apply")
        elif queue.depth and queue.consumers == 0 and queue.name not in off:
            text = f"the queue {queue.name} holds {queue.depth:,} messages and has no consumer"
            yield Trouble("consumers", "bad", text, "hopline worker")


def _outbox(status: Status) -> Iterator[Trouble]:
    oldest = status.outbox.oldest_seconds
    if oldest is not None and oldest > OLD_SEND_SECONDS:
        text = f"{status.outbox.unsent:,} messages wait for RabbitMQ, the first for {oldest:.0f} s"
        if status.broker_trouble:  # the cause is told
            yield Trouble("unsent", "idle", text)
        else:
            yield Trouble("unsent", "bad", f"{text}; is a relay running?", "hopline relay")


def _links(status: Status) -> Iterator[Trouble]:
    """Each cause once, however many processes tell of it."""
    told: dict[str, dict[str, list[str]]] = {}
    for worker in status.workers:
        for trouble in worker.troubles if worker.alive else ():
            link, _, cause = trouble.partition(": ")
            told.setdefault(cause, {}).setdefault(worker.instance, []).append(link)
    for cause, instances in told.items():
        instance, links = next(iter(instances.items()))
        more = f" and {len(instances) - 1:,} more" if len(instances) > 1 else ""
        is_told = bool(status.broker_trouble) and "database" not in links
        yield Trouble("links", "idle" if is_told else "bad", f"{instance}{more}: {', '.join(links)}: {cause}")


def _workers(status: Status) -> Iterator[Trouble]:
    for worker in status.workers:
        if not worker.alive and worker.age_seconds < RECENT_DEATH_SECONDS:
            text = f"{worker.instance} died {worker.age_seconds:.0f} s ago"
            yield Trouble("workers", "bad", text, "What it had in hand is delivered again; its log may say why.")


def _queues(status: Status) -> Iterator[Trouble]:
    for queue in status.queues:
        if queue.oldest_seconds is not None and queue.oldest_seconds > OLD_MESSAGE_SECONDS:
            text = f"the oldest message in the queue {queue.name} is {age_text(queue.oldest_seconds)} old"
            yield Trouble("age", "warn", text, "Add workers, or look at what its handler waits for.")
        expected, consumers = queue.expected_consumers, queue.consumers
        if expected is not None and consumers is not None and 0 < consumers < expected:
            text = f"the queue {queue.name} has {consumers} of the {expected} consumers that workers tell of"
            yield Trouble("consumers", "warn", text, "A worker that has just started or stopped is seen late.")


def _pauses(status: Status) -> Iterator[Trouble]:
    for one in status.paused:
        text = f"the queue {one.queue} is paused: {one.reason or one.endpoint}"
        yield Trouble("paused", "bad", text, "It is tried again by itself; mend what the handler needs.")
    for held in status.held:
        text = f"{held.who} has paused the queue {held.queue}: {held.reason}"
        yield Trouble("held", "idle", text, f"hopline queue resume {held.queue}")
    for unknown in status.unknown:
        text = f"{unknown.name} is a type that {unknown.workers} of the workers do not know"
        yield Trouble("workers", "warn", text, "Finish the deploy of the workers.")
    for loss in status.losses:
        text = f"the queue {loss.queue} was lost; {loss.rescheduled} messages are sent again"
        yield Trouble("broker", "warn", text)


def _parked(status: Status) -> Iterator[Trouble]:
    if status.parked:
        more = _more(status.parked_is_least)
        letters = "1 dead letter is" if status.parked == 1 else f"{status.parked:,}{more} dead letters are"
        yield Trouble("parked", "warn", f"{letters} parked", "hopline dead groups")


def _account(status: Status) -> Iterator[Trouble]:
    if status.audit_trouble:
        yield Trouble("missing", "bad", f"the account could not be made: {status.audit_trouble}")
    audit = status.audit
    if audit is None:
        return
    if audit.missing:
        least = "at least " if audit.missing_is_least else ""
        yield Trouble("missing", "bad", f"{least}{audit.missing:,} messages are missing", "hopline audit")
    unproven = audit.unproven - audit.recent
    if audit.trouble and not status.broker_trouble:  # else one cause would be told twice
        text = f"{unproven:,} messages are unproven: {audit.trouble}" if unproven else audit.trouble
        yield Trouble("missing", "warn", text, "hopline audit")
    elif unproven > 0 and not status.broker_trouble:
        yield Trouble("missing", "warn", f"{unproven:,} messages are unproven", "hopline audit")
