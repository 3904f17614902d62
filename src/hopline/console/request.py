"""What a request says: who is signed in, where from, which page, and how its URLs begin. No I/O."""

from __future__ import annotations

from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException

from hopline.console.sessions import Session

Http = Request[Any, Any, Any]
Connection = ASGIConnection[Any, Any, Any, Any]

API = "/api"
PARAMETER_CHARACTERS = 500
"""As much of a parameter of the URL is read."""


def session_of(connection: Connection) -> Session:
    """Who is signed in, where somebody must be; 401."""
    session = connection.scope.get("user")
    if not isinstance(session, Session):
        raise NotAuthorizedException("sign in first")
    return session


def who(request: Http) -> str:
    """The name for the audit log."""
    return session_of(request).who(address_of(request))


def address_of(connection: Connection) -> str:
    """Where a request comes from."""
    return connection.client.host if connection.client else "unknown"


def is_secure(connection: Connection) -> bool:
    """Whether the browser uses TLS."""
    return connection.scope.get("scheme") == "https"


def path_of(connection: Connection) -> str:
    """The request's path within the console."""
    path, root = str(connection.scope["path"]), root_of(connection)
    return path.removeprefix(root) if root else path


def root_of(connection: Connection) -> str:
    """Where the console is mounted, without a slash at its end; empty if it is all that is served."""
    return (str(connection.scope.get("root_path", "")) or str(connection.app.state.path)).rstrip("/")


def url_for(connection: Connection, path: str) -> str:
    """A path within the console as the browser knows it, below the mount path."""
    return root_of(connection) + path


def is_api(connection: Connection) -> bool:
    """Whether a program asks: it gets JSON."""
    return path_of(connection).startswith(f"{API}/")


def query(request: Http, name: str) -> str:
    """A parameter of the URL, cut; empty if it was not given."""
    return str(request.query_params.get(name, ""))[:PARAMETER_CHARACTERS]
