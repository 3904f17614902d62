"""`hopline topology` on a real broker: what it shows, what it adds, what it refuses to touch."""

from __future__ import annotations

import asyncio
import json
import sys
from types import ModuleType
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from hopline import amqp
from hopline.app import Hopline
from hopline.cli import app as command
from hopline.errors import BrokerUnavailable, UsageError
from hopline.handlers import Handlers
from hopline.message import message
from hopline.node import Node
from hopline.settings import Settings

PARCELS_ARGUMENTS = {
    "x-queue-type": "quorum",
    "x-delivery-limit": 20,
    "x-dead-letter-exchange": "hopline.dead",
    "x-dead-letter-routing-key": "parcels",
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}


@message("parcel.sent", key="id")
class Sent(msgspec.Struct):
    id: str


def handling(queue: str, settings: Settings) -> Hopline:
    handlers = Handlers()

    @handlers.on(queue)
    async def handle(one: Sent) -> None: ...

    return Hopline(handlers=[handlers], settings=settings)


@pytest.fixture
def program(broker_url: str, rabbitmq: Node, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module with two programs, `app` and `other`."""
    settings = Settings(broker_url=broker_url, management_url=rabbitmq.management_url)
    module = ModuleType("parcels_program")
    vars(module).update(app=handling("parcels", settings), other=handling("letters", settings))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def topology(verb: str, *options: str) -> Result:
    return CliRunner().invoke(command, ["topology", verb, "--app", "parcels_program:app", *options])


def changes(result: Result) -> set[tuple[str, str]]:
    return {(one["state"], one["name"]) for one in json.loads(result.stdout)["changes"]}


async def declare(url: str, **arguments: Any) -> None:
    """The queue `parcels` otherwise than the program declares it, with two messages; and one that nobody declares."""
    connection = await amqp.connect(url)
    channel = await connection.channel()
    await channel.confirm_select()
    await channel.declare_queue("parcels", arguments={**PARCELS_ARGUMENTS, **arguments})
    await channel.publish([amqp.Outgoing("", "parcels", amqp.Properties(delivery_mode=2), b"{}")] * 2)
    await channel.declare_exchange("hopline", "topic")
    await channel.declare_queue("old", arguments={"x-queue-type": "classic"})
    await channel.bind_queue("old", "hopline", "parcel.lost")
    await channel.bind_queue("parcels", "hopline", "parcel.lost")
    await connection.close()


def test_a_fresh_broker_is_planned_applied_and_then_in_sync(program: ModuleType) -> None:
    planned = topology("plan")
    still_planned = topology("plan", "--json")
    applied = topology("apply")
    after = topology("plan", "--json")

    assert planned.exit_code == still_planned.exit_code == 4
    assert "+ queue    parcels.dead" in planned.stdout
    assert "+ binding  hopline --parcel.sent--> parcels" in planned.stdout
    assert len(changes(still_planned)) == 3 + 2 + 3  # the plan changed nothing
    assert applied.exit_code == 0
    assert "The broker is as declared." in applied.stdout
    assert (after.exit_code, json.loads(after.stdout)) == (0, {"in_sync": True, "changes": []})
    assert topology("apply").exit_code == 0


async def test_what_differs_is_shown_with_its_messages_and_refused(program: ModuleType, broker_url: str) -> None:
    await declare(broker_url, **{"x-delivery-limit": 5})

    planned = await _in_thread("plan")
    applied = await _in_thread("apply")
    again = await _in_thread("plan", "--json")

    assert planned.exit_code == applied.exit_code == again.exit_code == 4
    assert "~ queue    parcels  (2 messages)\n      x-delivery-limit: 5 -> 20\n" in planned.stdout
    assert "- queue    old  (0 messages)" in planned.stdout
    assert "- binding  hopline --parcel.lost--> parcels" in planned.stdout
    assert "it holds 2 messages, and a queue that holds messages is never deleted" in applied.stdout
    assert "rabbitmqctl delete_queue parcels" in applied.stdout
    assert changes(again) == {  # what was missing is there, but for the bindings of what is refused
        ("different", "parcels"), ("extra", "old"), ("extra", "hopline --parcel.lost--> parcels"),
        ("missing", "hopline --parcel.sent--> parcels"), ("missing", "hopline.to --parcels--> parcels"),
    }  # fmt: skip
    assert "added    + queue    parcels.dead" in applied.stdout
    assert "added    + binding  hopline.to --parcels--> parcels" not in applied.stdout
    assert "refused  + binding  hopline.to --parcels--> parcels" in applied.stdout
    assert "'parcels' is not as declared: mend that first" in applied.stdout
    connection = await amqp.connect(broker_url)
    state = await (await connection.channel()).declare_queue("parcels", passive=True)
    await connection.close()
    assert state.messages == 2


def test_another_program_on_the_same_broker_is_named_too(program: ModuleType) -> None:
    assert topology("apply", "--also", "parcels_program:other").exit_code == 0

    assert topology("plan", "--also", "parcels_program:other").exit_code == 0
    alone = topology("plan", "--json")
    assert (alone.exit_code, changes(alone)) == (4, {("extra", "letters"), ("extra", "letters.dead")})


def test_without_the_management_api_it_says_what_to_set(program: ModuleType, broker_url: str) -> None:
    program.__dict__["app"] = handling("parcels", Settings(broker_url=broker_url))

    result = topology("plan")

    assert isinstance(result.exception, UsageError)
    assert "HOPLINE_MANAGEMENT_URL" in str(result.exception)


def test_a_management_api_that_does_not_answer_is_the_outside_worlds_failure(
    program: ModuleType, broker_url: str
) -> None:
    settings = Settings(broker_url=broker_url, management_url="http://guest:guest@127.0.0.1:9")
    program.__dict__["app"] = handling("parcels", settings)

    assert isinstance(topology("plan").exception, BrokerUnavailable)


async def _in_thread(verb: str, *options: str) -> Result:
    """The command has an event loop of its own."""
    return await asyncio.to_thread(topology, verb, *options)
