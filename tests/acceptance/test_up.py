"""`orders up` as an operator uses it: HTTP, commands, files and signals, nothing from inside."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support import oracle
from tests.support.processes import is_alive, run, up
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(240)
ORDER: dict[str, Any] = {
    "customer": {"name": "Zoë Müller", "email": "zoe@example.com"},
    "lines": [{"sku": "1095275", "quantity": 2, "unit_price": "0.50"}],
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """One running stack for the tests that leave it as they found it; each has customers of its own."""
    folder = tmp_path_factory.mktemp("shared") / ".hopline"
    with up(folder) as (_, running):
        yield Shared(
            folder, running["urls"]["api"], Path(running["mail_ledger"]), running["environment"]["HOPLINE_DATABASE_URL"]
        )


@dataclass(frozen=True)
class Shared:
    """Where the shared stack is."""

    folder: Path
    url: str
    ledger: Path
    database_url: str

    def mails_to(self, email: str) -> list[dict[str, Any]]:
        return [mail for mail in oracle.mails(self.ledger) if mail["to"] == [email]]

    async def orders_of(self, email: str) -> list[tuple[Any, ...]]:
        return await oracle.query(self.database_url, f"SELECT id FROM orders WHERE email = '{email}'")


async def hopline(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs `hopline …` beside the stack's folder, with nothing set: it has to find the stack by itself."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOPLINE_")}
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "hopline.cli", *words],
        cwd=folder.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def post(url: str, path: str, body: object, **headers: str) -> tuple[int, Mapping[str, str], Any]:
    async with aiohttp.ClientSession() as session, session.post(url + path, json=body, headers=headers) as answer:
        return answer.status, answer.headers, await answer.json(content_type=None)


async def get(url: str, path: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.get(url + path) as answer:
        return answer.status, await answer.json(content_type=None)


async def ends_as(url: str, location: str, state: str) -> Any:
    """Waits until the thing at `location` is in the state; its body."""
    body: Any = None

    async def reached() -> bool:
        nonlocal body
        _, body = await get(url, location)
        return bool(body["state"] == state)

    await wait_until(reached, 20, f"{location} is {state}")
    return body


async def test_an_order_goes_from_http_to_an_email_and_its_story_can_be_told(shared: Shared) -> None:
    folder, url, ledger = shared.folder, shared.url, shared.ledger
    status, headers, body = await post(url, "/orders", ORDER, **{"X-Request-Id": "from-the-test"})
    assert status == 202
    assert headers["Location"] == f"/orders/{body['id']}"
    order = await ends_as(url, headers["Location"], "confirmed")
    assert [entry["state"] for entry in order["history"]] == ["accepted", "confirmed"]
    await wait_until(lambda: len(oracle.Ledger(ledger).mails().get(body["id"], [])) == 1, 20)
    (mail,) = shared.mails_to("zoe@example.com")
    assert mail["to"] == ["zoe@example.com"]
    assert "text/html" in mail["raw"]

    async def all_told() -> bool:
        told = json.loads((await hopline(folder, "trace", body["id"], "--json")).stdout)
        return [step["what"] for step in told["steps"]].count("confirm") == 2

    await wait_until(all_told, 20, "both confirms are marked")
    traced = await hopline(folder, "trace", body["id"], "--json")
    text = await hopline(folder, "trace", body["id"])
    audited = await hopline(folder, "audit")
    unknown = await hopline(folder, "trace", "no-such-order")
    steps = json.loads(traced.stdout)["steps"]
    assert "from-the-test" in steps[0]["text"]
    assert steps[0]["what"] == "request"
    done = [step for step in steps if step["what"] == "done"]
    assert [step["text"].split(":")[0] for step in done] == ["orders/order.placed", "emails/order.confirmed"]
    assert all(step["worker"] and step["seconds"] is not None for step in done)
    assert mail["message_id"] in done[-1]["text"]
    assert [step["at"] for step in steps] == sorted(step["at"] for step in steps)
    assert text.returncode == 0
    assert "confirmed by RabbitMQ" in " ".join(text.stdout.split())
    assert audited.returncode == 0
    assert "Every message is accounted for." in audited.stdout
    assert unknown.returncode == 1
    assert "Nothing is known" in unknown.stderr


async def test_a_registration_becomes_a_user_and_a_welcome(shared: Shared) -> None:
    url = shared.url
    status, headers, _ = await post(url, "/users", {"name": "Ann", "email": "ann@example.com"})
    assert status == 202
    await ends_as(url, headers["Location"], "registered")
    await wait_until(lambda: bool(shared.mails_to("ann@example.com")), 20)

    again, headers, _ = await post(url, "/users", {"name": "Ann", "email": "ANN@example.com"})
    assert again == 202
    refused = await ends_as(url, headers["Location"], "refused")
    assert refused["reasons"]
    assert [mail["subject"] for mail in shared.mails_to("ann@example.com")] == ["Welcome"]


async def test_three_workers_share_the_work_and_ctrl_c_drains_and_stops_all(tmp_path: Path) -> None:
    folder = tmp_path / ".hopline"
    with up(folder, "--workers", 3) as (process, running):
        roles = {role["role"]: role for role in running["roles"]}
        assert set(roles) == {"rabbitmq", "mailbox", "api", "worker-1", "worker-2", "worker-3", "console"}
        assert all(is_alive(role["pid"]) for role in roles.values())
        assert running["supervisor_pid"] == process.pid
        url, ledger = running["urls"]["api"], Path(running["mail_ledger"])
        sent = await run("replay", "--orders", 400, "--folder", folder, "--json")
        assert sent.returncode == 0, sent.stderr
        accepted = json.loads(sent.stdout)["accepted"]
        await wait_until(lambda: len(oracle.Ledger(ledger).mails()) == accepted, 30)
        ready, state = await get(url, "/readyz")
        second = await run("up", "--folder", folder)
    assert (ready, state["ready"], state["broker"]) == (200, True, "connected")
    assert second.returncode == 2
    assert f"supervisor pid {process.pid}" in second.stderr
    assert process.returncode == 0
    assert not any(is_alive(role["pid"]) for role in roles.values())
    assert not (folder / "run.json").exists()
    workers = await oracle.query(
        running["environment"]["HOPLINE_DATABASE_URL"], "SELECT DISTINCT worker FROM hopline_inbox"
    )
    assert len(workers) == 3
    audited = await hopline(
        folder, "audit", "--json"
    )  # the broker is gone: that is said, and everything is proven by rows
    account = json.loads(audited.stdout)
    assert audited.returncode == 0, audited.stderr
    assert "cannot be read" in account["trouble"]
    assert (account["missing"], account["unproven"], account["is_fine"]) == (0, 0, True)


async def test_what_runs_again_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = tmp_path / ".hopline"
    with up(folder) as (_, running):
        status, headers, _ = await post(running["urls"]["api"], "/orders", ORDER)
        assert status == 202
        await ends_as(running["urls"]["api"], headers["Location"], "confirmed")

    with up(folder) as (_, running):
        known, order = await get(running["urls"]["api"], headers["Location"])

    assert (known, order["state"]) == (200, "confirmed")


BAD_ORDERS: list[tuple[str, bytes, int, str]] = [
    ("malformed JSON", b"{", 400, "JSON"),
    ("not JSON at all", b"\xff\xfe", 400, ""),
    ("a bomb of brackets", b"[" * 200_000, 422, ""),
    ("a list", b"[]", 422, ""),
    ("wrong type", b'{"customer": 5, "lines": []}', 422, "customer"),
    ("no lines", json.dumps({**ORDER, "lines": []}).encode(), 422, "lines"),
    ("an unknown field", json.dumps({**ORDER, "discount": 1}).encode(), 422, "discount"),
    ("quantity 0", json.dumps({**ORDER, "lines": [{**ORDER["lines"][0], "quantity": 0}]}).encode(), 422, "quantity"),
    ("10,000 lines", json.dumps({**ORDER, "lines": ORDER["lines"] * 10_000}).encode(), 422, "lines"),
    ("over 1 MiB", b'{"x": "' + b"x" * (1 << 20) + b'"}', 413, ""),
    (
        "a header in the name",
        json.dumps({**ORDER, "customer": {"name": "A\r\nBcc: all@example.com", "email": "a@example.com"}}).encode(),
        422,
        "name",
    ),
    (
        "a header in the address",
        json.dumps({**ORDER, "customer": {"name": "A", "email": "a@example.com\r\nBcc: all@example.com"}}).encode(),
        422,
        "email",
    ),
]


async def test_bad_input_is_refused_with_a_reason_and_breaks_nothing(shared: Shared) -> None:
    url = shared.url
    async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session:
        for name, body, status, says in BAD_ORDERS:
            async with session.post(f"{url}/orders", data=io.BytesIO(body)) as answer:
                problem = await answer.json(content_type=None)
                assert answer.status == status, (name, problem)
                assert answer.content_type == "application/problem+json", name
                assert problem["status"] == status, name
                assert says in json.dumps(problem), (name, problem)

    for name in ("Ωμέγα 🎁 اسم", "O'Brien-Łukasiewicz", '"quoted", <b>bold</b>'):
        order = {**ORDER, "customer": {"name": name, "email": "fine@example.com"}}
        status, headers, _ = await post(url, "/orders", order)
        assert status == 202, name
        await ends_as(url, headers["Location"], "confirmed")
    await wait_until(lambda: len(shared.mails_to("fine@example.com")) == 3, 20)
    assert len(await shared.orders_of("fine@example.com")) == 3
    assert await shared.orders_of("a@example.com") == []
    assert shared.mails_to("all@example.com") == []
    assert not any("<b>bold</b>" in mail["raw"].partition("text/html")[2] for mail in oracle.mails(shared.ledger))


async def test_one_idempotency_key_is_one_order(shared: Shared) -> None:
    url = shared.url
    order = {**ORDER, "customer": {"name": "Once", "email": "once@example.com"}}
    answers = await asyncio.gather(*(post(url, "/orders", order, **{"Idempotency-Key": "k1"}) for _ in range(20)))
    other = {**order, "customer": {"name": "Else", "email": "else@example.com"}}
    conflict, _, problem = await post(url, "/orders", other, **{"Idempotency-Key": "k1"})
    refused, _, _ = await post(url, "/orders", {**order, "lines": []}, **{"Idempotency-Key": "k2"})
    mended, _, _ = await post(url, "/orders", order, **{"Idempotency-Key": "k2"})
    assert {status for status, _, _ in answers} == {202}
    assert len({body["id"] for _, _, body in answers}) == 1
    assert conflict == 422
    assert "Idempotency-Key" in json.dumps(problem) or "idempotency" in json.dumps(problem).lower()
    assert (refused, mended) == (422, 202)  # a refusal is not remembered
    assert len(await shared.orders_of("once@example.com")) == 2
    assert await shared.orders_of("else@example.com") == []
