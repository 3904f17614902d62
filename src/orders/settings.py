"""What an operator sets for the orders system: ORDERS_<NAME> for every field, beside the engine's HOPLINE_*."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final
from urllib.parse import unquote, urlsplit

from hopline import EnvironmentSettings, Url, UsageError, redacted

PREFIX = "ORDERS_"

_PORTS: Final = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}


class OrdersSettings(EnvironmentSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of the orders system; `OrdersSettings.from_environment()` reads them."""

    PREFIX: ClassVar[str] = PREFIX

    smtp_url: Url = "smtp://127.0.0.1:1025"
    """The mail server: smtp://, smtp+starttls:// or smtps://[USER:PASSWORD@]HOST[:PORT]."""
    mail_from: str = "Orders <orders@example.com>"
    """The sender of every mail, as its From header has it."""
    mail_ledger: str = ""
    """The file of the development mailbox, which the console shows."""

    def check(self) -> None:
        """Refuses a URL that names no mail server."""
        smtp_server(self.smtp_url)


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """Where the mail server is, and how to log in."""

    scheme: str
    host: str
    port: int
    user: str | None
    password: str | None = field(repr=False)


def smtp_server(url: str) -> SmtpServer:
    """The mail server of a URL. UsageError, which shows no password, says what is wrong with it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # an address in brackets that is none, or a port that is no number
        host, port = None, None
    if not host or parts.scheme not in _PORTS or port == 0:
        raise UsageError(
            "ORDERS_SMTP_URL is smtp://, smtp+starttls:// or smtps://[USER:PASSWORD@]HOST[:PORT], "
            f"not {redacted(url)}; escape what is no letter and no digit in the password, as in %2F for /"
        )
    return SmtpServer(
        scheme=parts.scheme,
        host=host,
        port=port or _PORTS[parts.scheme],
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )
