"""Pages from templates: what every page is given, beside its own struct, and what is told once on the next page.

Autoescape is on and a name that is not there is an error, so that no value reaches a page unescaped or unseen.
Static files stand below a hash of their content, so that a browser may keep them for ever.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from litestar import Response
from litestar.datastructures import Cookie

from hopline.console import formatting
from hopline.console.live import Sample
from hopline.console.request import Connection, Http, is_secure, root_of, url_for
from hopline.console.sessions import Flash, Session, Sessions, Signer

STATIC = Path(__file__).parent / "static"
FLASH_COOKIE = "hopline_flash"
THEME_COOKIE = "hopline_theme"
THEMES = ("system", "light", "dark")
FLASH_SECONDS = 60

VERSION = version("hopline")


class NavItem(msgspec.Struct, frozen=True):
    """One place of the navigation."""

    key: str
    href: str
    label: str
    icon: str
    count: int | None = None
    tone: str = "idle"


class Rendering:
    """Renders the pages of one console."""

    def __init__(self, program: str, sessions: Sessions, signer: Signer, *, has_mailbox: bool) -> None:
        self._program = program
        self._sessions = sessions
        self._signer = signer
        self._has_mailbox = has_mailbox
        self._environment = environment()

    def page(
        self, request: Http, template: str, here: str, view: Any, *, status: int = 200, **more: Any
    ) -> Response[str]:
        """A whole page. In the template the page's struct is `view`."""
        flash = self._told(request)
        context = {**self._context(request, here, flash), "view": view, **more}
        html = self._environment.get_template(template).render(context)
        answer = Response(html, status_code=status, media_type="text/html")
        if flash is not None:
            answer.delete_cookie(FLASH_COOKIE, path=cookie_path(request))
        return answer

    def fragment(self, connection: Connection, template: str, view: Any) -> str:
        """A part of a page, as the event stream sends it."""
        return self._environment.get_template(template).render(_urls(connection), view=view)

    def tell(self, request: Http, answer: Response[Any], flash: Flash) -> None:
        """Has the next page tell something, once."""
        cut = Flash(flash.tone, formatting.one_line(flash.text, 500))
        answer.set_cookie(_cookie(request, FLASH_COOKIE, self._signer.sign("flash", cut), FLASH_SECONDS))

    def _told(self, request: Http) -> Flash | None:
        cookie = request.cookies.get(FLASH_COOKIE, "")
        return self._signer.read("flash", Flash, cookie) if cookie else None

    def _context(self, request: Http, here: str, flash: Flash | None) -> dict[str, Any]:
        session = request.scope.get("user")
        user = session if isinstance(session, Session) else None
        theme = request.cookies.get(THEME_COOKIE, "system")
        return {
            **_urls(request),
            "nav": self._nav(request) if user else [],
            "here": here,
            "user": {"role": user.role, "name": user.name} if user else None,
            "csrf": self._sessions.csrf(user) if user else "",
            "flash": flash,
            "theme": theme if theme in THEMES else "system",
            "version": VERSION,
            "program": self._program,
            "events": "/events",
        }

    def _nav(self, request: Http) -> list[NavItem]:
        places = [
            ("flow", "/", "Flow"),
            ("search", "/search", "Search"),
            ("dead", "/dead", "Dead letters"),
            ("queues", "/queues", "Queues"),
            ("scheduled", "/scheduled", "Scheduled"),
            ("workers", "/workers", "Workers"),
            *([("mailbox", "/mailbox", "Mailbox")] if self._has_mailbox else []),
            ("audit", "/audit", "Audit"),
        ]
        sample: Sample | None = request.app.state.desk.live.known
        counts = _counts(sample)
        return [
            NavItem(key, url_for(request, path), label, key, *counts.get(key, (None, "idle")))
            for key, path, label in places
        ]


def _counts(sample: Sample | None) -> dict[str, tuple[int, str]]:
    status = sample.status if sample else None
    if status is None:
        return {}
    waiting = status.outbox.retrying + status.outbox.delayed
    return {
        "dead": (status.parked, "bad" if status.parked else "idle"),
        "scheduled": (waiting, "idle"),
    }


def _urls(connection: Connection) -> dict[str, Any]:
    return {
        "url": lambda path: url_for(connection, path),
        "static": lambda path: url_for(connection, f"{static_place()}/{path}"),
    }


@cache
def static_place() -> str:
    """Where the static files are: a path that names their content, so that modules find each other's same version."""
    digest = hashlib.sha256()
    for file in sorted(path for path in STATIC.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(STATIC)}\n".encode() + file.read_bytes())
    return f"/static/{digest.hexdigest()[:12]}"


def environment() -> jinja2.Environment:
    """The templates, with their filters."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("hopline.console"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["unique"] = count(1).__next__
    made.filters |= {
        "ago": formatting.ago,
        "duration": formatting.duration,
        "number": formatting.number,
        "bytes": formatting.size,
        "moment": formatting.moment,
        "one_line": formatting.one_line,
        "visible": formatting.visible,
        "part": formatting.path_part,
        "counted": formatting.counted,
        "target": target_path,
    }
    return made


def target_path(target: str) -> str:
    """The page of what an entry of the audit log was done to; empty if there is none."""
    kind, _, name = target.partition(" ")
    place = {"dead-letter": "/dead/letters/", "message": "/messages/", "queue": "/queues/"}.get(kind)
    return place + formatting.path_part(name) if place else ""


def cookie_path(connection: Connection) -> str:
    """Cookies go to the console only."""
    return root_of(connection) or "/"


def _cookie(connection: Connection, name: str, value: str, seconds: int) -> Cookie:
    """A cookie that no script reads and no other site sends."""
    return Cookie(
        name,
        path=cookie_path(connection),
        value=value,
        max_age=seconds,
        httponly=True,
        samesite="strict",
        secure=is_secure(connection),
    )


def session_cookie(connection: Connection, value: str, seconds: int) -> Cookie:
    """The cookie that proves a session."""
    return _cookie(connection, SESSION_COOKIE, value, seconds)


SESSION_COOKIE = "hopline_session"
