"""Every request's sign-in: by the session's cookie, or for programs by password on each request (HTTP Basic).

Basic is for /api only, and no answer asks for it, so that no browser remembers a password and sends it by itself.
"""

from __future__ import annotations

import base64
import binascii

from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException, TooManyRequestsException
from litestar.middleware.authentication import AbstractAuthenticationMiddleware, AuthenticationResult

from hopline.console.desk import Desk
from hopline.console.rendering import SESSION_COOKIE
from hopline.console.request import Connection, address_of, is_api
from hopline.console.sessions import Session

REFUSED = "the password is not right, or the link was used already"
"""The one answer to every sign-in that fails."""
BY_PASSWORD = "password"  # noqa: S105 - a word, no password
BY_COOKIE = "cookie"


class Authentication(AbstractAuthenticationMiddleware):
    """Sets the request's user to its Session, or to None."""

    async def authenticate_request(self, connection: ASGIConnection) -> AuthenticationResult:  # type: ignore[type-arg]
        """Never refuses what gives nothing: whether somebody must be signed in is for each route to say."""
        desk: Desk = connection.app.state.desk
        header = connection.headers.get("authorization", "")
        if header and is_api(connection):
            return AuthenticationResult(user=_by_password(desk, connection, header), auth=BY_PASSWORD)
        session = desk.sessions.find(connection.cookies.get(SESSION_COOKIE))
        return AuthenticationResult(user=session, auth=BY_COOKIE if session else None)


def _by_password(desk: Desk, connection: Connection, header: str) -> Session:
    name, password = _basic(header)
    check_rate(desk, connection)
    role = desk.passwords.role_of(password)
    if role is None:
        desk.failures.add(address_of(connection))
        raise NotAuthorizedException(REFUSED)
    return desk.sessions.begin(role, name)[0]


def _basic(header: str) -> tuple[str, str]:
    """Name and password of an Authorization header (RFC 7617); two empty texts if it has none."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return name, password


def check_rate(desk: Desk, connection: Connection) -> None:
    """429 if this client, or all together, have failed to sign in too often."""
    wait = desk.failures.wait_seconds(address_of(connection))
    if wait > 0:
        raise TooManyRequestsException(
            "too many sign-ins have failed; try again later", headers={"Retry-After": str(wait)}
        )
