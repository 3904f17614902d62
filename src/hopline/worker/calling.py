"""Calling a handler: its arguments, its deadline, its tries at once, and what its answer means.

Whatever a handler raises becomes an outcome here, except the database's own failures: those are not the
message's fault and run the whole transaction again. A coroutine runs in the loop; a plain function (`def`, for
effects) runs in a thread, so that it may block without stopping the heartbeats of the connection.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any

import msgspec
from msgspec.structs import replace

from hopline.broker import Delivery
from hopline.database import Transaction
from hopline.errors import DatabaseError, UsageError
from hopline.handlers import Endpoint
from hopline.message import Envelope, is_message
from hopline.outcome import Dead, Defer, Done, Outcome, Retry
from hopline.retry import again_at_once, decide
from hopline.worker.calls import Call


class Member(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A decoded delivery on its way through a lane."""

    delivery: Delivery
    envelope: Envelope
    message: msgspec.Struct
    suspect: bool = False
    """Whether it runs alone, because it may have killed a worker before."""


class Handled(msgspec.Struct, frozen=True, eq=False):
    """What one attempt of a handler came to: its outcome, and the messages that it returned."""

    outcome: Outcome
    sends: tuple[msgspec.Struct, ...] = ()
    error: BaseException | None = None
    seconds: float = 0.0

    def changed(self, **changes: Any) -> Handled:
        """A copy with other values of these fields."""
        return replace(self, **changes)

    @property
    def error_text(self) -> str:
        """The exception, or what the outcome itself says, in one line."""
        if self.error is not None:
            return f"{type(self.error).__name__}: {self.error}"
        match self.outcome:
            case Retry(reason=reason) | Defer(reason=reason):
                return reason
            case Dead(reason=reason, detail=detail):
                return f"{reason}: {detail}" if detail else reason
            case Done(note=note):
                return note


