"""What an operator sets for the console: HOPLINE_CONSOLE_<NAME> for every field.

Safe by itself: it listens on this machine only, and without a password it is open only to who has the one-time link
of its log. On an address that others reach it refuses to start without a password.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping

import msgspec

from hopline.errors import UsageError

PREFIX = "HOPLINE_CONSOLE_"
PASSWORD_CHARACTERS = 8
"""The fewest of a password."""
SECRET_CHARACTERS = 32
"""The fewest of the secret that signs cookies: 16 random bytes in hexadecimal."""

_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")


class ConsoleSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one console; `ConsoleSettings.from_environment()` reads them."""

    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = 8100
    """The port to listen on."""
    operator_password: str = ""
    """Signs in who may look and act."""
    viewer_password: str = ""
    """Signs in who may look, with personal data masked."""
    secret: str = ""
    """Signs the cookies; empty: a random one of each process, so that a restart signs everybody out."""
    link_token: str = ""
    """The first one-time link's secret part; empty: a random one. Only without passwords."""
    session_hours: float = 12.0
    """How long a sign-in lasts."""
    path: str = ""
    """Where it is mounted, such as /console, if the outer application does not say so (ASGI's root_path)."""
    proxies: str = ""
    """Addresses of reverse proxies whose X-Forwarded-* headers are believed, with commas between them."""
    personal_fields: str = "email,name"
    """Fields with personal data, masked for viewers; with commas between them."""
    viewer_reveals: bool = True
    """Whether viewers may uncover personal data, for a reason that is written down."""
    title: str = ""
    """The program's name on every page; empty: Hopline."""
    sample_seconds: float = 3.0
    """How often the flow is measured while somebody looks."""
    streams: int = 100
    """Pages that are kept live at once; one more is told to try later."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ConsoleSettings:
        """Reads HOPLINE_CONSOLE_<NAME> for every field; UsageError names a value that does not parse."""
        environment = os.environ if environment is None else environment
        given = {
            name: environment[PREFIX + name.upper()]
            for name in cls.__struct_fields__
            if PREFIX + name.upper() in environment
        }
        try:
            settings = msgspec.convert(given, cls, strict=False)
        except msgspec.ValidationError as error:
            raise UsageError(f"a {PREFIX}* environment variable does not parse: {error}") from None
        settings.check()
        return settings

    def check(self) -> None:
        """Refuses what would be unsafe or cannot work."""
        for name in ("operator_password", "viewer_password"):
            if 0 < len(getattr(self, name)) < PASSWORD_CHARACTERS:
                raise UsageError(f"{PREFIX}{name.upper()} has at least {PASSWORD_CHARACTERS} characters")
        if self.operator_password and self.operator_password == self.viewer_password:
            raise UsageError("the two passwords of the console must differ: each signs in to its own role")
        if 0 < len(self.secret) < SECRET_CHARACTERS:
            raise UsageError(f"{PREFIX}SECRET has at least {SECRET_CHARACTERS} characters: openssl rand -hex 32")
        if not _PATH.fullmatch(self.path):
            raise UsageError(f"{PREFIX}PATH={self.path!r} is no path such as /console")
        if not 0 <= self.port <= 65_535:
            raise UsageError(f"{PREFIX}PORT={self.port} is no port")
        for name in ("session_hours", "sample_seconds", "streams"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{PREFIX}{name.upper()} must be above 0")

    def check_listening(self) -> None:
        """UsageError if others could reach it, and nobody needs a password."""
        if not self.has_password and not is_loopback(self.host):
            raise UsageError(
                f"the console would listen on {self.host}, where others reach it, and has no password: set "
                f"{PREFIX}OPERATOR_PASSWORD (and {PREFIX}VIEWER_PASSWORD), or listen on 127.0.0.1"
            )

    @property
    def has_password(self) -> bool:
        """Whether people sign in with a password; else with the one-time link."""
        return bool(self.operator_password or self.viewer_password)

    @property
    def personal(self) -> frozenset[str]:
        """The names of the fields with personal data."""
        return frozenset(name.strip() for name in self.personal_fields.split(",") if name.strip())


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
