"""Calling a handler is total: every class of exception, and every answer, is an outcome that can be stored."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import sqlalchemy.exc
from hypothesis import given, settings
from hypothesis import strategies as st

from hopline import errors
from hopline.handlers import Handlers
from hopline.message import message
from hopline.outcome import LONGEST_DELAY_SECONDS, Dead, Defer, Done, Retry
from hopline.retry import RetryPolicy
from hopline.schema import storable
from hopline.worker.calling import Handled, HandlerCall, Member
from tests.support.engine import delivery_for, envelope_for

ATTEMPTS = 3
LIMIT_BYTES = 1_000


@message("call.asked", key="id")
class Asked(msgspec.Struct):
    id: str = "a"


@message("call.told", key="id")
class Told(msgspec.Struct):
    id: Any
    text: Any = ""


def called(act: Callable[[], Any], *, blocking: bool = False, attempt: int = 0) -> Handled:
    """What becomes of one message whose handler does that."""
    handlers = Handlers()
    policy = RetryPolicy(attempts=ATTEMPTS, immediate=0)
    if blocking:

        @handlers.on("calls", retry=policy)
        def in_thread(asked: Asked) -> Any:
            return act()

    else:

        @handlers.on("calls", retry=policy)
        async def in_loop(asked: Asked) -> Any:
            return act()

    (endpoint,) = handlers
    envelope = envelope_for(Asked(), attempt=attempt)
    member = Member(delivery_for("calls", envelope), envelope, Asked())
    call = HandlerCall(endpoint, abandoned=lambda: False, limit_bytes=LIMIT_BYTES)
    return asyncio.run(call.effect(member))


def assert_storable(handled: Handled) -> None:
    """As the tables and the outbox take it."""
    storable(handled.error_text).encode()
    match handled.outcome:
        case Retry(delay_seconds=delay) | Defer(delay_seconds=delay):
            assert 0 <= delay <= LONGEST_DELAY_SECONDS
        case Dead(reason=reason, detail=detail):
            assert reason.strip()
            assert isinstance(detail, str)
        case Done(note=note):
            assert isinstance(note, str)
    for envelope in handled.sends:
        assert len(envelope.body) <= LIMIT_BYTES
        assert 0 < len(envelope.key) <= 255
        assert storable(envelope.key) == envelope.key
        json.loads(envelope.body)


def subclasses(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


KNOWN = ("builtins", "asyncio", "concurrent", "sqlalchemy", "msgspec", "hopline", "json", "ssl", "socket", "anyio")
EVERY_CLASS: list[type[BaseException]] = sorted(
    {BaseException, *(kind for kind in subclasses(BaseException) if kind.__module__.split(".")[0] in KNOWN)},
    key=lambda kind: (kind.__module__, kind.__qualname__),
)


def made(kind: type[BaseException]) -> BaseException:
    """An exception of a class, made without its constructor if that wants more than a text."""
    several: tuple[tuple[Any, ...], ...] = (
        ("text",),
        (),
        ("several", [ValueError("a")]),
        ("statement", {}, ValueError("original")),
    )
    for arguments in several:
        try:
            return kind(*arguments)
        except Exception:  # noqa: BLE001 - its constructor wants something else
            continue
    return kind.__new__(kind)


def test_the_classes_are_all_there() -> None:
    assert {SystemExit, KeyboardInterrupt, GeneratorExit, BaseExceptionGroup, ExceptionGroup} <= set(EVERY_CLASS)
    assert {asyncio.CancelledError, sqlalchemy.exc.DBAPIError, errors.CommitUnknown, StopIteration} <= set(EVERY_CLASS)
    assert len(EVERY_CLASS) > 100


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("attempt", [0, ATTEMPTS - 1])
def test_an_exception_of_every_class_is_a_failed_attempt(blocking: bool, attempt: int) -> None:
    for kind in EVERY_CLASS:
        error = made(kind)

        def act(error: BaseException = error) -> None:
            raise error

        handled = called(act, blocking=blocking, attempt=attempt)

        assert not isinstance(handled.outcome, Done), kind
        assert handled.failure is not None, kind
        assert_storable(handled)
        if attempt:
            assert isinstance(handled.outcome, Dead | Defer), kind


anything: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.text(st.characters(categories=["Cs"])),
    st.binary(), st.just(10**5_000), st.builds(object), st.just(ValueError("x")), st.just(Done), st.just(Told),
)  # fmt: skip
answers = st.one_of(
    anything,
    st.tuples(st.just("done"), anything),
    st.tuples(st.just("retry"), anything, anything),
    st.tuples(st.just("defer"), anything, anything, anything),
    st.tuples(st.just("dead"), anything, anything),
    st.tuples(st.just("told"), anything, anything),
    st.lists(st.tuples(st.just("told"), anything, anything), max_size=3),
)
MAKERS: dict[str, Callable[..., Any]] = {"done": Done, "retry": Retry, "defer": Defer, "dead": Dead, "told": Told}


def built(answer: Any) -> Any:
    """An answer made as a handler makes it: a wrong value raises there."""
    if isinstance(answer, list):
        return [built(one) for one in answer]
    if isinstance(answer, tuple) and answer and answer[0] in MAKERS:
        return MAKERS[answer[0]](*answer[1:])
    return answer


@settings(max_examples=300, deadline=None)
@given(answers)
def test_any_answer_is_an_outcome_that_can_be_stored(answer: Any) -> None:
    handled = called(lambda: built(answer))

    assert_storable(handled)
    if handled.failure is not None:
        assert handled.sends == ()


def test_a_cancellation_by_the_worker_passes() -> None:
    handlers = Handlers()

    @handlers.on("calls")
    async def waits(asked: Asked) -> None:
        await asyncio.Event().wait()

    (endpoint,) = handlers
    envelope = envelope_for(Asked())
    member = Member(delivery_for("calls", envelope), envelope, Asked())
    call = HandlerCall(endpoint, abandoned=lambda: True, limit_bytes=LIMIT_BYTES)

    async def abandon() -> None:
        task = asyncio.ensure_future(call.effect(member))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(abandon())
