"""The console as an ASGI application: its routes, and what holds for all of them.

Every answer has the headers that keep a page from running anything that is not ours, whatever data it shows; every
route says who may call it, and one that does not is for operators.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.datastructures import MutableScopeHeaders
from litestar.static_files import create_static_files_router
from litestar.types import ControllerRouterHandler, Message, Scope

from hopline.app import Hopline
from hopline.console import errors, events, signing_in
from hopline.console.authenticating import Authentication
from hopline.console.config import ConsoleSettings
from hopline.console.desk import Desk, code_of
from hopline.console.live import Live
from hopline.console.mailbox import Mailbox
from hopline.console.pages import audit, dead, flow, letter, message, queues, replays, scheduled, search, story, workers
from hopline.console.pages import mailbox as mailbox_page
from hopline.console.passwords import Failures, OneTimeLink, Passwords
from hopline.console.rendering import STATIC, Rendering, static_place
from hopline.console.replays import Replays
from hopline.console.sessions import Sessions, Signer
from hopline.console.web import FORM_BYTES, access, check_access
from hopline.database import Database
from hopline.history import Rate, rates
from hopline.outbox import Outbox
from hopline.status import Status, snapshot

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'self'; frame-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
STATIC_SECONDS = 31_536_000
"""The path names the content: what is under one path never changes."""

_STATIC = re.compile(r"/static/")


def create_console(app: Hopline, settings: ConsoleSettings, *, mailbox: Mailbox | None = None) -> Litestar:
    """The console of a program. Its lifespan closes what it has opened: docs/how-to/use-the-console.md mounts it.

    UsageError if the settings are unsafe. The database and RabbitMQ may be down: the pages say so.
    """
    settings.check()

    @asynccontextmanager
    async def running(console: Litestar) -> AsyncIterator[None]:
        desk: Desk = console.state.desk
        try:
            yield
        finally:
            await desk.close()

    console = Litestar(
        route_handlers=[*_routes(mailbox), _static()],
        guards=[check_access],
        middleware=[Authentication],
        lifespan=[running],
        before_send=[_secure],
        request_max_body_size=FORM_BYTES,
        exception_handlers={Exception: errors.answer},
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    console.state.desk = _desk(app, settings, mailbox)
    console.state.path = settings.path
    return console


def _routes(mailbox: Mailbox | None) -> Sequence[ControllerRouterHandler]:
    return [
        *flow.ROUTES,
        *search.ROUTES,
        *story.ROUTES,
        *message.ROUTES,
        *dead.ROUTES,
        *letter.ROUTES,
        *replays.ROUTES,
        *queues.ROUTES,
        *scheduled.ROUTES,
        *workers.ROUTES,
        *audit.ROUTES,
        *mailbox_page.routes(mailbox),
        *events.ROUTES,
        *signing_in.ROUTES,
    ]


def _static() -> ControllerRouterHandler:
    return create_static_files_router(static_place(), directories=[STATIC], opt=access("anyone"))


def _desk(app: Hopline, settings: ConsoleSettings, mailbox: Mailbox | None) -> Desk:
    database = Database(app.settings.database_url, message_limit_bytes=app.settings.message_limit_bytes)
    database.riders.append(Outbox(limit=app.settings.outbox_limit, lease_seconds=app.settings.lease_seconds))
    signer = Signer(settings.secret)
    sessions = Sessions(signer, seconds=settings.session_hours * 3_600, clock=time.time)
    code = code_of(app)

    async def measure() -> tuple[Status, Mapping[str, Rate]]:
        return await snapshot(database, app.handlers.queues(), app.settings), await rates(database)

    return Desk(
        app=app,
        settings=settings,
        database=database,
        code=code,
        live=Live(measure, seconds=settings.sample_seconds, streams=settings.streams),
        rendering=Rendering(settings.title or "Hopline", sessions, signer, has_mailbox=mailbox is not None),
        sessions=sessions,
        passwords=Passwords(operator=settings.operator_password, viewer=settings.viewer_password),
        link=None if settings.has_password else OneTimeLink(settings.link_token),
        failures=Failures(time.monotonic),
        replays=Replays(database, code),
        mailbox=mailbox,
    )


async def _secure(message: Message, scope: Scope) -> None:
    """The headers of every answer, errors and static files too."""
    if message["type"] != "http.response.start":
        return
    headers = MutableScopeHeaders.from_message(message)
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    static = _STATIC.search(str(scope["path"])) is not None and message["status"] == 200
    headers["Cache-Control"] = f"public, max-age={STATIC_SECONDS}, immutable" if static else "no-store"
