"""The console's design system on one page: rendered with made-up content, served under the console's own rules.

`python -m tests.support.style_guide` serves it until Ctrl-C, for those who work on it; a test looks at it in a browser.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import msgspec

from hopline.console.application import SECURITY_HEADERS
from hopline.console.rendering import STATIC, NavItem, environment

POLICY = SECURITY_HEADERS["Content-Security-Policy"]
KINDS = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".html": "text/html",
    ".json": "application/json",
}
HOSTILE = '<script>alert(1)</script> & "quoted" \u202e'


def _place(key: str, label: str, figure: str, text: str, tone: str, href: str) -> SimpleNamespace:
    return SimpleNamespace(key=key, label=label, figure=figure, text=text, tone=tone, href=href)


def _flow(at: datetime) -> SimpleNamespace:
    def queue(name: str, **more: Any) -> SimpleNamespace:
        usual: dict[str, Any] = {
            "tone": "busy",
            "word": "moving",
            "depth": 18,
            "ready": 12,
            "in_flight": 6,
            "oldest_seconds": 0.3,
            "oldest_is_least": False,
            "consumers": 2,
            "expected": 2,
            "types": ("order.placed",),
            "rate": 184.2,
            "p99_seconds": 0.212,
        }
        return SimpleNamespace(name=name, href=f"/queues/{name}", **{**usual, **more})

    return SimpleNamespace(
        at=at,
        trouble="",
        sources=_place("sources", "Producers", "2", "api", "ok", "/workers"),
        outbox=_place("outbox", "Outbox", "41", "oldest 0.2 s", "busy", "/scheduled"),
        exchange=_place("exchange", "RabbitMQ", "18", "in flight", "ok", "/queues"),
        queues=(
            queue("orders"),
            queue(
                "emails",
                tone="warn",
                word="paused",
                ready=1_204,
                in_flight=0,
                oldest_seconds=840.0,
                rate=0.0,
                p99_seconds=None,
            ),
            queue(
                "users",
                tone="ok",
                word="empty",
                ready=0,
                in_flight=0,
                oldest_seconds=None,
                rate=0.4,
                p99_seconds=0.018,
                consumers=1,
            ),
        ),
        workers=_place("workers", "Workers", "2", "6 deliveries in hand", "ok", "/workers"),
        done=_place("done", "Done", "12 480", "184/s", "ok", "/search"),
        retry=_place("retry", "Retry", "7", "and 2 delayed", "busy", "/scheduled"),
        dead=_place("dead", "Dead", "3", "2 causes", "bad", "/dead"),
        signs=tuple(
            SimpleNamespace(key=key, label=label, value=value, tone=tone, word=word, text=text, href="/queues")
            for key, label, value, tone, word, text in (
                ("unsent", "Oldest unsent", "0.2 s", "ok", "fine", "41 wait for RabbitMQ"),
                ("age", "Oldest in a queue", "14 min", "warn", "old", "in emails"),
                ("consumers", "Consumers", "5 of 5", "ok", "all there", ""),
                ("blocked", "RabbitMQ", "answers", "ok", "open", ""),
                ("paused", "Paused", "1", "warn", "paused", "emails: the mail server does not answer"),
                ("dead", "Dead today", "3", "bad", "look", "2 causes"),
                ("gap", "Reconciliation", "0", "ok", "complete", "12 480 accepted"),
            )
        ),
        troubles=("the queue emails is paused",),
        tone="warn",
    )


def _view() -> SimpleNamespace:
    at = datetime.now(UTC) - timedelta(minutes=4)
    rows = [
        SimpleNamespace(
            cause="StockUnknown",
            frame="orders.handlers.place",
            error="no such article: 'A-9981'",
            count=1204,
            trend=[0, 0, 1, 4, 9, 30, 12, 4, 2, 0, 0, 1],
        ),
        SimpleNamespace(
            cause="SMTPRecipientsRefused",
            frame="orders.emails.send",
            error="550 5.1.1 no such mailbox: " + "a" * 200,
            count=2,
            trend=[0] * 11 + [2],
        ),
        SimpleNamespace(cause=HOSTILE, frame="orders.handlers", error=HOSTILE * 3, count=1, trend=[1] + [0] * 11),
    ]
    waterfall = [
        {"label": "POST /orders", "href": "#", "start_ms": 0, "length_ms": 4.1, "tone": "ok", "text": "4.1 ms"},
        {"label": "order.placed, sent", "href": "#", "start_ms": 4.2, "length_ms": 2.4, "tone": "ok", "text": "2.4 ms"},
        {"label": "orders, attempt 1", "href": "#", "start_ms": 7, "length_ms": 12, "tone": "bad", "text": "12 ms"},
        {"label": "waits for its retry", "href": "", "start_ms": 19, "length_ms": 60, "tone": "idle", "text": "60 ms"},
        {"label": "orders, attempt 2", "href": "#", "start_ms": 79, "length_ms": 9, "tone": "ok", "text": "9.0 ms"},
        {
            "label": "email.requested → emails",
            "href": "#",
            "start_ms": 90,
            "length_ms": 31,
            "tone": "ok",
            "text": "31 ms",
        },
    ]
    diff = [
        {"kind": "same", "text": "{"},
        {"kind": "removed", "text": '  "sku": "A-9981",'},
        {"kind": "added", "text": '  "sku": "A-998",'},
        {"kind": "same", "text": '  "quantity": 2'},
        {"kind": "same", "text": "}"},
    ]
    return SimpleNamespace(
        at=at,
        flow=_flow(at),
        rows=rows,
        waterfall=waterfall,
        diff=diff,
        tabs=[
            {"key": "all", "href": "#all", "label": "All", "count": 12},
            {"key": "paused", "href": "#paused", "label": "Paused", "count": 1},
        ],
        body='{\n  "order_id": "4711",\n  "email": "'
        + HOSTILE.replace('"', '\\"')
        + '",\n  "lines": [\n    {"sku": "A-1", "quantity": 2}\n  ]\n}',
        stack="Traceback (most recent call last):\n"
        + "\n".join(f'  File "orders/handlers.py", line {n}, in step_{n}\n    call_{n}()' for n in range(20))
        + "\nStockUnknown: no such article",
    )


def _history() -> bytes:
    """Fifteen minutes with a lull and a burst."""
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=15)
    points = []
    for step in range(90):
        busy = 0 if 30 < step < 36 else 1800 + (step * 37 % 300) + (900 if 60 < step < 70 else 0)
        seconds = None if not busy else 0.02 + (step * 13 % 7) / 1000
        points.append(
            {
                "at": start + timedelta(seconds=10 * step),
                "seconds": 10.0,
                "done": busy,
                "retried": busy // 40,
                "dead": step % 31 == 7,
                "deferred": 0,
                "accepted": busy,
                "published": busy,
                "handler_p50": seconds,
                "handler_p99": seconds and seconds * 4,
                "total_p50": seconds and seconds * 3,
                "total_p99": seconds and seconds * 9,
            }
        )
    return msgspec.json.encode({"window": "15m", "step_seconds": 10, "endpoint": None, "points": points})


def page(theme: str = "system") -> str:
    """The style guide as a page of the console, signed in as operator."""
    places = ("Flow", "Search", "Dead letters", "Queues", "Scheduled", "Workers", "Mailbox", "Audit")
    nav = [
        NavItem(
            name.split()[0].lower(),
            "#",
            name,
            name.split()[0].lower(),
            *((3, "bad") if name.startswith("Dead") else (None, "idle")),
        )
        for name in places
    ]
    return (
        environment()
        .get_template("style_guide.html")
        .render(
            url=lambda path: path,
            static=lambda path: f"/static/{path}",
            events="/events",
            nav=nav,
            here="flow",
            user={"role": "operator", "name": "Ada"},
            csrf="token",
            flash={"tone": "ok", "text": "3 letters were replayed."},
            theme=theme,
            version="0.1.0",
            program="orders",
            view=_view(),
        )
    )


class _Handler(BaseHTTPRequestHandler):
    """Serves the page, its figures, and the console's static files."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        kind, body = "." + path.rpartition(".")[2], b""
        if path.startswith("/static/"):
            file = (STATIC / path.removeprefix("/static/")).resolve()
            if not file.is_relative_to(STATIC) or not file.is_file():
                self.send_error(404)
                return
            body = file.read_bytes()
        elif path == "/chart.json":
            body = _history()
        elif path == "/events":
            self.send_error(503)
            return
        else:
            kind, body = ".html", page(query or "system").encode()
        self.send_response(200)
        self.send_header("Content-Type", KINDS.get(kind, "text/plain"))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the standard library's signature
        """Quiet."""


@contextmanager
def served(port: int = 0) -> Iterator[str]:
    """The style guide's address, while it is served."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join(timeout=10)
        server.server_close()


if __name__ == "__main__":
    with served(int(sys.argv[1]) if len(sys.argv) > 1 else 0) as address:
        sys.stdout.write(f"{address} (and {address}?dark), until Ctrl-C\n")
        sys.stdout.flush()
        threading.Event().wait()
