"""Calling a handler: its arguments, its deadline, its tries at once, and what its answer means.

Total: whatever a handler raises or returns becomes an outcome of its message here. That includes exits, cancellations
that the worker did not ask for, answers of wrong types and messages that cannot be sent. Two things pass through: a
cancellation by the worker itself, and the database's own failures within a transaction: blame.py judges whose fault
these are. A handler without a transaction that meets a failing database has met one that it uses itself.

A coroutine runs in the loop; a plain function (`def`, for effects) runs in a thread, so that it may block without
stopping the heartbeats of the connection.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, cast

import msgspec
from msgspec.structs import replace

from hopline.broker import Delivery
from hopline.database import Transaction
from hopline.errors import DatabaseError, DatabaseUnavailable, TransactionAborted, UsageError, text_of
from hopline.failure import Failure, failure_of
from hopline.handlers import Endpoint
from hopline.message import AttemptId, Envelope, is_message
from hopline.outcome import Dead, Defer, Done, Outcome, Retry
from hopline.outgoing import envelope_of_message
from hopline.retry import again_at_once, decide
from hopline.worker.calls import Call


class Member(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A decoded delivery on its way through a lane."""

    delivery: Delivery
    envelope: Envelope
    message: msgspec.Struct
    suspect: bool = False
    """Whether it runs alone, because it may have killed a worker before."""

    @property
    def attempt_id(self) -> AttemptId:
        """See Envelope."""
        return self.envelope.attempt_id


class Handled(msgspec.Struct, frozen=True, eq=False):
    """What one attempt of a handler came to: its outcome, and the messages that it returned."""

    outcome: Outcome
    sends: tuple[Envelope, ...] = ()
    """New messages, checked and encoded."""
    failure: Failure | None = None
    """The exception behind the outcome, as text."""
    seconds: float = 0.0
    transaction_lost: bool = False
    """Whether its transaction cannot store anything any more: the failure has to be stored in another one."""

    def changed(self, **changes: Any) -> Handled:
        """A copy with other values of these fields."""
        return replace(self, **changes)

    @property
    def error_text(self) -> str:
        """The exception, or what the outcome itself says, in one line."""
        if self.failure is not None:
            return self.failure.text
        match self.outcome:
            case Retry(reason=reason) | Defer(reason=reason):
                return reason
            case Dead(reason=reason, detail=detail):
                return f"{reason}: {detail}" if detail else reason
            case Done(note=note):
                return note


class MemberFailed(Exception):
    """One member of a group did not end as Done: the group has to run again with savepoints."""

    def __init__(self, *, alone: bool, error: Exception | None = None) -> None:
        super().__init__()
        self.alone = alone
        """Whether the transaction may be unusable (a deadline passed, a limit was exceeded): no savepoints then."""
        self.error = error
        """What the transaction failed with after its handlers had returned; None: a handler failed."""


