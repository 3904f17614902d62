"""Connection URLs, `amqp://` and `amqps://`, read into an Address.

    amqps://user:password@host1:5671,host2/vhost?heartbeat=10&cacertfile=/etc/ca.pem

The form and the query parameters are RabbitMQ's (https://www.rabbitmq.com/docs/uri-spec and uri-query-parameters),
plus several hosts with commas between them, tried in turn. Everything is percent-decoded. No path and an empty path
both mean the virtual host `/`, which is `/%2F` in full. Refused: unknown parameters, since a misspelt one would
silently do nothing.

Invariant: neither the text of an error nor `repr` of an Address contains the password.
"""

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote

from hopline.amqp.errors import InvalidURL
from hopline.amqp.spec import PORT_MAX

_PORTS: Final = {"amqp": 5672, "amqps": 5671}
_DIGITS_MAX: Final = 9
_NUMBERS: Final = ("heartbeat", "connection_timeout", "channel_max", "frame_max")
_TEXTS: Final = ("cacertfile", "certfile", "keyfile", "verify", "server_name_indication", "auth_mechanism")


@dataclass(frozen=True, slots=True)
class Address:
    """Where and how to connect. None means that the URL does not say."""

    hosts: tuple[tuple[str, int], ...]
    tls: bool
    user: str
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
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    if "/" in path:
        raise InvalidURL("a slash within the virtual host's name is written %2F")
    login, at, hosts = authority.rpartition("@")
    user, colon, password = login.partition(":")
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
            raise InvalidURL(f"not a host: {text!r}")
        port = port[1:]
    else:
        host, _, port = text.partition(":")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) <= PORT_MAX):
        raise InvalidURL(f"not a port number: {port!r}")
    return unquote(host) or "localhost", int(port) if port else default_port


def _parameters(query: str) -> dict[str, str]:
    values = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(values.keys() - {*_NUMBERS, *_TEXTS})
    if unknown:
        raise InvalidURL(f"unknown parameter {unknown[0]!r}; known are {', '.join((*_NUMBERS, *_TEXTS))}")
    return values


def _number(values: dict[str, str], name: str) -> int | None:
    text = values.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX):
        raise InvalidURL(f"{name} is a whole number, not {text!r}")
    return int(text)


def _milliseconds(values: dict[str, str], name: str) -> float | None:
    number = _number(values, name)
    return None if number is None else number / 1000


def _choice(values: dict[str, str], name: str, default: str, other: str) -> bool:
    """Whether the parameter names the other of its two values."""
    text = values.get(name, default).lower()
    if text not in (default, other):
        raise InvalidURL(f"{name} is {default} or {other}, not {text!r}")
    return text == other
