"""What an operator sets for the console: HOPLINE_CONSOLE_<NAME> for every field.

Safe by itself: it listens on this machine only, and without a password it is open only to who has the one-time link
of its log. On an address that others reach it refuses to start without a password.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, ClassVar

import msgspec

from hopline.environment import EnvironmentSettings, Port, Secret
from hopline.errors import UsageError

PREFIX = "HOPLINE_CONSOLE_"
PASSWORD_CHARACTERS = 8
"""The fewest of a password."""
SECRET_CHARACTERS = 32
"""The fewest of the secret that signs cookies: 16 random bytes in hexadecimal."""

_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")


class ConsoleSettings(EnvironmentSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one console; `ConsoleSettings.from_environment()` reads them."""

    PREFIX: ClassVar[str] = PREFIX
    ALSO_KNOWN: ClassVar[frozenset[str]] = frozenset({"HOPLINE_CONSOLE_MAILBOX"})  # `hopline console`

    host: str = "127.0.0.1"
    """The address to listen on."""
    port: Port = 8100
    """The port to listen on."""
    operator_password: Secret = ""
    """Signs in who may look and act."""
    viewer_password: Secret = ""
    """Signs in who may look, with personal data masked."""
    secret: Secret = ""
    """Signs the cookies; empty: a random one of each process, so that a restart signs everybody out."""
    link_token: Secret = ""
    """The first one-time link's secret part; empty: a random one. Only without passwords."""
    session_hours: Annotated[float, msgspec.Meta(ge=0.05, le=8_760)] = 12.0
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
    sample_seconds: Annotated[float, msgspec.Meta(ge=0.01, le=3_600)] = 3.0
    """How often the flow is measured while somebody looks."""
    streams: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    """Pages that are kept live at once; one more is told to try later."""

    def check(self) -> None:
        """Refuses what is in its range, and would be unsafe or cannot work."""
        for name in ("operator_password", "viewer_password"):
            if 0 < len(getattr(self, name)) < PASSWORD_CHARACTERS:
                raise UsageError(f"{PREFIX}{name.upper()} has at least {PASSWORD_CHARACTERS} characters")
        if self.operator_password and self.operator_password == self.viewer_password:
            raise UsageError("the two passwords of the console must differ: each signs in to its own role")
        if 0 < len(self.secret) < SECRET_CHARACTERS:
            raise UsageError(f"{PREFIX}SECRET has at least {SECRET_CHARACTERS} characters: openssl rand -hex 32")
        if not _PATH.fullmatch(self.path):
            raise UsageError(f"{PREFIX}PATH={self.path!r} is no path such as /console")

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
