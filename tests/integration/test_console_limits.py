"""That the console is served within limits, over real sockets: test_http_limits.py has every case."""

from __future__ import annotations

import pytest

from hopline.console import serving
from hopline.http_limits import LimitedProtocol
from tests.support.console import console, console_settings
from tests.support.raw_http import answer_to, hurried, listening

HEAD = b"POST /sign-in HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HEAD, b"408"),
        (HEAD + b"Content-Length: 500\r\n\r\npass", b"408"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\np\r\n", b"408"),
        (HEAD + b"Cookie: " + b"x" * 100_000, b"431"),
    ],
)
async def test_a_bad_request_ends_and_the_next_is_answered(
    sqlite_database_url: str, sent: bytes, status: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    async with console(sqlite_database_url) as made:
        config = serving._config(made.console, console_settings())
        assert config.http is LimitedProtocol
        config.http = hurried(LimitedProtocol)
        async with listening(config) as server:
            answer = await answer_to(server.port, sent)
            page = await answer_to(server.port, b"GET /sign-in HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 " + status)
    assert page.startswith(b"HTTP/1.1 200 ")
    assert "unforeseen" not in "".join(capsys.readouterr())
