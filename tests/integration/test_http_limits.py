"""What a client may do to a server with `LimitedProtocol`, over real sockets, on both event loops."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvicorn
import uvloop

from hopline.http_limits import LimitedProtocol
from tests.support.raw_http import Listening, answer_to, hurried, listening
from tests.support.waiting import wait_until

HEAD = b"POST /read HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = HEAD + b"Content-Length: 2\r\n\r\nhi"
LARGE_BYTES = 8 << 20

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.param
    return found


async def application(scope: Any, receive: Any, send: Any) -> None:
    """/read reads a body and answers its size, /large answers much, /refuse answers 413 before the body is there."""
    size = 0
    if scope["path"] == "/read":
        while True:
            event = await receive()
            if event["type"] != "http.request":
                return
            size += len(event["body"])
            if not event["more_body"]:
                break
    body = b"x" * LARGE_BYTES if scope["path"] == "/large" else b"%d" % size
    status = 413 if scope["path"] == "/refuse" else 200
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def config(**limits: Any) -> uvicorn.Config:
    protocol = hurried(LimitedProtocol, **limits)
    return uvicorn.Config(application, http=protocol, ws="none", loop="none", lifespan="off", log_level="error")


async def no_connection_is_left(server: Listening) -> None:
    await wait_until(lambda: not server.server_state.connections, what="the server has dropped the connection")


@pytest.mark.parametrize(
    ("first", "again", "said"),
    [
        pytest.param(b"", b"", b"", id="nothing"),
        pytest.param(HEAD, b"", b"HTTP/1.1 408 ", id="half-a-head"),
        pytest.param(HEAD, b"a: b\r\n", b"HTTP/1.1 408 ", id="a-slow-head"),
        pytest.param(b"", b"\r\n", b"HTTP/1.1 408 ", id="blank-lines"),
        pytest.param(HEAD + b"Content-Length: 100\r\n\r\nxx", b"", b"HTTP/1.1 408 ", id="half-a-body"),
        pytest.param(HEAD + b"Content-Length: 100000\r\n\r\nxx", b"x", b"HTTP/1.1 408 ", id="a-slow-body"),
        pytest.param(CHUNKED + b"2\r\nhi\r\n", b"1\r\nx\r\n", b"HTTP/1.1 408 ", id="chunks-without-end"),
        pytest.param(CHUNKED + b"2\r\nhi\r\n0\r\n", b"a: b\r\n", b"HTTP/1.1 408 ", id="trailers-without-end"),
        pytest.param(HEAD + b"a: " + b"x" * 100_000, b"", b"HTTP/1.1 431 ", id="a-large-header"),
        pytest.param(HEAD + b"a: " + b"x" * 100_000 + b"\r\n\r\n", b"", b"HTTP/1.1 431 ", id="a-whole-large-header"),
        pytest.param(HEAD + b"a: bb\r\n" * 10_000 + b"\r\n", b"", b"HTTP/1.1 431 ", id="many-headers"),
        pytest.param(b"GET /" + b"x" * 100_000, b"", b"HTTP/1.1 431 ", id="a-large-path"),
        pytest.param(HEAD, b"a: " + b"x" * 9_000 + b"\r\n", b"HTTP/1.1 431 ", id="a-head-that-grows"),
        pytest.param(CHUNKED + b"1\r\nx\r\n0\r\na: ", b"x" * 50_000, b"HTTP/1.1 413 ", id="a-large-trailer"),
        pytest.param(CHUNKED + b"1;a=", b"x" * 50_000, b"HTTP/1.1 413 ", id="a-large-chunk-extension"),
        pytest.param(CHUNKED, b"ffff\r\n" + b"x" * 65_535 + b"\r\n", b"HTTP/1.1 413 ", id="a-body-without-end"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01", b"", b"HTTP/1.1 400 ", id="tls"),
        pytest.param(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"", b"HTTP/1.1 400 ", id="two-lengths"),
        pytest.param(HEAD + b"Content-Length: -1\r\n\r\n", b"", b"HTTP/1.1 400 ", id="a-negative-length"),
        pytest.param(HEAD + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\n", b"", b"HTTP/1.1 400 ", id="a-vast-length"),
        pytest.param(WHOLE * 100, b"", b"", id="a-long-pipeline"),
        pytest.param(WHOLE + HEAD, b"", b"HTTP/1.1 200 ", id="half-a-second-head"),
        pytest.param(
            HEAD.replace(b"/read", b"/refuse") + b"Content-Length: 9\r\n\r\nx", b"", b"HTTP/1.1 413 ", id="late"
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", b"x", b"HTTP/1.1 200 ", id="ws"
        ),
    ],
)
def test_every_way_to_ask_badly_ends(run: Run, first: bytes, again: bytes, said: bytes) -> None:
    async def talk() -> None:
        async with listening(config(body_bytes=1 << 20)) as server:
            answer = await answer_to(server.port, first, (lambda: again) if again else bytes)

            assert answer.startswith(said)
            assert said or not answer
            await no_connection_is_left(server)

    run(talk())


def test_a_client_that_stops_reading_is_dropped(run: Run) -> None:
    async def talk() -> None:
        async with listening(config(write_seconds=0.5)) as server:
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
                await wait_until(lambda: len(server.server_state.connections) == 1)
                await no_connection_is_left(server)

    run(talk())


def test_a_client_that_reads_slowly_gets_all_of_it(run: Run) -> None:
    async def talk() -> None:
        async with listening(config(write_seconds=0.5)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=4_096)
            writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            began, size = asyncio.get_running_loop().time(), 0
            while size < LARGE_BYTES:
                size += len(await reader.read(32_768))
                await asyncio.sleep(0.005)
            writer.close()
            await writer.wait_closed()

            assert asyncio.get_running_loop().time() - began > 0.5

    run(talk())


def test_a_connection_over_the_limit_is_told_to_come_again(run: Run) -> None:
    async def talk() -> None:
        async with listening(config(connections=3, head_seconds=30, body_seconds=30, write_seconds=30)) as server:
            held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
            await wait_until(lambda: len(server.server_state.connections) == 3)

            refused = await answer_to(server.port, b"")

            assert refused.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 1\r\n" in refused
            held.pop()[1].close()
            await wait_until(lambda: len(server.server_state.connections) == 2)
            assert (await answer_to(server.port, WHOLE.replace(b"Host", b"Connection: close\r\nHost"))).endswith(
                b"\r\n\r\n2"
            )
            for _, writer in held:
                writer.close()

    run(talk())


def test_what_is_within_the_bounds_is_answered(run: Run) -> None:
    async def talk() -> None:
        async with listening(config(body_bytes=1 << 20, head_seconds=30, body_seconds=30)) as server:
            last = HEAD + b"Connection: close\r\n" + b"a: " + b"x" * 30_000 + b"\r\nContent-Length: 1000000\r\n\r\n"
            small = CHUNKED + b"1\r\nx\r\n" * 2_000 + b"0\r\nsum: 1\r\n\r\n"

            answer = await answer_to(server.port, WHOLE * 10 + small + last + b"x" * 1_000_000)

            bodies = [part.rpartition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
            assert bodies == [*[b"2"] * 10, b"2000", b"1000000"]

    run(talk())


def test_a_connection_that_is_kept_alive_ends_also_after_the_rest_of_a_refused_body(run: Run) -> None:
    async def talk() -> None:
        settings = config(body_seconds=30, head_seconds=2)
        settings.timeout_keep_alive = 1
        async with listening(settings) as server:
            head = HEAD.replace(b"/read", b"/refuse") + b"Content-Length: 3\r\n\r\n"
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(head + b"a")
            assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
            writer.write(b"bc")

            async with asyncio.timeout(10):
                await reader.read()
            await no_connection_is_left(server)
            writer.close()

    run(talk())