class MemberFailed(Exception):
    """One member of a group did not end as Done: the group has to run again with savepoints."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.alone = alone
        """Whether the connection may be unusable (a handler ran into its deadline): no savepoints then."""


async def call_group(endpoint: Endpoint, tx: Transaction, members: list[Member]) -> list[tuple[Member, Handled]]:
    """Calls the handler for all members; MemberFailed as soon as one does not end as Done."""
    if endpoint.takes_list:
        return await _call_list_together(endpoint, tx, members)
    done: list[tuple[Member, Handled]] = []
    for member in members:
        handled = await _attempt(partial(_try, endpoint, tx, member), endpoint, member, tries_at_once=False)
        if not isinstance(handled.outcome, Done):
            raise MemberFailed(alone=isinstance(handled.error, TimeoutError))
        done.append((member, handled))
    return done


async def call_apart(endpoint: Endpoint, tx: Transaction, member: Member) -> Handled:
    """Calls the handler for one member, each try in a savepoint that is undone unless it ends as Done."""

    async def try_once() -> Handled:
        async with tx.savepoint() as savepoint:
            handled = await _try(endpoint, tx, member)
            if not isinstance(handled.outcome, Done):
                await savepoint.undo()
        return handled

    return await _attempt(try_once, endpoint, member)


async def call_effect(endpoint: Endpoint, member: Member) -> Handled:
    """Calls a handler without a transaction for one member."""
    return await _attempt(partial(_try, endpoint, None, member), endpoint, member)


async def _call_list_together(
    endpoint: Endpoint, tx: Transaction, members: list[Member]
) -> list[tuple[Member, Handled]]:
    started = time.perf_counter()
    try:
        async with _Deadline(endpoint):
            results = await _call_list(endpoint, tx, members)
    except DatabaseError:
        raise
    except Exception as error:
        raise MemberFailed(alone=isinstance(error, TimeoutError)) from error
    if not all(isinstance(handled.outcome, Done) for handled in results):
        raise MemberFailed(alone=False)  # what it wrote for that one has to be undone
    seconds = time.perf_counter() - started
    return [(member, handled.changed(seconds=seconds)) for member, handled in zip(members, results, strict=True)]


async def _attempt(
    try_once: Callable[[], Awaitable[Handled]], endpoint: Endpoint, member: Member, *, tries_at_once: bool = True
) -> Handled:
    """One attempt within the deadline: a try, and a few more at once if the policy says so. The last one counts."""
    started = time.perf_counter()
    tries = 0
    try:
        async with _Deadline(endpoint):
            while True:
                tries += 1
                try:
                    return (await try_once()).changed(seconds=time.perf_counter() - started)
                except DatabaseError:
                    raise
                except Exception as error:
                    if not tries_at_once or not again_at_once(error, tries, endpoint.retry):
                        raise
    except DatabaseError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a handler raises is an attempt that failed
        outcome = decide(error, member.envelope.attempt, endpoint.retry, random.random())
        return Handled(outcome, error=error, seconds=time.perf_counter() - started)


async def _try(endpoint: Endpoint, tx: Transaction | None, member: Member) -> Handled:
    """Calls the handler once for one member; what it raises passes through."""
    if endpoint.takes_list:
        assert tx is not None
        (handled,) = await _call_list(endpoint, tx, [member])
        return handled
    arguments: dict[str, Any] = {"envelope": member.envelope} if endpoint.takes_envelope else {}
    if tx is not None:
        tx.cause = member.envelope
        arguments["tx"] = tx
    if endpoint.blocking:
        return handled_of(await asyncio.to_thread(_call_in_thread, endpoint, member, arguments), endpoint)
    with Call(endpoint, [member]):
        answer = await endpoint.function(member.message, **arguments)
    return handled_of(answer, endpoint)


def _call_in_thread(endpoint: Endpoint, member: Member, arguments: dict[str, Any]) -> object:
    with Call(endpoint, [member], in_thread=True):
        return endpoint.function(member.message, **arguments)


async def _call_list(endpoint: Endpoint, tx: Transaction, members: list[Member]) -> list[Handled]:
    """Calls a handler that takes a list; its answer is one entry a member, in order, or None for 'all done'."""
    arguments = {"envelope": [member.envelope for member in members]} if endpoint.takes_envelope else {}
    with Call(endpoint, members):
        answer = await endpoint.function([member.message for member in members], tx=tx, **arguments)
    if answer is None:
        return [Handled(Done())] * len(members)
    if not isinstance(answer, list) or len(answer) != len(members):
        raise UsageError(
            f"{endpoint.function.__qualname__} got {len(members)} messages and must return None "
            f"or a list of as many outcomes or messages, not {str(answer)[:100]}"
        )
    return [handled_of(one, endpoint) for one in answer]


_OUTCOMES = (Done, Retry, Defer, Dead)


class _Deadline:
    """An endpoint's deadline, around a handler; a TimeoutError in it says whose it was."""

    __slots__ = ("_endpoint", "_timeout")

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._timeout = asyncio.timeout(endpoint.deadline_seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as late:
            raise self._passed(late) from late
        if isinstance(error, TimeoutError):
            raise self._passed(error) from error

    def _passed(self, error: TimeoutError) -> TimeoutError:
        return TimeoutError(
            f"the handler of {self._endpoint.name} or something in it ran into its deadline "
            f"({self._endpoint.deadline_seconds:g} s): {error}"
        )


def handled_of(answer: object, endpoint: Endpoint) -> Handled:
    """What a handler's return value means: nothing, an outcome, a message, or several messages."""
    if answer is None:
        return Handled(Done())
    if isinstance(answer, _OUTCOMES):
        return Handled(answer)
    if is_message(answer):
        assert isinstance(answer, msgspec.Struct)
        return Handled(Done(), (answer,))
    if isinstance(answer, list | tuple):
        outcomes = [one for one in answer if isinstance(one, Done)]
        sends = tuple(one for one in answer if is_message(one))
        if len(outcomes) + len(sends) == len(answer) and len(outcomes) <= 1:
            return Handled(outcomes[0] if outcomes else Done(), sends)
    raise UsageError(
        f"{endpoint.function.__qualname__} returned {type(answer).__name__}; "
        "return None, an outcome, a message, or a list of messages"
    )
