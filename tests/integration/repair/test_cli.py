"""The commands of repair on a real database: what they say, in words and in JSON, and their exit status."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hopline import schema
from hopline.app import Hopline
from hopline.cli import app as command
from hopline.database import Database
from hopline.errors import Undecodable, UnknownType, UsageError
from hopline.settings import Settings
from tests.support.engine import envelope_for, rows
from tests.support.letters import Packed, dead, handlers, opened, parked, stranger

NOBODY = "amqp://guest:guest@127.0.0.1:9/%2F"


class Desk:
    """Runs commands on a program of its own, and looks at its database."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, *words: str, input: str | None = None) -> Result:  # noqa: A002 - CliRunner's own word
        return CliRunner().invoke(command, [*words, "--app", "parcels_program:app"], input=input)

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json").stdout)

    def do(self, work: Callable[[Database], Coroutine[Any, Any, Any]]) -> Any:
        async def run() -> Any:
            async with opened(self.url) as database:
                return await work(database)

        return asyncio.run(run())

    def park(self, *letters: Any) -> list[str]:
        ids: list[str] = self.do(lambda database: parked(database, *letters))
        return ids

    def resolutions(self) -> list[str | None]:
        return [row.resolution for row in self.do(lambda database: rows(database, schema.dead_letters))]