class HandlerCall:
    """Calls the handler of one endpoint, for a group in one transaction, for one member of it, or for an effect.

    `abandoned` says whether the worker itself cancels what runs; any other cancellation is the handler's.
    """

    def __init__(self, endpoint: Endpoint, *, abandoned: Callable[[], bool], limit_bytes: int) -> None:
        self._endpoint = endpoint
        self._abandoned = abandoned
        self._limit_bytes = limit_bytes

    async def group(self, tx: Transaction, members: Sequence[Member]) -> list[tuple[Member, Handled]]:
        """Calls the handler for all members; MemberFailed as soon as one does not end as Done."""
        if self._endpoint.takes_list:
            return await self._list_together(tx, members)
        done: list[tuple[Member, Handled]] = []
        for member in members:
            handled = await self._attempt(partial(self._once, tx, member), member, tx, tries_at_once=False)
            if not isinstance(handled.outcome, Done):
                raise MemberFailed(alone=handled.transaction_lost)
            done.append((member, handled))
            await tx.stay_awake()
        return done

    async def apart(self, tx: Transaction, member: Member) -> Handled:
        """Calls the handler for one member, each try in a savepoint that is undone unless it ends as Done."""

        async def try_once() -> Handled:
            async with tx.savepoint() as savepoint:
                handled = await self._once(tx, member)
                if not isinstance(handled.outcome, Done):
                    await savepoint.undo()
            return handled

        return await self._attempt(try_once, member, tx)

    async def effect(self, member: Member) -> Handled:
        """Calls a handler without a transaction for one member. A database that fails in it is one of its own."""
        return await self._attempt(partial(self._once, None, member), member, None)

    def failed(self, member: Member, error: BaseException, seconds: float = 0.0) -> Handled:
        """What an exception makes of an attempt."""
        outcome = decide(error, member.envelope.attempt, self._endpoint.retry, random.random())
        failure = failure_of(error)
        if isinstance(error, DatabaseUnavailable) and not self._endpoint.transactional:
            outcome = Defer(0.0, text_of(error), pause=True)
        lost = failure.timed_out or isinstance(error, DatabaseError)
        return Handled(outcome, failure=failure, seconds=seconds, transaction_lost=lost)

    async def _list_together(self, tx: Transaction, members: Sequence[Member]) -> list[tuple[Member, Handled]]:
        """Calls a handler of lists; MemberFailed if it raises, or does not end as Done for each of several."""
        results: list[Handled] = []

        async def try_once() -> Handled:
            results[:] = await self._list(tx, members)
            return Handled(Done())

        together = await self._attempt(try_once, members[0], tx, tries_at_once=False)
        if not isinstance(together.outcome, Done):
            raise MemberFailed(alone=together.transaction_lost)
        if not all(isinstance(handled.outcome, Done) for handled in results):
            raise MemberFailed(alone=False)  # what it wrote for that one has to be undone
        return [(m, handled.changed(seconds=together.seconds)) for m, handled in zip(members, results, strict=True)]

    async def _attempt(
        self,
        try_once: Callable[[], Awaitable[Handled]],
        member: Member,
        tx: Transaction | None,
        *,
        tries_at_once: bool = True,
    ) -> Handled:
        """One attempt within the deadline: a try, and a few more at once if the policy says so. The last one counts."""
        started = time.perf_counter()
        tries = 0
        try:
            async with _Deadline(self._endpoint):
                while True:
                    tries += 1
                    try:
                        handled = await try_once()
                        break
                    except BaseException as error:
                        final = tx is not None and isinstance(error, DatabaseError)
                        if final or not tries_at_once or not again_at_once(error, tries, self._endpoint.retry):
                            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self._abandoned():
                raise
            await self._clear_cancellation()
            if tx is not None and isinstance(error, DatabaseError) and not isinstance(error, TransactionAborted):
                raise
            handled = self.failed(member, error)
        else:
            await self._clear_cancellation()
        return handled.changed(seconds=time.perf_counter() - started)

    async def _clear_cancellation(self) -> None:
        """Takes back cancellations of this task that a handler asked for, or let through: they are not the worker's."""
        task = asyncio.current_task()
        assert task is not None
        while task.cancelling() and not self._abandoned():
            task.uncancel()
            try:
                await asyncio.sleep(0)  # one that was asked for and not delivered yet comes here
            except asyncio.CancelledError:
                if self._abandoned():
                    raise

    async def _once(self, tx: Transaction | None, member: Member) -> Handled:
        """Calls the handler once for one member; what it raises passes through."""
        endpoint = self._endpoint
        if endpoint.takes_list:
            assert tx is not None
            (handled,) = await self._list(tx, [member])
            return handled
        arguments: dict[str, Any] = {"envelope": member.envelope} if endpoint.takes_envelope else {}
        if tx is not None:
            tx.cause = member.envelope
            arguments["tx"] = tx
        if endpoint.blocking:
            answer = await asyncio.to_thread(_called, endpoint, member, arguments)
            if isinstance(answer, _Raised):
                raise answer.error
        else:
            with Call(endpoint, [member]):
                answer = await endpoint.function(member.message, **arguments)
        return self._handled_of(answer, member)

    async def _list(self, tx: Transaction, members: Sequence[Member]) -> list[Handled]:
        """Calls a handler that takes a list; its answer is one entry a member, in order, or None for 'all done'."""
        endpoint = self._endpoint
        arguments = {"envelope": [member.envelope for member in members]} if endpoint.takes_envelope else {}
        with Call(endpoint, members):
            answer = await endpoint.function([member.message for member in members], tx=tx, **arguments)
        if answer is None:
            return [Handled(Done())] * len(members)
        if type(answer) is not list or len(answer) != len(members):
            raise UsageError(
                f"{endpoint.function.__qualname__} got {len(members)} messages and must return None "
                f"or a list of as many outcomes or messages, not a {type(answer).__name__}"
                f"{f' of {len(answer)}' if type(answer) is list else ''}"
            )
        return [self._handled_of(one, member) for one, member in zip(answer, members, strict=True)]

    def _handled_of(self, answer: object, member: Member) -> Handled:
        """What a handler's answer means: nothing, an outcome, a message, or several messages.

        Raises what is wrong with the answer: UsageError, or MessageTooLarge for a message in it.
        """
        if answer is None:
            return Handled(Done())
        if type(answer) in _OUTCOMES:  # not by isinstance: a subclass, or a mock, may hold anything
            return Handled(cast("Outcome", answer))
        if is_message(answer):
            return Handled(Done(), (self._envelope(answer, member),))
        if type(answer) in (list, tuple):
            several = cast("Sequence[object]", answer)
            outcomes = [one for one in several if type(one) is Done]
            sends = [one for one in several if is_message(one)]
            if len(outcomes) + len(sends) == len(several) and len(outcomes) <= 1:
                return Handled(outcomes[0] if outcomes else Done(), tuple(self._envelope(one, member) for one in sends))
        raise UsageError(
            f"{self._endpoint.function.__qualname__} returned {type(answer).__name__}; "
            "return None, an outcome, a message, or a list of messages"
        )

    def _envelope(self, message: Any, member: Member) -> Envelope:
        return envelope_of_message(message, cause=member.envelope, limit_bytes=self._limit_bytes)


_OUTCOMES = frozenset((Done, Retry, Defer, Dead))


class _Raised:
    """What a function in a thread raised."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _called(endpoint: Endpoint, member: Member, arguments: dict[str, Any]) -> object:
    """Calls the handler in a thread; returns what it raises too.

    A future cannot carry everything: StopIteration would leave its waiter without an answer.
    """
    try:
        with Call(endpoint, [member], in_thread=True):
            return endpoint.function(member.message, **arguments)
    except BaseException as error:  # noqa: BLE001 - raised again by the waiter
        return _Raised(
            error if not isinstance(error, StopIteration) else RuntimeError("the handler raised StopIteration")
        )


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
