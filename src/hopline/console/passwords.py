"""Signing in: which role a password or a one-time link gives, and how often one may try. No I/O.

Failures are limited for each client and for all together. The answers do not tell which of it was wrong, and
comparing takes the same time whatever was given.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from collections.abc import Callable

from hopline.console.sessions import Role

CLIENT_FAILURES = 5
ALL_FAILURES = 100
WINDOW_SECONDS = 300.0
"""So many failed sign-ins of one client, and of all, within this time."""
CLIENTS = 4_096
"""So many clients are remembered; IPv6 ones by their network (/64)."""


class Passwords:
    """The passwords of the two roles, kept as hashes; an empty one signs nobody in."""

    def __init__(self, *, operator: str, viewer: str) -> None:
        given: tuple[tuple[Role, str], ...] = (("operator", operator), ("viewer", viewer))
        self._hashes = [(role, _hash(password)) for role, password in given if password]

    def role_of(self, password: str) -> Role | None:
        """The role that the password gives."""
        given = _hash(password)
        found: Role | None = None
        for role, known in self._hashes:
            if secrets.compare_digest(given, known):
                found = role
        return found


class OneTimeLink:
    """A link that signs in once, as operator; after that there is a new one."""

    def __init__(self, first: str = "") -> None:
        self.token = first or secrets.token_urlsafe(24)

    def use(self, token: str) -> bool:
        """Whether it is the link's token; then it is used up."""
        if not secrets.compare_digest(_hash(token), _hash(self.token)):
            return False
        self.token = secrets.token_urlsafe(24)
        return True


class Failures:
    """Counts failed sign-ins within a window; bounded in clients and in time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._by_client: dict[str, list[float]] = {}
        self._all: list[float] = []

    def add(self, address: str) -> None:
        """One more failure."""
        client = _client(address)
        now = self._clock()
        times = [*self._recent(self._by_client.pop(client, [])), now]
        while len(self._by_client) >= CLIENTS:
            del self._by_client[next(iter(self._by_client))]
        self._by_client[client] = times[-CLIENT_FAILURES:]
        self._all = [*self._recent(self._all), now][-ALL_FAILURES:]

    def wait_seconds(self, address: str) -> int:
        """For how long this client may not try; 0: it may now."""
        now = self._clock()
        mine = self._recent(self._by_client.get(_client(address), []))
        everyone = self._recent(self._all)
        waits = [
            times[0] + WINDOW_SECONDS - now
            for times, most in ((mine, CLIENT_FAILURES), (everyone, ALL_FAILURES))
            if len(times) >= most
        ]
        return int(max(waits, default=-1.0)) + 1

    def _recent(self, times: list[float]) -> list[float]:
        after = self._clock() - WINDOW_SECONDS
        return [time for time in times if time > after]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def _client(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address
