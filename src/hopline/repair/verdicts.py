"""Whether a dead letter can be replayed, and as what: decided by today's code, without I/O.

A replay is the same message in a new run, so that the inbox and the attempts of the old run do not stop it. It is
refused where it could not succeed or would not be the same message; the text says what to do instead. A new
message (an edit, or a replay as new) has a new id, and the old one as its cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from hopline import codec
from hopline.clock import id_time, new_id
from hopline.deadletter_queries import WholeLetter
from hopline.errors import MessageTooLarge, Undecodable, UnknownType
from hopline.handlers import Handlers
from hopline.message import Catalog, Envelope, MessageType
from hopline.outgoing import checked_key
from hopline.properties import CAUSE_HEADER, VERSION_HEADER, free_headers, is_id

KILLERS = ("killed-workers", "delivery-limit")
"""Reasons of letters whose replay has to run alone: they may kill their worker again."""
TOO_OLD = "too-old"
LEFT_OUT = 20
"""So many fields that today's code does not know are named."""

Kind = Literal[
    "ok",
    "not-found",
    "resolved",
    "unknown-type",
    "undecodable",
    "no-id",
    "too-old",
    "differs",
    "done",
    "parked",
    "sent",
]


@dataclass(frozen=True, slots=True)
class Code:
    """What today's code knows: its message types, its handlers, and for how long the inbox remembers."""

    catalog: Catalog
    handlers: Handlers
    inbox_retention: timedelta

    def endpoints(self, queue: str, type_name: str, version: int) -> frozenset[str]:
        """The endpoints that a message goes to; the empty queue is all that are bound to the type."""
        return frozenset(
            endpoint.name
            for endpoint in self.handlers
            if (endpoint.type.name, endpoint.type.version) == (type_name, version) and queue in ("", endpoint.queue)
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """A letter with what else the database knows of its message."""

    whole: WholeLetter
    stored: Envelope | None
    """The message as it was first stored; None if it came from another database."""
    done_at: frozenset[str]
    """The endpoints that have finished it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What today's code says of a letter."""

    kind: Kind
    text: str = ""
    """Unless it is ok: why not, and what to do instead."""
    envelope: Envelope | None = None
    """If it is ok: what is sent."""
    endpoints: frozenset[str] = frozenset()
    """Where the result is expected, as far as today's code knows."""

    @property
    def ok(self) -> bool:
        """Whether it can be done, or was done."""
        return self.kind == "ok"


@dataclass(frozen=True, slots=True)
class Edited:
    """A new body that today's code accepts."""

    type: MessageType
    key: str
    body: bytes
    left_out: tuple[str, ...]
    """Fields of the body that today's code does not know, such as `lines[0].quantiy`."""


def judge(evidence: Evidence, code: Code, now: datetime, *, as_new: bool) -> Verdict:
    """Whether the letter can be replayed; with `as_new`, as a message of its own."""
    letter = evidence.whole.letter
    if letter.resolution is not None:
        return Verdict("resolved", f"{letter.resolution} already, at {letter.resolved_at:%Y-%m-%d %H:%M:%S}")
    try:
        declared = code.catalog.find(letter.type, version_of(evidence.whole))
        key = declared.key_of(codec.decode(declared, evidence.whole.body))
    except UnknownType as error:
        advice = "or name the program that handles it with --app" if letter.type else "give it one: `dead edit --type`"
        return Verdict("unknown-type", f"{error}; {advice}")
    except Undecodable as error:
        return Verdict("undecodable", f"{error}; mend the body with `hopline dead edit`")
    endpoints = code.endpoints(letter.queue, declared.name, declared.version)
    if as_new:
        edited = Edited(declared, key, evidence.whole.body, ())
        return Verdict("ok", envelope=renewed(evidence, edited, now), endpoints=endpoints)
    refusal = _refusal(evidence, code, endpoints, now)
    if refusal is not None:
        return refusal
    original = _original(evidence)
    again = original.changed(
        key=original.key or key,
        run=letter.run + 1,
        attempt=0,
        suspect=letter.reason in KILLERS,
    )
    return Verdict("ok", envelope=again, endpoints=endpoints)


def _refusal(evidence: Evidence, code: Code, endpoints: frozenset[str], now: datetime) -> Verdict | None:
    """Why the very message cannot be sent again, although its body is fine."""
    letter, stored = evidence.whole.letter, evidence.stored
    if letter.message_id is None:
        return Verdict("no-id", "it has no message id, so that no inbox could tell it; replay it with --as-new")
    if letter.reason == TOO_OLD or now - id_time(letter.message_id) >= code.inbox_retention:
        days = code.inbox_retention / timedelta(days=1)
        text = f"older than the inbox remembers ({days:g} days); see that it was not done, then replay it with --as-new"
        return Verdict("too-old", text)
    if stored is not None and (stored.body, stored.type, stored.version) != (
        evidence.whole.body,
        letter.type,
        letter.version,
    ):
        return Verdict("differs", "not what was stored under this message id; replay it with --as-new, or discard it")
    if endpoints and endpoints <= evidence.done_at:
        return Verdict("done", f"{', '.join(sorted(endpoints))} has done it meanwhile; discard it")
    return None


def version_of(whole: WholeLetter) -> int:
    """The version of a letter's message; of a stranger's, what its header says, else 1."""
    if whole.letter.version:
        return whole.letter.version
    named = _headers(whole.properties).get(VERSION_HEADER, 1)
    return named if isinstance(named, int) else 1


def validate(whole: WholeLetter, body: bytes, code: Code, limit_bytes: int, new_type: tuple[str, int] | None) -> Edited:
    """The new body of a letter, checked by today's code; `new_type` (name, version) if it changes its type.

    UnknownType, Undecodable, MessageTooLarge; UsageError if its business key cannot be one.
    """
    name, version = new_type or (whole.letter.type, version_of(whole))
    declared = code.catalog.find(name, version)
    if len(body) > limit_bytes:
        raise MessageTooLarge(name, len(body), limit_bytes)
    message = codec.decode(declared, body)
    key = checked_key(declared.key_of(message), name)
    known = msgspec.json.decode(msgspec.json.encode(message))
    return Edited(declared, key, body, tuple(_left_out(msgspec.json.decode(body), known))[:LEFT_OUT])


def renewed(evidence: Evidence, edited: Edited, now: datetime) -> Envelope:
    """A new message in place of the letter's, in the same flow."""
    letter = evidence.whole.letter
    identifier = new_id()
    kin = _kin(evidence)
    return Envelope(
        id=identifier,
        type=edited.type.name,
        version=edited.type.version,
        key=edited.key,
        correlation_id=kin.correlation_id or letter.message_id or identifier,
        cause_id=letter.message_id,
        created_at=now,
        body=edited.body,
        headers=kin.headers,
        suspect=letter.reason in KILLERS,
    )


@dataclass(frozen=True, slots=True)
class _Kin:
    correlation_id: str | None
    cause_id: str | None
    headers: Mapping[str, str]


def _kin(evidence: Evidence) -> _Kin:
    """The kinship of the letter's message: as it was stored, else as its properties had it."""
    if evidence.stored is not None:
        stored = evidence.stored
        return _Kin(stored.correlation_id, stored.cause_id, stored.headers)
    properties = evidence.whole.properties
    headers = _headers(properties)
    correlation, cause = properties.get("correlation_id"), headers.get(CAUSE_HEADER)
    return _Kin(
        correlation if is_id(correlation) else None,
        cause if is_id(cause) else None,
        {name: value for name, value in free_headers(headers).items() if not name.startswith("x-")},
    )


def _original(evidence: Evidence) -> Envelope:
    """The letter's message as it was."""
    letter = evidence.whole.letter
    if evidence.stored is not None:
        return evidence.stored
    assert letter.message_id is not None
    kin = _kin(evidence)
    return Envelope(
        id=letter.message_id,
        type=letter.type,
        version=letter.version,
        key=letter.key or "",
        correlation_id=kin.correlation_id or letter.message_id,
        cause_id=kin.cause_id,
        created_at=id_time(letter.message_id),
        body=evidence.whole.body,
        headers=kin.headers,
    )


def _headers(properties: Mapping[str, Any]) -> Mapping[str, Any]:
    headers = properties.get("headers")
    return headers if isinstance(headers, Mapping) else {}


def _left_out(given: Any, known: Any, path: str = "") -> list[str]:
    """The paths of what is in the given JSON value and not in the known one."""
    if isinstance(given, dict) and isinstance(known, dict):
        missing = [f"{path}.{name}".removeprefix(".") for name in given if name not in known]
        shared = [name for name in given if name in known]
        return missing + [p for name in shared for p in _left_out(given[name], known[name], f"{path}.{name}")]
    if isinstance(given, list) and isinstance(known, list):
        pairs = enumerate(zip(given, known, strict=False))
        return [p for index, (one, other) in pairs for p in _left_out(one, other, f"{path}[{index}]")]
    return []
