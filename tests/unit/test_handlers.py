from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hopline.database import Transaction
from hopline.errors import UsageError
from hopline.handlers import Handlers
from hopline.message import Envelope, message


@message("thing.made", key="id")
class Made(msgspec.Struct):
    id: str


@message("thing.lost", key="id")
class Lost(msgspec.Struct):
    id: str


def test_parameters_tell_what_kind_of_handler_it_is() -> None:
    handlers = Handlers()

    @handlers.on("a")
    async def effect(made: Made, envelope: Envelope) -> None: ...

    @handlers.on("b")
    async def grouped(made: list[Made], tx: Any) -> None: ...

    first, second = handlers
    assert (first.name, first.transactional, first.takes_list, first.takes_envelope) == (
        "a/thing.made",
        False,
        False,
        True,
    )
    assert (second.name, second.transactional, second.takes_list, second.takes_envelope) == (
        "b/thing.made",
        True,
        True,
        False,
    )
    assert handlers.queues() == ["a", "b"]
    assert handlers.find("a", "thing.made", 1) is first
    assert handlers.find("a", "thing.made", 2) is None


def test_a_given_endpoint_name_stays_when_the_function_is_renamed() -> None:
    handlers = Handlers()

    @handlers.on("a", endpoint="the-stable-name")
    async def whatever(made: Made) -> None: ...

    assert next(iter(handlers)).name == "the-stable-name"


async def no_message() -> None: ...
async def no_annotation(made) -> None: ...  # type: ignore[no-untyped-def]
async def unknown_parameter(made: Made, database: Any) -> None: ...
async def list_of_effects(made: list[Made]) -> None: ...
async def no_type(made: str) -> None: ...
def not_async(made: Made, tx: Transaction) -> None: ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (no_message, "takes no message"),
        (no_annotation, "annotate"),
        (unknown_parameter, "'database'"),
        (list_of_effects, "one by one"),
        (no_type, "no message type"),
        (not_async, "must be an 'async def'"),
    ],
)
def test_a_fault_in_the_signature_is_told_at_once(function: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Handlers().on("queue")(function)


def test_two_handlers_for_one_type_on_one_queue_are_refused() -> None:
    handlers = Handlers()

    @handlers.on("a")
    async def first(made: Made) -> None: ...

    with pytest.raises(UsageError, match="two handlers"):

        @handlers.on("a")
        async def second(made: Made) -> None: ...


def test_one_endpoint_name_for_two_types_is_refused() -> None:
    handlers = Handlers()

    @handlers.on("a", endpoint="same")
    async def first(made: Made) -> None: ...

    with pytest.raises(UsageError, match="two message types"):

        @handlers.on("a", endpoint="same")
        async def second(lost: Lost) -> None: ...


@pytest.mark.parametrize(
    "wrong",
    [
        {"deadline_seconds": 0},
        {"deadline_seconds": float("nan")},
        {"deadline_seconds": float("inf")},
        {"deadline_seconds": "30"},
        {"deadline_seconds": 1e18},
        {"endpoint": ""},
        {"endpoint": "n" * 256},
        {"endpoint": "nul\x00"},
        {"endpoint": "half \ud800"},
        {"retry": 3},
    ],
)
def test_a_wrong_option_is_refused_where_it_is_given(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):

        @Handlers().on("a", **wrong)
        async def handle(made: Made) -> None: ...


@pytest.mark.parametrize("queue", ["", "a b", "a\x00", "amq.a", "a.dead", "a\ud800", "a" * 251])
def test_a_queue_that_cannot_be_declared_is_refused(queue: str) -> None:
    with pytest.raises(UsageError):
        Handlers().on(queue)


def test_a_name_that_no_column_holds_is_refused_also_where_nobody_gave_it() -> None:
    with pytest.raises(UsageError, match="endpoint="):

        @Handlers().on("q" * 250)
        async def handle(made: Made) -> None: ...