@pytest.fixture
def desk(database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Desk:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("parcels_program")
    settings = Settings(database_url=database_url, broker_url=NOBODY)
    vars(module).update(app=Hopline(handlers=[handlers], settings=settings))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = Desk(database_url)
    found.do(lambda database: asyncio.sleep(0))  # makes the tables
    return found


def test_a_list_shows_what_died_the_newest_first_and_page_by_page(desk: Desk) -> None:
    a, b, c = desk.park(*(dead(Packed(f"p-{number}")) for number in range(3)))

    first = desk("dead", "list", "--limit", "2")
    second = desk("dead", "list", "--limit", "2", "--after", b)
    found = desk.json("dead", "list", "--key", "p-1", "--since", "1h")

    assert first.exit_code == 0
    assert [line.split()[0] for line in first.stdout.splitlines() if line[:1] == a[0]] == [c, b]
    assert "exhausted: NoStock: none left" in first.stdout
    assert "2 of 3 letters, parked." in first.stdout
    assert f"--after {b}" in first.stdout
    assert a in second.stdout
    assert "--after" not in second.stdout
    assert (found["count"], found["letters"][0]["id"]) == (1, b)
    assert desk.json("dead", "list", "--until", "1h")["count"] == 0


@pytest.mark.parametrize(
    "words",
    [("--state", "gone"), ("--since", "soon"), ("--after", "p-1"), ("--after", "01a20e68-4f63-7966-b6b7-a4d6e27deeba")],
)
def test_a_wrong_question_is_a_usage_error(desk: Desk, words: tuple[str, ...]) -> None:
    assert isinstance(desk("dead", "list", *words).exception, UsageError)


def test_groups_say_what_died_of_one_cause(desk: Desk) -> None:
    _, b, _ = desk.park(dead(Packed("p-1")), dead(Packed("p-2"), queue="others"), stranger())

    text = desk("dead", "groups").stdout
    found = desk.json("dead", "groups")["groups"]

    assert "2 letters" in text
    assert "shop.errors.NoStock in shop.stock:reserve" in text
    assert "others and 1 more" in text
    assert [(one["count"], one["sample_id"]) for one in found[:1]] == [(2, b)]
    assert "No letter is discarded." in desk("dead", "groups", "--state", "discarded").stdout


def test_a_letter_is_shown_whole(desk: Desk) -> None:
    (letter,) = desk.park(dead(Packed("p-1")))

    text = desk("dead", "show", letter).stdout
    found = desk.json("dead", "show", letter)
    raw = desk("dead", "show", letter, "--raw")
    missing = desk("dead", "show", "01a20e68-4f63-7966-b6b7-a4d6e27deeba")

    for part in (letter, "NoStock: none left", "Traceback", '"message_id"', '"weight": 1', "it can be replayed"):
        assert part in text
    assert found["replay"] == {"verdict": "ok", "text": ""}
    assert found["acts"] == []
    assert raw.stdout == '{"id":"p-1","weight":1}'
    assert missing.exit_code == 1


def test_nothing_is_done_to_more_than_one_letter_without_yes(desk: Desk) -> None:
    desk.park(dead(Packed("p-1")), dead(Packed("p-2")))

    replayed = desk("dead", "replay", "--all")
    discarded = desk("dead", "discard", "--queue", "parcels", "--reason", "why not")

    assert (replayed.exit_code, discarded.exit_code) == (2, 2)
    assert "Replay 2 letters? Nothing was done: say --yes" in replayed.stderr
    assert "Discard 2 letters for good?" in discarded.stderr
    assert desk.resolutions() == [None, None]


def test_one_letter_needs_no_yes(desk: Desk) -> None:
    a, _ = desk.park(dead(Packed("p-1")), dead(Packed("p-2")))

    done = desk("dead", "replay", a)

    assert (done.exit_code, done.stdout) == (0, "1 message sent again.\n")
    assert desk.resolutions() == ["replayed", None]


def test_a_dry_run_says_what_would_become_of_each_and_changes_nothing(desk: Desk) -> None:
    a, b = desk.park(dead(Packed("p-1")), stranger())

    done = desk("dead", "replay", "--all", "--dry-run")
    found = desk.json("dead", "replay", "--all", "--dry-run", "--as-new")

    assert done.exit_code == 1
    assert f"{b}  no-id  it has no message id" in done.stdout
    assert "1 letter can be replayed, 1 cannot." in done.stdout
    assert (found["dry_run"], found["ok"], [one["letter_id"] for one in found["letters"]]) == (True, 2, [a, b])
    assert desk.resolutions() == [None, None]


def test_a_replay_tells_what_was_refused_and_what_does_not_exist(desk: Desk) -> None:
    a, b = desk.park(dead(Packed("p-1")), stranger())
    nowhere = "01a20e68-4f63-7966-b6b7-a4d6e27deeba"

    done = desk.json("dead", "replay", a, b, nowhere, "--yes", "--who", "ann", "--reason", "mended")
    again = desk("dead", "replay", a)

    assert (done["ended"], done["sent"], done["refused"]) == ("finished", 1, 2)
    assert {one["letter_id"]: one["verdict"] for one in done["letters"]} == {a: "ok", b: "no-id", nowhere: "not-found"}
    assert again.exit_code == 1
    assert "replayed already" in again.stdout
    acts = desk.json("dead", "show", a)["acts"]
    assert [(act["who"], act["action"], act["reason"]) for act in acts] == [("ann", "replay", "mended")]


def test_a_canary_without_a_worker_says_what_to_look_at(desk: Desk) -> None:
    desk.park(*(dead(Packed(f"p-{number}")) for number in range(3)))

    done = desk("dead", "replay", "--all", "--canary", "--deadline", "0.3", "--yes")

    assert done.exit_code == 1
    text = " ".join(done.stdout.split())
    assert "1 message sent again, 0 done, 0 failed; 2 not touched, still parked." in text
    assert "Stopped: 1 message had no result within 0.3 s" in text
    assert "Is a worker running" in text


def test_a_discard_needs_a_reason_and_shows_it(desk: Desk) -> None:
    a, b = desk.park(dead(Packed("p-1")), dead(Packed("p-2")))

    assert isinstance(desk("dead", "discard", a, "--reason", " ").exception, UsageError)
    done = desk("dead", "discard", a, b, "--reason", "test orders", "--yes")

    assert (done.exit_code, done.stdout) == (0, "2 letters discarded.\n")
    assert desk.resolutions() == ["discarded", "discarded"]
    assert "test orders" in desk("dead", "show", a).stdout
    assert "discarded" in desk("dead", "list", "--state", "any").stdout


@pytest.mark.parametrize("verb", [("dead", "replay"), ("dead", "discard", "--reason", "x"), ("scheduled", "cancel")])
def test_what_is_not_chosen_is_not_touched(desk: Desk, verb: tuple[str, ...]) -> None:
    desk.park(dead(Packed("p-1")))

    assert isinstance(desk(*verb).exception, UsageError)
    assert desk.resolutions() == [None]


def test_an_edit_from_a_file_shows_the_difference_and_asks(desk: Desk, tmp_path: Path) -> None:
    (letter,) = desk.park(dead(Packed("p-1"), envelope_for(Packed("p-1"), body=b'{"id": "p-1", "weight": "heavy"}')))
    (tmp_path / "body.json").write_text('{"id": "p-1", "weight": 9, "colour": "red"}')
    edit = ("dead", "edit", letter, "--body-file", "body.json")

    asked = desk(*edit)
    done = desk.json(*edit, "--yes")
    again = desk(*edit, "--yes")

    assert asked.exit_code == 2
    assert '-  "weight": "heavy"' in asked.stderr
    assert '+  "weight": 9,' in asked.stderr
    assert "parcel.packed v1 has no colour" in asked.stderr
    assert (done["verdict"], desk.resolutions()) == ("ok", ["edited"])
    (message,) = desk.do(lambda database: rows(database, schema.messages))
    assert (message.id, message.body) == (done["message_id"], b'{"id": "p-1", "weight": 9, "colour": "red"}')
    assert again.exit_code == 1


@pytest.mark.parametrize(
    ("body", "words", "error"),
    [
        ('{"id": "p-1", "weight": "heavy"}', (), Undecodable),
        ('{"id": "p-1"}', ("--type", "parcel.flown"), UnknownType),
        ('{"id": "p-1"}', ("--version", "7"), UnknownType),
        ('{"id": ""}', (), UsageError),
    ],
)
def test_an_edit_that_todays_code_refuses_is_said(
    desk: Desk, tmp_path: Path, body: str, words: tuple[str, ...], error: type[Exception]
) -> None:
    (letter,) = desk.park(dead(Packed("p-1")))
    (tmp_path / "body.json").write_text(body)

    done = desk("dead", "edit", letter, "--body-file", "body.json", "--yes", *words)

    assert isinstance(done.exception, error)
    assert desk.resolutions() == [None]


def test_an_edit_in_the_editor_sends_what_was_saved(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (letter,) = desk.park(dead(Packed("p-1")))
    editor = tmp_path / "editor.py"
    editor.write_text(
        "import pathlib, sys\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "path.write_text(path.read_text().replace(': 1', ': 5'))\n"
    )
    monkeypatch.setenv("VISUAL", f"{sys.executable} {editor}")

    done = desk("dead", "edit", letter, "--yes")

    assert done.exit_code == 0, done.output
    (message,) = desk.do(lambda database: rows(database, schema.messages))
    assert message.body == b'{"id":"p-1","weight":5}'


@pytest.mark.parametrize(
    ("editor", "told"), [("true", "as it was"), ("false", "status 1"), ("/no/such/editor", "set EDITOR")]
)
def test_an_editor_that_changes_nothing_or_fails_does_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, editor: str, told: str
) -> None:
    (letter,) = desk.park(dead(Packed("p-1")))
    monkeypatch.setenv("VISUAL", editor)

    done = desk("dead", "edit", letter, "--yes")

    assert done.exit_code == 1
    assert told in done.stderr + str(done.exception)
    assert desk.resolutions() == [None]


def test_a_body_that_is_no_text_is_edited_by_file_only(desk: Desk) -> None:
    (letter,) = desk.park(stranger(b"\xff\x00"))

    done = desk("dead", "edit", letter, "--yes")

    assert isinstance(done.exception, UsageError)
    assert "--body-file" in str(done.exception)
    assert "ff 00" in desk("dead", "show", letter).stdout


def test_without_tables_the_commands_say_what_to_do(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(database_url=f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}", broker_url=NOBODY)
    vars(sys.modules["parcels_program"]).update(app=Hopline(handlers=[handlers], settings=settings))

    for words in (("dead", "list"), ("scheduled", "list"), ("status",)):
        assert "hopline migrate" in str(desk(*words).exception)


def test_scheduled_sends_are_listed_hurried_and_cancelled(desk: Desk) -> None:
    async def send(database: Database) -> None:
        for number in range(3):
            async with database.transaction() as tx:
                tx.schedule(envelope_for(Packed(f"p-{number}")), queue="parcels", delay_seconds=3_600 + number)

    desk.do(send)
    text = desk("scheduled", "list").stdout
    listed = desk.json("scheduled", "list")
    first, second, third = [one["id"] for one in listed["sends"]]

    hurried = desk("scheduled", "run-now", first, "--reason", "the customer waits")
    unasked = desk("scheduled", "cancel", "--queue", "parcels")
    cancelled = desk.json("scheduled", "cancel", "--queue", "parcels", "--yes")
    late = desk("scheduled", "cancel", first, second)

    assert "in 60 min" in text
    assert "3 of 3 scheduled sends." in text
    assert (listed["count"], listed["sends"][0]["kind"]) == (3, "delayed")
    assert (hurried.exit_code, hurried.stdout) == (0, "1 scheduled send due now.\n")
    assert unasked.exit_code == 2
    assert "Cancel 2 scheduled sends for good?" in unasked.stderr
    assert cancelled == {"changed": 2, "sends": sorted([second, third]), "not_scheduled": []}
    assert late.exit_code == 1
    assert f"{first}  is not scheduled" in late.stdout


def test_status_without_a_broker_tells_the_rest_and_ends_with_3(desk: Desk) -> None:
    desk.park(dead(Packed("p-1")))

    done = desk("status", "--no-audit")
    found = desk("status", "--no-audit", "--json")

    assert (done.exit_code, found.exit_code) == (3, 3)
    assert "shop.errors.NoStock" in done.stdout
    assert "To look at" in done.stdout
    told = json.loads(found.stdout)
    assert told["parked"] == 1
    assert any("RabbitMQ" in trouble for trouble in told["troubles"])
