"""The load against an API that behaves badly."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from hopline import UsageError
from hopline.node import free_ports
from orders import replay
from orders.dataset import Basket
from orders.replay import Record, Sent

BASKETS = [Basket(str(number), b'{"number": %d}' % number) for number in range(20)]

Answer = Callable[[str, int], Awaitable[web.Response]]


@asynccontextmanager
async def api(port: int, answer: Answer) -> AsyncIterator[dict[str, list[bytes]]]:
    """An API that answers by (key, number of the try); yields the bodies by key."""
    seen: dict[str, list[bytes]] = defaultdict(list)

    async def orders(request: web.Request) -> web.Response:
        key = request.headers["Idempotency-Key"]
        seen[key].append(await request.read())
        return await answer(key, len(seen[key]))

    application = web.Application()
    application.router.add_post("/orders", orders)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield seen
    finally:
        await runner.cleanup()


def response(status: int, **body: str) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


async def accepting(key: str, _number: int) -> web.Response:
    return response(202, id=f"order-of-{key}")


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "PAUSE_CAP_SECONDS", 0.05)


async def test_every_basket_is_sent_once_with_a_key_of_its_own(port: int) -> None:
    progress: list[Sent] = []
    async with api(port, accepting) as seen:
        sent = await replay.replay(
            f"http://127.0.0.1:{port}/", iter(BASKETS), run_id="run", on_progress=progress.append
        )

    assert {basket.basket_id: (basket.status, basket.order_id) for basket in sent} == {
        basket.id: (202, f"order-of-run-{basket.id}") for basket in BASKETS
    }
    assert seen == {f"run-{basket.id}": [basket.body] for basket in BASKETS}
    assert all(one.accepted and not one.refused and one.tries == 1 and one.latency_seconds > 0 for one in sent)
    assert progress == sent


@pytest.mark.parametrize("status", [409, 429, 502, 503, 504])
async def test_what_may_pass_later_is_tried_again_with_the_same_key(status: int, port: int) -> None:
    async def later(key: str, number: int) -> web.Response:
        return response(status, code="busy") if number < 3 else await accepting(key, number)

    async with api(port, later) as seen:
        sent = await replay.replay(f"http://127.0.0.1:{port}", BASKETS[:3])

    assert [(one.status, one.tries) for one in sent] == [(202, 3)] * 3
    assert Counter(len(bodies) for bodies in seen.values()) == {3: 3}


@pytest.mark.parametrize("status", [400, 413, 422, 500])
async def test_what_is_refused_is_not_tried_again(status: int, port: int) -> None:
    async def refuse(_key: str, _number: int) -> web.Response:
        return response(status, code="no-good")

    async with api(port, refuse):
        (sent,) = await replay.replay(f"http://127.0.0.1:{port}", BASKETS[:1])

    assert (sent.status, sent.code, sent.tries, sent.order_id) == (status, "no-good", 1, "")
    assert sent.refused == (status < 500)


async def test_an_answer_that_got_lost_is_asked_for_again(port: int) -> None:
    async def cut(key: str, number: int) -> web.Response:
        if number == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.Event().wait()
        return await accepting(key, number)

    async with api(port, cut) as seen:
        sent = await replay.replay(f"http://127.0.0.1:{port}", BASKETS[:3])

    assert [(one.status, one.tries) for one in sent] == [(202, 2)] * 3
    assert len(seen) == 3


async def test_an_api_that_is_away_for_a_while(port: int) -> None:
    sending = asyncio.create_task(replay.replay(f"http://127.0.0.1:{port}", BASKETS, concurrency=4))

    async with api(port, accepting):
        sent = await sending

    assert {one.status for one in sent} == {202}


async def test_an_api_that_is_gone_for_good_is_waited_for_once(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "DEADLINE_SECONDS", 0.3)
    began = time.monotonic()

    sent = await replay.replay(f"http://127.0.0.1:{port}", BASKETS, concurrency=2)

    assert [(one.status, one.accepted, one.refused) for one in sent] == [(0, False, False)] * 20
    assert sent[0].code
    assert sent[-1].tries == 1
    assert time.monotonic() - began < 2


async def test_the_rate_is_kept(port: int) -> None:
    async with api(port, accepting):
        began = time.monotonic()
        await replay.replay(f"http://127.0.0.1:{port}", BASKETS, rate=100)
        seconds = time.monotonic() - began

    assert 0.19 <= seconds < 1


async def test_the_record_is_on_the_disk_before_the_end(port: int, tmp_path: Path) -> None:
    path = tmp_path / "record.ndjson"
    path.write_bytes(msgspec.json.encode(Sent("before", 202)) + b"\n")

    async with api(port, accepting), Record(path) as record:
        sent = await replay.replay(f"http://127.0.0.1:{port}", BASKETS, record=record)

    assert [msgspec.json.decode(line, type=Sent) for line in path.read_bytes().splitlines()] == [
        Sent("before", 202),
        *sent,
    ]


async def test_a_record_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        async with Record(tmp_path / "no" / "folder"):
            pass
