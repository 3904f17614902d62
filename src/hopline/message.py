"""What travels: message types (a name, a version and a business key) and the envelope around a body.

A message type is declared once, with a decorator, on a msgspec.Struct; it is looked up by its wire name in
an allowlist (`Catalog`) and never imported from a header. An `Envelope` is immutable: what varies per
delivery (run, attempt) is a field of it, what varies per send is the outbox row's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import msgspec
import msgspec.structs

from hopline.errors import UnknownType, UsageError, text_of

ATTRIBUTE = "__hopline_message__"

NAME_BYTES = 255
"""AMQP's limit of a short string, which a routing key is."""
KEY_CHARACTERS = 255
"""Longest business key."""
HEADER_NAME_BYTES = 128
"""Longest name of a free header."""
HEADERS_BYTES = 4096
"""Most bytes of free headers, names included: they travel in one frame with every send of a message."""
TRACE_HEADERS = ("traceparent",)
"""Free headers that go on along a flow, from a message to those that its handler sends."""

AttemptId = tuple[str, int, int]
"""Message id, run and attempt: the identity of an attempt."""

M = TypeVar("M", bound=type[msgspec.Struct])


@dataclass(frozen=True, slots=True)
class MessageType:
    """A declared message type: its wire name and version, the field that is its business key, its class."""

    name: str
    version: int
    key: str
    cls: type[msgspec.Struct]
    optional: bool
    """No queue bound is fine: a return by RabbitMQ counts as sent."""

    def key_of(self, message: msgspec.Struct) -> str:
        """The business key of a message, as text; UsageError if it has none."""
        try:
            return str(getattr(message, self.key))
        except Exception as error:
            raise UsageError(f"the key {self.key!r} of a {self.name!r} is no text: {text_of(error)}") from error


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """One message as it travels: identity, kinship and body. Built from, and turned into, AMQP properties."""

    id: str
    """UUIDv7, AMQP message_id; the same for every send of this message."""
    type: str
    version: int
    key: str
    """The business key, for example an order id."""
    correlation_id: str
    """The id of the first message of the flow."""
    cause_id: str | None
    """The id of the message whose handler sent this one."""
    created_at: datetime
    body: bytes
    headers: Mapping[str, str] = {}
    """Free text headers (traceparent, origin); at most 4 KiB in all."""
    run: int = 0
    """0, and one more per replay."""
    attempt: int = 0
    """0, and one more per retry within a run."""
    suspect: bool = False
    """Whether this send may kill its worker, so that it has to run alone."""

    @property
    def attempt_id(self) -> AttemptId:
        """What one execution of a handler belongs to: the same message comes again in other runs and attempts."""
        return self.id, self.run, self.attempt

    def changed(self, **changes: Any) -> Envelope:
        """A copy with other values of these fields."""
        return msgspec.structs.replace(self, **changes)


def message(name: str, *, key: str, version: int = 1, optional: bool = False) -> Callable[[M], M]:
    """Declares a msgspec.Struct as a message type.

    `name` is its wire name (`order.placed`, also the routing key), `key` the field that holds the business
    key, `version` grows with every incompatible change of the fields, `optional` says that a message which no
    queue takes is no fault.
    """
    if not name or len(name.encode()) > NAME_BYTES or any(c.isspace() or not c.isprintable() for c in name):
        raise UsageError(f"a message name is 1 to 255 bytes without blanks or controls, like 'order.placed': {name!r}")

    def declare(cls: M) -> M:
        if not issubclass(cls, msgspec.Struct):
            raise UsageError(f"@message({name!r}) goes on a msgspec.Struct, not on {cls!r}")
        if key not in cls.__struct_fields__:
            raise UsageError(f"@message({name!r}): the key {key!r} is no field of {cls.__name__}")
        setattr(cls, ATTRIBUTE, MessageType(name, version, key, cls, optional))
        return cls

    return declare


def type_of(cls_or_message: Any) -> MessageType:
    """The declaration of a message class or of a message; UsageError if it has none."""
    cls = cls_or_message if isinstance(cls_or_message, type) else type(cls_or_message)
    declared: MessageType | None = cls.__dict__.get(ATTRIBUTE)
    if declared is None:
        raise UsageError(f"{cls.__name__} is no message type; declare it with @message('some.name', key='…')")
    return declared


def is_message(value: object) -> bool:
    """Whether a value is an instance of a declared message type."""
    return ATTRIBUTE in type(value).__dict__


class Catalog:
    """The message types that a program knows, by wire name and version: the allowlist of the codec."""

    def __init__(self, types: Iterable[MessageType] = ()) -> None:
        self._types: dict[tuple[str, int], MessageType] = {}
        for declared in types:
            self.add(declared)

    def add(self, declared: MessageType) -> None:
        """Adds a type; two classes for one name and version are a UsageError."""
        known = self._types.setdefault((declared.name, declared.version), declared)
        if known.cls is not declared.cls:
            raise UsageError(
                f"{declared.name!r} version {declared.version} is declared twice, "
                f"by {known.cls.__qualname__} and {declared.cls.__qualname__}"
            )

    def find(self, name: str, version: int) -> MessageType:
        """The type of that name and version, else UnknownType."""
        try:
            return self._types[name, version]
        except KeyError:
            raise UnknownType(name, version) from None

    def __iter__(self) -> Iterator[MessageType]:
        return iter(self._types.values())
