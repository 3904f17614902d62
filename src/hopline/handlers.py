"""The registry: message type -> handler, queue and policy. What a team writes to add a queue is one of these.

A handler's first parameter says, by its annotation, which message it takes: `M`, or `list[M]` for set-based
work. Two more are told apart by their names: `tx` (database effects, in the group's transaction) and
`envelope` (`Envelope`, or `list[Envelope]` beside a list of messages). Without `tx` it is an effect handler:
run concurrently with no transaction held, settled in one afterwards. It may be a plain function (`def`): it
then runs in a thread and may block.

What a handler writes for a message is undone unless it ends as Done: it will run for that message again.

An endpoint is a stable name (queue/type unless given), so that renaming a function re-runs nothing.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from hopline import topology
from hopline.errors import UsageError
from hopline.message import MessageType, type_of
from hopline.retry import RetryPolicy

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_DEADLINE_SECONDS = 30.0
DEADLINE_SECONDS_MAX = 86_400.0
NAME_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One handler of one message type on one queue."""

    name: str
    queue: str
    type: MessageType
    function: Callable[..., Any]
    transactional: bool
    takes_list: bool
    takes_envelope: bool
    retry: RetryPolicy
    deadline_seconds: float
    """For one message, or for one group of a transactional handler; it covers all tries of an attempt."""
    blocking: bool = False
    """Whether it is a plain function, to be run in a thread."""


class Handlers:
    """A set of handlers, filled by its decorator and given to `Hopline(handlers=[…])`."""

    def __init__(self) -> None:
        self._endpoints: dict[tuple[str, str, int], Endpoint] = {}

    def on(
        self,
        queue: str,
        *,
        endpoint: str | None = None,
        retry: RetryPolicy | None = None,
        deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
    ) -> Callable[[F], F]:
        """Registers the decorated function for its message type on `queue`, which gets bound to it.

        `endpoint` is the stable name under which the inbox remembers what is done. Any fault in the signature
        is a UsageError at import time.
        """
        topology.check_queue_name(queue)
        _check_deadline(deadline_seconds)
        if retry is not None and not isinstance(retry, RetryPolicy):
            raise UsageError(f"retry takes a RetryPolicy, not a {type(retry).__name__}")

        def register(function: F) -> F:
            declared, takes_list = _message_parameter(function)
            names = list(inspect.signature(function).parameters)
            unknown = [name for name in names[1:] if name not in ("tx", "envelope")]
            if unknown:
                raise UsageError(
                    f"{function.__qualname__} has the parameter {unknown[0]!r}; "
                    "after the message a handler may take 'tx' and 'envelope' only"
                )
            blocking = not inspect.iscoroutinefunction(function)
            if blocking and "tx" in names:
                raise UsageError(f"{function.__qualname__} has a 'tx', so it must be an 'async def' function")
            if takes_list and "tx" not in names:
                raise UsageError(f"{function.__qualname__} takes a list but no 'tx': effects run one by one")
            name = f"{queue}/{declared.name}" if endpoint is None else endpoint
            _check_name(name)
            self.add(
                Endpoint(
                    name=name,
                    queue=queue,
                    type=declared,
                    function=function,
                    transactional="tx" in names,
                    takes_list=takes_list,
                    takes_envelope="envelope" in names,
                    retry=retry or RetryPolicy(),
                    deadline_seconds=deadline_seconds,
                    blocking=blocking,
                )
            )
            return function

        return register

    def add(self, endpoint: Endpoint) -> None:
        """Adds an endpoint; a second one for the same queue, type and version is a UsageError."""
        place = (endpoint.queue, endpoint.type.name, endpoint.type.version)
        if place in self._endpoints:
            raise UsageError(f"two handlers for {endpoint.type.name!r} on the queue {endpoint.queue!r}")
        clash = [e for e in self if e.name == endpoint.name and e.type.name != endpoint.type.name]
        if clash:
            raise UsageError(f"the endpoint name {endpoint.name!r} is used for two message types")
        self._endpoints[place] = endpoint

    def include(self, others: Iterable[Handlers]) -> None:
        """Adds all endpoints of other sets."""
        for handlers in others:
            for endpoint in handlers:
                self.add(endpoint)

    def find(self, queue: str, type_name: str, version: int) -> Endpoint | None:
        """The endpoint for a delivery, None if there is none."""
        return self._endpoints.get((queue, type_name, version))

    def queues(self) -> list[str]:
        """The names of all queues, sorted."""
        return sorted({endpoint.queue for endpoint in self})

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._endpoints.values())


def _check_deadline(seconds: object) -> None:
    """UsageError for a deadline that could not end a handler."""
    good = isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds <= DEADLINE_SECONDS_MAX
    if not good:
        raise UsageError(
            f"deadline_seconds is a number of seconds above 0 and up to {DEADLINE_SECONDS_MAX:.0f} (a day)"
        )


def _check_name(name: object) -> None:
    """UsageError for an endpoint's name that a column cannot hold."""
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARACTERS or not name.isprintable():
        raise UsageError(f"an endpoint's name has 1 to {NAME_CHARACTERS} printable characters: give endpoint='…'")


def _message_parameter(function: Callable[..., Any]) -> tuple[MessageType, bool]:
    """The message type that a handler takes, and whether it takes a list of it."""
    name = getattr(function, "__qualname__", repr(function))
    parameters = list(inspect.signature(function).parameters)
    if not parameters:
        raise UsageError(f"{name} takes no message")
    annotation = typing.get_type_hints(function).get(parameters[0])
    if annotation is None:
        raise UsageError(f"annotate {name}'s parameter {parameters[0]!r} with its message type")
    if typing.get_origin(annotation) is list:
        return type_of(typing.get_args(annotation)[0]), True
    return type_of(annotation), False
