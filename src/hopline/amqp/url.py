"""Connection URLs, `amqp://` and `amqps://`, read into an Address.

    amqps://user:password@host1:5671,host2/vhost?heartbeat=10&cacertfile=/etc/ca.pem

The form and the query parameters are RabbitMQ's (https://www.rabbitmq.com/docs/uri-spec and uri-query-parameters),
plus several hosts with commas between them, tried in turn. Everything is percent-decoded. No path and an empty path
both mean the virtual host `/`, which is `/%2F` in full. Refused: unknown parameters, since a misspelt one would
silently do nothing.

Invariant: neither the text of an error nor `repr` of an Address contains any part of the user name or the password,
not even of a URL that is cut at the wrong place because a character of them is not percent-encoded. An error therefore
quotes nothing of the URL, and an `@` after the hosts is refused.
"""

import difflib
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote

from hopline.amqp.errors import InvalidURL
from hopline.amqp.spec import FRAME_MAX_LOWEST, PORT_MAX, SHORT_STRING_BYTES_MAX

_PORTS: Final = {"amqp": 5672, "amqps": 5671}
_U16_MAX: Final = 65_535
_MILLISECONDS_MAX: Final = 86_400_000
_FRAME_BYTES_MAX: Final = 2**31 - 1
_NUMBERS: Final = {
    "heartbeat": range(_U16_MAX + 1),
    "connection_timeout": range(1, _MILLISECONDS_MAX + 1),
    "channel_max": range(1, _U16_MAX + 1),
    "frame_max": range(FRAME_MAX_LOWEST, _FRAME_BYTES_MAX + 1),
}
"""The ranges that AMQP's fields, or sense, admit."""
_TEXTS: Final = ("cacertfile", "certfile", "keyfile", "verify", "server_name_indication", "auth_mechanism")
_BLANK: Final = re.compile(r"[\s\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Address:
    """Where and how to connect. None means that the URL does not say."""

    hosts: tuple[tuple[str, int], ...]
    tls: bool
    user: str = field(repr=False)
    password: str = field(repr=False)
    vhost: str
    external: bool = False
    """Log in with the client certificate (SASL EXTERNAL) instead of the password."""
    heartbeat_seconds: int | None = None
    timeout_seconds: float | None = None
    channel_max: int | None = None
    frame_max: int | None = None
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    verify: bool = True
    server_name: str | None = None


def parse_url(url: str) -> Address:
    """Reads a URL. Raises InvalidURL."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _PORTS:
        raise InvalidURL("a URL begins with amqp:// or amqps://")
    if _BLANK.search(url) or not _is_text(url):
        raise InvalidURL("a URL has no blanks, control characters or bytes that are not UTF-8: percent-encode them")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    if "@" in path or "@" in query:
        raise InvalidURL(
            "an @ stands after the hosts: in a user name or password / is written %2F and ? %3F, elsewhere @ is %40"
        )
    if "/" in path:
        raise InvalidURL("a slash within the virtual host's name is written %2F")
    login, at, hosts = authority.rpartition("@")
    user, colon, password = login.partition(":")
    if len(unquote(path).encode()) > SHORT_STRING_BYTES_MAX:
        raise InvalidURL(f"the virtual host's name is longer than {SHORT_STRING_BYTES_MAX} bytes")
    values = _parameters(query)
    return Address(
        hosts=tuple(_host(host, _PORTS[scheme]) for host in hosts.split(",")),
        tls=scheme == "amqps",
        user=unquote(user) if at else "guest",
        password=unquote(password) if colon else ("" if at else "guest"),
        vhost=unquote(path) if slash and path else "/",
        external=_choice(values, "auth_mechanism", "plain", "external"),
        heartbeat_seconds=_number(values, "heartbeat"),
        timeout_seconds=_milliseconds(values, "connection_timeout"),
        channel_max=_number(values, "channel_max"),
        frame_max=_number(values, "frame_max"),
        ca_file=values.get("cacertfile"),
        certificate_file=values.get("certfile"),
        key_file=values.get("keyfile"),
        verify=not _choice(values, "verify", "verify_peer", "verify_none"),
        server_name=values.get("server_name_indication"),
    )


def _host(text: str, default_port: int) -> tuple[str, int]:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise InvalidURL("a host in brackets is [IPv6 address] or [IPv6 address]:port")
        port = port[1:]
    else:
        host, _, port = text.partition(":")
    if port and _whole(port, range(1, PORT_MAX + 1)) is None:
        raise InvalidURL(f"a port is a number from 1 to {PORT_MAX}, or the part before the hosts lacks its @")
    return unquote(host) or "localhost", int(port) if port else default_port


def _parameters(query: str) -> dict[str, str]:
    values = dict(parse_qsl(query, keep_blank_values=True))
    known = (*_NUMBERS, *_TEXTS)
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise InvalidURL(f"a parameter is unknown{hint}; known are {', '.join(known)}")
    return values


def _number(values: dict[str, str], name: str) -> int | None:
    text = values.get(name)
    if text is None:
        return None
    number = _whole(text, _NUMBERS[name])
    if number is None:
        raise InvalidURL(f"{name} is a whole number from {_NUMBERS[name].start} to {_NUMBERS[name].stop - 1}")
    return number


def _whole(text: str, allowed: range) -> int | None:
    """The number that the text is, if it is an allowed one."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(allowed.stop))):
        return None
    return int(text) if int(text) in allowed else None


def _is_text(url: str) -> bool:
    try:
        url.encode()
    except UnicodeEncodeError:  # an environment variable that is not UTF-8
        return False
    return True


def _milliseconds(values: dict[str, str], name: str) -> float | None:
    number = _number(values, name)
    return None if number is None else number / 1000


def _choice(values: dict[str, str], name: str, default: str, other: str) -> bool:
    """Whether the parameter names the other of its two values."""
    text = values.get(name, default).lower()
    if text not in (default, other):
        raise InvalidURL(f"{name} is {default} or {other}")
    return text == other
