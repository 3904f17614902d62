"""The console for tests: its application on a database with something of everything, and people who are signed in."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlencode

import httpx
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute

from hopline import auditlog, deadletter_queries, free_ports, scheduled
from hopline.app import Hopline
from hopline.auditlog import LogFilter, Recorded
from hopline.console import ConsoleSettings, Mailbox, create_console
from hopline.console.desk import Desk
from hopline.database import Database
from hopline.deadletter_queries import Filter
from hopline.heartbeat import Heartbeat
from hopline.scheduled import ScheduledFilter
from hopline.settings import Settings
from tests.support.letters import Lost, Packed, dead, handlers, opened, parked

OPERATOR_PASSWORD = "operators only"
VIEWER_PASSWORD = "viewers only"
URL = "http://console.test"
FAR_SECONDS = 3_600.0

_CSRF = re.compile(r'name="csrf" value="([^"]+)"')


@dataclass(frozen=True)
class Route:
    """One method of one path of the console."""

    method: str
    path: str
    """With its parameters, such as /dead/{fingerprint:str}."""
    access: str

    @property
    def is_api(self) -> bool:
        return self.path.startswith("/api/")


def routes_of(console: Litestar) -> Iterator[Route]:
    """Every route, but for the OPTIONS that Litestar answers by itself."""
    for route in console.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                yield from _methods(route.path, handler)


def _methods(path: str, handler: HTTPRouteHandler) -> Iterator[Route]:
    for method in sorted(handler.http_methods):
        if method != "OPTIONS":
            yield Route(str(method), path, str(handler.opt.get("access", "operator")))


@dataclass
class Person:
    """Somebody's browser: keeps cookies, follows no redirect, and knows the token of its session's forms."""

    client: httpx.AsyncClient
    csrf: str = ""

    async def get(self, path: str, **query: str) -> httpx.Response:
        return await self.client.get(f"{path}?{urlencode(query)}" if query else path)

    async def page(self, path: str, **query: str) -> str:
        """A page's HTML, which has to be there."""
        answer = await self.get(path, **query)
        assert answer.status_code == 200, (path, answer.status_code, answer.text[:2_000])
        return answer.text

    async def json(self, path: str, **query: str) -> Any:
        """What a JSON twin says, which has to be there."""
        answer = await self.get(path, **query)
        assert answer.status_code == 200, (path, answer.status_code, answer.text[:2_000])
        assert answer.headers["content-type"].startswith("application/json"), path
        return answer.json()

    async def post(self, path: str, *, csrf: str | None = None, **fields: str | list[str]) -> httpx.Response:
        """Sends a form as its page does, with the session's token unless another is given."""
        token = self.csrf if csrf is None else csrf
        return await self.client.post(path, data={**fields, **({"csrf": token} if token else {})})

    async def act(self, path: str, **fields: str | list[str]) -> str:
        """An action that is done: where the browser is sent, and then what that page tells, once, as a text."""
        answer = await self.post(path, csrf=None, **fields)
        assert answer.status_code == 303, (path, answer.status_code, answer.text[:2_000])
        page = await self.page(answer.headers["location"])
        found = re.search(r'class="notice"[^>]*role="status".*?<p>(.*?)</p>', page, re.DOTALL)
        assert found is not None, (path, page[:2_000])
        return html.unescape(found[1])

    async def sign_in(self, password: str, name: str = "", to: str = "") -> httpx.Response:
        """By password; afterwards the forms' token is known, if it was the right one."""
        answer = await self.post("/sign-in", csrf="", password=password, name=name, next=to)
        if answer.status_code == 303:
            self.csrf = token_of((await self.client.get("/scheduled")).text)
        return answer


def transport_of(application: Callable[..., Any], **options: Any) -> httpx.ASGITransport:
    """To an ASGI application, whatever types it has for ASGI's plain mappings."""
    return httpx.ASGITransport(cast("Any", application), **options)


def token_of(page: str) -> str:
    """The token of a page's forms."""
    found = _CSRF.search(page)
    assert found is not None, page[:2_000]
    return found[1]


@dataclass
class Stocked:
    """A console, its database, and the names of what is in there."""

    console: Litestar
    database: Database
    names: dict[str, str] = field(default_factory=dict)
    """By the routes' parameter, and `second`, `third` (letters), `send`."""

    @property
    def desk(self) -> Desk:
        desk: Desk = self.console.state.desk
        return desk

    def path_of(self, route: Route) -> str:
        """The route's path with what is in the database."""
        return re.sub(r"\{(\w+):\w+\}", lambda found: self.names[found[1]], route.path)

    @asynccontextmanager
    async def person(self, password: str = "", name: str = "", **client: Any) -> AsyncIterator[Person]:
        """A browser, signed in if a password is given."""
        transport = transport_of(self.console, client=("192.0.2.1", 4711))
        async with httpx.AsyncClient(transport=transport, **{"base_url": URL, **client}) as http:
            person = Person(http)
            if password:
                assert (await person.sign_in(password, name)).status_code == 303
            yield person

    async def log(self, action: str | None = None) -> list[Recorded]:
        """The audit log, newest first."""
        async with self.database.reading() as connection:
            return await auditlog.find(connection, LogFilter(action=action), limit=100)


def settings_of(database_url: str, **changes: Any) -> Settings:
    """The engine's, with a RabbitMQ that does not answer unless another is named."""
    (port,) = free_ports(1)
    down = {"broker_url": f"amqp://127.0.0.1:{port}/%2F", "management_url": f"http://127.0.0.1:{port}"}
    return Settings(**{"database_url": database_url, **down, **changes})


def console_settings(**changes: Any) -> ConsoleSettings:
    """The console's, with a password for each role and its figures as fresh as they can be."""
    given = {"operator_password": OPERATOR_PASSWORD, "viewer_password": VIEWER_PASSWORD, "sample_seconds": 0.05}
    return ConsoleSettings(**{**given, **changes})


@asynccontextmanager
async def console(
    database_url: str, *, mailbox: Mailbox | None = None, settings: Settings | None = None, **changes: Any
) -> AsyncIterator[Stocked]:
    """The console of the program of tests.support.letters, on its database, which is made."""
    app = Hopline(handlers=[handlers], messages=[Lost], settings=settings or settings_of(database_url))
    made = create_console(app, console_settings(**changes), mailbox=mailbox)
    one: Desk = made.state.desk
    async with opened(database_url) as database:
        try:
            yield Stocked(made, database)
        finally:
            await one.close()


@asynccontextmanager
async def stocked(database_url: str, **changes: Any) -> AsyncIterator[Stocked]:
    """A console with something of everything, and a worker that beats its heart."""
    async with console(database_url, **changes) as made:
        database = made.database
        async with database.transaction() as tx:
            first = tx.send(Packed("p-1"))
            tx.send(Lost("p-later"), delay_seconds=FAR_SECONDS)
        letters = await parked(database, *(dead(Packed(f"p-{number}")) for number in (2, 3, 4)))
        made.names |= dict(zip(("letter", "second", "third"), letters, strict=True))
        made.names |= {"flow": "p-1", "message": first.id, "queue": "parcels", "instance": "worker-1", "token": "none"}
        made.names |= {"file_path:path": "", "mail": "1", "fingerprint": await _fingerprint(made), "job": "none"}
        made.names |= {"send": await _scheduled(made)}
        heart = Heartbeat(database, "worker-1", "worker", 0.2, state=lambda: {"queues": ["parcels"], "busy": 0})
        heart.start()
        try:
            yield made
        finally:
            await heart.stop()


async def _fingerprint(made: Stocked) -> str:
    async with made.database.reading() as connection:
        (group,) = await deadletter_queries.groups(connection, Filter(key="p-2"))
    return group.fingerprint


async def _scheduled(made: Stocked) -> str:
    async with made.database.reading() as connection:
        (send,) = await scheduled.find(connection, ScheduledFilter(key="p-later"), limit=10)
    return send.id
