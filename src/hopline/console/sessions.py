"""Who is signed in: a signed cookie that says role, name and end. Pure but for the clock that is given.

Nothing is kept per session but the ids of those that signed out, until they would have ended. A cookie's signature
covers its purpose, so that one kind of token never passes for another; a CSRF token is derived from the session, so
that it is of no use with another one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Literal, TypeVar

import msgspec

Role = Literal["viewer", "operator"]
Token = TypeVar("Token", bound=msgspec.Struct)

NAME_CHARACTERS = 64
SIGNED_OUT = 10_000
"""So many sessions that signed out before their end are remembered."""
COOKIE_CHARACTERS = 2_048
"""A longer cookie is not one of ours."""


class Session(msgspec.Struct, frozen=True):
    """One sign-in."""

    id: str
    role: Role
    name: str
    """As the person gave it, for the audit log; may be empty."""
    ends_at: float
    """Unix time."""

    @property
    def is_operator(self) -> bool:
        """Whether it may act."""
        return self.role == "operator"

    def who(self, address: str) -> str:
        """The name for the audit log: the person's, the role, and where from."""
        return f"{self.name} ({self.role}, {address})" if self.name else f"{self.role} ({address})"


class Flash(msgspec.Struct, frozen=True):
    """What is told once, on the next page."""

    tone: Literal["ok", "busy", "warn", "bad", "idle"]
    text: str


class Signer:
    """Signs small structs into text that a client may hold, and reads them back."""

    def __init__(self, secret: str = "") -> None:
        self._key = (secret or secrets.token_hex(32)).encode()

    def sign(self, purpose: str, value: msgspec.Struct) -> str:
        """The value as text, for one purpose."""
        payload = base64.urlsafe_b64encode(msgspec.json.encode(value)).decode().rstrip("=")
        return f"{payload}.{self.digest(purpose, payload)}"

    def read(self, purpose: str, kind: type[Token], text: str) -> Token | None:
        """The value, if this signer signed it for that purpose."""
        payload, _, signature = text[:COOKIE_CHARACTERS].rpartition(".")
        if not hmac.compare_digest(self.digest(purpose, payload).encode(), signature.encode()):
            return None
        try:
            return msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=kind)
        except (binascii.Error, msgspec.DecodeError):
            return None

    def digest(self, purpose: str, text: str) -> str:
        """HMAC-SHA-256 of a text for one purpose, in hexadecimal."""
        return hmac.new(self._key, f"{purpose}\n{text}".encode(), hashlib.sha256).hexdigest()


class Sessions:
    """Begins, finds and ends sessions."""

    def __init__(self, signer: Signer, *, seconds: float, clock: Callable[[], float]) -> None:
        self._signer = signer
        self._seconds = seconds
        self._clock = clock
        self._ended: dict[str, float] = {}

    def begin(self, role: Role, name: str) -> tuple[Session, str]:
        """A new session, and the cookie's value that proves it."""
        cleaned = " ".join("".join(c if c.isprintable() else " " for c in name).split())
        session = Session(secrets.token_hex(16), role, cleaned[:NAME_CHARACTERS], self._clock() + self._seconds)
        return session, self._signer.sign("session", session)

    def find(self, cookie: str | None) -> Session | None:
        """The session that a cookie proves, unless it has ended."""
        session = self._signer.read("session", Session, cookie) if cookie else None
        if session is None or session.ends_at <= self._clock() or session.id in self._ended:
            return None
        return session

    def end(self, session: Session) -> None:
        """Ends a session before its time."""
        now = self._clock()
        self._ended = {identifier: end for identifier, end in self._ended.items() if end > now}
        while len(self._ended) >= SIGNED_OUT:
            del self._ended[next(iter(self._ended))]
        self._ended[session.id] = session.ends_at

    def csrf(self, session: Session) -> str:
        """The token that every form of this session carries."""
        return self._signer.digest("csrf", session.id)

    def has_csrf(self, session: Session, token: str) -> bool:
        """Whether it is this session's token."""
        return hmac.compare_digest(self.csrf(session).encode(), token.encode())
